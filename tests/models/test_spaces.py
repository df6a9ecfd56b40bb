"""Small tangent spaces: tau = B delta, held to dense references in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

import tauspan as ts
from tauspan.core.errors import (
    BaseMismatchError,
    MismatchError,
    ModelError,
    NonFiniteError,
    StoreError,
    UsageError,
)
from tauspan.models import Encoder, fingerprint_of, restrict, select, unrestricted, working_copy
from tauspan.models.bases import spelt
from tauspan.models.intact import Intact

ROWS = torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(0))


class Turned(nn.Module):
    """A layer of somebody's own that stores its weight as it likes."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(a, b))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Net(nn.Module):
    """Attention that reads the tensors of its layers itself, convolutions, GPT-2's layer, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.words = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.conv = nn.Conv1d(8, 6, 3, padding=1, stride=2)
        self.grouped = nn.Conv1d(6, 6, 3, groups=2, padding=1)
        self.gpt = Conv1D(5, 6)
        self.own = Turned(5, 6)
        self.tied = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.tied.weight
        self.norm = nn.LayerNorm(6)
        self.plane = nn.Conv2d(1, 4, (2, 3))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.grouped(self.conv(self.block(self.words(ids)).mT)).mT
        x = torch.tanh(self.own(self.gpt(x.contiguous())))
        x = torch.tanh(self.again(torch.tanh(self.tied(x))))
        found: Tensor = self.plane(self.norm(x).mT[:, None, :, :3])
        return found.flatten(1)


def net(seed: int = 0) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Net().double().eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Encoder(made)


def drawn(shapes: Any, seed: int = 1, scale: float = 0.1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(t.shape, generator=draw, dtype=torch.float64) for n, t in shapes.items()}


def vector(small: Encoder, seed: int = 1, regime: Any = "linear", scale: float = 0.1) -> ts.TaskVector:
    tau = dict(small.backbone.named_parameters())
    deltas = drawn({name: tau[name] for name in select(small)}, seed, scale)
    return ts.TaskVector(deltas, fingerprint_of(small), regime, "small", space=small.space)


def own_bases(encoder: Encoder) -> dict[str, Any]:
    """Whole tensors for a bias, an embedding and a norm; pairs for an attention projection and a layer."""
    draw = torch.Generator().manual_seed(5)

    def make(*shape: int) -> Tensor:
        """Orthonormal directions: the first axis counts them."""
        rows = torch.randn(*shape, generator=draw, dtype=torch.float64).flatten(1)
        return torch.linalg.qr(rows.T)[0].T.reshape(shape)

    return {
        "conv.bias": make(2, 6), "words.weight": make(3, 11, 8), "norm.weight": make(1, 6),
        "block.self_attn.in_proj_weight": (make(2, 24).T, make(2, 8)),
        "block.linear1.weight": (make(3, 16).T, make(3, 8)),
        "block.self_attn.out_proj.weight": make(2, 8, 8),
    }  # fmt: skip


def spaces(encoder: Encoder) -> dict[str, Any]:
    words = {word: word for word in ("lora:2", "lora:3:7", "singular:3")}
    return {**words, "own": own_bases(encoder), "mask": masks(encoder)}


def masks(encoder: Encoder) -> dict[str, Tensor]:
    """Some entries of tensors of every kind."""
    draw = torch.Generator().manual_seed(6)
    names = (
        "conv.bias",
        "words.weight",
        "block.self_attn.in_proj_weight",
        "gpt.weight",
        "tied.weight",
        "plane.weight",
    )
    known = dict(encoder.backbone.named_parameters())
    return {name: torch.rand(known[name].shape, generator=draw) < 0.3 for name in names}


KINDS = ("lora:2", "lora:3:7", "singular:3", "own", "mask")


def jacobian(encoder: Encoder, names: tuple[str, ...]) -> Tensor:
    """The oracle: J (N C, P) by ordinary autograd of an ordinary module, one output after the other."""
    point = {name: p.detach().clone().requires_grad_() for name, p in encoder.backbone.named_parameters()}
    moved = [point[name] for name in names]
    torch.backends.mha.set_fastpath_enabled(False)  # which refuses gradients
    try:
        found: Tensor = functional_call(encoder.backbone, point, (ROWS,)).flatten()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    rows = [torch.autograd.grad(one, moved, retain_graph=True) for one in found]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


# -- the mechanism -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_at_zero_it_is_the_model_that_it_came_from_and_shares_its_weights(kind: str) -> None:
    encoder = net()
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    small = restrict(encoder, spaces(encoder)[kind])
    assert torch.equal(small(ROWS), encoder(ROWS))
    assert fingerprint_of(small) == fingerprint_of(encoder)
    assert small.space is not None
    assert select(small) == select(small, "*") == small.space.small
    assert {n for n, p in small.backbone.named_parameters() if p.requires_grad} == set(select(small))
    assert all(p.requires_grad for p in encoder.backbone.parameters())
    own, shared = dict(encoder.backbone.named_parameters()), dict(small.backbone.named_parameters())
    assert all(shared[name].data_ptr() == p.data_ptr() for name, p in own.items())
    assert all(torch.equal(t, before[name]) for name, t in encoder.backbone.state_dict().items())


def test_the_factors_are_not_taken_for_tensors_that_a_forward_pass_keeps() -> None:
    """Each of those is tried out by passes of its own, which took longer than the tangents."""
    small = restrict(net(), "lora:2")
    assert Intact(small).kept() == Intact(net()).kept() == []


@pytest.mark.parametrize("kind", KINDS)
def test_linear_and_standard_logits_are_those_of_the_whole_displacement(kind: str) -> None:
    encoder = net()
    small = restrict(encoder, spaces(encoder)[kind])
    tau = vector(small)
    whole = tau.dense(encoder)
    assert whole.space is None
    assert whole.info["space"] == small.space.word
    tangent = ts.linearize(small)
    tangent.load_task_vector(tau)
    dense = ts.linearize(encoder, list(whole.deltas))
    dense.load_task_vector(whole)
    torch.testing.assert_close(tangent(ROWS), dense(ROWS), rtol=1e-10, atol=1e-10)
    assert tangent.engine == "onepass"
    moved = working_copy(small)
    with torch.no_grad():
        for name, parameter in moved.backbone.named_parameters():
            if name in tau.deltas:
                parameter.copy_(tau.deltas[name])
    edited = ts.apply(encoder, whole.as_regime("standard"))
    torch.testing.assert_close(moved(ROWS), edited(ROWS), rtol=1e-10, atol=1e-10)
    assert fingerprint_of(moved) != fingerprint_of(encoder)
    lifted = unrestricted(moved)
    torch.testing.assert_close(lifted(ROWS), edited(ROWS), rtol=1e-10, atol=1e-10)
    assert fingerprint_of(lifted) == fingerprint_of(edited)
    assert [type(a) for a in lifted.modules()] == [type(a) for a in encoder.modules()]
    assert [n for n, p in lifted.named_parameters() if p.requires_grad] == [
        n for n, _ in encoder.named_parameters()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_j_b_bt_jt(kind: str) -> None:
    """K_B = J B B^T J^T, with J by torch's forward mode and B by its columns."""
    encoder = net()
    small = restrict(encoder, spaces(encoder)[kind])
    assert small.space is not None
    names = small.space.names
    columns = []
    for name in names:
        basis = small.space.bases[name]
        for place in range(basis.small.numel()):
            delta = torch.zeros(basis.small, dtype=torch.float64)
            delta.view(-1)[place] = 1.0
            column = {n: torch.zeros_like(p) for n, p in encoder.backbone.named_parameters() if n in names}
            column[name] = basis.wide(delta)
            columns.append(torch.cat([column[n].flatten() for n in names]))
    b, j = torch.stack(columns, 1), jacobian(encoder, names)
    expected = j @ b @ b.T @ j.T
    for backend in ("contraction", "structured"):
        kernel = ts.TangentKernel(small, [ROWS], backend=backend)
        torch.testing.assert_close(kernel.dense(), expected, rtol=1e-10, atol=1e-10)


