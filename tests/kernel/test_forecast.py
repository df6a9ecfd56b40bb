"""Starts chosen by the kernel's predicted loss: against gradient descent, exponentials, and what scales must do."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from torch import nn

from tauspan.core.errors import UsageError
from tauspan.core.report import Report
from tauspan.kernel import Descent, Flow, Modes, forecast


class Waves(nn.Module):
    """Fixed random waves under trained weights: linear in its parameters, with outputs that start away from 0."""

    def __init__(self, frequency: float, start: float, seed: int, outputs: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        kind = {"generator": generator, "dtype": torch.float64}
        self.waves, self.phases = frequency * torch.randn(1, 30, **kind), 6 * torch.rand(30, **kind)
        self.weight = nn.Parameter(start * torch.randn(30, outputs, **kind))

    def features(self, x):
        return torch.cos(x @ self.waves + self.phases)

    def forward(self, x):
        return self.features(x) @ self.weight


def rows(count, outputs=2):
    x = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]
    return x, torch.cat([torch.sin(3 * x), torch.cos(2 * x)], 1)[:, :outputs]


def error(module, x, y):
    with torch.no_grad():
        return float((module(x) - y).square().mean())


def descended(module, x, y, steps, lr):
    """Plain gradient descent on half the summed squared error."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        ((module(x) - y).square().sum() / 2).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("budget", [Descent(25, 1.3), Descent(25, 0.004, relative=False)])
def test_descent_of_a_model_that_is_linear_in_its_parameters_is_forecast_exactly(budget):
    (x, y), (z, wanted) = rows(14), rows(9)
    found = forecast(
        Waves, x, y, {"frequency": [1.0, 4.0], "start": [0.5]}, budget=budget, held_out=(z, wanted), seeds=2
    )
    assert [dict(one.scales) for one in found.starts] == [{"frequency": a, "start": 0.5} for a in (1.0, 4.0)]
    for start in found.starts:
        for seed, outcome in enumerate(start.outcomes):
            module = Waves(**start.scales, seed=seed)
            kernel = np.kron(np.asarray(module.features(x) @ module.features(x).T), np.eye(2))
            largest = np.linalg.eigvalsh(kernel)[-1]
            assert outcome.lr_max == pytest.approx(2 / largest)
            assert outcome.start == pytest.approx(error(module, x, y))
            descended(module, x, y, 25, budget.lr / largest if budget.relative else budget.lr)
            assert outcome.loss == pytest.approx(error(module, x, y), rel=1e-9)
            assert outcome.held_out == pytest.approx(error(module, z, wanted), rel=1e-7)


@pytest.mark.parametrize(("time", "relative"), [(40.0, True), (0.3, False), (0.0, True)])
def test_flow_is_a_matrix_exponential(time, relative):
    (x, y), (z, wanted) = rows(8, 1), rows(5, 1)
    found = forecast(
        Waves, x, y, [{"frequency": 2.0, "start": 0.5, "outputs": 1}], budget=Flow(time, relative),
        held_out=(z, wanted), seeds=1,
    )  # fmt: skip
    module = Waves(2.0, 0.5, 0, 1)
    seen, unseen = (module.features(one).numpy() for one in (x, z))
    kernel = seen @ seen.T
    t = time / np.linalg.eigvalsh(kernel)[-1] if relative else time
    residual = (y - module(x)).detach().numpy()
    left = expm(-kernel * t) @ residual
    (outcome,) = found.starts[0].outcomes
    assert outcome.loss == pytest.approx(float(np.mean(left**2)), rel=1e-9)
    after = module(z).detach().numpy() + unseen @ seen.T @ np.linalg.solve(
        kernel + 1e-13 * np.eye(8), residual - left
    )
    assert outcome.held_out == pytest.approx(float(np.mean((after - wanted.numpy()) ** 2)), rel=1e-4)


