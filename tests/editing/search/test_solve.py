"""The convex solver against brute force, torch's own optimiser and the conditions of a minimum, in float64."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from helpers.threads import one_thread  # noqa: F401 - a fixture for every test here
from helpers.zoo import normal
from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.editing import Solution, minimise
from tauspan.editing.search.bootstrap import coefficient_intervals, counts, metric_intervals
from tauspan.editing.search.box import Box
from tauspan.editing.search.objective import objective, term
from tauspan.editing.search.solve import solve
from tauspan.models import Head
from tauspan.tangent.contributions import Contributions
from tauspan.tasks import Task

TIGHT = 1e-9
seeds = st.integers(0, 10_000)


def part(directions: int = 2, rows: int = 40, classes: int = 3, seed: int = 0) -> Contributions:
    """Noisy labels, so that nothing separates them."""
    value, tangents = normal(rows, classes, seed=seed), normal(directions, rows, classes, seed=seed + 1)
    labels = (value + 0.6 * tangents.sum(0) + 2.5 * normal(rows, classes, seed=seed + 2)).argmax(-1)
    return Contributions(value, tangents, labels, tuple(f"d{i}" for i in range(directions)))


def of(one: Contributions, tangents: Tensor) -> Contributions:
    """The same rows with other directions."""
    return Contributions(
        one.value, tangents, one.labels, tuple(f"d{i}" for i in range(len(tangents))), one.head
    )


def loss(parts: Sequence[Contributions], a: Any) -> Tensor:
    """Mean over tasks of mean cross-entropy, written out."""
    return sum(F.cross_entropy(p.logits(a), p.labels) for p in parts) / len(parts)  # type: ignore[return-value]


def lbfgs(parts: Sequence[Contributions], ridge: float = 0.0) -> Tensor:
    """The minimum by torch's own optimiser."""
    a = torch.zeros(len(parts[0].names), dtype=torch.float64, requires_grad=True)
    options = {
        "max_iter": 500,
        "tolerance_grad": 1e-11,
        "tolerance_change": 0.0,
        "line_search_fn": "strong_wolfe",
    }
    optimiser = torch.optim.LBFGS([a], **options)  # type: ignore[arg-type]

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(parts, a) + ridge / 2 * a.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return a.detach()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sure", [1.0, 380.0, 700.0])
def test_rows_that_are_sure_of_their_class_make_a_flat_goal_and_no_warning(sure: float) -> None:
    value, tangents = torch.eye(2, dtype=torch.float64).repeat(20, 1) * sure, normal(2, 40, 2, seed=5)
    labels = torch.arange(2).repeat(20)
    parts = [Contributions(value, tangents, labels, ("d0", "d1"))]
    found = solve(objective(parts), Box.of(2, (-1.0, 1.0)), tolerance=1e-8)
    assert found.certified


def near(first: Any, second: Any, gap: float = 1e-7) -> bool:
    return bool(np.abs(np.asarray(first) - np.asarray(second)).max() <= gap)


# -- oracles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_the_minimum_is_the_one_torch_finds(ridge: float) -> None:
    parts = [part(4, seed=10 * i) for i in range(3)]
    found = minimise(parts, ridge=ridge)
    assert near(found.values, lbfgs(parts, ridge))
    assert found.certificate <= TIGHT
    assert found.certified
    assert found.convex
    assert found.flat == 0
    assert found.loss == pytest.approx(float(loss(parts, found.values)), abs=1e-12)
    assert found.objective == pytest.approx(
        found.loss + ridge / 2 * float(found.values.square().sum()), abs=1e-12
    )


