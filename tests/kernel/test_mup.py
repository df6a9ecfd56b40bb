"""muP for any module, against its derivation: the effective weights of a parametrised net, and movements of features."""

# mypy: disable-error-code="arg-type,assignment,comparison-overlap,method-assign,misc,no-any-return"
# mypy: disable-error-code="no-untyped-call,operator,union-attr"

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tauspan as ts
from helpers.runs import REGIMES, points
from helpers.tiny import same_bits
from tauspan.core.errors import MismatchError, ModelError, UsageError
from tauspan.kernel.diagnose import Parametrisation, coordinate_check, mup


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DIM, ROWS = 5, 16
X, Y = gaussian(ROWS, DIM, seed=100), gaussian(ROWS, 16, seed=101)


def mlp(width: int, seed: int = 0, outputs: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = (
            nn.Linear(DIM, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, outputs),
        )
        return nn.Sequential(*layers).double()


def steps(net: nn.Module, optimiser: torch.optim.Optimizer, count: int = 5) -> Tensor:
    for _ in range(count):
        optimiser.zero_grad()
        F.mse_loss(net(X), Y).backward()
        optimiser.step()
    found: Tensor = net(X).detach()
    return found


# -- the rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "base"), [(64, 16), (16, 64), (48, 16)])
def test_sgd_on_effective_weights_is_the_parametrisation_itself(width: int, base: int) -> None:
    """W^l = m^-a_l w^l moves by m^-2a_l of the rate: the multipliers of `mup` follow from the exponents alone."""
    made = Parametrisation.mup(2)
    net = made.network(DIM, 16, width, base=base, dtype=torch.float64)
    plain, small = mlp(width), mlp(base)
    for one in (plain, small):
        for place in (0, 2, 4):
            one[place].bias = None
    layers = (net.hidden1, net.hidden2, net.readout)
    with torch.no_grad():
        for place, layer in zip((0, 2, 4), layers, strict=True):
            plain[place].weight.copy_(layer.scale * layer.weight)
    unscaled = copy.deepcopy(plain)
    wanted = steps(net, torch.optim.SGD(net.parameters(), made.rate(width, 0.3, base=base)))
    found = steps(plain, torch.optim.SGD(mup(plain, small).groups(plain, 0.3, "sgd"), 0.3))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-11)
    other = steps(unscaled, torch.optim.SGD(unscaled.parameters(), 0.3))
    assert not torch.allclose(other, wanted, rtol=0, atol=1e-3)


