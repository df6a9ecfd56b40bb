"""A training beside its lazy path: against gradient descent by hand, plain Jacobians, and nets that are linear."""

import copy
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from tauspan.core.errors import DataError, MismatchError, NonFiniteError, StoreError, UsageError
from tauspan.core.report import Report
from tauspan.kernel.diagnose import GradientDescent, Recorder, departure, spaced_steps, trajectory
from tauspan.kernel.diagnose.lazy_path import LazyPath
from tauspan.kernel.diagnose.standing import Standing
from tauspan.objectives import Regression
from tauspan.tangent import linearize

X, Y = zoo.normal(8, 3, seed=1), zoo.normal(8, 2, seed=2)
OTHER = zoo.normal(5, 3, seed=3), zoo.normal(5, 2, seed=4)
LOSSES = {
    "mean": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "half": lambda f, y: 0.5 * (f - y).square().sum(),
    "rows": lambda f, y: Regression().losses(f, y).mean(),
}


def small_net(width=6, outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def trained(net, steps, lr, loss=LOSSES["mean"], x=X, y=Y, optimiser=None):
    """Points of full-batch training, and the optimiser's own if one is given."""
    net, recorder = copy.deepcopy(net), Recorder(steps)
    made = (optimiser or torch.optim.SGD)(net.parameters(), lr=lr)
    for step in range(max(steps) + 1):
        recorder(step, net)
        made.zero_grad()
        loss(net(x), y).backward()
        made.step()
    return net, recorder


# -- when a path is left -----------------------------------------------------------------------------------------


def crossing(steps, ratios, tolerance):
    """The first crossing, read off point by point."""
    for (a, low), (b, high) in pairwise(zip(steps, ratios, strict=True)):
        if high > tolerance:
            if a == 0 or low == 0:
                return a + (b - a) * (tolerance - low) / (high - low)
            power = math.log(high / low) / math.log(b / a)
            return a * (tolerance / low) ** (1 / power)
    return math.inf


@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.35, 2.0])
def test_a_path_is_left_where_the_ratio_passes_the_tolerance(tolerance):
    steps, rng = [0, 2, 5, 40, 300], np.random.default_rng(0)
    sizes = rng.uniform(0.5, 2.0, (5, 30))
    errors = sizes * np.array([0, 0.02, 0.05, 0.3, 0.4])[:, None] ** 2 * rng.uniform(0.2, 2.0, (5, 30))
    sizes[0] = 0
    found = departure(steps, torch.tensor(errors), torch.tensor(sizes), tolerance)
    ratios = [0.0, *np.sqrt(errors[1:].sum(1) / sizes[1:].sum(1))]
    wanted = crossing(steps, ratios, tolerance)
    assert found.largest == pytest.approx(max(ratios))
    if math.isinf(wanted):
        assert (found.step, found.between, found.leaving, found.interval) == (None, None, 0.0, (None, None))
        return
    assert found.step == pytest.approx(wanted, rel=1e-12)
    low, high = found.between
    assert low <= wanted <= high
    assert steps.index(high) == steps.index(low) + 1
    drawn = []
    for _ in range(1000):
        rows = rng.integers(30, size=30)
        some = [0.0, *np.sqrt(errors[1:, rows].sum(1) / sizes[1:, rows].sum(1))]
        drawn.append(crossing(steps, some, tolerance))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high), rel=0.1)


def test_a_departure_knows_what_its_points_do_not_show():
    alike = torch.ones(3, 4).double()
    found = departure([0, 1, 2], 0.04 * alike, alike * torch.tensor([[0.0], [0.0], [1.0]]))
    assert found.between == (0, 2)  # the point at step 1 did not move
    assert found.step == pytest.approx(1.0)
    assert found.interval == pytest.approx((1.0, 1.0))  # rows that are alike
    assert departure([0, 1], torch.zeros(2, 4), torch.zeros(2, 4)).largest is None
    one = torch.tensor([[0.0] * 8, [1.0] * 8])
    uneven = torch.tensor([[0.0] * 8, [0.09] + [0.0] * 7])
    some = departure([0, 1], uneven, one)  # 0.106 of all rows; it hangs on one of them
    assert 0.5 < some.leaving < 0.8
    assert some.interval[1] is None


