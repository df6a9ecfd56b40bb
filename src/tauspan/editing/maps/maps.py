"""Maps of the disentanglement error of pairs of tasks, at equal coefficients and at matched drift."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tauspan.core.choices import EditRegime, SplitName
from tauspan.core.measure import progress
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.maps.asked import (
    Axis,
    Pair,
    axes_of,
    pairs_of,
    require_box,
    require_rows,
    tasks_of,
    units_of,
)
from tauspan.editing.maps.drift import Drift
from tauspan.editing.maps.error import At, Logits, distances, mean, numbers
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.objectives import Apart
from tauspan.tasks import Task
from tauspan.vector import TaskVector

Number = float | None


@dataclass(frozen=True)
class PairMap:
    """The disentanglement error of one pair of tasks on a grid; a number that cannot be had is None.

    Args:
        tasks: their names.
        grid: the points of both axes: coefficients, or multiples of the units of drift.
        xi: the error, a list for each point of the first axis.
        stderr: its standard error over rows.
        means: of xi over the `box`, over the `grid`, and `at (1, 1)`, each with its standard error (`s.e.`).
        unit: the drift that counts as 1 on each axis; None for a map of coefficients.
        alphas: the coefficients behind the grid of a map of drift.
    """

    tasks: tuple[str, str]
    grid: tuple[Sequence[float], Sequence[float]] = field(repr=False)
    xi: Sequence[Sequence[Number]] = field(repr=False)
    stderr: Sequence[Sequence[Number]] = field(repr=False)
    means: Mapping[str, Number]
    unit: tuple[float, float] | None = None
    alphas: tuple[Sequence[Number], Sequence[Number]] | None = field(default=None, repr=False)

    def series(self, regime: str, box: tuple[float, float], distance: str) -> dict[str, Any]:
        """The map for a figure."""
        more: dict[str, Any] = {}
        if self.unit is not None and self.alphas is not None:
            more = {"axes": "drift", "unit": list(self.unit), "alphas": [list(axis) for axis in self.alphas]}
        kind = "xi" if self.unit is None else "xi-drift"
        return {
            "kind": "xi", "title": regime, "group": "-".join([kind, *self.tasks]), "tasks": list(self.tasks),
            "box": list(box), "grid": [list(axis) for axis in self.grid], "xi": [list(row) for row in self.xi],
            "stderr": [list(row) for row in self.stderr], "mean": self.means["box"],
            "mean_stderr": self.means["box s.e."], "distance": distance, **more,
        }  # fmt: skip


@dataclass(frozen=True)
class DriftUnit:
    """The drift of one vector on its own task's rows.

    Args:
        task: its name.
        at_one: at coefficient 1.
        unit: what counts as 1 on the task's axis.
        alpha: the coefficient whose drift is the unit; None where the vector never moves so far.
    """

    task: str
    at_one: float
    unit: float
    alpha: Number

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "task": self.task, "drift at alpha 1": self.at_one, "unit": self.unit, "alpha at the unit": self.alpha,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Maps(Result):
    """Maps of the disentanglement error.

    Args:
        regime: of the edits.
        distance: between predictions.
        box: the coefficients used for editing.
        split: whose rows.
        pairs: a map for each pair, at equal coefficients.
        drift_pairs: a map for each pair at matched drift; empty if not asked for.
        drifts: each task's own drift; empty if not asked for.
    """

    regime: EditRegime
    distance: str
    box: tuple[float, float]
    split: SplitName
    pairs: Sequence[PairMap]
    drift_pairs: Sequence[PairMap] = ()
    drifts: Sequence[DriftUnit] = ()
    drift_note: ClassVar[str] = (
        "mean distance of a task's centred logits from the pre-trained ones over the mean size of these, its own rows"
    )

    def report(self) -> Report:
        """A row for each map, the units of drift, and the maps as series of kind `xi`."""
        maps = list(self.pairs)
        if self.drift_pairs:
            maps = [one for both in zip(self.pairs, self.drift_pairs, strict=True) for one in both]
        rows = [self.cells(one, "axes" if self.drift_pairs else "") for one in maps]
        title = f"Disentanglement error, {self.regime}"
        tables = [Table(title, rows, self.note())]
        result: dict[str, Any] = {
            "regime": self.regime, "distance": self.distance, "box": list(self.box),
            "pairs": [{"tasks": list(one.tasks), **one.means} for one in self.pairs],
        }  # fmt: skip
        if self.drift_pairs:
            result["drift"] = {
                "at alpha 1": {one.task: one.at_one for one in self.drifts},
                "unit": {one.task: one.unit for one in self.drifts},
                "pairs": [{"tasks": list(one.tasks), **one.means} for one in self.drift_pairs],
            }
            drifts = [one.cells() for one in self.drifts]
            tables.append(Table(f"Drift, {self.regime}", drifts, self.drift_note))
        series = [one.series(self.regime, self.box, self.distance) for one in maps]
        return Report(title, tables, dict(self.provenance), series, result, self.warnings)

    def cells(self, one: PairMap, axes: str = "") -> dict[str, Cell]:
        """The row of one map; `axes` is the column that says what its axes are, if there is to be one."""
        reading = {axes: "equal alpha" if one.unit is None else "matched drift"} if axes else {}
        return {"regime": self.regime, "pair": " + ".join(one.tasks), **reading, **one.means}

    def note(self) -> str:
        """What the numbers of the maps are."""
        low, high = self.box
        wide = {"difference", "cosine"} & set(self.distance.split(" and "))  # the others are 1 at most
        note = f"sum of both tasks' distances ({self.distance}){'' if wide else ', 0 to 2'}, on all rows of "
        note += f"{self.split}; box [{low:g}, "
        note += f"{high:g}] on both axes; s.e.: standard error over rows, the vectors fixed"
        maps = (*self.pairs, *self.drift_pairs)
        if any(one.means["box"] is None or one.means["grid"] is None for one in maps):
            note += "; empty: a part with points whose drift a vector never reaches"
        return note


@dataclass(frozen=True)
class Wanted:
    """Which maps are asked for, checked."""

    couples: Sequence[Pair]
    axes: tuple[Axis, Axis]
    box: tuple[float, float]
    distance: str | None
    split: SplitName
    units: Mapping[str, float | None] | None

    @property
    def distances(self) -> str:
        """The names of the distances that are taken."""
        return " and ".join(dict.fromkeys(task.objective.distance(self.distance)[0] for task in self.tasks))

    @property
    def tasks(self) -> list[Task]:
        """The tasks of the pairs, each once."""
        return list(dict.fromkeys(task for couple in self.couples for task in couple))

    def others(self, task: Task) -> list[str]:
        """The tasks that share a pair with this one, itself included."""
        return [t.name for t in self.tasks if any({task, t} <= set(couple) for couple in self.couples)]


def wanted(
    vectors: Mapping[Task, TaskVector], pairs: Sequence[tuple[str, str]] | None, grid: Axis | tuple[Axis, Axis],
    box: tuple[float, float], drift: bool | float | Mapping[str, float], distance: str | None, split: SplitName,
) -> Wanted:  # fmt: skip
    """Check what is asked for.

    Raises:
        UsageError, DataError: see `disentanglement`.
    """
    couples, axes = pairs_of(tasks_of(vectors), pairs), axes_of(grid)
    require_box(box, axes)
    asked = Wanted(couples, axes, box, distance, split, None)
    for task in asked.tasks:
        task.objective.distance(distance)
    require_rows(asked.tasks, split)
    return Wanted(couples, axes, box, distance, split, units_of(drift, asked.tasks))


def drawn(model: EditedModel, vectors: Mapping[Task, TaskVector], asked: Wanted) -> Maps:
    """See `tauspan.disentanglement`; the model's directions are named after the tasks."""
    model.make_heads(asked.tasks)
    model.read({task: asked.others(task) for task in asked.tasks}, asked.split)
    drifts = {} if asked.units is None else _drifts(model, asked)
    units = {name: unit or drifts[name](1.0) for name, unit in (asked.units or {}).items()}
    equal, matched = [], []
    total = (1 if asked.units is None else 2) * len(asked.couples) * len(asked.axes[0])
    with progress(f"xi, {model.regime}", total) as advance:
        for couple in asked.couples:
            equal.append(_map(model, couple, asked, asked.axes, advance))
            if asked.units is not None:
                first, second = (
                    [drifts[task.name].coefficient(u * units[task.name]) for u in axis]
                    for task, axis in zip(couple, asked.axes, strict=True)
                )
                unit = (units[couple[0].name], units[couple[1].name])
                matched.append(_map(model, couple, asked, (first, second), advance, unit))
    used = [
        DriftUnit(name, drifts[name](1.0), unit, _known([drifts[name].coefficient(unit)])[0])
        for name, unit in units.items()
    ]
    facts = facts_of(
        model, [vectors[task] for task in asked.tasks], split=asked.split,
        rows={task.name: len(task.split(asked.split)) for task in asked.tasks},
    )  # fmt: skip
    return Maps(
        regime=model.regime, distance=asked.distances, box=asked.box, split=asked.split, pairs=equal,
        drift_pairs=matched, drifts=used, provenance=facts,
    )  # fmt: skip


