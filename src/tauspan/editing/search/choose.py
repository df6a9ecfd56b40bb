"""`coefficients`: a coefficient for each task vector, or each layer of each, that minimises validation loss."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError
from tauspan.core.measure import progress
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, noted
from tauspan.editing.edit import EditRegime, edit_regime
from tauspan.editing.search.blackbox import Memory, descend
from tauspan.editing.search.bootstrap import Intervals, accuracy_intervals, coefficient_intervals
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.edits import Edits
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.numbers import require_at_least
from tauspan.editing.search.objective import objective
from tauspan.editing.search.protocol import facts_of
from tauspan.editing.search.solve import solve
from tauspan.editing.search.tables import Outcome, accuracy_table, coefficient_table, optimum_table
from tauspan.editing.search.unknowns import GroupPatterns, Per, Unknowns, unknowns
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@noted
@checked
def coefficients(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    per: Per = "task",
    groups: GroupPatterns | None = None,
    bounds: Bounds | None = (0.0, 1.0),
    ridge: float = 0.0,
    l1: float = 0.0,
    split: Literal["train", "validation", "test"] = "validation",  # test is refused, with the reason
    bootstrap: int = 200,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_evaluations: int = 100,
    reading: Reading = Reading(),
) -> Report:
    """One model for all tasks: theta0 + sum_t a_t tau_t with the coefficients that minimise validation loss.

    The mean over tasks of the mean cross-entropy on `split`, plus ridge/2 |a|^2 + l1 |a|_1, with lo <= a <= hi. In the
    tangent regimes the problem is convex in a and is solved from one pass over the data, with a certificate; a head that
    normalises features at `point="encoder"` makes it non-convex, and the search then starts from the best shared
    coefficient. In the standard regime every trial is an evaluation of the model, its weights set in place, and
    there is no certificate. The test split is read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        per: `"shared"`: one coefficient; `"task"`: one a vector; `"layer"`: one a layer group of a vector.
        groups: for `"layer"`, patterns of tensor names by group instead of the model's blocks.
        bounds: of every coefficient; None leaves them free, which needs rows that no combination separates.
        ridge: the pull of all coefficients to 0.
        l1: the pull of single coefficients to exactly 0.
        split: the rows to choose on.
        bootstrap: resamples behind each 95 % interval; 0 for none.
        seed: of the resamples.
        tolerance: what the certificate should reach.
        max_evaluations: of the standard regime, besides the 21 points of the shared grid.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report` with the coefficients, the accuracies on test (zero-shot, single task, the paper's shared
        coefficient, the chosen ones) and the optimum with its certificate. `report.result["coefficients"]` and
        `["groups"]` go into `tauspan.editing.search.combine`, which makes the vector.

    Raises:
        UsageError: no finite minimum, or an argument that does not fit.

    Cost:
        Tangent: one pass of as many tangents as there are directions, per task and split. Standard:
        21 + `max_evaluations` evaluations of all tasks.
    """
    named = {task.name: vector for task, vector in vectors.items()}
    if not named:
        raise UsageError("coefficients need at least one task and its vector.")
    if len(named) < len(vectors):
        raise DataError("a task stands twice among the vectors; give each task one.")
    if split not in ("train", "validation"):
        raise UsageError(
            f"split={split!r}: coefficients are chosen on 'train' or 'validation', never on test rows."
        )
    require_at_least(0, ridge=ridge, bootstrap=bootstrap)
    require_at_least(1, max_evaluations=max_evaluations)
    tasks = list(vectors)
    chosen = edit_regime(next(iter(named.values())), regime)
    free = unknowns(encoder, named, per, groups)
    edits = Edits(encoder, tasks, free.directions, chosen, reading)
    box = Box.of(len(free.names), bounds, l1)
    needs = dict.fromkeys(tasks, free.directions.names)
    edits.prepare(needs, split)
    if chosen == "standard":
        found = _evaluated(edits, free, tasks, split, box, ridge, max_evaluations)
    else:
        found = _contracted(edits, free, tasks, split, box, ridge, tolerance, bootstrap, seed)
    alpha = _shared_alpha(edits, free, tasks, split)
    edits.prepare(needs, "test")
    rows = _accuracies(edits, free, tasks, alpha, found.values, bootstrap, seed)
    title = f"Coefficients per {per}, {chosen}" if per != "shared" else f"One shared coefficient, {chosen}"
    facts = facts_of(encoder, vectors.values(), split=split, bounds=list(bounds) if bounds else None, ridge=ridge, l1=l1,
                     bootstrap=bootstrap, bootstrap_seed=seed)  # fmt: skip
    tables = [
        coefficient_table(free, found, box, chosen),
        accuracy_table(rows, alpha, bootstrap),
        optimum_table(found),
    ]
    best = min(found.grid, key=lambda a: (found.grid[a], a))
    result = {
        "regime": chosen, "per": per, "coefficients": free.directions.nested(free.at(found.values)),
        "groups": {group: list(names) for group, names in free.directions.groups.items()},
        "loss": found.loss, "grid": {"alpha": best, "loss": found.grid[best], "alpha by accuracy": alpha},
        "certificate": found.solution.certificate if found.solution else None,
        **{key: value for key, value in rows[-1].items() if key != "task"},
    }  # fmt: skip
    return Report(title, tables, facts, result=result)


def _contracted(
    edits: Edits, free: Unknowns, tasks: Sequence[Task], split: str, box: Box, ridge: float, tolerance: float,
    draws: int, seed: int,
) -> Outcome:  # fmt: skip
    """The tangent regimes: contractions of the cached contributions, from the best shared coefficient."""
    parts = [edits.passed(task, split).summed(free.scales) for task in tasks]
    goal = objective(parts, ridge=ridge)
    size = len(free.names)
    grid = {alpha: goal.loss(np.full(size, alpha)) for alpha in PAPER_GRID}
    starts = [box.clipped(np.full(size, alpha)) for alpha in PAPER_GRID]
    start = min(starts, key=lambda a: goal.value_and_gradient(a)[0] + box.penalty(a))
    found = solve(goal, box, start.tolist(), tolerance)
    with progress("bootstrap", draws) as advance:
        intervals = coefficient_intervals(goal, box, found, draws, seed, advance)
    return Outcome(tuple(found.values.tolist()), found.loss, grid, found, intervals, found.evaluations)


def _evaluated(
    edits: Edits, free: Unknowns, tasks: Sequence[Task], split: str, box: Box, ridge: float, most: int
) -> Outcome:
    """The standard regime: evaluations of the working copy."""
    size = len(free.names)
    with progress("evaluations", len(PAPER_GRID) + most) as advance:

        def loss(a: Sequence[float]) -> tuple[float, ...]:
            advance(1, "")
            return (sum(edits.loss(task, split, free.at(a)) for task in tasks) / len(tasks),)

        memory = Memory(loss)
        grid = {alpha: memory([alpha] * size)[0] for alpha in PAPER_GRID}

        def score(a: Sequence[float], values: tuple[float, ...]) -> float:
            point = np.asarray(a)
            return values[0] + ridge / 2 * float(point @ point) + box.penalty(point)

        values = descend(memory, score, box, [[alpha] * size for alpha in PAPER_GRID], most)
    return Outcome(values, memory(values)[0], grid, None, Intervals({}, 0, 0), len(memory.seen))


def _shared_alpha(edits: Edits, free: Unknowns, tasks: Sequence[Task], split: str) -> float:
    """The paper's choice, for comparison: most mean normalised accuracy on the grid, ties to the smallest."""
    single = {task: edits.accuracy(task, split, own(free, task)) or 1.0 for task in tasks}

    def normalised(alpha: float) -> float:
        values = dict.fromkeys(free.directions.names, alpha)
        return sum(edits.accuracy(task, split, values) / single[task] for task in tasks)

    return min(PAPER_GRID, key=lambda alpha: (-normalised(alpha), alpha))


def own(free: Unknowns, task: Task) -> dict[str, float]:
    """The task's own vector alone, whole."""
    return dict.fromkeys(free.directions.of(task.name), 1.0)


def _accuracies(
    edits: Edits,
    free: Unknowns,
    tasks: Sequence[Task],
    alpha: float,
    values: Sequence[float],
    draws: int,
    seed: int,
) -> list[dict[str, Cell]]:
    """One row a task on the test split, and the mean."""
    solved, shared = free.at(values), dict.fromkeys(free.directions.names, alpha)
    columns: dict[str, list[float]] = {
        "zero shot": [edits.accuracy(task, "test", {}) for task in tasks],
        "single": [edits.accuracy(task, "test", own(free, task)) for task in tasks],
        "shared grid": [edits.accuracy(task, "test", shared) for task in tasks],
        "solved": [],
    }
    right = {t.name: edits.logits(t, "test", solved).argmax(-1) == t.split("test").labels for t in tasks}
    columns["solved"] = [float(found.double().mean()) for found in right.values()]
    for kind in ("shared grid", "solved"):
        columns[f"{kind} norm."] = [
            x / (y or 1.0) for x, y in zip(columns[kind], columns["single"], strict=True)
        ]
    intervals = accuracy_intervals(right, draws, seed)
    rows: list[dict[str, Cell]] = []
    for place, name in enumerate([*right, "mean"]):
        row: dict[str, Cell] = {"task": name}
        row |= {
            key: (sum(all_) / len(all_) if name == "mean" else all_[place]) for key, all_ in columns.items()
        }
        low, high = intervals[name] or (None, None)
        rows.append({**row, "solved low": low, "solved high": high})
    return rows