def test_a_departure_refuses_what_has_no_first_step():
    e = torch.ones(2, 3)
    with pytest.raises(MismatchError, match="a line for each step"):
        departure([0, 1, 2], e, e)
    with pytest.raises(UsageError, match="rising order"):
        departure([1, 1], e, e)
    with pytest.raises(UsageError, match="a ratio above 0"):
        departure([0, 1], e, e, 0.0)
    with pytest.raises(UsageError, match="2 draws or more"):
        departure([0, 1], e, e, draws=1)


# -- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.thinned(4)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_closed_form_is_gradient_descent_of_the_linearised_net(loss):
    net, lr = small_net(), 0.01
    tangent = linearize(net)
    start = {name: theta.clone() for name, theta in tangent.theta0().items()}
    standing = Standing(net, start, "all")
    path = LazyPath(standing, [X[:3], X[3:]], net(X).detach(), Y, GradientDescent(lr, loss))
    cross = path.cross([OTHER[0]])
    optimiser = torch.optim.SGD(tangent.parameters(), lr=lr)
    for step in range(41):
        if step in (0, 1, 7, 40):
            alpha = path.coefficients(step)
            assert torch.allclose(path.outputs(alpha), tangent(X), rtol=0, atol=1e-11)
            other = path.outputs(alpha, net(OTHER[0]).detach(), cross)
            assert torch.allclose(other, tangent(OTHER[0]), rtol=0, atol=1e-11)
        optimiser.zero_grad()
        LOSSES[loss](tangent(X), Y).backward()
        optimiser.step()


def test_a_net_that_is_linear_in_its_parameters_never_leaves_either_path():
    net = nn.Sequential(nn.Linear(3, 2)).double()
    _, points = trained(net, [0, 1, 10, 100], 0.2)
    found = trajectory(net, points, X, Y, test=OTHER, descent=GradientDescent(0.2))
    for point in found.points[1:]:
        for on in ("train", "test"):
            scores = point.scores[on]
            assert scores["tangent"].apart < 1e-12
            assert scores["predicted"].apart < 1e-11
            assert scores["predicted"].loss == pytest.approx(scores["net"].loss, abs=1e-12)
        assert abs(point.distance) < 1e-12
        assert point.change < 1e-12
    assert found.leaves.step is None
    assert found.leaves.leaving == 0.0
    assert "stays within 10 %" in found.verdict
    assert "closed form of gradient descent too" in found.verdict


class Scaled(nn.Module):
    """alpha (f(theta) - f(theta_0)): lazy for large alpha (Chizat, Oyallon and Bach)."""

    def __init__(self, net, alpha):
        super().__init__()
        self.net, self.alpha = net, alpha
        self.first = [copy.deepcopy(net)]  # a constant

    def forward(self, x):
        return self.alpha * (self.net(x) - self.first[0](x).detach())


def test_the_predicted_path_is_the_nets_own_as_alpha_grows():
    errors = []
    for alpha in (1.0, 10.0, 100.0):
        net = Scaled(small_net(), alpha)
        lr = 0.05 / alpha**2
        _, points = trained(net, [0, 60], lr)
        last = trajectory(net, points, X, Y, descent=GradientDescent(lr), rows=0).points[-1]
        errors.append(last.scores["train"]["predicted"].apart)
        assert last.distance is None
    assert errors[0] > 0.05
    for larger, smaller in pairwise(errors):  # the error is of order 1 / alpha
        assert 8 < larger / smaller < 12