class Many(nn.Module):
    """A parameter of every kind; `wide` is the width, heads and vocabulary stay."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, wide), nn.LayerNorm(wide)
        self.place = nn.Parameter(torch.zeros(1, 7, wide))
        self.mix, self.image = nn.MultiheadAttention(wide, 2), nn.Conv2d(3, wide, 3)
        self.up, self.back = nn.Linear(wide, 4 * wide), nn.ConvTranspose1d(wide, 5, 3)
        self.half = nn.Linear(wide, 6 * wide // 2)
        self.last, self.temperature = nn.Linear(wide, 3), nn.Parameter(torch.ones(()))


def test_every_parameter_has_its_role_and_its_scales() -> None:
    found = {one.name: one for one in mup(Many(32), Many(8)).scales}
    roles = {
        "input": ["table.weight", "norm.weight", "norm.bias", "place", "mix.in_proj_bias", "mix.out_proj.bias",
                  "image.weight",
                  "image.bias", "up.bias", "half.bias"],
        "hidden": ["mix.in_proj_weight", "mix.out_proj.weight", "up.weight", "half.weight"],
        "output": ["back.weight", "last.weight"],
        "fixed": ["back.bias", "last.bias", "temperature"],
    }  # fmt: skip
    assert sorted(found) == sorted(name for names in roles.values() for name in names)
    scales = {"input": (4, 1, 1), "hidden": (1, 0.25, 0.5), "output": (0.25, 0.25, 0.25), "fixed": (1, 1, 1)}
    for role, names in roles.items():
        for name in names:
            assert found[name].role == role, name
            assert (found[name].sgd, found[name].adam, found[name].std) == scales[role], name


def test_sides_that_grow_by_different_ratios() -> None:
    (weight, bias) = mup(nn.Linear(64, 96), nn.Linear(16, 8)).scales
    assert (weight.sgd, weight.adam, weight.std, bias.sgd) == (12 / 4, 1 / 4, 1 / 2, 12)


# -- the base width ------------------------------------------------------------------------------------------------


def test_at_the_base_width_nothing_changes() -> None:
    net, base = mlp(16, seed=1), mlp(16, seed=2)
    found = mup(net, base)
    assert found.multipliers("sgd") == found.multipliers("adam") == {}
    assert all((one.sgd, one.adam, one.std) == (1, 1, 1) for one in found.scales)
    before = copy.deepcopy(net.state_dict())
    found.rescale(net, base)
    assert same_bits(before, net.state_dict())
    for rule, kind in (("sgd", torch.optim.SGD), ("adam", torch.optim.AdamW)):
        one, two = copy.deepcopy(net), copy.deepcopy(net)
        groups = found.groups(one, 0.1, rule, weight_decay=0.2)
        assert len(groups) == 1
        first = steps(one, kind(groups, 0.1))
        assert torch.equal(first, steps(two, kind(two.parameters(), 0.1, weight_decay=0.2)))


def test_groups_keep_the_share_that_decay_takes() -> None:
    net = mlp(64)
    net[0].weight.requires_grad_(False)
    groups = mup(net, mlp(16)).groups(net, 0.4, "adam", weight_decay=0.5)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.4, 0.5, 3), (0.1, 2.0, 2),
    ]  # fmt: skip


def test_rescaled_starts_have_the_rms_that_mup_wants() -> None:
    net, base = mlp(256, seed=1), mlp(16, seed=2)
    mup(net, base).rescale(net, base)

    def rms(tensor: Tensor) -> float:
        return float(tensor.detach().square().mean().sqrt())

    assert rms(net[0].weight) == pytest.approx(rms(base[0].weight))
    assert rms(net[2].weight) == pytest.approx(rms(base[2].weight) / 4)
    assert rms(net[4].weight) == pytest.approx(rms(base[4].weight) / 16)
    with torch.no_grad():
        net[2].weight.zero_()
    with pytest.raises(
        ModelError, match=r"parameter '2.weight' is 0, and the base's.*start both in the same way"
    ):
        mup(net, base).rescale(net, base)
    with torch.no_grad():
        base[2].weight.zero_()
    mup(net, base).rescale(net, base)  # the repair


# -- what it is for ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_features_move_alike_at_every_width(rule: Any) -> None:
    rate = {"sgd": 0.3, "adam": 0.01}[rule]
    kind: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule]
    base = mlp(32)

    def build(width: int, seed: int) -> nn.Module:
        net = mlp(width, seed)
        mup(net, base).rescale(net, base)
        return net

    def check(optimiser: Any, make: Any) -> Any:
        return coordinate_check(
            make, [32, 128, 512], [(X, Y)], loss=F.mse_loss, optimiser=optimiser, layers=["0", "2"]
        )

    scaled = check(lambda net, width: kind(mup(net, base).groups(net, rate, rule), rate), build)
    plain = check(lambda net, width: kind(net.parameters(), rate), lambda width, seed: mlp(width, seed))
    assert scaled.regime == "feature learning"
    assert max(abs(scaled.slope(name).value) for name in ("0", "2")) < 0.15
    assert plain.regime != "feature learning"


@pytest.mark.parametrize("regime", REGIMES)
def test_fine_tuning_takes_the_multipliers(regime: Any) -> None:
    wide, base = (
        ts.load(nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 5)).double()) for n in (16, 4)
    )
    found = mup(wide, base)
    assert found.multipliers("adam") == {"2.weight": 0.25}
    settings = ts.Settings(regime, lr=0.01, max_steps=1, warmup=0, clip=0)
    plain = ts.finetune(wide, points(), settings).task_vector.deltas
    scaled = ts.finetune(
        wide, points(), ts.Settings(**{**vars(settings), "lr_multipliers": found.multipliers()})
    ).task_vector.deltas
    for name, delta in plain.items():
        assert torch.allclose(scaled[name], delta * (0.25 if name == "2.weight" else 1.0), rtol=1e-6)


# -- what is refused -----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(11, width), nn.Linear(width, 11, bias=False)
        self.last.weight = self.table.weight


class Raw(nn.Module):
    def __init__(self, width: int, inputs: int = 3) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(width, inputs))


def test_what_is_not_known_is_refused_and_the_repairs_work() -> None:
    with pytest.raises(
        ModelError, match=r"'table.weight' is tied.*Untie it; or take it as an input, fan_in="
    ):
        mup(Tied(16), Tied(4))
    assert mup(Tied(16), Tied(4), fan_in={"table.weight": 0}).scales[0].role == "input"
    with pytest.raises(
        ModelError, match=r"'matrix' of shape \(16, 3\) belongs to Raw.*fan_in=\{'matrix': 1\}"
    ):
        mup(Raw(16), Raw(4))
    assert mup(Raw(16), Raw(4), fan_in={"matrix": 1}).scales[0].role == "input"
    assert mup(Raw(16), Raw(4), fan_in={"mat*": 0}).scales[0].role == "output"
    assert mup(Raw(16, 16), Raw(4, 4)).scales[0].role == "hidden"  # either way
    with pytest.raises(UsageError, match=r"no parameter matches 'matrx'. Did you mean 'matrix'"):
        mup(Raw(16), Raw(4), fan_in={"matrx": 1})
    with pytest.raises(UsageError, match="give one dimension, 0 or 1"):
        mup(Raw(16), Raw(4), fan_in={"matrix": 2})


class Head(nn.Module):
    """Vectors of many kinds: a readout held as a vector, as some scalar heads are, and others that need no word."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.v = nn.Linear(DIM, width), nn.Parameter(torch.full((width,), width**-0.5))
        self.q_bias, self.class_embedding = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.batch, self.prelu = nn.BatchNorm1d(width), nn.PReLU(width)
        self.rms = type("LlamaRMSNorm", (nn.Module,), {})()
        self.rms.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) @ self.v