@pytest.mark.parametrize(
    "rules", [{}, {"bounds": (0.0, 0.25)}, {"l1": 0.1}, {"ridge": 0.2}, {"l1": 0.05, "bounds": (-0.1, 0.3)}]
)
def test_no_point_of_a_fine_grid_is_lower(rules: dict[str, Any]) -> None:
    parts = [part(2, seed=3), part(2, seed=30)]
    found = minimise(parts, **rules)
    lo, hi = rules.get("bounds", (-1.0, 1.0))
    line = torch.linspace(lo, hi, 61, dtype=torch.float64)

    def cost(points: Tensor) -> Tensor:
        """The objective at many points of shape (G, T), at once."""
        total = rules.get("ridge", 0.0) / 2 * points.square().sum(1) + rules.get(
            "l1", 0.0
        ) * points.abs().sum(1)
        for p in parts:
            logp = (p.value + torch.einsum("gt,tnc->gnc", points, p.tangents)).log_softmax(-1)
            total = total - logp[:, torch.arange(len(p)), p.labels].mean(1) / len(parts)
        return total

    grid = torch.cartesian_prod(line, line)
    costs = cost(grid)
    assert cost(found.values[None]) <= costs.min()
    assert found.objective == pytest.approx(float(cost(found.values[None])), abs=1e-12)
    assert near(found.values, grid[costs.argmin()], (hi - lo) / 60)
    assert found.certified


def test_gradient_and_hessian_are_those_of_autograd() -> None:
    for head in (None, Head(normal(4, 3, seed=8), normal(4, seed=9), scale=2.0),
                 Head(normal(4, 3, seed=8), scale=5.0, normalize=True)):  # fmt: skip
        one = replace(part(3), head=head)
        goal = objective([one], ridge=0.3, centre=[0.1, 0.2, 0.3])
        a = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)

        def cost(x: Tensor, one: Contributions = one) -> Tensor:
            return (
                loss([one], x)
                + 0.15 * (x - torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)).square().sum()
            )

        wanted = torch.func.grad(cost)(a)
        assert near(goal.gradient(a.numpy()), wanted, 1e-12)
        assert goal.value_and_gradient(a.numpy())[0] == pytest.approx(float(cost(a)), abs=1e-12)
        assert goal.convex == (head is None or not head.normalize)
        if goal.convex:
            assert near(goal.hessian(a.numpy()), torch.func.hessian(cost)(a), 1e-12)


def test_badly_scaled_directions_take_few_evaluations_to_a_tight_certificate() -> None:
    one = part(4, seed=3)
    found = minimise([of(one, one.tangents * torch.tensor([100.0, 0.01, 30.0, 1.0])[:, None, None])])
    assert found.certificate <= 1e-12
    assert found.evaluations <= 20


def test_forgetting_is_the_distance_to_the_wrong_classes() -> None:
    one = part(2)
    a = torch.tensor([0.3, -0.7], dtype=torch.float64)
    logits = one.logits(a)
    wrong = torch.ones_like(logits).scatter(1, one.labels[:, None], 0.0)
    wanted = (logits.logsumexp(-1) - (logits * wrong).sum(-1) / 2).mean()
    assert term(one, 2.0, "wrong").value_and_gradient(a)[0] == pytest.approx(2 * float(wanted), abs=1e-12)


# -- properties ----------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(seed=seeds)
def test_permuted_directions_have_permuted_coefficients(seed: int) -> None:
    one = part(3, seed=seed)
    order = [2, 0, 1]
    rules: dict[str, Any] = {"bounds": (0.0, 0.5), "ridge": 1e-3}
    plain, turned = minimise([one], **rules), minimise([of(one, one.tangents[order])], **rules)
    assert near(turned.values, plain.values[order], 1e-6)


@settings(max_examples=8)
@given(seed=seeds, factor=st.floats(0.05, 20.0))
def test_a_direction_times_c_has_the_coefficient_over_c(seed: int, factor: float) -> None:
    one = part(2, seed=seed)
    scale = torch.tensor([factor, 1.0], dtype=torch.float64)
    plain, scaled = minimise([one]), minimise([of(one, one.tangents * scale[:, None, None])])
    assert near(scaled.values * scale, plain.values, 1e-5)


