"""`front`: forgetting a task against keeping the controls, as a whole Pareto front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.measure import progress
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted
from tauspan.editing.edit import EditRegime, edit_regime
from tauspan.editing.search.blackbox import Memory, descend
from tauspan.editing.search.bootstrap import Intervals, accuracy_intervals, coefficient_intervals
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.edits import Edits
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.numbers import require_at_least
from tauspan.editing.search.objective import Objective, Term, objective, term
from tauspan.editing.search.protocol import facts_of, require_controls
from tauspan.editing.search.solve import Solution, solve
from tauspan.editing.search.unknowns import GroupPatterns, Per, Unknowns, unknowns
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector

_PRICES = (-3.0, 3.0)  # powers of ten
_REFINEMENTS = 6


@dataclass(frozen=True)
class _Spot:
    """One edit: its coefficients, its losses and accuracies on validation, and the price it is best at."""

    values: tuple[float, ...]
    price: float | None
    forgetting: float
    control_loss: float
    target: float
    control: float
    solution: Solution | None = None


@dataclass
class _Trade:
    """The two losses of an edit, and what is best at a price of the second in units of the first."""

    edits: Edits
    free: Unknowns
    task: Task
    controls: Sequence[Task]
    box: Box
    ridge: float
    tolerance: float
    most: int
    memory: Memory = field(init=False)
    forget: Term | None = None
    keep: Objective | None = None

    def __post_init__(self) -> None:
        self.memory = Memory(self._losses)
        if self.edits.regime != "standard":
            target, *kept = (
                self.edits.passed(one, "validation").summed(self.free.scales)
                for one in (self.task, *self.controls)
            )
            self.forget = term(target, 1.0, "wrong")
            self.keep = objective(kept, ridge=self.ridge)

    def _losses(self, a: Sequence[float]) -> tuple[float, ...]:
        """Mean cross-entropy of the target to its wrong classes, and of the controls to their labels."""
        values = self.free.at(a)
        kept = [self.edits.loss(control, "validation", values) for control in self.controls]
        return self.edits.loss(self.task, "validation", values, "wrong"), sum(kept) / len(kept)

    def goal(self, price: float) -> Objective:
        """The convex objective at a price (tangent regimes)."""
        assert self.forget is not None  # noqa: S101 - the standard regime does not come here
        assert self.keep is not None  # noqa: S101
        return replace(self.keep, terms=[self.forget, *(one.scaled(price) for one in self.keep.terms)])

    def best(self, price: float, start: Sequence[float]) -> _Spot:
        """The edit that minimises forgetting + price * control (+ ridge)."""
        if self.keep is not None:
            found = solve(self.goal(price), self.box, list(start), self.tolerance)
            return self.spot(found.values.tolist(), price, found)

        def score(a: Sequence[float], losses: Sequence[float]) -> float:
            return losses[0] + price * losses[1] + self.ridge / 2 * float(np.square(a).sum())

        return self.spot(descend(self.memory, score, self.box, [start, *self.memory.seen], self.most), price)

    def spot(self, a: Sequence[float], price: float | None = None, found: Solution | None = None) -> _Spot:
        """The edit at given coefficients, with its numbers on validation."""
        forgetting, kept = self.memory(a)
        return _Spot(tuple(a), price, forgetting, kept, *self.accuracies(a, "validation"), found)

    def accuracies(self, a: Sequence[float], split: str) -> tuple[float, float]:
        """Target and mean control accuracy."""
        values = self.free.at(a)
        kept = [self.edits.accuracy(control, split, values) for control in self.controls]
        return self.edits.accuracy(self.task, split, values), sum(kept) / len(kept)


@noted
@checked
def front(
    encoder: Encoder,
    task: Task,
    vector: TaskVector,
    controls: Sequence[Task],
    floor: float = 0.95,
    regime: EditRegime | None = None,
    *,
    per: Per = "layer",
    groups: GroupPatterns | None = None,
    bounds: Bounds = (0.0, 1.0),
    ridge: float = 0.0,
    prices: int = 25,
    bootstrap: int = 200,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_evaluations: int = 30,
    reading: Reading = Reading(),
) -> Report:
    """Task negation theta0 - sum_g a_g tau_g with the whole trade between forgetting and keeping.

    At each price c on a logarithmic grid from 1e-3 to 1e3, a minimises F(a) + c C(a) + ridge/2 |a|^2 within the bounds. C
    is the mean cross-entropy of the controls. F is the target's mean of logsumexp(f) minus the mean logit of its wrong
    classes, the cross-entropy to the uniform distribution over them. Both are convex in a in the tangent regimes, so
    the prices trace the whole front of (F, C), each point with a certificate. Among the front, refined where the
    floor is crossed, and the paper's shared grid, the point of least target accuracy on validation is chosen whose
    control accuracy is >= floor * the pre-trained model's; ties go to the shortest edit. So it is never worse on
    validation than the grid's choice. The test split is read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        task: the target, to be forgotten.
        vector: the target's vector; it is negated here.
        controls: tasks to be kept.
        floor: the share of control accuracy to keep.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vector's own.
        per: `"shared"`: one coefficient; `"layer"`: one a layer group.
        groups: for `"layer"`, patterns of tensor names by group instead of the model's blocks.
        bounds: of every coefficient a_g.
        ridge: the pull to 0.
        prices: how many.
        bootstrap: resamples behind each 95 % interval; 0 for none.
        seed: of the resamples.
        tolerance: what each certificate should reach.
        max_evaluations: of the standard regime, per price.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report`: pre-trained, the paper's choice and the front's on test; the coefficients; the front. Its series
        of kind `front` holds every point. `report.result["coefficients"]` carries the minus sign and goes into
        `tauspan.editing.search.combine` with the vector.

    Cost:
        Tangent: one pass of as many tangents as groups per task and split. Standard: about
        `prices * max_evaluations` evaluations.
    """
    require_controls(task, controls, floor)
    require_at_least(0, ridge=ridge, bootstrap=bootstrap)
    require_at_least(1, max_evaluations=max_evaluations)
    require_at_least(2, prices=prices)
    if per not in ("shared", "layer"):
        raise UsageError(f"per={per!r}: one vector has 'shared' or 'layer' coefficients.")
    chosen_regime = edit_regime(vector, regime)
    free = unknowns(encoder, {task.name: -vector}, per, groups)
    tasks = [task, *controls]
    edits = Edits(encoder, tasks, free.directions, chosen_regime, reading)
    box = Box.of(len(free.names), bounds)
    needs = dict.fromkeys(tasks, free.directions.names)
    edits.prepare(needs, "validation")
    trade = _Trade(edits, free, task, controls, box, ridge, tolerance, max_evaluations)
    before = trade.spot([0.0] * len(free.names))
    least = floor * before.control
    gridded = [trade.spot([alpha] * len(free.names)) for alpha in PAPER_GRID]
    spots = _traced(trade, least, prices)
    by_grid = _chosen([before, *gridded], least)
    chosen = _chosen([before, *gridded, *spots], least)
    intervals = Intervals({}, 0, 0)
    if chosen.solution is not None and chosen.price is not None:
        intervals = coefficient_intervals(trade.goal(chosen.price), box, chosen.solution, bootstrap, seed)

    edits.prepare(needs, "test")
    rows = [
        _test_row(trade, label, spot, before, bootstrap, seed)
        for label, spot in (("pre-trained", before), ("shared grid", by_grid), ("front", chosen))
    ]
    title = f"Negation front of {task.name}, {chosen_regime}"
    note = f"chosen on validation: least target accuracy with control >= {floor:g} of the pre-trained model's"
    tables = [
        Table(title, rows, note),
        _coefficients(free, chosen, intervals),
        _front_table(spots, chosen, chosen_regime),
    ]
    signed = free.directions.nested({name: 0.0 - value for name, value in free.at(chosen.values).items()})
    result = {
        "regime": chosen_regime, "per": per, "coefficients": signed, "price": chosen.price,
        "groups": {group: list(names) for group, names in free.directions.groups.items()},
        "target": rows[-1]["target"], "control": rows[-1]["control"],
    }  # fmt: skip
    facts = facts_of(encoder, [vector], bounds=list(bounds), ridge=ridge, floor=floor, prices=prices,
                     bootstrap=bootstrap, bootstrap_seed=seed)  # fmt: skip
    points = [_point(spot, free.names) for spot in spots]
    series = {"kind": "front", "title": title, "floor": least, "points": points, "best": _point(chosen, free.names),
              "grid": [_point(spot, free.names) for spot in gridded]}  # fmt: skip
    return Report(title, tables, facts, [series], result)


def _traced(trade: _Trade, least: float, prices: int) -> list[_Spot]:
    """The front from dear controls (a short edit) to cheap ones, refined where the floor is crossed."""
    found: list[_Spot] = []
    start: Sequence[float] = [0.0] * len(trade.free.names)
    with progress("front", prices + _REFINEMENTS) as advance:
        for price in np.logspace(_PRICES[1], _PRICES[0], prices):
            found.append(trade.best(float(price), start))
            start = found[-1].values
            advance(1, "")
        crossing = next((i for i, spot in enumerate(found) if spot.control < least), 0)
        if crossing:
            kept, lost = found[crossing - 1], found[crossing]
            for _ in range(_REFINEMENTS):
                between = trade.best(float(np.sqrt((kept.price or 1.0) * (lost.price or 1.0))), kept.values)
                found.append(between)
                kept, lost = (between, lost) if between.control >= least else (kept, between)
                advance(1, "")
    return sorted(found, key=lambda spot: -(spot.price or 0.0))


def _chosen(spots: Sequence[_Spot], least: float) -> _Spot:
    """Least target accuracy among those that keep the controls; ties to the shortest edit."""
    kept = [spot for spot in spots if spot.control >= least]
    return min(kept, key=lambda spot: (spot.target, float(np.square(spot.values).sum())))


def _test_row(
    trade: _Trade, label: str, spot: _Spot, before: _Spot, draws: int, seed: int
) -> dict[str, Cell]:
    target, control = trade.accuracies(spot.values, "test")
    _, untouched = trade.accuracies(before.values, "test")
    values = trade.free.at(spot.values)
    right = {
        one.name: trade.edits.logits(one, "test", values).argmax(-1) == one.split("test").labels
        for one in (trade.task, *trade.controls)
    }
    wide = accuracy_intervals({trade.task.name: right.pop(trade.task.name)}, draws, seed)["mean"] or (
        None,
        None,
    )
    kept = accuracy_intervals(right, draws, seed)["mean"] or (None, None)
    return {
        "row": label, "target": target, "target low": wide[0], "target high": wide[1],
        "control": control, "control low": kept[0], "control high": kept[1],
        "control kept": control / (untouched or 1.0),
    }  # fmt: skip


def _coefficients(free: Unknowns, chosen: _Spot, intervals: Intervals) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, value in zip(free.names, chosen.values, strict=True):
        low, high = intervals.by_name.get(name, (None, None))
        rows.append({"group": name.rpartition("/")[2], "alpha": value, "low": low, "high": high})
    note = "theta0 - sum of alpha * group."
    if intervals.by_name:
        note += f" low, high: 95 % interval, refitted on {intervals.draws} resamples at the chosen price."
    return Table("Coefficients", rows, note)


def _front_table(spots: Sequence[_Spot], chosen: _Spot, regime: str) -> Table:
    rows: list[dict[str, Cell]] = [
        {"price": f"{spot.price:.3g}", "forgetting loss": spot.forgetting, "control loss": spot.control_loss,
         "target": spot.target, "control": spot.control, "chosen": "*" if spot is chosen else ""}
        for spot in spots
    ]  # fmt: skip
    note = "On validation. price: of the control loss in units of the forgetting loss."
    worst = max((spot.solution.certificate for spot in spots if spot.solution), default=None)
    note += " No certificates: not convex." if worst is None else f" Largest certificate {worst:.1e}."
    if all(spot is not chosen for spot in spots):
        note += " The choice is a point of the shared grid."
    return Table(f"Front, {regime}", rows, note)


def _point(spot: _Spot, names: Sequence[str]) -> Mapping[str, object]:
    """A point of the front as data."""
    return {
        "price": spot.price, "forgetting": spot.forgetting, "control loss": spot.control_loss, "target": spot.target,
        "control": spot.control, "coefficients": dict(zip(names, spot.values, strict=True)),
        "certificate": spot.solution.certificate if spot.solution else None,
    }  # fmt: skip
