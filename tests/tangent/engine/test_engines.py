"""The one-pass engine against the reference: every model, every fallback, and what it must not keep or lose."""

import gc
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import zoo
from helpers.zoo import ZOO, Example, all_close, at, close, direction, normal, stirred
from tauspan.core.errors import ModelError, UsageError
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.engine.dual import Dual

# -- both engines on the same model --------------------------------------------------------------------------


def gradients(lin: Linearized, tangent: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        tangent, list(lin.tau.values()), normal(*tangent.shape, seed=9).to(tangent.dtype), allow_unused=True
    )
    pairs = zip(lin.tau.items(), found, strict=True)
    return {key: torch.zeros_like(tau) if grad is None else grad for (key, tau), grad in pairs}


def compare(
    example: Example, choice: Any = "all", *, strict: bool = True, digits: float = 1e-10
) -> Linearized:
    """f, J tau, J^T g and two vectors at once are the reference's; the one-pass side is returned."""
    fast = linearize(example.model, choice, strict=strict)
    slow = linearize(example.model, choice, engine="reference")
    tau = direction(fast)
    call = example.args, dict(example.kwargs)
    value, tangent = at(fast, tau).tangent(*call[0], **call[1])
    expected, moved = at(slow, tau).tangent(*call[0], **call[1])
    assert close(value, expected, digits)
    assert close(tangent, moved, digits)
    assert not value.requires_grad
    assert all_close(gradients(fast, tangent), gradients(slow, moved), digits)
    vectors = [tau, direction(fast, 70)]
    together = fast.tangent(*call[0], vectors=vectors, **call[1])
    for one, other in zip(together, slow.tangent(*call[0], vectors=vectors, **call[1]), strict=True):
        assert close(one, other, digits)
        assert not one.requires_grad
    with torch.no_grad():
        assert close(fast.tangent(*call[0], **call[1])[1], moved, digits)
    return fast


@pytest.mark.thinned(12)
@pytest.mark.parametrize("choice", ["all", "attention", "last:1", "*bias"])
@pytest.mark.parametrize("name", ZOO)
def test_one_pass_equals_the_reference_without_any_fallback(name: str, choice: str) -> None:
    example = ZOO[name].make()
    try:
        linearize(example.model, choice)
    except UsageError as error:
        pytest.skip(f"the model has no such parameters: {error}")
    assert compare(example, choice).engine == "onepass"


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'onepass'"):
        linearize(zoo.mlp().model, engine="one-pass")


# -- parts that real models are made of ----------------------------------------------------------------------