def test_a_vector_may_be_a_readout() -> None:
    with pytest.raises(
        ModelError, match=r"'v' of shape \(16,\) belongs to Head.*fan_in=\{'v': 0\} if it is used as x @ v"
    ):
        mup(Head(16), Head(4))
    found = {one.name: one for one in mup(Head(16), Head(4), fan_in={"v": 0}).scales}
    assert (found["v"].role, found["v"].sgd, found["v"].adam, found["v"].std) == ("output", 0.25, 0.25, 0.25)
    assert {one.role for name, one in found.items() if name != "v"} == {"input"}
    assert {one.role for one in mup(Head(16), Head(4), fan_in={"v": 1}).scales} == {"input"}
    held = [nn.Sequential(nn.ParameterList([torch.ones(n)])) for n in (16, 4)]
    with pytest.raises(ModelError, match="belongs to ParameterList"):
        mup(*held)
    with pytest.raises(UsageError, match="give one dimension, 0 or 1"):
        mup(Head(16), Head(4), fan_in={"v": 2})


def test_names_say_what_a_vector_is_and_classes_do_not() -> None:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer_scale_parameter = nn.Parameter(torch.ones(width))
            self.lambda_1 = nn.Parameter(torch.ones(width))
            self.mask_token = nn.Parameter(torch.zeros(1, width))
            self.line = nn.Linear(3, width)

    roles = {one.name: one.role for one in mup(Block(16), Block(8)).scales}
    assert set(roles.values()) == {"input"}

    class ScaledHead(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.randn(width))

    class Scored(nn.Linear):
        def __init__(self, width: int) -> None:
            super().__init__(3, width)
            self.v = nn.Parameter(torch.randn(width))

    for kind in (ScaledHead, Scored):
        with pytest.raises(ModelError, match=r"'v' of shape \(16,\) belongs to S"):
            mup(kind(16), kind(8))


