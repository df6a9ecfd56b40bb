"""Parametrisations, coordinate checks and linear limits against training written out."""

# mypy: disable-error-code="arg-type,assignment,comparison-overlap,method-assign,misc,no-any-return"
# mypy: disable-error-code="no-untyped-call,operator,union-attr"

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tauspan.core.errors import DataError, MismatchError, ModelError, UsageError
from tauspan.kernel.diagnose import (
    CoordinateCheck,
    LayerMotion,
    LinearNet,
    Parametrisation,
    coordinate_check,
    linear_limit,
)
from tauspan.kernel.diagnose.width.motion import MARGIN, width_slope

DIM, ROWS, MANY = 5, 12, 16


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = gaussian(ROWS, DIM, seed=100), gaussian(ROWS, 2, seed=101)

# -- parametrisations ----------------------------------------------------------------------------------------------

NAMED = {
    "standard": (Parametrisation.standard(2), -1.0, "unstable"),
    "standard at eta/n": (Parametrisation.standard(2, c=1), 0.5, "kernel"),
    "standard at eta/n, one layer": (Parametrisation.standard(1, c=1), 1.5, "kernel"),
    "ntk": (Parametrisation.ntk(3), 0.5, "kernel"),
    "mean field": (Parametrisation.mean_field(), 0.0, "feature learning"),
    "mup": (Parametrisation.mup(1), 0.0, "feature learning"),
    "deep mup": (Parametrisation.mup(4), 0.0, "feature learning"),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_named_ones_have_the_published_exponents(name: str) -> None:
    made, r, regime = NAMED[name]
    assert (made.r, made.regime) == (r, regime)
    assert (made.reasons == ()) == (regime == "feature learning")


def forward(weights: list[Tensor], a: Any, width: int, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Preactivations of all hidden layers, and the output, straight from the definition."""
    seen, h = [], x
    for place, w in enumerate(weights):
        h = (torch.tanh(h) if place else h) @ (width ** -a[place] * w).T
        seen.append(h)
    return seen[:-1], seen[-1]


def movement(
    made: Parametrisation, width: int, seed: int, rate: float, steps: int = 2
) -> tuple[float, float]:
    """How far the hidden layer that moves most has moved, and the output: root mean squares after SGD, written out."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [DIM, *[width] * made.hidden, 2]
    weights = [
        (torch.randn(out, into, generator=generator, dtype=torch.float64) * width**-b).requires_grad_()
        for (into, out), b in zip(itertools.pairwise(sizes), made.b, strict=True)
    ]
    x = X / math.sqrt(DIM)
    start, first = forward([w.detach().clone() for w in weights], made.a, width, x)
    for _ in range(steps):
        loss = (forward(weights, made.a, width, x)[1] - Y).square().mean()
        for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            w.data -= rate * width**-made.c * g
    now, last = forward([w.detach() for w in weights], made.a, width, x)
    rms = [float((p - q).square().mean().sqrt()) for p, q in zip(start, now, strict=True)]
    return max(rms), float((last - first).square().mean().sqrt())


OTHERS = {
    "slow ntk": Parametrisation((0, 0.5, 0.5), (0, 0, 0), 0.5),
    "slow mup": Parametrisation((-0.5, 0, 0.5), (0.5, 0.5, 0.5), 0.25),
    "mup with a slow input layer": Parametrisation((0, 0, 0.5), (0, 0.5, 0.5), 0),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", ["standard at eta/n", "ntk", "mean field", "mup", *OTHERS])
def test_trained_nets_move_with_the_exponents(name: str) -> None:
    made = NAMED[name][0] if name in NAMED else OTHERS[name]
    widths = (128, 512, 2048) if made.hidden == 1 else (64, 256, 1024)
    found = np.log([np.mean([movement(made, n, seed, 0.2) for seed in range(3)], axis=0) for n in widths])
    features, output = np.polyfit(np.log(widths), found, 1)[0]
    assert features == pytest.approx(-made.r, abs=0.15)
    own = 1 - min(made.a[-1] + made.b[-1] + made.r, 2 * made.a[-1] + made.c)
    assert output == pytest.approx(own, abs=0.2)
    regime = "unstable" if max(-made.r, own) > 0.1 else "trivial" if own < -0.1 else \
        "kernel" if made.r > 0.1 else "feature learning"  # fmt: skip
    assert made.regime == regime


@pytest.mark.parametrize("t", [-0.5, 0.3, 1.0])
def test_the_shift_changes_no_function(t: float) -> None:
    for made, width in itertools.product((Parametrisation.ntk(2), Parametrisation.mup(2)), (7, 30)):
        moved = made.shifted(t)
        assert moved.regime == made.regime
        assert moved.r == pytest.approx(made.r)
        for base in (1, 5):
            outputs = [trained_by_sgd(one, width, base) for one in (made, moved)]
            assert torch.allclose(*outputs, rtol=0, atol=1e-11)


def trained_by_sgd(made: Parametrisation, width: int, base: int) -> Tensor:
    net = made.network(DIM, 2, width, base=base, seed=3, dtype=torch.float64)
    optimiser = torch.optim.SGD(net.parameters(), made.rate(width, 0.1, base=base))
    for _ in range(5):
        optimiser.zero_grad()
        F.mse_loss(net(X), Y).backward()
        optimiser.step()
    found: Tensor = net(X).detach()
    return found


def test_at_the_base_width_every_parametrisation_is_one_net_and_one_rate() -> None:
    one, *others = [trained_by_sgd(made, 16, 16) for made in (NAMED["standard"][0], Parametrisation.ntk(2),
                                                             Parametrisation.mup(2))]  # fmt: skip
    assert all(torch.equal(one, other) for other in others)
    net = Parametrisation.ntk(1).network(DIM, 2, 4000, base=16)
    assert float(net.hidden1.weight.detach().std()) == pytest.approx(DIM**-0.5, rel=0.02)
    effective = net.readout.weight.detach() * net.readout.scale
    assert float(effective.std()) == pytest.approx(4000**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Parametrisation((0, 1, 0.5), (0, 0, 0.5), 0), r"hidden layer 2 start at order n\^-1/2 \(a_2 \+ b_2 = 1, and"),
        (Parametrisation((0.5, 0, 0.5), (0, 0.5, 0.5), 0), r"hidden layer 1 start at order n\^-1/2 \(a_1 \+ b_1 = 1/2"),
        (Parametrisation((-0.5, 0, 0.5), (0.5, 0.5, -0.25), 0), r"the output starts at order n\^1/4"),
        (Parametrisation.standard(2), r"hidden features move at order n\^1 \(r = -1, and at least 0"),
        (Parametrisation((-0.5, 0, 0.5), (0.5, 0.5, 0.25), 0.25), r"moved features move the output at order n\^1/4"),
        (Parametrisation.standard(2), r"the readout's own step moves the output at order n\^1 \(2 a \+ c"),
        (OTHERS["slow ntk"], r"the output moves as n\^-1/2 .* one of them should be 1"),
        (Parametrisation.ntk(2), r"features move as n\^-1/2, and not at order 1 \(r = 1/2"),
    ],
)  # fmt: skip
def test_reasons_name_the_condition_and_both_numbers(made: Parametrisation, reason: str) -> None:
    assert re.search(reason, " | ".join(made.reasons))


def test_impossible_parametrisations_are_refused_with_a_repair() -> None:
    with pytest.raises(UsageError, match=r"a has 2 exponents and b 3.*Parametrisation.mup"):
        Parametrisation((0, 0.5), (0, 0, 0), 0)
    with pytest.raises(UsageError, match=r"hidden=0"):
        Parametrisation.mup(0)
    with pytest.raises(UsageError, match=r"hidden=2: the mean-field.*Take Parametrisation.mup\(2\)"):
        Parametrisation.mean_field(2)
    assert Parametrisation.mup(2).regime == "feature learning"  # the repair
    assert Parametrisation.mup(1).shifted(0.5) == Parametrisation.mean_field()
    with pytest.raises(UsageError, match="width=0"):
        Parametrisation.mup(2).network(3, 1, 0)


# -- the coordinate check ------------------------------------------------------------------------------------------


# many outputs: how far a net is from its targets at the start, and so its step, then varies little from seed to seed
TARGETS = gaussian(ROWS, MANY, seed=102).float()


def checked(
    made: Parametrisation, widths: Any = (32, 128, 512), eta: float = 0.2, **options: Any
) -> CoordinateCheck:
    return coordinate_check(
        lambda width, seed: made.network(DIM, MANY, width, seed=seed, base=32), widths, [(X.float(), TARGETS)],
        loss=F.mse_loss, optimiser=lambda net, width: torch.optim.SGD(net.parameters(), made.rate(width, eta, base=32)),
        **options,
    )  # fmt: skip


def test_movements_are_those_of_a_loop_written_out() -> None:
    found = checked(Parametrisation.ntk(2), (8, 32), layers="hidden*", seeds=2, steps=2)
    assert [(one.name, one.hidden) for one in found.layers] == [
        ("hidden1", True), ("hidden2", True), ("output", False),
    ]  # fmt: skip
    for place, width in enumerate((8, 32)):
        net = Parametrisation.ntk(2).network(DIM, MANY, width, seed=1, base=32)
        states = []
        for _ in range(3):
            first = net[0](X.float())
            second = net[2](torch.tanh(first))
            states.append((first.detach(), second.detach(), net(X.float()).detach()))
            net.zero_grad()
            F.mse_loss(net(X.float()), TARGETS).backward()
            for p in net.parameters():
                p.data -= 0.2 * p.grad
        for layer, one in enumerate(found.layers):
            assert float(one.start[place, 1]) == pytest.approx(
                float(states[0][layer].square().mean().sqrt()), rel=1e-5
            )
            for step in (1, 2):
                wanted = float((states[step][layer] - states[0][layer]).square().mean().sqrt())
                assert float(one.moved[step - 1, place, 1]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["standard", "standard at eta/n", "ntk", "deep mup"])
def test_the_regime_is_the_one_that_the_exponents_say(name: str) -> None:
    made, _, regime = NAMED[name]
    found = checked(made, eta=1.0)
    assert found.regime == regime
    assert found.verdict.lower().startswith(regime)
    slope = max(f.value for one in found.layers if one.hidden and (f := found.slope(one.name)))
    assert (slope > MARGIN) if regime == "unstable" else (abs(slope + made.r) < 0.15)


def test_slopes_have_the_standard_error_over_seeds() -> None:
    values = torch.tensor([[1.0, 1.0], [2.0, 4.0], [4.0, 16.0]])
    found = width_slope([1, 2, 4], values)  # 1 and 2
    assert found is not None
    assert (found.value, found.standard_error) == (1.5, pytest.approx(0.5))
    assert width_slope([1, 2, 4], torch.tensor([[1.0], [0.0], [1.0]])) is None
    one = width_slope([1, 2, 4], values[:, :1])
    assert one is not None
    assert one.standard_error is None


def made_up(hidden: tuple[float, float], output: tuple[float, float], start: float = 0.0) -> CoordinateCheck:
    """Movements with given slopes for two seeds."""
    widths = (16, 64, 256)

    def powers(*slopes: float) -> Tensor:
        return torch.tensor([[width**slope for slope in slopes] for width in widths], dtype=torch.float64)

    layers = (
        LayerMotion("h", True, powers(start, start), powers(*hidden)[None]),
        LayerMotion("output", False, powers(0.5, 0.5), powers(*output)[None]),
    )
    return CoordinateCheck(widths=widths, layers=layers)


@pytest.mark.parametrize(
    ("hidden", "output", "start", "regime"),
    [
        ((0.0, 0.0), (0.0, 0.0), 0.0, "feature learning"),
        ((-0.5, -0.5), (0.0, 0.0), 0.0, "kernel"),
        ((-0.5, -0.5), (-0.5, -0.5), 0.0, "trivial"),
        ((0.5, 0.5), (0.0, 0.0), 0.0, "unstable"),
        ((0.0, 0.0), (0.5, 0.5), 0.0, "unstable"),
        ((0.0, 0.0), (0.0, 0.0), 0.5, "unstable"),
        ((-0.25, -0.25), (0.0, 0.0), 0.0, "unclear"),
        ((-0.1, -0.3), (0.0, 0.0), 0.0, "unclear"),  # -0.2 ± 0.1: two standard errors reach past -1/4
        ((-0.2, -0.2), (0.0, 0.0), 0.0, "feature learning"),
        ((-0.5, -0.5), (-0.1, -0.5), 0.0, "unclear"),
    ],
)
def test_the_rules_of_the_page(hidden: Any, output: Any, start: float, regime: str) -> None:
    found = made_up(hidden, output, start)
    assert found.regime == regime
    assert found.verdict.lower().startswith(regime)
    assert found.report().verdict == found.verdict


def test_a_net_that_overflows_is_unstable_and_is_said_where() -> None:
    found = checked(Parametrisation.standard(2), (8, 32, 256), eta=1e6, steps=6, seeds=2)
    assert found.regime == "unstable"
    broken = made_up((0.0, 0.0), (0.0, 0.0))
    broken.layers[0].moved[0, 1, 1] = math.nan
    assert broken.regime == "unstable"
    assert "h is not finite after 1 step, from width 64 on" in broken.verdict
    assert broken.report().series[0]["values"][1] is None


def test_the_report_has_a_row_a_series_and_numbers_for_each_layer() -> None:
    found = checked(Parametrisation.mup(1), (16, 64), seeds=2, steps=1)
    report = found.report()
    assert [row["layer"] for row in report.tables[0].rows] == ["hidden1", "readout", "output"]
    assert {one["kind"] for one in report.series} == {"widths"}
    slopes = report.result["layers"][0]["slopes"]
    assert slopes == [found.slope("hidden1", step).value for step in (0, 1)]
    for wrong, message in (
        (("hiden1",), "Did you mean 'hidden1'"),
        (("hidden1", 2), "step=2: 1 were made; give 0 to 1"),
    ):
        with pytest.raises(UsageError, match=message):
            found.slope(*wrong)
    assert "CoordinateCheck(" in repr(found)
    assert "tensor(" not in repr(found) + repr(found.layers[0])


class Mapped(nn.Module):
    """Reads keywords, returns a mapping; its block returns a tuple; numbers are torch's global ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.block, self.last = (
            nn.Embedding(9, width),
            nn.LSTM(width, width, batch_first=True),
            nn.Linear(width, 3),
        )

    def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
        h, _ = self.block(self.table(ids) * scale)
        return {"logits": self.last(h[:, -1])}


def test_a_builder_may_draw_from_global_numbers_which_stay_where_they_were() -> None:
    batch = {"ids": torch.arange(8).reshape(2, 4), "scale": torch.ones(())}
    state = torch.get_rng_state()
    results = [
        coordinate_check(
            lambda width, seed: Mapped(width), [4, 8], [(batch, torch.tensor([0, 1]))], seeds=2, steps=1,
            loss=lambda out, y: F.cross_entropy(out["logits"], y),
            optimiser=lambda net, width: torch.optim.Adam(net.parameters(), 0.01),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    first, again = (torch.cat([one.moved for one in found.layers]) for found in results)
    assert torch.equal(first, again)
    assert [(one.name, one.hidden) for one in results[0].layers] == [
        ("table", True), ("block", True), ("last", False), ("output", False),
    ]  # fmt: skip


def test_what_cannot_be_checked_is_refused_and_the_repairs_work() -> None:
    made = Parametrisation.mup(1)
    for options, error, message in (
        ({"widths": (64, 16)}, UsageError, r"widths=\[64, 16\]: give two or more in rising order"),
        ({"steps": 0}, UsageError, "steps=0, seeds=3"),
        ({"layers": "hiden*"}, UsageError, "no module matches 'hiden\\*'. "),
        ({"layers": "readout"}, ModelError, "no layer of readout, output has more units at width 128"),
    ):
        with pytest.raises(error, match=message):
            checked(made, **{"widths": (16, 128), **options})
    rest: dict[str, Any] = {"optimiser": lambda net, width: torch.optim.SGD(net.parameters(), 0.1)}
    rows = [(X, Y)]

    def build(width: int, seed: int) -> nn.Module:
        return made.network(DIM, 2, width, seed=seed, dtype=torch.float64)

    def called_output(width: int, seed: int) -> nn.Module:
        net = build(width, seed)
        net.add_module("output", nn.Linear(2, 2).double())
        return net

    with pytest.raises(UsageError, match=r"a module is called 'output'.*layers=\['hidden1', 'readout'\]"):
        coordinate_check(called_output, [8, 16], rows, loss=F.mse_loss, **rest)
    assert coordinate_check(
        called_output, [8, 16], rows, loss=F.mse_loss, layers=["hidden1", "readout"], **rest
    )
    with pytest.raises(UsageError, match="no batch"):
        coordinate_check(build, [8, 16], [], loss=F.mse_loss, **rest)
    with pytest.raises(DataError, match=r"the loss has the shape \(12, 2\).*take its mean"):
        coordinate_check(build, [8, 16], rows, loss=lambda f, y: (f - y).square(), **rest)
    assert coordinate_check(build, [8, 16], rows, loss=lambda f, y: (f - y).square().mean(), **rest)
    with pytest.raises(ModelError, match=r"build\(8, 0\) and build\(8, 1\) give equal parameters"):
        coordinate_check(lambda width, seed: build(width, 0), [8, 16], rows, loss=F.mse_loss, **rest)
    with pytest.raises(
        MismatchError, match="layer 'hidden2' is in the net of width 16 and not in that of width 8"
    ):
        coordinate_check(
            lambda width, seed: Parametrisation.mup(width // 8).network(DIM, 2, width, seed=seed, dtype=torch.float64),
            [8, 16], rows, loss=F.mse_loss, **rest,
        )  # fmt: skip


# -- linear nets ---------------------------------------------------------------------------------------------------


def linear_path(embedding: Tensor, readout: Tensor, steps: int = 60, rate: float = 0.3) -> Tensor:
    """Outputs along gradient descent on the mean squared error over two, its gradients written out."""
    u, v, found = embedding, readout, []
    for _ in range(steps):
        wrong = (X @ u.T @ v.T - Y) / len(X)
        u, v = u - rate * v.T @ wrong.T @ X, v - rate * wrong.T @ X @ u.T
        found.append(X @ u.T @ v.T)
    return torch.stack(found)


def optimised(net: LinearNet, loss: Any = None, steps: int = 60, **options: float) -> Tensor:
    """Outputs along SGD of torch."""
    optimiser = torch.optim.SGD(net.parameters(), **{"lr": 0.3, **options})
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        (loss(net) if loss else (net(X) - Y).square().sum() / (2 * len(X))).backward()
        optimiser.step()
        found.append(net(X).detach())
    return torch.stack(found)


def slope_of_errors(error: Any, widths: Any = (64, 256, 1024), seeds: int = 4) -> tuple[float, float]:
    """The slope of the mean error in width, and the error at the last one."""
    means = [np.mean([error(width, seed) for seed in range(seeds)]) for width in widths]
    return float(np.polyfit(np.log(widths), np.log(means), 1)[0]), float(means[-1])


def apart(path: Tensor, limit: Tensor) -> float:
    return float((path - limit).norm() / limit.norm())


def test_sixty_steps_of_a_wide_linear_net_are_those_of_its_limit() -> None:
    limit = linear_limit(DIM, 2)
    wanted = linear_path(limit.embedding.detach(), limit.readout.detach())
    assert torch.allclose(optimised(linear_limit(DIM, 2)), wanted, rtol=0, atol=1e-12)
    assert float((wanted[-1] - Y).square().mean()) < 0.9 * float(Y.square().mean())  # it learns

    def error(width: int, seed: int) -> float:
        u, v = (
            gaussian(width, DIM, seed=seed),
            gaussian(2, width, seed=500 + seed),
        )  # no coupling: independent numbers
        return apart(linear_path(u / width**0.5, v / width**0.5), wanted)

    independent = slope_of_errors(error)
    coupled = slope_of_errors(
        lambda width, seed: apart(optimised(limit.sample(width, seed)), wanted), seeds=3
    )
    for slope, last in (independent, coupled):
        assert -0.65 < slope < -0.35
        assert last < 0.06


@pytest.mark.slow
def test_the_limit_holds_for_momentum_decay_and_other_stds() -> None:
    options = {"momentum": 0.8, "weight_decay": 0.05, "lr": 0.05}
    start = linear_limit(DIM, 2, input_std=0.7, readout_std=1.5)
    wanted = optimised(linear_limit(DIM, 2, input_std=0.7, readout_std=1.5), **options)
    slope, last = slope_of_errors(
        lambda width, seed: apart(optimised(start.sample(width, seed), **options), wanted), seeds=3
    )
    assert -0.65 < slope < -0.35
    assert last < 0.08


@pytest.mark.slow
def test_a_sample_of_the_trained_limit_is_a_sample_of_trained_nets() -> None:
    start, limit = linear_limit(DIM, 2), linear_limit(DIM, 2)
    optimised(limit)

    def error(width: int, seed: int) -> float:
        net = start.sample(width, seed)
        optimised(net)
        return apart(net.embedding.detach(), limit.sample(width, seed).embedding.detach())

    slope, last = slope_of_errors(error, seeds=3)
    assert -0.65 < slope < -0.35
    assert last < 0.05


def test_adam_has_another_limit() -> None:
    def path(net: LinearNet) -> Tensor:
        optimiser = torch.optim.Adam(net.parameters(), 0.05 / net.units**0.5)
        for _ in range(10):
            optimiser.zero_grad()
            F.mse_loss(net(X), Y).backward()
            optimiser.step()
        return net(X).detach()

    wanted = path(linear_limit(DIM, 2))
    assert apart(path(linear_limit(DIM, 2).sample(4096, 0)), wanted) > 0.1


def maml(net: LinearNet) -> Tensor:
    """The loss on half of the rows after a step on the other half, through which the gradient goes."""
    u, v = net.embedding, net.readout
    inner = (X[:6] @ u.T @ v.T - Y[:6]).square().mean()
    du, dv = torch.autograd.grad(inner, (u, v), create_graph=True)
    u, v = u - 0.2 * du, v - 0.2 * dv
    return (X[6:] @ u.T @ v.T - Y[6:]).square().mean()


@pytest.mark.slow
def test_a_step_of_maml_is_one_more_step() -> None:
    wanted = optimised(linear_limit(DIM, 2), maml, 20, lr=0.1)
    plain = optimised(linear_limit(DIM, 2), lambda net: F.mse_loss(net(X[6:]), Y[6:]), 20, lr=0.1)
    assert apart(plain, wanted) > 0.05  # the inner step matters
    start = linear_limit(DIM, 2)
    slope, last = slope_of_errors(
        lambda width, seed: apart(optimised(start.sample(width, seed), maml, 20, lr=0.1), wanted), seeds=3
    )
    assert -0.65 < slope < -0.35
    assert last < 0.2


def test_the_limit_of_cbow_is_the_identity_with_as_many_units_as_words() -> None:
    words, steps = 12, 20
    bags = (gaussian(40, words, seed=7) > 0.8).double()
    bags = bags / bags.sum(1, keepdim=True).clamp_min(1)
    middle = torch.randint(words, (40,), generator=torch.Generator().manual_seed(8))

    def loss(net: LinearNet) -> Tensor:
        return F.cross_entropy(net(bags), middle)

    def path(net: LinearNet) -> Tensor:
        optimiser = torch.optim.SGD(net.parameters(), 2.0)
        for _ in range(steps):
            optimiser.zero_grad()
            loss(net).backward()
            optimiser.step()
        return net(bags).detach()

    limit = linear_limit(words, words, readout_std=0)
    assert torch.equal(limit.embedding.detach(), torch.eye(words, dtype=torch.float64))
    assert not limit.readout.any()
    whole = LinearNet(torch.eye(2 * words, words).double(), torch.zeros(words, 2 * words).double())
    wanted = path(limit)
    assert torch.allclose(path(whole), wanted, rtol=0, atol=1e-12)  # the units that are left out stay 0
    start = linear_limit(words, words, readout_std=0)
    slope, last = slope_of_errors(lambda width, seed: apart(path(start.sample(width, seed)), wanted), seeds=3)
    assert -0.65 < slope < -0.35
    assert last < 0.1


def test_impossible_linear_nets_are_refused() -> None:
    with pytest.raises(UsageError, match="inputs=0, outputs=2"):
        linear_limit(0, 2)
    with pytest.raises(UsageError, match=r"input_std=0, readout_std=0.*leave them at 1"):
        linear_limit(3, 2, input_std=0, readout_std=0)
    assert linear_limit(3, 2).units == 5
    with pytest.raises(UsageError, match=r"embedding of shape \(3, 2\) and readout of shape \(2, 4\)"):
        LinearNet(torch.ones(3, 2), torch.ones(2, 4))
    with pytest.raises(UsageError, match="width=0"):
        linear_limit(3, 2).sample(0)