def test_other_losses_and_optimisers_have_the_tangent_model_at_their_weights():
    net, labels = small_net(outputs=3), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    _, points = trained(net, [0, 5, 30], 0.05, nn.CrossEntropyLoss(), y=labels, optimiser=torch.optim.Adam)
    found = trajectory(net, points, X, labels, rows=None)
    first, *_, (step, last) = points
    assert (first[0], step) == (0, 30)
    theta = {name: p.detach() for name, p in first[1].items()}

    def outputs(values):
        return torch.func.functional_call(net, values, X)

    jacobian = torch.func.jacrev(outputs)(theta)
    moved = sum((jacobian[name] * (last[name] - theta[name])).flatten(2).sum(2) for name in theta)
    wanted, reached = outputs(theta) + moved, outputs(last)
    scores = found.points[-1].scores["train"]
    assert set(scores) == {"net", "tangent"}
    assert scores["net"].loss == pytest.approx(float(nn.functional.cross_entropy(reached, labels)))
    assert scores["tangent"].loss == pytest.approx(float(nn.functional.cross_entropy(wanted, labels)))
    assert scores["net"].accuracy == float((reached.argmax(1) == labels).double().mean())
    assert scores["tangent"].accuracy == float((wanted.argmax(1) == labels).double().mean())
    apart = (reached - wanted).norm() / (reached - outputs(theta)).norm()
    assert scores["tangent"].apart == pytest.approx(float(apart))
    sizes = [sum(one.square().sum() for one in tensors).sqrt()
             for tensors in ([last[n] - theta[n] for n in theta], list(theta.values()))]  # fmt: skip
    assert found.points[-1].moved == pytest.approx(float(sizes[0] / sizes[1]))
    contrast = torch.tensor([1.0, -1.0, 1.0]).double() - 1 / 3
    whole = torch.cat([jac.flatten(2) for jac in jacobian.values()], 2)
    matrix = torch.einsum("o,nop->np", contrast / contrast.norm(), whole)
    h, kernel = torch.eye(8).double() - 1 / 8, matrix @ matrix.T
    y = h @ (nn.functional.one_hot(labels, 3).double() - 1 / 3)
    aligned = float((h @ kernel @ h * (y @ y.T)).sum() / (h @ kernel @ h).norm() / (y @ y.T).norm())
    assert found.points[0].alignment == pytest.approx(aligned, abs=1e-10)
    with pytest.raises(UsageError, match="closed form is that of a squared loss"):
        trajectory(net, points, X, labels, descent=GradientDescent(0.1))


# -- points ------------------------------------------------------------------------------------------------------


def test_steps_are_spaced_by_ratios():
    assert spaced_steps(1000, 4) == (0, 1, 10, 100, 1000)
    assert spaced_steps(3, 20) == (0, 1, 2, 3)
    for last, count in ((0, 5), (10, 1)):
        with pytest.raises(UsageError, match="give a last step"):
            spaced_steps(last, count)


def test_points_from_files_are_the_points_in_memory(tmp_path):
    net = small_net()
    kept, written = Recorder([0, 2, 4]), Recorder([0, 2, 4], folder=tmp_path / "points")
    for step in range(6):
        assert kept(step, net) is written(step, net) is (step in (0, 2, 4))
        with torch.no_grad():
            net[0].weight.mul_(1.1)
    again = Recorder.read(tmp_path / "points")
    for (step, one), (number, other) in zip(kept, again, strict=True):
        assert step == number
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(again) == 3
    assert repr(again) == "Recorder(3 points, steps 0 to 4)"
    assert repr(Recorder([3])) == "Recorder(no point yet of 1)"
    with pytest.raises(StoreError, match=r"Recorder\.read"):
        Recorder([0], folder=tmp_path / "points")
    with pytest.raises(StoreError, match="no point of a recorder"):
        Recorder.read(tmp_path)


def test_a_recorder_keeps_what_may_move_once():
    net = small_net()
    net[0].requires_grad_(False)
    recorder = Recorder([0, 1])
    recorder(0, net)
    assert sorted(dict(recorder)[0]) == ["2.bias", "2.weight"]
    with pytest.raises(UsageError, match="steps rise"):
        recorder(0, net)
    net[0].requires_grad_(True)
    with pytest.raises(MismatchError, match=r"params='\*'"):
        recorder(1, net)
    everything = Recorder([0], params="*")
    everything(0, net)
    assert len(dict(everything)[0]) == 4
    with pytest.raises(UsageError, match="record the ordinary module"):
        Recorder([0])(0, linearize(net))
    for steps in ([], [-1, 3]):
        with pytest.raises(UsageError, match="name the steps"):
            Recorder(steps)