@settings(max_examples=8)
@given(seed=seeds)
def test_every_shared_coefficient_is_beaten_or_equalled(seed: int) -> None:
    parts = [part(3, rows=25, seed=seed), part(3, rows=25, seed=seed + 7)]
    found = minimise(parts, bounds=(0.0, 1.0))
    assert found.certified
    assert all(found.loss <= float(loss(parts, [0.05 * k] * 3)) + 1e-12 for k in range(21))


# -- conditions of a minimum ---------------------------------------------------------------------------------


def test_at_a_bound_the_gradient_points_outside() -> None:
    parts = [part(4, seed=1)]
    free = minimise(parts)
    lo, hi = float(free.values.median()) - 0.05, float(free.values.median()) + 0.05
    found = minimise(parts, bounds=(lo, hi))
    gradient = objective(parts).gradient(found.values.numpy())
    assert found.at_bound
    for name, a, slope in zip(found.names, found.values.tolist(), gradient, strict=True):
        if name in found.at_bound:
            assert a in (lo, hi)
            assert slope > 0 if a == lo else slope < 0
        else:
            assert abs(slope) <= 1e-8


def test_the_residual_is_the_distance_from_the_conditions() -> None:
    box = Box.of(1, (0.0, 1.0), 0.5)
    cases = [
        (0.0, -0.4, 0.0),
        (0.0, -0.7, 0.2),
        (0.0, 9.0, 0.0),
        (1.0, -0.6, 0.0),
        (1.0, 0.1, 0.6),
        (0.5, -0.2, 0.3),
    ]
    for a, slope, wanted in cases:
        assert box.residual(np.array([a]), np.array([slope])) == pytest.approx(wanted)


def test_l1_gives_exact_zeros_where_a_direction_does_not_pay() -> None:
    one = part(3, rows=80, seed=5)
    weak = of(one, torch.cat([one.tangents, 0.01 * normal(2, 80, 3, seed=77)]))
    found = minimise([weak], l1=0.02)
    assert found.values[3:].tolist() == [0.0, 0.0]
    assert (found.values[:3] != 0).all()
    assert found.certified
    gone = minimise([weak], l1=10.0)
    assert gone.values.tolist() == [0.0] * 5
    assert gone.certified


def test_the_ridge_pulls_to_its_centre() -> None:
    centre = [0.7, -0.4]
    assert near(minimise([part(2)], ridge=1e6, centre=centre).values, centre, 1e-5)


def test_weights_choose_between_tasks() -> None:
    one, two = part(2, seed=1), part(2, seed=20)
    assert near(minimise([one, two], weights=[1.0, 0.0]).values, minimise([one]).values, 1e-7)


# -- ties and missing minima ---------------------------------------------------------------------------------


def test_equal_directions_share_and_a_zero_one_gets_zero() -> None:
    one = part(2, seed=4)
    plain = minimise([one])
    a, b = plain.values.tolist()
    again = of(one, torch.cat([one.tangents, one.tangents[:1], 2 * one.tangents[1:], 0 * one.tangents[:1]]))
    for start in (None, [0.9, -0.5, 0.1, 0.4, 3.0]):
        found = minimise([again], start=start)
        assert found.flat == 3
        assert near(found.values, [a / 2, b / 5, a / 2, 2 * b / 5, 0.0], 1e-6)
        assert found.certified
    assert minimise([of(one, torch.zeros(3, 40, 3))], start=[1.0, 2.0, 3.0]).values.tolist() == [
        0.0,
        0.0,
        0.0,
    ]


def test_the_shortest_minimiser_stays_in_its_bounds() -> None:
    one = part(1, seed=4)
    (a,) = minimise([one]).values.tolist()
    assert a > 0.1
    twice = of(one, torch.cat([one.tangents, 2 * one.tangents]))
    found = minimise([twice], bounds=(0.0, 0.3 * a))
    assert near(found.values, [a - 0.6 * a if a - 0.6 * a < 0.3 * a else 0.3 * a, 0.3 * a], 1e-6)
    same = minimise([of(one, torch.cat([one.tangents, one.tangents]))], l1=0.01, start=[0.4, 0.0])
    assert near(same.values[0], same.values[1], 1e-6)