def test_held_out_rows_show_a_start_that_fits_rows_one_by_one_and_the_verdict_how_sure_the_choice_is():
    (x, y), (z, wanted) = rows(16, 1), rows(31, 1)
    scales = [{"frequency": value, "start": 0.0, "outputs": 1} for value in (0.02, 2.0, 2.02, 300.0)]
    found = forecast(Waves, x, y, scales, budget=Flow(300.0), held_out=(z[1::2], wanted[1::2]), seeds=2)
    assert found.starts[3].held_out.value > 10 * found.starts[3].loss.value
    assert found.chosen.criterion == "held_out"
    assert found.chosen.scales["frequency"] in (2.0, 2.02)
    assert found.ends == {}
    assert [one.scales["frequency"] + found.chosen.scales["frequency"] for one in found.close] == [4.02]
    assert "1 other start is within two standard errors" in found.verdict
    blind = forecast(Waves, x, y, scales[:2], budget=Flow(300.0), seeds=1)
    assert [one.outcomes[0].loss for one in blind.starts] == [
        one.outcomes[0].loss for one in found.starts[:2]
    ]
    assert (blind.chosen.criterion, blind.ends, blind.close) == ("loss", {"frequency": 2.0}, [])
    assert "one seed" in blind.verdict
    assert "It lies at an end of what was tried (frequency = 2)" in blind.verdict


@given(st.floats(0.1, 10.0))
@settings(max_examples=5, deadline=None)
def test_a_larger_kernel_gains_by_an_absolute_time_alone(factor):
    modes = Modes(torch.tensor([0.5, 1.0, 3.0]).double(), torch.eye(3).double())
    larger, residual = Modes(factor * modes.values, modes.vectors), torch.ones(3)
    for relative in (Flow(5.0), Descent(7, 1.5)):
        assert relative.loss(larger, residual) == pytest.approx(relative.loss(modes, residual))
    ordered = Flow(5.0, relative=False).loss(larger, residual) <= Flow(5.0, relative=False).loss(
        modes, residual
    )
    assert ordered == (factor >= 1)


def test_a_kernel_that_is_zero_learns_nothing():
    modes = Modes(torch.zeros(2), torch.eye(2))
    assert Flow(7.0).loss(modes, torch.ones(2)) == 1.0
    assert Flow(0.0).loss(modes, torch.ones(2)) == 1.0


def unseeded(w):
    """A start that draws from torch's own generator."""
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        for one in net.parameters():
            one.mul_(w)
    return net