def test_the_start_is_the_first_point_and_the_module_is_left_alone():
    net, points = trained(small_net(), [0, 3, 20], 0.1)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    net.train()
    found = trajectory(net, points, X, Y, rows=0)
    assert net.training
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())
    first = dict(points)[0]
    net.load_state_dict(first)
    tangent = linearize(net)
    whole = trajectory(tangent, points, X, Y, rows=0)  # the start is theta0 of a linearisation
    later = trajectory(tangent, [one for one in points if one[0]], X, Y, rows=0)
    parts = trajectory(net, points, [X[:5], X[5:]], Y, rows=0)
    for other in (whole, later, parts):
        assert [point.step for point in other.points] == [0, 3, 20]
        assert other.points[-1].scores["train"]["tangent"].apart == pytest.approx(
            found.points[-1].scores["train"]["tangent"].apart
        )
    with pytest.raises(UsageError, match="give the module in place of its linearisation"):
        trajectory(tangent, [(0, tangent.state_dict()), (1, tangent.state_dict())], X, Y)
    assert trajectory(net, points, X, Y, rows=0).points[-1].step == 20  # that repair


def test_points_of_another_training_are_refused():
    net, points = trained(small_net(), [0, 3], 0.1)
    (_, first), (_, last) = points
    with pytest.raises(UsageError, match="Sort them by number") as caught:
        trajectory(net, [(3, last), (0, first)], X, Y)
    assert "`sorted(points, key=lambda point: point[0])`" in str(caught.value)
    assert trajectory(net, sorted([(3, last), (0, first)], key=lambda point: point[0]), X, Y, rows=0)
    with pytest.raises(UsageError, match="no points"):
        trajectory(net, [], X, Y)
    with pytest.raises(UsageError, match="one point only, step 0"):
        trajectory(net, [(0, first)], X, Y, rows=0)
    with pytest.raises(MismatchError, match=r"step 3 lacks 0\.weight"):
        trajectory(net, [(0, first), (3, {k: v for k, v in last.items() if k != "0.weight"})], X, Y, rows=0)
    with pytest.raises(MismatchError, match="holds more, which the model does not"):
        trajectory(net, [(0, {**first, "more": torch.ones(1)})], X, Y)
    with pytest.raises(MismatchError, match=r"'0\.bias' has shape \(1,\)"):
        trajectory(net, [(0, {**first, "0.bias": torch.ones(1)})], X, Y)
    with pytest.raises(NonFiniteError, match=r"'0\.bias' of the point at step 3"):
        trajectory(net, [(0, first), (3, {**last, "0.bias": torch.full((6,), math.nan)})], X, Y, rows=0)
    big = {name: torch.full_like(tensor, 1e308) for name, tensor in last.items()}
    with pytest.raises(NonFiniteError, match="outputs on the train rows at step 3"):
        trajectory(net, [(0, first), (3, big)], X, Y, rows=0)
    with pytest.raises(DataError, match="7 targets of the train rows"):
        trajectory(net, points, X, Y[:7])
    with pytest.raises(DataError, match="targets of the test rows"):
        trajectory(net, points, X, Y, test=(OTHER[0], OTHER[1][:, :1]))
    with pytest.raises(UsageError, match="2 rows or more"):
        trajectory(net, points, X, Y, rows=1)
    with pytest.raises(UsageError, match=r"diverges from lr = 2/lambda_max = ([\d.]+)") as caught:
        trajectory(net, points, X, Y, descent=GradientDescent(1e3))
    most = float(str(caught.value).split("2/lambda_max = ")[1].split(" ")[0])
    assert trajectory(net, points, X, Y, descent=GradientDescent(0.9 * most), rows=0)  # a lower one
    with pytest.raises(UsageError, match="above 0"):
        GradientDescent(0.0)


