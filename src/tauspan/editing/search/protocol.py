"""The paper's two protocols: addition and negation, with one coefficient chosen on validation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.editing.edit import EditRegime, edit_regime
from tauspan.editing.search.directions import Directions
from tauspan.editing.search.edits import Edits
from tauspan.editing.search.grid import Grid, Scores, named
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@noted
@checked
def add(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    grid: Grid = "paper",
    reading: Reading = Reading(),
) -> Report:
    """Task addition: theta0 + alpha * sum_t tau_t with one shared alpha, as in the paper.

    alpha maximises the mean normalised accuracy on validation: a task's accuracy over the accuracy of its own
    vector alone (alpha 1) in the *same* regime. The test split is read once, after the choice. Absolute,
    normalised and single-task accuracy always stand together, because normalising rewards a regime whose single
    tasks are poor.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        grid: `"paper"` (0, 0.05, ..., 1), `"auto"` (widened until the best point is interior, up to 8), or
            the coefficients themselves.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report`: zero-shot, single-task, added (absolute, normalised) and alpha = 1, per task and mean.
        `report.result["coefficients"]` goes into `tauspan.editing.search.combine`, which makes the vector.

    Cost:
        Standard: one evaluation per grid point and task. Tangent: one pass of two tangents per task and split.
    """
    if not vectors:
        raise UsageError("add needs at least one task and its vector.")
    tasks = list(vectors)
    chosen_regime = edit_regime(next(iter(vectors.values())), regime)
    total: TaskVector = sum(list(vectors.values())[1:], next(iter(vectors.values()))).named("sum")
    directions = Directions.whole({"sum": total, **{f"own {task.name}": vectors[task] for task in tasks}})
    edits = Edits(encoder, tasks, directions, chosen_regime, reading)
    needs = {task: ["sum", f"own {task.name}"] for task in tasks}

    edits.prepare(needs, "validation")
    best, scores = search_sum(edits, tasks, "sum", grid, f"add, {chosen_regime}")

    edits.prepare(needs, "test")
    rows = [addition_row(edits, task, best, "sum") for task in tasks]
    means = {key: sum(float(row[key] or 0) for row in rows) / len(rows) for key in rows[0] if key != "task"}
    rows.append({"task": "mean", **means})
    note = f"alpha = {best:g}, chosen on validation by mean normalised accuracy"
    note += scores.remark(grid, best)
    coefficients = {task.name: best for task in tasks}
    result = {"alpha": best, "regime": chosen_regime, "coefficients": coefficients, **means}
    series = [{"kind": "alpha", "title": f"addition, {chosen_regime}", "best": best,
               "points": [{"alpha": a, **scores.rows[a]} for a in sorted(scores.rows)]}]  # fmt: skip
    facts = facts_of(encoder, vectors.values(), grid=named(grid))
    return Report(
        f"Addition, {chosen_regime}", [Table(f"Addition, {chosen_regime}", rows, note)], facts, series, result
    )


def search_sum(
    edits: Edits, tasks: Sequence[Task], direction: str, grid: Grid, title: str
) -> tuple[float, Scores]:
    """The coefficient of one direction with the best mean normalised accuracy on validation; ties: the shortest edit."""
    single = {task: edits.accuracy(task, "validation", {f"own {task.name}": 1.0}) for task in tasks}

    def at(alpha: float) -> dict[str, float]:
        found = {task.name: edits.accuracy(task, "validation", {direction: alpha}) for task in tasks}
        normalised = sum(found[task.name] / (single[task] or 1.0) for task in tasks) / len(tasks)
        return {**found, "mean normalised": normalised}

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        return min(rows, key=lambda alpha: (-rows[alpha]["mean normalised"], alpha))

    scores = Scores()
    return scores.search(at, choose, grid, title), scores


def addition_row(edits: Edits, task: Task, alpha: float, direction: str) -> dict[str, Cell]:
    """One task on the test split, at alpha times a direction."""
    single = edits.accuracy(task, "test", {f"own {task.name}": 1.0})
    added = edits.accuracy(task, "test", {direction: alpha})
    plain = edits.accuracy(task, "test", {direction: 1.0})
    return {
        "task": task.name,
        "zero shot": edits.accuracy(task, "test", {direction: 0.0}),
        "single": single,
        "added": added,
        "added norm.": added / (single or 1.0),
        "alpha 1": plain,
        "alpha 1 norm.": plain / (single or 1.0),
    }


@noted
@checked
def negate(
    encoder: Encoder,
    task: Task,
    vector: TaskVector,
    controls: Sequence[Task],
    floor: float = 0.95,
    regime: EditRegime | None = None,
    *,
    grid: Grid = "paper",
    reading: Reading = Reading(),
) -> Report:
    """Task negation: theta0 - alpha * tau forgets a task while control tasks are kept, as in the paper.

    alpha minimises the target's accuracy on validation subject to mean control accuracy on validation
    >= floor * the pre-trained model's. The test split is read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        task: the target, to be forgotten.
        vector: the target's vector; it is negated here.
        controls: tasks to be kept; their mean accuracy is the control.
        floor: the share of control accuracy to keep.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vector's own.
        grid: as for `add`.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report` with target and control accuracy, pre-trained, at the chosen alpha and at alpha = 1.
        `report.result["coefficients"]` carries the minus sign and goes into `tauspan.editing.search.combine`.
    """
    require_controls(task, controls, floor)
    chosen_regime = edit_regime(vector, regime)
    tasks = [task, *controls]
    directions = Directions.whole({"negated": (-vector).named("negated")})
    edits = Edits(encoder, tasks, directions, chosen_regime, reading)
    needs = {one: ["negated"] for one in tasks}

    def at(alpha: float, split: str) -> dict[str, float]:
        control = [edits.accuracy(one, split, {"negated": alpha}) for one in controls]
        return {
            "target": edits.accuracy(task, split, {"negated": alpha}),
            "control": sum(control) / len(control),
        }

    edits.prepare(needs, "validation")
    scores = Scores()
    scores.rows[0.0] = at(0.0, "validation")  # always allowed, also where a grid leaves it out
    least = floor * scores.rows[0.0]["control"]

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        kept = [alpha for alpha, row in rows.items() if row["control"] >= least]
        return min(kept, key=lambda alpha: (rows[alpha]["target"], alpha))  # ties: the shortest edit

    title = f"negate {task.name}, {chosen_regime}"
    best = scores.search(lambda alpha: at(alpha, "validation"), choose, grid, title)

    edits.prepare(needs, "test")
    before = at(0.0, "test")
    rows: list[dict[str, Cell]] = []
    for label, alpha in (("pre-trained", 0.0), ("negated", best), ("alpha = 1", 1.0)):
        found = at(alpha, "test")
        share = found["control"] / (before["control"] or 1.0)
        rows.append({"row": label, "alpha": alpha, **found, "control kept": share})
    note = f"alpha = {best:g}: least target accuracy on validation with control >= {floor:g} of the pre-trained model's"
    note += scores.remark(grid, best)
    title = f"Negation of {task.name}, {chosen_regime}"
    coefficients = {task.name: -best}
    result = {
        "alpha": best, "regime": chosen_regime, "coefficients": coefficients, "before": before, **at(best, "test"),
    }  # fmt: skip
    series = [{"kind": "alpha", "title": title, "best": best,
               "points": [{"alpha": a, **scores.rows[a]} for a in sorted(scores.rows)]}]  # fmt: skip
    return Report(
        title, [Table(title, rows, note)], facts_of(encoder, [vector], grid=named(grid)), series, result
    )


def require_controls(task: Task, controls: Sequence[Task], floor: float) -> None:
    """Raise unless a target, its controls and the share of their accuracy to keep make sense together."""
    if not controls or task.name in {control.name for control in controls}:
        raise UsageError(f"negating {task.name!r} needs control tasks other than itself.")
    if not 0 <= floor <= 1:
        raise UsageError(f"floor={floor}: it is the share of control accuracy to keep, between 0 and 1.")


def facts_of(encoder: Encoder, vectors: Iterable[TaskVector], **more: Any) -> dict[str, Any]:
    """Where the numbers of a search come from."""
    listed = list(vectors)
    return provenance(
        base=encoder.source,
        fingerprint=models.fingerprint_of(encoder),
        vectors=[vector.label for vector in listed],
        seeds=sorted({vector.info["seed"] for vector in listed if "seed" in vector.info}),
        **more,
    )