def test_the_kernel_of_lora_is_a_sum_over_layers_of_products_of_two_kernels() -> None:
    """sum_l (g_l . g_l') (A_l a_l . A_l a_l') for layers with inputs a and sensitivities g."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 5, bias=False).double(), nn.Linear(5, 3, bias=False).double()
    encoder = Encoder(nn.Sequential(first, nn.Tanh(), second).eval())
    small = restrict(encoder, "lora:2")
    x = torch.randn(4, 6, dtype=torch.float64)
    hidden = torch.tanh(first(x))
    assert small.space is not None
    a0, a1 = (small.space.bases[name].factors[0] for name in ("0.weight", "2.weight"))
    g0 = torch.einsum("co,no->nco", second.weight.detach(), 1 - hidden.detach() ** 2)  # d f_c / d (W0 x)
    k0 = torch.einsum("nco,mdo,nr,mr->ncmd", g0, g0, x @ a0.T, x @ a0.T)
    inner = (hidden.detach() @ a1.T) @ (hidden.detach() @ a1.T).T
    k1 = torch.einsum("nm,cd->ncmd", inner, torch.eye(3, dtype=torch.float64))
    kernel = ts.TangentKernel(small, [x])
    torch.testing.assert_close(kernel.dense(), (k0 + k1).reshape(12, 12), rtol=1e-10, atol=1e-10)


def test_a_linear_layer_never_forms_the_displacement() -> None:
    """No operation of a tangent pass makes a tensor as large as the weight, but the layer's own product reads it."""
    encoder = Encoder(nn.Linear(50, 40).eval())
    small = restrict(encoder, "lora:2")
    made: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and func.name() not in ("aten::detach", "aten::t", "aten::alias"):
                made.append(out.numel())
            return out

    tangent = ts.linearize(small, check="off")
    tangent(torch.ones(1, 50))
    with Watch():
        tangent(torch.ones(1, 50)).sum().backward()
    assert max(made) < 50 * 40