def test_a_readout_that_is_a_vector_is_one_that_is_a_matrix() -> None:
    wide, base = Head(16), Head(4)
    matrices = [nn.Sequential(nn.Linear(DIM, n), nn.Tanh(), nn.Linear(n, 1, bias=False)) for n in (16, 4)]
    wanted = {one.name: one for one in mup(*matrices).scales}["2.weight"]
    (found,) = (one for one in mup(wide, base, fan_in={"v": 0}).scales if one.name == "v")
    assert (found.role, found.sgd, found.adam, found.std) == (
        wanted.role,
        wanted.sgd,
        wanted.adam,
        wanted.std,
    )


def test_other_modules_are_refused() -> None:
    deeper = nn.Sequential(*mlp(16), nn.Tanh(), nn.Linear(16, 16))
    with pytest.raises(MismatchError, match=r"'6.bias' is in the model alone"):
        mup(deeper, mlp(4))
    with pytest.raises(MismatchError, match=r"'weight' has the shape \(8, 3, 3\), and \(4, 3\) in the base"):
        mup(nn.Conv1d(3, 8, 3, bias=False), nn.Linear(3, 4, bias=False))
    cube = type("Cube", (nn.Module,), {})
    large, small = cube(), cube()
    large.w, small.w = nn.Parameter(torch.ones(4, 4, 4)), nn.Parameter(torch.ones(2, 2, 2))
    with pytest.raises(ModelError, match="'w' grows in 3 dimensions"):
        mup(large, small)
    found = mup(mlp(16), mlp(4))
    with pytest.raises(
        MismatchError, match=r"parameter '6.bias' is in the module and not in this muP: make it of the same"
    ):
        found.groups(deeper, 0.1)
    assert mup(deeper, nn.Sequential(*mlp(4), nn.Tanh(), nn.Linear(16, 16))).groups(deeper, 0.1)
    with pytest.raises(MismatchError, match=r"parameter '0.bias' is not in the module and in this muP"):
        found.groups(nn.Linear(2, 2), 0.1)


def test_the_report_has_a_row_for_each_parameter() -> None:
    found = mup(mlp(16), mlp(4))
    row = found.report().tables[0].rows[2]
    assert (row["parameter"], row["role"], row["Adam"]) == ("2.weight", "hidden", 0.25)
    assert repr(found) == "Mup(3 input, 1 hidden, 1 output, 1 fixed)"


@pytest.mark.slow
def test_transformers_are_read_without_help() -> None:
    transformers = pytest.importorskip("transformers")

    def shapes(config: Any) -> nn.Module:
        with torch.device("meta"):
            model: nn.Module = transformers.AutoModel.from_config(config)
        return model

    def bert(n: int) -> Any:
        return transformers.BertConfig(
            vocab_size=50, hidden_size=n, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4 * n
        )

    def gpt2(n: int) -> Any:
        return transformers.GPT2Config(vocab_size=50, n_embd=n, n_layer=1, n_head=2)

    for config, hidden in ((bert, 7), (gpt2, 4)):
        scales = mup(shapes(config(64)), shapes(config(16))).scales
        matrices = [one for one in scales if one.role == "hidden"]
        assert len(matrices) == hidden  # query, key, value, output, two feed-forward ones, BERT's pooler
        assert {one.role for one in scales} <= {"input", "hidden"}