def test_what_the_tangent_model_holds_fixed_must_not_move():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    recorder = Recorder([0, 4])
    for step in range(5):
        recorder(step, net)
        net.train()(X)  # running means move
    with pytest.raises(MismatchError, match=r"'1\.running_mean' of the point at step 4"):
        trajectory(net, recorder, X, Y)
    net.eval()
    _, points = trained(net, [0, 4], 0.1)  # the repair: batch norm in eval mode
    assert trajectory(net, points, X, Y, rows=0).points[-1].moved > 0
    states = [(step, {**net.state_dict(), **point}) for step, point in points]
    with pytest.raises(MismatchError, match=r"Name it among `params`"):
        trajectory(net, states, X, Y, params=["0.weight", "0.bias"], rows=0)
    assert trajectory(net, states, X, Y, params="*", rows=0)


def test_live_tensors_are_noticed():
    net = small_net()
    points = [(step, net.state_dict()) for step in range(3)]
    found = trajectory(net, points, X, Y, rows=0)
    assert found.leaves.largest is None
    assert "keep copies, as a `Recorder` does" in found.verdict


class Tied(nn.Module):
    """Two names of one parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Linear(3, 3, bias=False).double() for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())[:, :2]


def test_a_tied_parameter_is_one_under_any_of_its_names():
    net = Tied()
    states = []
    for step in range(2):
        states.append((step, {name: tensor.clone() for name, tensor in net.state_dict().items()}))
        with torch.no_grad():
            net.first.weight.mul_(1.3)
    found = trajectory(net, states, X, Y, rows=0)
    other = [(step, {"second.weight": state["second.weight"]}) for step, state in states]
    assert found.points[-1].moved == pytest.approx(0.3)
    assert trajectory(net, other, X, Y, rows=0).points[-1].moved == pytest.approx(0.3)


# -- what it says ------------------------------------------------------------------------------------------------


def test_the_report_says_when_and_shows_it():
    net, points = trained(small_net(), [0, 1, 4, 20, 150], 0.3)
    found = trajectory(net, points, X, Y, test=OTHER, descent=GradientDescent(0.3), rows=4)
    low, high = found.leaves.between
    assert low < found.leaves.step < high
    assert f"between the points at steps {low} and {high}" in found.verdict
    assert repr(found) == f"Trajectory(5 points to step 150, leaves it at step {found.leaves.step:.3g})"
    assert set(found.departures) == {(p, on) for p in ("tangent", "predicted") for on in ("train", "test")}
    assert found.counts == (8, 5, 4)
    report = found.report()
    assert [table.title for table in report.tables] == [
        "Losses of 8 train rows", "Losses of 5 test rows", "Motion", "Leaving"
    ]  # fmt: skip
    again = Report.from_json(report.to_json())
    assert json.loads(report.to_json())["result"]["departures"][0]["step"] == found.leaves.step
    assert [point["step"] for point in again.result["points"]] == [0, 1, 4, 20, 150]
    figure = again.plot()["trajectory"]
    assert len(figure.axes) == 3
    without = trajectory(net, points, X, Y, rows=0, tolerance=50.0)
    assert without.leaves.step is None
    assert len(without.plot()["trajectory"].axes) == 2


def test_equal_targets_have_no_alignment():
    net, points = trained(small_net(outputs=1), [0, 3], 0.1, y=torch.ones(8, 1).double())
    found = trajectory(net, points, X, torch.ones(8, 1).double())
    assert [point.alignment for point in found.points] == [None, None]
    assert found.points[1].change > 0
    assert "all equal" in found.warnings[0]
    assert list(found.report().series[0]["kernel"]) == ["relative change"]


def test_open_ends_are_said_in_words():
    net, points = trained(small_net(), [0, 20], 0.3)
    ratio = trajectory(net, points, X, Y, rows=0).points[-1].scores["train"]["tangent"].apart
    found = trajectory(
        net, points, X, Y, rows=0, tolerance=0.97 * ratio
    )  # some draws of the rows do not leave
    assert found.leaves.interval[1] is None
    assert "to after 20)" in found.verdict