def test_seeds_decide_and_the_global_generator_stays():
    x, y = rows(6, 1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = forecast(unseeded, x, y, {"w": [0.5]})
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = forecast(unseeded, x, y, {"w": [0.5]})
    assert [one.errors for one in first.starts] == [one.errors for one in again.starts]
    one = first.starts[0]
    assert len(set(one.errors)) == 3
    assert one.loss.value == pytest.approx(np.mean(one.errors))
    assert one.loss.standard_error == pytest.approx(np.std(one.errors, ddof=1) / 3**0.5)


@pytest.mark.slow
def test_the_report_is_written_and_drawn():
    x, y = rows(6, 1)
    one = forecast(unseeded, x, y, {"w": [0.1, 1.0, 10.0]}, seeds=2)
    two = forecast(
        Waves, x, y[:, :1], {"frequency": [1.0, 4.0], "start": [0.0, 1.0], "outputs": [1]}, seeds=1
    )
    grid = forecast(
        lambda a, b, seed: Waves(a, b, seed, 1),
        x,
        y,
        {"a": [1.0, 4.0], "b": [0.0, 1.0]},
        held_out=(x, y),
        seeds=1,
    )
    rate = grid.starts[0].outcomes[0].lr_max
    apart = forecast(
        Waves, x, y, {"frequency": [0.1, 4.0], "start": [1.0], "outputs": [1]}, seeds=1,
        budget=Descent(3, 0.999 * rate, relative=False), held_out=(x, y),
    )  # fmt: skip
    for found in (one, two, grid, apart):
        report = Report.from_json(found.report().to_json())
        assert report.verdict == found.verdict
        assert report.result["chosen"] == dict(found.chosen.scales)
        assert len(report.tables[0].rows) == len(found.starts)
        assert list(found.plot()) == ["starts"]
    assert len(grid.plot()["starts"].axes) == 4  # two panels, each with its scale
    assert json.loads(grid.report().to_json())["result"]["by"] == "held_out"


def test_starts_that_diverge_are_never_chosen():
    x, y = rows(6, 1)
    rates = [one.outcomes[0].lr_max for one in forecast(unseeded, x, y, {"w": [0.5, 2.0]}, seeds=1).starts]
    between = (rates[0] * rates[1]) ** 0.5
    found = forecast(
        unseeded,
        x,
        y,
        {"w": [0.5, 2.0]},
        seeds=1,
        budget=Descent(3, between, relative=False),
        held_out=(x, y),
    )
    assert [math.isinf(one.value) for one in found.starts] == [False, True]
    assert found.rows()[1]["loss"] == "diverges"
    with pytest.raises(UsageError, match=f"2 / lambda_max is {rates[0]:.3g}") as caught:
        forecast(unseeded, x, y, {"w": [0.5, 2.0]}, seeds=1, budget=Descent(3, 2 * rates[0], relative=False))
    assert "relative=True" in str(caught.value)
    assert forecast(unseeded, x, y, {"w": [0.5, 2.0]}, seeds=1, budget=Descent(3, 1.0, relative=True)).chosen


def same(w):
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(module.weight, w)
    return module


def test_what_cannot_be_forecast_is_refused():
    x, y = rows(4, 1)
    with pytest.raises(UsageError, match=r"same gives the same start for each of 3 seeds.*`seeds=1`"):
        forecast(same, x, y, {"w": [1.0]})
    assert forecast(same, x, y, {"w": [1.0]}, seeds=1).chosen
    with pytest.raises(UsageError, match=r"combination 1 names v, and the first w"):
        forecast(same, x, y, [{"w": 1.0}, {"v": 1.0}])
    for nothing in ({}, {"w": []}, [], [{}]):
        with pytest.raises(UsageError, match="no combination to try"):
            forecast(same, x, y, nothing)
    with pytest.raises(UsageError, match=r"combination 0 is .*nan"):
        forecast(same, x, y, {"w": [math.nan]})
    with pytest.raises(UsageError, match="`seed` is what `forecast` itself gives"):
        forecast(same, x, y, {"seed": [1.0]})
    with pytest.raises(UsageError, match=r"build\(w=0\) gives NoneType"):
        forecast(lambda w: None, x, y, {"w": [0.0]})
    with pytest.raises(UsageError, match="seeds=0"):
        forecast(same, x, y, {"w": [1.0]}, seeds=0)
    with pytest.raises(UsageError, match="the targets of shape"):
        forecast(same, x, y[:3], {"w": [1.0]}, seeds=1)
    with pytest.raises(UsageError, match="the targets of the held-out rows of shape"):
        forecast(same, x, y, {"w": [1.0]}, seeds=1, held_out=(x, y[:3]))
    for wrong in (
        lambda: Flow(-1.0),
        lambda: Flow(math.nan),
        lambda: Descent(-1),
        lambda: Descent(1, 2.0),
        lambda: Descent(1, 0.0),
    ):
        with pytest.raises(UsageError):
            wrong()
    assert Descent(1, 2.0, relative=False).lr == 2.0  # the repair of lr=2


def test_only_some_parameters_may_train():
    x, y = rows(6, 1)
    found = forecast(unseeded, x, y, {"w": [1.0]}, params="2.*", seeds=2)
    whole = forecast(unseeded, x, y, {"w": [1.0]}, seeds=2)
    assert found.chosen.outcomes[0].lr_max > whole.chosen.outcomes[0].lr_max
