"""Comparison of merging methods: the vector of each, with a coefficient of its own that is chosen on validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.choices import EditRegime
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted
from tauspan.core.results import Result
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.model.regime import edit_regime
from tauspan.editing.search.addition import AddedTask, search_shared, tested
from tauspan.editing.search.grid import Grid, named
from tauspan.merge import merge
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector

# the vectors of some methods are so short that their best alpha is above 1
WIDE_GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
Methods = Mapping[str, tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class ComparedMethod:
    """The result of one merging method.

    Args:
        method: its label.
        alpha: its coefficient, chosen on validation.
        tasks: accuracies of each task on test.
        mean: their mean.
        curve: mean normalised accuracy on validation, by alpha.
        at_end: whether the best alpha is the end of the grid.
    """

    method: str
    alpha: float
    tasks: Sequence[AddedTask]
    mean: AddedTask
    curve: Mapping[float, float]
    at_end: bool


@dataclass(frozen=True, kw_only=True)
class Comparison(Result):
    """The results of several merging methods.

    Args:
        regime: of the edits.
        methods: what each gave.
    """

    regime: EditRegime
    methods: Sequence[ComparedMethod]

    def __repr__(self) -> str:
        found = (f"{one.method} {one.mean.added:.3f}" for one in self.methods)
        return f"Comparison({self.regime}, mean accuracy: {', '.join(found)})"

    def report(self) -> Report:
        """Means of each method; its accuracy on each task; the curves over alpha."""
        title = f"Merging, {self.regime}"
        means = self.cells()
        each: list[dict[str, Cell]] = [
            {"method": one.method, **{row.task: row.added for row in one.tasks}} for one in self.methods
        ]
        ends = ", ".join(one.method for one in self.methods if one.at_end)
        note = "means over tasks; alpha chosen on validation by mean normalised accuracy; 95 % intervals over test rows"
        note += f"; at the end of the grid: {ends}" if ends else ""
        tables = [Table(title, means, note), Table(f"{title}: accuracy by task", each)]
        result = {"regime": self.regime, "methods": means}
        return Report(title, tables, dict(self.provenance), [self._series()], result, self.warnings)

    def cells(self) -> list[dict[str, Cell]]:
        """The rows of the first table: the means of each method."""
        rows: list[dict[str, Cell]] = []
        for one in self.methods:
            cells = {name: cell for name, cell in one.mean.cells().items() if name != "task"}
            rows.append({"method": one.method, "alpha": one.alpha, **cells})
        return rows

    def _series(self) -> dict[str, Any]:
        """Mean normalised accuracy over alpha, a line for each method."""
        points: dict[float, dict[str, float]] = {}
        for one in self.methods:
            for alpha, normalised in one.curve.items():
                points.setdefault(alpha, {"alpha": alpha})[one.method] = normalised
        ordered = [points[alpha] for alpha in sorted(points)]
        return {
            "kind": "alpha", "title": f"merging, {self.regime}", "points": ordered,
            "bests": {one.method: one.alpha for one in self.methods},
            "upward": "mean normalised accuracy, validation",
        }  # fmt: skip


@noted
@checked
def compare(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    methods: Methods,
    regime: EditRegime | None = None,
    *,
    grid: Grid = WIDE_GRID,
    seed: int = 0,
    reading: Reading = Reading(),
) -> Comparison:
    """Task addition by several merging methods: theta0 + alpha * merge(tau_1, ..., tau_T), each with its own alpha.

    alpha is chosen as in `add`, by mean normalised accuracy on validation; the test split is read once, after it.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        methods: by a label of yours, a name of `METHODS` and its options.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        grid: coefficients; the default runs to 8, since some methods make short vectors.
        seed: of random masks.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Comparison`: for each method its alpha, and single-task, added and normalised accuracy on test, at alpha and at
        alpha = 1, of each task and their mean.

    Cost:
        Standard: one evaluation per method, grid point and task. Tangent: one pass with a tangent per method.
    """
    if not vectors or not methods:
        raise UsageError("compare needs at least one task with its vector, and one method.")
    tasks = list(vectors)
    merged = {
        label: merge(list(vectors.values()), method, options, seed=seed).named(label)
        for label, (method, options) in methods.items()
    }
    regime = edit_regime(next(iter(vectors.values())), regime)
    directions = Directions.whole({**merged, **{f"own {task.name}": vectors[task] for task in tasks}})
    model = edited_model(encoder, directions, regime, reading)
    model.make_heads(tasks)
    own = {task: {f"own {task.name}": 1.0} for task in tasks}
    needs = {task: [*merged, *own[task]] for task in tasks}
    model.read(needs, "validation")
    found = {
        label: search_shared(model, tasks, {label: 1.0}, own, grid, f"{label}, {regime}") for label in merged
    }
    model.read(needs, "test")
    rows = []
    for label, (alpha, scores) in found.items():
        each, mean = tested(model, tasks, alpha, {label: 1.0}, own)
        last = alpha == max(scores.rows)
        curve = {at: row["mean normalised"] for at, row in scores.rows.items()}
        rows.append(ComparedMethod(label, alpha, each, mean, curve, last))
    facts = facts_of(
        model,
        vectors.values(),
        grid=named(grid),
        methods={k: [m, dict(o)] for k, (m, o) in methods.items()},
    )
    return Comparison(regime=regime, methods=rows, provenance=facts)
