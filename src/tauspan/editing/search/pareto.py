"""Forgetting a task against keeping the controls, as a whole Pareto front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tauspan.core.measure import progress
from tauspan.core.report import Cell, Report, Table
from tauspan.editing.model.chosen import ChosenEdit, facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.tangent import TangentModel
from tauspan.editing.search.blackbox import Memory, descend
from tauspan.editing.search.bootstrap import Intervals, coefficient_intervals, metric_intervals
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.metrics import keeps, least_kept
from tauspan.editing.search.objective import Objective, Term, objective, term
from tauspan.editing.search.solve import Solution, solve
from tauspan.editing.search.unknowns import Per, Unknowns
from tauspan.tasks import Task
from tauspan.vector import TaskVector

_PRICES = (-3.0, 3.0)  # powers of ten
_REFINEMENTS = 6


@dataclass(frozen=True)
class Spot:
    """One edit, with its numbers on validation.

    Args:
        values: of the coefficients.
        price: of the control loss in units of the forgetting loss, at which the edit is best; None on the grid.
        forgetting: the target's cross-entropy to its wrong classes, in nats.
        control_loss: the mean cross-entropy of the controls, in nats.
        target: accuracy on the target.
        control: mean accuracy on the controls.
        solution: with its certificate; None in the standard regime.
    """

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

    model: EditedModel
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
        if isinstance(self.model, TangentModel):
            passed = [self.model.passed(one, "validation") for one in (self.task, *self.controls)]
            target, *kept = map(self.free.of, passed)
            self.forget = term(target, 1.0, "wrong")
            self.keep = objective(kept, ridge=self.ridge)

    def _losses(self, a: Sequence[float]) -> tuple[float, ...]:
        """Mean cross-entropy of the target to its wrong classes, and of the controls to their labels."""
        values = self.free.at(a)
        kept = [self.model.loss(control, "validation", values) for control in self.controls]
        return self.model.loss(self.task, "validation", values, "wrong"), sum(kept) / len(kept)

    def goal(self, price: float) -> Objective:
        """The convex objective at a price (tangent regimes)."""
        assert self.forget is not None  # noqa: S101 - the standard regime does not come here
        assert self.keep is not None  # noqa: S101
        return replace(self.keep, terms=[self.forget, *(one.scaled(price) for one in self.keep.terms)])

    def best(self, price: float, start: Sequence[float]) -> Spot:
        """The edit that minimises forgetting + price * control (+ ridge)."""
        if self.keep is not None:
            found = solve(self.goal(price), self.box, list(start), self.tolerance)
            return self.spot(found.values.tolist(), price, found)

        def score(a: Sequence[float], losses: Sequence[float]) -> float:
            return losses[0] + price * losses[1] + self.ridge / 2 * float(np.square(a).sum())

        return self.spot(descend(self.memory, score, self.box, [start, *self.memory.seen], self.most), price)

    def spot(self, a: Sequence[float], price: float | None = None, found: Solution | None = None) -> Spot:
        """The edit at given coefficients, with its numbers on validation."""
        forgetting, kept = self.memory(a)
        return Spot(tuple(a), price, forgetting, kept, *self.metrics(a, "validation"), found)

    def keeps(self, spot: Spot, least: float) -> bool:
        """Whether an edit keeps the controls."""
        return keeps(self.controls[0].objective, spot.control, least)

    def metrics(self, a: Sequence[float], split: str) -> tuple[float, float]:
        """Target and mean control metric."""
        values = self.free.at(a)
        kept = [self.model.metric(control, split, values) for control in self.controls]
        return self.model.metric(self.task, split, values), sum(kept) / len(kept)


@dataclass(frozen=True)
class TestedSpot:
    """One edit on the test split; accuracies as fractions.

    Args:
        target: accuracy on the task to be forgotten, and its 95 % interval over resampled rows.
        control: mean accuracy on the control tasks, and its interval.
        control_kept: `control` over that of the pre-trained model.
    """

    target: float
    target_interval: tuple[float, float] | None
    control: float
    control_interval: tuple[float, float] | None
    control_kept: float | None

    def cells(self, label: str) -> dict[str, Cell]:
        """The row of the table."""
        low, high = self.target_interval or (None, None)
        least, most = self.control_interval or (None, None)
        return {
            "row": label, "target": self.target, "target low": low, "target high": high, "control": self.control,
            "control low": least, "control high": most, "control kept": self.control_kept,
        }  # fmt: skip

    def point(self) -> dict[str, object]:
        """The point with its intervals, for a figure."""
        ends = {
            "target_interval": self.target_interval,
            "control_interval": self.control_interval,
        }
        intervals = {name: None if pair is None else list(pair) for name, pair in ends.items()}
        return {"target": self.target, "control": self.control, **intervals}


@dataclass(frozen=True, kw_only=True)
class Front(ChosenEdit):
    """The trade between forgetting a task and keeping the controls, and the edit that was chosen.

    Args:
        task: the target's name.
        per: what has a coefficient of its own.
        floor: the share of control accuracy that had to be kept on validation.
        least: the control accuracy on validation that this means.
        spots: the front, from dear controls to cheap ones.
        gridded: the paper's shared grid.
        chosen: the edit of least target accuracy on validation that keeps the controls.
        pretrained: the model at theta0 on test.
        by_grid: the paper's choice on test.
        tested: the chosen edit on test.
        unknowns: which directions each coefficient scales.
        intervals: of the coefficients.
    """

    task: str
    per: Per
    floor: float
    least: float
    spots: Sequence[Spot] = field(repr=False)
    gridded: Sequence[Spot] = field(repr=False)
    chosen: Spot
    pretrained: TestedSpot
    by_grid: TestedSpot
    tested: TestedSpot
    unknowns: Unknowns = field(repr=False)
    intervals: Intervals = field(repr=False)

    def report(self) -> Report:
        """The test accuracies, the coefficients, the front; its series of kind `front` holds every point."""
        title = f"Negation front of {self.task}, {self.regime}"
        note = f"chosen on validation: least target accuracy with control >= {self.floor:g} of the pre-trained model's"
        labelled = {"pre-trained": self.pretrained, "shared grid": self.by_grid, "front": self.tested}
        tables = [
            Table(title, [spot.cells(label) for label, spot in labelled.items()], note),
            _coefficients(self.unknowns, self.chosen, self.intervals),
            _front_table(self.spots, self.chosen, self.regime),
        ]
        result = {
            "regime": self.regime, "per": self.per, "coefficients": dict(self.coefficients), "price": self.chosen.price,
            "groups": {group: list(names) for group, names in self.groups.items()},
            "target": self.tested.target, "control": self.tested.control,
        }  # fmt: skip
        names = self.unknowns.names
        series = {
            "kind": "front", "title": title, "floor": self.least, "points": [_point(spot, names) for spot in self.spots],
            "best": _point(self.chosen, names), "grid": [_point(spot, names) for spot in self.gridded],
            "tested": [self.tested.point()],
        }  # fmt: skip
        return Report(title, tables, dict(self.provenance), [series], result, self.warnings)


def traced_front(
    model: EditedModel, free: Unknowns, task: Task, vector: TaskVector, controls: Sequence[Task], *, per: Per,
    floor: float, bounds: Bounds, ridge: float, prices: int, bootstrap: int, seed: int, tolerance: float,
    max_evaluations: int,
) -> Front:  # fmt: skip
    """See `tauspan.front`."""
    box = Box.of(len(free.names), bounds)
    needs = dict.fromkeys([task, *controls], free.directions.names)
    model.read(needs, "validation")
    trade = _Trade(model, free, task, controls, box, ridge, tolerance, max_evaluations)
    before = trade.spot([0.0] * len(free.names))
    least = least_kept(controls[0].objective, before.control, floor)
    gridded = [trade.spot([alpha] * len(free.names)) for alpha in PAPER_GRID]
    spots = _traced(trade, least, prices)
    by_grid = _chosen(trade, [before, *gridded], least)
    chosen = _chosen(trade, [before, *gridded, *spots], least)
    intervals = Intervals({}, 0, 0)
    if chosen.solution is not None and chosen.price is not None:
        intervals = coefficient_intervals(trade.goal(chosen.price), box, chosen.solution, bootstrap, seed)
    model.read(needs, "test")
    tested = [_tested(trade, spot, before, bootstrap, seed) for spot in (before, by_grid, chosen)]
    facts = facts_of(model, [vector], bounds=list(bounds), ridge=ridge, floor=floor, prices=prices,
                     bootstrap=bootstrap, bootstrap_seed=seed)  # fmt: skip
    return Front(
        encoder=model.encoder, vectors=free.directions.vectors, regime=model.regime, point=model.point,
        coefficients=free.directions.nested(free.at(chosen.values)), groups=free.directions.groups, task=task.name,
        per=per, floor=floor, least=least, spots=spots, gridded=gridded, chosen=chosen, pretrained=tested[0],
        by_grid=tested[1], tested=tested[2], unknowns=free, intervals=intervals, provenance=facts,
    )  # fmt: skip


def _traced(trade: _Trade, least: float, prices: int) -> list[Spot]:
    """The front from dear controls (a short edit) to cheap ones, refined where the floor is crossed."""
    found: list[Spot] = []
    start: Sequence[float] = [0.0] * len(trade.free.names)
    with progress("front", prices + _REFINEMENTS) as advance:
        for price in np.logspace(_PRICES[1], _PRICES[0], prices):
            found.append(trade.best(float(price), start))
            start = found[-1].values
            advance(1, "")
        crossing = next((i for i, spot in enumerate(found) if not trade.keeps(spot, least)), 0)
        if crossing:
            kept, lost = found[crossing - 1], found[crossing]
            for _ in range(_REFINEMENTS):
                between = trade.best(float(np.sqrt((kept.price or 1.0) * (lost.price or 1.0))), kept.values)
                found.append(between)
                kept, lost = (between, lost) if trade.keeps(between, least) else (kept, between)
                advance(1, "")
    return sorted(found, key=lambda spot: -(spot.price or 0.0))


def _chosen(trade: _Trade, spots: Sequence[Spot], least: float) -> Spot:
    """The worst target metric among those that keep the controls; ties to the shortest edit."""
    kept, rank = [spot for spot in spots if trade.keeps(spot, least)], trade.task.objective.rank
    return min(kept, key=lambda spot: (rank(spot.target), float(np.square(spot.values).sum())))


def _tested(trade: _Trade, spot: Spot, before: Spot, draws: int, seed: int) -> TestedSpot:
    target, control = trade.metrics(spot.values, "test")
    _, untouched = trade.metrics(before.values, "test")
    values = trade.free.at(spot.values)
    target_scores, *others = (
        {one: trade.model.scores(one, "test", values)} for one in (trade.task, *trade.controls)
    )
    forgotten = metric_intervals(target_scores, draws, seed)[0][trade.task]
    _, kept = metric_intervals({task: one for each in others for task, one in each.items()}, draws, seed)
    return TestedSpot(
        target, forgotten, control, kept, trade.controls[0].objective.compared(control, untouched)
    )


def _coefficients(free: Unknowns, chosen: Spot, intervals: Intervals) -> Table:
    rows: list[dict[str, Cell]] = []
    for name, value in zip(free.names, chosen.values, strict=True):
        low, high = intervals.by_name.get(name, (None, None))
        rows.append({"group": name.rpartition("/")[2], "alpha": value, "low": low, "high": high})
    note = "theta0 - sum of alpha * group."
    if intervals.by_name:
        note += f" low, high: 95 % interval, refitted on {intervals.draws} resamples at the chosen price."
    return Table("Coefficients", rows, note)


def _front_table(spots: Sequence[Spot], chosen: Spot, regime: str) -> Table:
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


def _point(spot: Spot, names: Sequence[str]) -> Mapping[str, object]:
    """A point of the front as data."""
    return {
        "price": spot.price, "forgetting": spot.forgetting, "control loss": spot.control_loss, "target": spot.target,
        "control": spot.control, "coefficients": dict(zip(names, spot.values, strict=True)),
        "certificate": spot.solution.certificate if spot.solution else None,
    }  # fmt: skip