def test_ties_leave_a_bound_that_the_gradient_presses_on() -> None:
    one = part(4, rows=200, seed=0)
    again = of(one, torch.cat([one.tangents, one.tangents[:1], 2 * one.tangents[1:2]]))
    found = minimise([again], bounds=(0.0, 0.2))
    assert found.certified
    assert {"d2", "d3"} <= set(found.at_bound)
    a = found.values.tolist()
    assert near([a[0], 2 * a[1]], [a[4], a[5]], 1e-6)


def test_a_shift_of_all_classes_is_flat() -> None:
    one = part(1)
    shifted = of(one, torch.cat([one.tangents, normal(1, 40, 1, seed=3).expand(1, 40, 3)]))
    found = minimise([shifted])
    assert found.flat == 1
    assert found.coefficients["d1"] == pytest.approx(0.0, abs=1e-9)


def separable() -> Contributions:
    x = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    return Contributions(
        torch.zeros(3, 2).double(), torch.cat([x, -x], 1)[None], torch.tensor([0, 0, 1]), ("d0",)
    )


def test_separable_rows_need_a_hold_and_the_error_says_which() -> None:
    with pytest.raises(UsageError, match=r"separates.*bounds such as \(0, 1\), or a ridge"):
        minimise([separable()])
    with pytest.raises(UsageError, match="separates"):
        minimise([separable()], bounds=(0.0, math.inf))
    assert minimise([separable()], bounds=(-math.inf, 2.0)).values.tolist() == [2.0]
    turned = of(separable(), -separable().tangents)
    assert minimise([turned], bounds=(-2.0, math.inf)).values.tolist() == [-2.0]
    with pytest.raises(UsageError, match="separates"):
        minimise([turned], bounds=(-math.inf, 0.0))
    assert minimise([separable()], bounds=(0.0, 3.0)).values.tolist() == [3.0]
    for rules in ({"ridge": 1e-3}, {"l1": 1e-3}):
        held = minimise([separable()], **rules)
        assert held.certified
        assert 1.0 < held.coefficients["d0"] < 20.0


def test_rows_that_are_tied_but_not_separable_have_a_minimum() -> None:
    part_ = separable()
    mixed = Contributions(part_.value, part_.tangents, torch.tensor([0, 1, 1]), ("d0",))
    assert minimise([mixed]).certified


def test_a_normalising_head_is_solved_from_its_start_and_not_called_convex() -> None:
    head = Head(normal(3, 5, seed=8), scale=4.0, normalize=True)
    one = Contributions(normal(30, 5), normal(2, 30, 5, seed=3), torch.arange(30) % 3, ("d0", "d1"), head)
    with pytest.raises(UsageError, match="normalising head"):
        minimise([one])
    found = minimise([one], bounds=(0.0, 1.0), start=[0.5, 0.5])
    assert not found.convex
    assert found.certified
    assert found.loss <= float(loss([one], [0.5, 0.5]))


def test_float32_contributions_are_solved_in_float64() -> None:
    one = part(3, rows=60)
    narrow = Contributions(one.value.float(), one.tangents.float(), one.labels, one.names)
    found = minimise([narrow])
    assert found.values.dtype == torch.float64
    assert found.certified
    assert near(found.values, minimise([one]).values, 1e-5)


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"bounds": (1.0, 0.0)}, "bounds"), ({"bounds": (math.nan, 1.0)}, "bounds"),
        ({"bounds": (math.inf, math.inf)}, "bounds"), ({"ridge": -1.0}, "ridge=-1"), ({"ridge": math.nan}, "ridge"),
        ({"l1": -1.0}, "l1=-1"), ({"centre": [0.0]}, "centre"), ({"start": [0.0]}, "start"),
        ({"start": [0.0, math.nan]}, "start"), ({"weights": [1.0, 1.0]}, "weights"), ({"weights": [-1.0]}, "weights"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)  # fmt: skip
