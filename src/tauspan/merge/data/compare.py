"""Merging methods side by side: each method's vector with its own coefficient, chosen on validation."""

from collections.abc import Mapping
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted
from tauspan.editing.edit import EditRegime, edit_regime
from tauspan.editing.search.directions import Directions
from tauspan.editing.search.edits import Edits
from tauspan.editing.search.grid import Grid, Scores, named
from tauspan.editing.search.protocol import addition_row, facts_of, search_sum
from tauspan.merge import merge
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector

# methods differ in the length of what they make, so that [0, 1] would cut off the best alpha of some
WIDE_GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
Methods = Mapping[str, tuple[str, Mapping[str, Any]]]


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
) -> Report:
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
        A `Report`: per method the mean over tasks of single-task, added and normalised accuracy with its alpha, and at
        alpha = 1; then every task's.

    Cost:
        Standard: one evaluation per method, grid point and task. Tangent: one pass with a tangent per method.
    """
    if not vectors or not methods:
        raise UsageError("compare needs at least one task with its vector, and one method.")
    tasks = list(vectors)
    chosen = edit_regime(next(iter(vectors.values())), regime)
    merged = {
        label: merge(list(vectors.values()), method, options, seed=seed).named(label)
        for label, (method, options) in methods.items()
    }
    directions = Directions.whole({**merged, **{f"own {task.name}": vectors[task] for task in tasks}})
    edits = Edits(encoder, tasks, directions, chosen, reading)
    needs = {task: [*merged, f"own {task.name}"] for task in tasks}
    edits.prepare(needs, "validation")
    found = {label: search_sum(edits, tasks, label, grid, f"{label}, {chosen}") for label in merged}
    edits.prepare(needs, "test")
    means, each = [], []
    for label, (best, _) in found.items():
        rows = [addition_row(edits, task, best, label) for task in tasks]
        columns = [key for key in rows[0] if key != "task"]
        mean: dict[str, Cell] = {c: sum(float(row[c] or 0) for row in rows) / len(rows) for c in columns}
        means.append({"method": label, "alpha": best, **mean})
        each.append({"method": label, **{str(row["task"]): row["added"] for row in rows}})
    title = f"Merging, {chosen}"
    ends = [label for label, (best, scores) in found.items() if best == max(scores.rows)]
    note = "means over tasks; alpha chosen on validation by mean normalised accuracy"
    note += f"; at the end of the grid: {', '.join(ends)}" if ends else ""
    tables = [Table(title, means, note), Table(f"{title}: accuracy by task", each)]
    facts = facts_of(
        encoder,
        vectors.values(),
        grid=named(grid),
        methods={k: [m, dict(o)] for k, (m, o) in methods.items()},
    )
    return Report(title, tables, facts, _series(found, chosen), {"regime": chosen, "methods": means})


def _series(found: Mapping[str, tuple[float, Scores]], regime: str) -> list[dict[str, Any]]:
    """Mean normalised accuracy over alpha, one line a method."""
    points: dict[float, dict[str, float]] = {}
    for label, (_, scores) in found.items():
        for alpha, row in scores.rows.items():
            points.setdefault(alpha, {"alpha": alpha})[label] = row["mean normalised"]
    return [
        {
            "kind": "alpha",
            "title": f"merging, {regime}",
            "points": [points[alpha] for alpha in sorted(points)],
        }
    ]