def _map(
    model: EditedModel, pair: Pair, asked: Wanted, alphas: tuple[Axis, Axis], advance: Callable[[int, str], None],
    unit: tuple[float, float] | None = None,
) -> PairMap:  # fmt: skip
    """One map whose points are called by the grid and made at the coefficients `alphas`."""
    kinds: list[Apart] = [task.objective.distance(asked.distance)[1] for task in pair]
    apart = distances(_logits(model, pair, asked.split), pair, alphas, kinds, advance)
    xi, stderr = mean(apart)
    behind = None if unit is None else (_known(alphas[0]), _known(alphas[1]))
    return PairMap(
        (pair[0].name, pair[1].name), (list(asked.axes[0]), list(asked.axes[1])), list(map(_known, xi.tolist())),
        list(map(_known, stderr.tolist())), numbers(apart, asked.axes, asked.box), unit, behind,
    )  # fmt: skip


def _logits(model: EditedModel, pair: Pair, split: str) -> Logits:
    """What is predicted of the rows of either task of a pair at a1 tau1 + a2 tau2."""

    def at(place: int, where: At) -> Any:
        task = pair[place]
        coefficients = {pair[0].name: where[0], pair[1].name: where[1]}
        logits = model.logits(task, split, coefficients)
        return model.objective(task, coefficients).predicted(logits, model.targets(task, split))

    return at


def _known(values: Sequence[float]) -> list[Number]:
    """Numbers for JSON, None where one is not known."""
    return [None if math.isnan(value) else value for value in values]


def _drifts(model: EditedModel, asked: Wanted) -> dict[str, Drift]:
    """Each task's own drift."""

    def drift(task: Task) -> Drift:
        return Drift(
            task.name,
            lambda a: model.logits(task, asked.split, {task.name: a}),
            model.affine(task),
            task.objective,
        )

    return {task.name: drift(task) for task in asked.tasks}