def test_an_argument_that_does_not_fit_is_refused(rules: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        minimise([part(2)], **rules)


def test_contributions_that_do_not_fit_are_refused() -> None:
    one = part(2)
    with pytest.raises(UsageError, match="at least one task"):
        minimise([])
    with pytest.raises(MismatchError, match="d0, d1 and d1, d0"):
        minimise([one, replace(one, names=("d1", "d0"))])
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        minimise([of(one, one.tangents.log())])
    with pytest.raises(UsageError, match="without rows"):
        minimise([one.rows(torch.tensor([], dtype=torch.long))])
    with pytest.raises(UsageError, match="wrong class"):
        term(Contributions(one.value[:, :1], one.tangents[..., :1], 0 * one.labels, one.names), 1.0, "wrong")


def test_an_optimum_that_is_not_reached_is_not_certified() -> None:
    found = minimise([part(2)])
    assert not Solution(**{**found.__dict__, "certificate": 1e-3}).certified


# -- bootstrap -----------------------------------------------------------------------------------------------


def test_a_reweighted_objective_is_the_resampled_one() -> None:
    one = part(2)
    (drawn,) = counts([40], 1, 3)[0]
    places = torch.arange(40).repeat_interleave(drawn.long())
    assert len(places) == 40
    weighted = solve(objective([one]).reweighted([drawn]), Box.of(2, None))
    assert near(weighted.values, minimise([one.rows(places)]).values)


def test_coefficient_intervals_depend_on_the_seed_alone_and_hold_the_optimum() -> None:
    goal, box = objective([part(2, rows=80, seed=2)]), Box.of(2, None)
    found = solve(goal, box)
    first, again, other = (coefficient_intervals(goal, box, found, 40, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert (first.draws, first.without_minimum) == (40, 0)
    for name, (low, high) in first.by_name.items():
        assert low < found.coefficients[name] < high
    assert coefficient_intervals(goal, box, found, 0).by_name == {}
    with pytest.raises(UsageError, match="bootstrap=-1"):
        coefficient_intervals(goal, box, found, -1)


def test_resamples_without_a_minimum_are_counted() -> None:
    x = torch.tensor([[1.0]] * 5 + [[-1.0]], dtype=torch.float64)
    one = Contributions(
        torch.zeros(6, 2).double(), torch.cat([x, -x], 1)[None], torch.zeros(6).long(), ("d0",)
    )
    goal, box = objective([one]), Box.of(1, None)
    found = solve(goal, box)
    held = coefficient_intervals(goal, box, found, 30)
    missing = sum(float(drawn[0][5]) in (0.0, 6.0) for drawn in counts([6], 30, 0))
    assert held.without_minimum == missing > 0


def test_metric_intervals_are_exact_or_percentiles_of_resampled_means() -> None:
    def named(name: str, count: int) -> Task:
        rows = (torch.zeros(count, 1), torch.arange(count) % 2)
        return Task.from_tensors(name, ["no", "yes"], train=rows, validation=rows, test=rows)

    a, b = named("a", 50), named("b", 10)
    right = {a: (torch.arange(50) % 5 > 0).double(), b: torch.ones(10).double()}
    found, whole = metric_intervals(right, 300, seed=4)
    assert (found, whole) == metric_intervals(right, 300, seed=4)
    for task in (a, b):  # the exact interval of an accuracy
        exact = binomtest(int(right[task].sum()), len(right[task])).proportion_ci(method="exact")
        assert found[task] == pytest.approx((exact.low, exact.high))
    nothing = {task: torch.zeros_like(one) for task, one in right.items()}
    resampled, mean = metric_intervals(right, 300, seed=4, less=nothing)
    assert mean == whole
    assert resampled[b] == (1.0, 1.0)
    low, high = resampled[a] or (0.0, 0.0)
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 50)
    assert low == pytest.approx(0.8 - spread, abs=0.04)
    assert high == pytest.approx(0.8 + spread, abs=0.04)
    assert whole is not None
    assert whole[0] == pytest.approx((1 + low) / 2, abs=0.02)
    assert metric_intervals(right, 0) == ({a: None, b: None}, None)