def test_the_rows_of_a_are_orthonormal_and_decided_by_seed_and_name() -> None:
    encoder = net()
    one, two, other = (restrict(encoder, word).space for word in ("lora:2", "lora:2:0", "lora:2:1"))
    assert one is not None
    assert two is not None
    assert other is not None
    assert one.key == two.key != other.key
    for name, basis in one.bases.items():
        (a,) = basis.factors
        torch.testing.assert_close(a @ a.T, torch.eye(2, dtype=a.dtype), rtol=0, atol=1e-12)
        assert torch.equal(a, two.bases[name].factors[0])
        assert not torch.equal(a, other.bases[name].factors[0])


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5), st.integers(0, 9), st.sampled_from(["lora", "singular"]))
def test_lengths_and_inner_products_are_those_of_the_small_numbers(rank: int, seed: int, kind: str) -> None:
    """B is orthonormal, so that ridge, decay and cosines mean the same in both spaces; and B is linear."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = Encoder(
            nn.Sequential(nn.Linear(7, 5), nn.Conv1d(1, 5, 3).double().float(), nn.Linear(3, 9)).double()
        )
    small = restrict(encoder, f"{kind}:{min(rank, 3)}")
    a, b = vector(small, seed), vector(small, seed + 1)
    whole_a, whole_b = a.dense(encoder), b.dense(encoder)
    assert a.dot(b) == pytest.approx(whole_a.dot(whole_b), abs=1e-12)
    mixed, apart = (2 * a - b).dense(encoder), 2 * whole_a - whole_b
    for name, delta in mixed.deltas.items():
        torch.testing.assert_close(delta, apart.deltas[name], rtol=1e-12, atol=1e-12)


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_vector_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    encoder = net()
    small = restrict(encoder, spaces(encoder)[kind])
    tau = vector(small)
    tau.save_pretrained(tmp_path / "v")
    back = ts.TaskVector.from_pretrained(tmp_path / "v")
    assert back.space is not None
    assert tau.space is not None
    assert back.space.key == tau.space.key
    assert (back - tau).norm() == 0
    assert str(back) == str(tau)
    again = restrict(net(), back.space)
    assert back.fitted(again).deltas.keys() == tau.deltas.keys()
    torch.testing.assert_close(back.dense(net()).deltas, tau.dense(encoder).deltas, rtol=1e-12, atol=1e-12)
    back.save_pretrained(tmp_path / "again")  # also where no model was there to make the bases
    assert (ts.TaskVector.from_pretrained(tmp_path / "again") - tau).norm() == 0


def test_directions_that_came_out_otherwise_are_refused() -> None:
    """Equal singular values: any rotation of the directions is as good, so a file of another machine says so."""
    encoder = Encoder(nn.Linear(4, 4, bias=False).double())
    with torch.no_grad():
        encoder.backbone.weight.copy_(torch.eye(4))
    small = restrict(encoder, "singular:2")
    tau = vector(small)
    assert tau.space is not None
    record = tau.space.record()
    record["probes"]["weight"] += 0.5
    from tauspan.models import read_space

    other, _ = read_space(record, tau.deltas, "v")
    from dataclasses import replace

    with pytest.raises(MismatchError, match="equal singular values"):
        replace(tau, space=other).dense(encoder)


def test_a_header_without_what_a_space_needs_is_refused(tmp_path: Path) -> None:
    from tauspan.models import read_space

    for record in (
        {},
        {"word": "lora:2"},
        {"word": "what:2", "probes": {}},
        {"word": "own", "forms": {"w": {}}},
    ):
        with pytest.raises((StoreError, UsageError)):
            read_space(record, {}, tmp_path)


# -- errors --------------------------------------------------------------------------------------------------


def test_unknown_words_teach() -> None:
    encoder = net()
    for word, says in (
        ("lore:8", "lora"), ("lora", "rank"), ("lora:0", "from 1 on"), ("lora:x", "lora:8"), ("singular:3:1", "rank"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            restrict(encoder, word)
        with pytest.raises(UsageError, match=says):
            ts.Settings(space=word)
    assert spelt("lora:8:0") == ts.Settings(space="lora:8:0").space == "lora:8"


def test_a_rank_larger_than_a_matrix_names_it_and_the_rank_that_fits() -> None:
    encoder = net()
    with pytest.raises(
        UsageError, match=r"'plane.weight' is a matrix of 4 x 6, whose rank is at most 4"
    ) as caught:
        restrict(encoder, "lora:5", ["plane.weight"])
    assert "'lora:4'" in str(caught.value)
    assert restrict(encoder, "lora:4", ["plane.weight"]).space is not None  # the repair


def test_a_selection_without_a_matrix_names_what_it_picked() -> None:
    encoder = net()
    with pytest.raises(UsageError, match=r"restrict\(encoder, {'norm.weight': BASIS}\)"):
        restrict(encoder, "lora:1", "norm.*")
    assert select(restrict(encoder, {"norm.weight": torch.eye(6)[:1]})) == ("norm.weight_delta",)
    with pytest.raises(UsageError, match="picks none"):
        restrict(encoder, "lora:1", "words.weight")


def test_an_encoder_is_restricted_once() -> None:
    small = restrict(net(), "lora:2")
    with pytest.raises(UsageError, match="already"):
        restrict(small, "lora:2")


@pytest.mark.parametrize(
    ("basis", "says"),
    [
        (torch.ones(2, 3), "one tensor of shape"),
        ((torch.ones(5, 2), torch.ones(2, 8)), r"give \(6, r\) and \(r, 6\)"),
        ((torch.ones(6, 2), torch.ones(3, 6)), r"give \(6, r\) and \(r, 6\)"),
    ],
)
def test_a_basis_of_another_shape_says_the_right_one(basis: Any, says: str) -> None:
    with pytest.raises(MismatchError, match=says):
        restrict(net(), {"tied.weight": basis})


def test_other_bases_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="no basis"):
        restrict(net(), {})
    with pytest.raises(UsageError, match=r"tied\.weight"):
        restrict(net(), {"tied.weigth": torch.ones(1, 6, 6)})
    with pytest.raises(NonFiniteError, match="NaN"):
        restrict(net(), {"conv.bias": torch.full((1, 6), float("nan"))})
    with pytest.raises(MismatchError, match="no matrix"):
        restrict(net(), {"conv.bias": (torch.ones(6, 1), torch.ones(1, 1))})
    with pytest.raises(UsageError, match="picks no entry"):
        restrict(net(), {"conv.bias": torch.zeros(6, dtype=torch.bool)})
    with pytest.raises(MismatchError, match="one boolean for each entry"):
        restrict(net(), {"conv.bias": torch.ones(5, dtype=torch.bool)})


def test_a_tensor_that_the_module_keeps_in_a_list_is_refused() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.held = [self.layer.weight]

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.held[0]

    with pytest.raises(ModelError, match=r"also keeps 'layer\.weight' at 'held'"):
        restrict(Encoder(Kept()), "lora:1")


def test_masks_of_other_entries_are_other_spaces() -> None:
    encoder, mask = net(), torch.arange(36).view(6, 6) < 4
    one, other = (
        restrict(encoder, {"tied.weight": mask}),
        restrict(encoder, {"tied.weight": mask.T.contiguous()}),
    )
    tau, sigma = vector(one), vector(other)
    assert tau.deltas["tied.weight_delta"].shape == sigma.deltas["tied.weight_delta"].shape
    with pytest.raises(MismatchError, match=r"dense\(encoder\)"):
        tau + sigma
    both = (tau.dense(encoder) + sigma.dense(encoder)).deltas["tied.weight"]
    assert torch.equal(both != 0, mask | mask.T)


def test_vectors_of_other_spaces_and_bases_do_not_meet() -> None:
    encoder = net()
    one, other = restrict(encoder, "lora:2"), restrict(encoder, "lora:2:1")
    tau, sigma = vector(one), vector(other)
    with pytest.raises(MismatchError, match=r"dense\(encoder\)"):
        tau + sigma
    with pytest.raises(MismatchError, match="'lora:2' and this encoder in 'lora:2:1'"):
        tau.fitted(other)
    with pytest.raises(MismatchError, match=r"dense\(encoder\)"):
        tau + tau.dense(encoder)
    with pytest.raises(MismatchError, match="the encoder that it came from"):
        ts.linearize(one).load_task_vector(tau.dense(encoder))
    (tau.dense(encoder) + sigma.dense(encoder)).fitted(encoder)  # the repair
    with pytest.raises(MismatchError, match="this encoder in"):
        ts.linearize(other).tangent(ROWS, vectors=[tau])
    with pytest.raises(BaseMismatchError):
        tau.fitted(net(1))
    with pytest.raises(BaseMismatchError):
        tau.dense(net(1))