class Net(nn.Module):
    """Two linear maps with something between or around them."""

    def __init__(self, inside: Callable[["Net", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.parts, self.inside = nn.ModuleDict(parts), inside
        self.register_buffer("table", torch.zeros(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inside(self, self.first(x)))


def net(inside: Callable[[Net, Tensor], Tensor], **parts: nn.Module) -> Example:
    torch.manual_seed(0)
    return Example(stirred(Net(inside, **parts)), (normal(3, 4),))


def rotated(m: Net, h: Tensor) -> Tensor:
    """Rotary position embedding."""
    angle = torch.arange(3).double()[:, None]
    left, right = h.chunk(2, -1)
    return h * angle.cos() + torch.cat([-right, left], -1) * angle.sin()


def kept(m: Net, h: Tensor) -> Tensor:
    """State on self."""
    m.seen = h * 2
    return m.seen + h


def experts(m: Net, h: Tensor) -> Tensor:
    """A mixture of experts: each row goes to its two best, and results are added at their places."""
    weight, chosen = m.parts["gate"](h).softmax(-1).topk(2, dim=-1)
    out = 0 * h
    for place in range(3):
        rows, which = torch.where(chosen == place)
        out = out.index_add(0, rows, m.parts[f"e{place}"](h[rows]) * weight[rows, which, None])
    return out


def written(m: Net, h: Tensor) -> Tensor:
    """The same sum into a plain buffer, in place."""
    out = torch.zeros_like(h)
    out.index_add_(0, torch.tensor([2, 0, 1]), h)
    return out


def biased(m: Net, h: Tensor) -> Tensor:
    """Attention with a learned relative position bias."""
    bias = m.parts["bias"](torch.arange(9).view(3, 3)).permute(2, 0, 1)
    q = h.view(1, 3, 2, 3).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, attn_mask=bias).transpose(1, 2).reshape(3, 6)


def convnext(m: Net, h: Tensor) -> Tensor:
    image = h.view(3, 6, 1, 1).expand(-1, -1, 3, 3)
    moved = m.parts["deep"](image).permute(0, 2, 3, 1)
    moved = m.parts["out"](F.gelu(m.parts["norm"](moved))) * m.parts["scale"].weight
    return (image + moved.permute(0, 3, 1, 2)).mean((2, 3))


def resized(m: Net, h: Tensor) -> Tensor:
    grid = F.interpolate(h.view(3, 1, 2, 3), size=(4, 6), mode="bilinear", align_corners=False)
    return F.max_pool2d(grid, 2).reshape(3, 6)


def deep() -> dict[str, nn.Module]:
    return {
        "deep": nn.Conv2d(6, 6, 3, padding=1, groups=6), "norm": nn.LayerNorm(6), "out": nn.Linear(6, 6),
        "scale": nn.Linear(6, 1, bias=False),
    }  # fmt: skip


PARTS: dict[str, Callable[[], Example]] = {
    "normalize": lambda: net(lambda m, h: F.normalize(h, dim=-1)),
    "cosine": lambda: net(lambda m, h: h * F.cosine_similarity(h, h.flip(1), dim=-1)[:, None]),
    "rotary": lambda: net(rotated),
    "swiglu": lambda: net(lambda m, h: F.silu(m.parts["gate"](h)) * h, gate=nn.Linear(6, 6)),
    "geglu": lambda: net(lambda m, h: torch.cat(2 * [F.gelu(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1]], -1)),
    "state on self": lambda: net(kept),
    "experts": lambda: net(experts, gate=nn.Linear(6, 3), **{f"e{p}": nn.Linear(6, 6) for p in range(3)}),
    "relative bias": lambda: net(biased, bias=nn.Embedding(9, 2)),
    "convnext": lambda: net(convnext, **deep()),
    "upsampling": lambda: net(resized),
    "attention weights": lambda: net(
        lambda m, h: m.parts["a"](h, h, h, need_weights=True)[0] + m.parts["a"](h, h, h)[1].sum(0)[0] * h,
        a=nn.MultiheadAttention(6, 2),
    ),
    "detach": lambda: net(lambda m, h: h * h.detach().exp() + h.data + (h - h.round()).detach()),
    "padding row": lambda: net(
        lambda m, h: h + m.parts["e"](torch.tensor([0, 2, 1])), e=nn.Embedding(3, 6, padding_idx=0)
    ),
    "max": lambda: net(lambda m, h: h.max(1).values[:, None] * h.sort(1)[0] + h.topk(1).values),
    "inplace relu": lambda: net(lambda m, h: m.parts["r"](m.parts["n"](h)), r=nn.ReLU(True), n=nn.BatchNorm1d(6)),
    "weight norm": lambda: net(lambda m, h: h / m.parts["a"].weight.norm(dim=0), a=nn.Linear(6, 2, bias=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_common_parts_go_in_one_pass(name: str) -> None:
    assert compare(PARTS[name]()).engine == "onepass"


def test_checkpointed_blocks_recompute_and_give_the_same_gradient() -> None:
    """The reference cannot: torch.func.jvp and saved-tensor hooks do not go together."""
    block = nn.Sequential(nn.Tanh(), nn.Tanh())
    plain = net(lambda m, h: block(h))
    saving = net(lambda m, h: checkpoint(block, h, use_reentrant=False))
    found = []
    for example in (plain, saving):
        lin = linearize(example.model, strict=True)
        value, tangent = at(lin, direction(lin)).tangent(*example.args)
        found.append((value, tangent, gradients(lin, tangent)))
    assert all(torch.equal(one, other) for one, other in zip(found[0][:2], found[1][:2], strict=True))
    assert all_close(found[1][2], found[0][2])


# -- what has no rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "inside"),
    [
        ("special_bessel_j0|special_i0", lambda m, h: torch.special.i0(h)),
        ("cumulative_trapezoid", lambda m, h: F.pad(torch.cumulative_trapezoid(h, dim=1), (1, 0))),
        ("asinh", lambda m, h: torch.asinh(h)),
        ("lstm", lambda m, h: m.parts["a"](h)[0]),
        ("gru", lambda m, h: m.parts["g"](h)[0]),
    ],
)
def test_an_operation_without_a_rule_is_exact_and_says_so_once(
    op: str, inside: Callable[[Net, Tensor], Tensor]
) -> None:
    example = net(inside, a=nn.LSTM(6, 6), g=nn.GRU(6, 6))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lin = compare(example, strict=False)
    told = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert lin.engine == "onepass"
    assert len(told) == len(set(told))
    assert any(name in told[0] for name in op.split("|"))
    with pytest.raises(ModelError, match=rf"(Net|'parts\.[ag]').*uses '({op})'.*no tangent rule"):
        linearize(example.model, strict=True)(*example.args)


def test_the_module_that_uses_it_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.special.i0(h)

    example = net(lambda m, h: m.parts["odd"](h), odd=Odd())
    with pytest.raises(ModelError, match=r"'parts\.odd' \(Odd\) uses 'special_i0'"):
        linearize(example.model, strict=True)(*example.args)


class Square(torch.autograd.Function):
    """With a forward mode of its own, so that the reference can do it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * tangent


def test_an_autograd_function_with_a_forward_mode_goes_in_one_pass() -> None:
    with pytest.warns(RuntimeWarning, match="uses 'Square', which has no tangent rule: torch's forward mode"):
        assert compare(net(lambda m, h: Square.apply(h)), strict=False).engine == "onepass"


def test_a_model_that_cannot_go_in_one_pass_goes_to_the_reference_and_says_so_once() -> None:
    example = net(written)
    with pytest.warns(
        RuntimeWarning, match=r"Net cannot be carried through in one pass: .*reference engine"
    ) as told:
        lin = compare(example, strict=False)
    assert lin.engine == "reference"
    assert len(told) == 1
    with pytest.raises(ModelError, match="Net cannot be carried through in one pass"):
        linearize(example.model, strict=True)(*example.args)


def test_a_number_read_off_a_tensor_is_a_constant_as_for_autograd() -> None:
    compare(net(lambda m, h: h * h.sum().item()))


# -- second derivatives and inputs ---------------------------------------------------------------------------


def test_a_second_derivative_is_refused_and_the_reference_has_it() -> None:
    example = zoo.mlp()
    for engine in ("onepass", "reference"):
        lin = linearize(example.model, engine=engine)
        at(lin, direction(lin))
        loss = lin(*example.args).square().sum()
        first = torch.autograd.grad(loss, list(lin.tau.values()), create_graph=True)
        again = sum(g.square().sum() for g in first)
        if engine == "onepass":
            for how in (True, False):
                with pytest.raises(ModelError, match=r"derived again.*engine='reference'"):
                    torch.autograd.grad(again, list(lin.tau.values()), allow_unused=how, retain_graph=True)
            with pytest.raises(ModelError, match="derived again"):
                again.backward()
        else:
            torch.autograd.grad(again, list(lin.tau.values()))


def test_the_derivative_in_the_inputs_is_the_references() -> None:
    example = zoo.mlp()
    lin = linearize(example.model)
    at(lin, direction(lin))
    x = example.args[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(lin.tangent(x)[1].sum(), x)
    step = normal(*x.shape, seed=3)
    with torch.no_grad():
        ends = [lin.tangent(x + e * step)[1].sum() for e in (1e-5, -1e-5)]
    assert math.isclose(float((ends[0] - ends[1]) / 2e-5), float((found * step).sum()), rel_tol=1e-7)
    assert lin.engine == "onepass"


# -- memory and precision ------------------------------------------------------------------------------------


def test_no_tangent_outlives_the_forward() -> None:
    example = zoo.bert()
    seen: list[weakref.ref[Any]] = []

    def note(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Dual):
            seen.extend((weakref.ref(out), weakref.ref(out.tangents[0])))

    hooks = [layer.register_forward_hook(note) for layer in example.model.modules()]
    lin = linearize(example.model)
    output = lin(*example.args)
    gc.collect()
    alive = [ref() for ref in seen if ref() is not None]
    assert len(seen) > 20
    assert not any(isinstance(one, Dual) for one in alive)
    assert len(alive) <= 1  # the output's own tangent
    output.sum().backward()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("how", ["autocast", "bfloat16 base"])
@pytest.mark.parametrize("name", ["mlp", "bert", "vit"])
def test_bfloat16_stays_within_a_few_percent_of_float32(name: str, how: str) -> None:
    """The bound is loose because rounding differs between machines."""
    example = ZOO[name].make()
    model = example.model.float()
    args = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in example.args)
    lin = linearize(model, strict=True)
    tau = {key: delta.float() for key, delta in direction(lin).items()}
    value, exact = at(lin, tau).tangent(*args)
    wanted = gradients(lin, exact)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            rough_value, rough = lin.tangent(*args)
    else:
        lin = at(linearize(model.bfloat16(), strict=True), tau)
        narrow = tuple(x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        rough_value, rough = lin.tangent(*narrow)
    assert close(rough_value.float(), value, 0.1)
    assert close(rough.float(), exact, 0.1)
    found = gradients(lin, rough)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    assert all_close(found, wanted, 0.1)


class LowRank(nn.Module):
    """A linear layer with an added product of two thin matrices, as LoRA has it."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.lora_a = nn.Parameter(torch.randn(rank, inputs))
        self.lora_b = nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + 0.5 * F.linear(F.linear(x, self.lora_a), self.lora_b)


@pytest.mark.parametrize("choice", ["*lora_*", "*lora_b"])
def test_the_factors_of_lora_are_partial_tangents(choice: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(LowRank(4, 6), nn.Tanh(), LowRank(6, 3)).double()
    lin = zoo.at(linearize(net, choice, strict=True), zoo.direction(linearize(net, choice)))
    oracle = zoo.at(linearize(net, choice, engine="reference"), lin.tau)
    x = zoo.normal(5, 4)
    cached = lin.cache([x], "factors")[0]
    found, expected = [], oracle.tangent(x)[1]
    for tangent in (lin.tangent(x)[1], cached.tangent()[1]):
        assert zoo.close(tangent, expected)
        found.append(torch.autograd.grad(tangent.square().sum(), list(lin.tau.values())))
    wanted = torch.autograd.grad(expected.square().sum(), list(oracle.tau.values()))
    assert all(zoo.close(a, b) for one in found for a, b in zip(one, wanted, strict=True))
    assert not any("linear." in name for name in lin.tau)
