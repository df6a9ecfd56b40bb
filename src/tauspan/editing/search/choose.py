"""A coefficient for each task vector, or each layer of each, that minimises validation loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tauspan.core.measure import progress
from tauspan.core.report import Cell, Report
from tauspan.core.results import mean_row
from tauspan.editing.model.chosen import ChosenEdit, facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.tangent import TangentModel
from tauspan.editing.search.blackbox import Memory, descend
from tauspan.editing.search.bootstrap import Intervals, coefficient_intervals, metric_intervals
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.metrics import normalised_metric, require_one_objective
from tauspan.editing.search.objective import objective
from tauspan.editing.search.solve import solve
from tauspan.editing.search.tables import Outcome, accuracy_table, coefficient_table, optimum_table
from tauspan.editing.search.unknowns import Per, Unknowns
from tauspan.objectives import Classification
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class SolvedTask:
    """One task on the test split; accuracies as fractions.

    Args:
        task: its name, or `mean` for the mean over tasks.
        zero_shot: the pre-trained model.
        single: the task's own vector alone, at coefficient 1.
        shared_grid: all vectors at the paper's shared coefficient.
        solved: all vectors at the chosen coefficients.
        interval: the 95 % interval of `solved` over resampled rows; None without resamples.
    """

    task: str
    zero_shot: float
    single: float
    shared_grid: float
    solved: float
    shared_grid_normalised: float | None
    solved_normalised: float | None
    interval: tuple[float, float] | None

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        low, high = self.interval or (None, None)
        return {
            "task": self.task, "zero shot": self.zero_shot, "single": self.single, "shared grid": self.shared_grid,
            "solved": self.solved, "shared grid norm.": self.shared_grid_normalised,
            "solved norm.": self.solved_normalised, "solved low": low, "solved high": high,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SolvedCoefficients(ChosenEdit):
    """What `coefficients` chose, and its accuracies on the test split.

    Args:
        per: what has a coefficient of its own.
        outcome: values, loss, the loss along the shared grid, certificate and intervals.
        alpha: the paper's shared coefficient, by mean normalised accuracy on the same rows.
        tasks: accuracies of each task.
        mean: their mean.
        unknowns: which directions each coefficient scales.
        box: the bounds.
        draws: resamples behind the intervals.
        metric: what the tasks are measured by.
    """

    per: Per
    outcome: Outcome = field(repr=False)
    alpha: float
    tasks: Sequence[SolvedTask] = field(repr=False)
    mean: SolvedTask
    unknowns: Unknowns = field(repr=False)
    box: Box = field(repr=False)
    draws: int = field(repr=False)
    metric: str = Classification.metric

    @property
    def loss(self) -> float:
        """The mean cross-entropy in nats at the chosen coefficients, on the rows they were chosen on."""
        return self.outcome.loss

    @property
    def certificate(self) -> float | None:
        """The KKT residual in the infinity norm; None in the standard regime.

        Of a loss that is not convex it shows a stationary point, and no global minimum.
        """
        return self.outcome.solution.certificate if self.outcome.solution else None

    def report(self) -> Report:
        """Coefficients, accuracies, and the optimum with its certificate."""
        title = f"Coefficients per {self.per}" if self.per != "shared" else "One shared coefficient"
        rows = [row.cells() for row in (*self.tasks, self.mean)]
        tables = [
            coefficient_table(self.unknowns, self.outcome, self.box, self.regime),
            accuracy_table(rows, self.alpha, self.draws, self.metric),
            optimum_table(self.outcome),
        ]
        grid = self.outcome.grid
        best = min(grid, key=lambda a: (grid[a], a))
        result = {
            "regime": self.regime, "per": self.per, "coefficients": dict(self.coefficients),
            "groups": {group: list(names) for group, names in self.groups.items()},
            "loss": self.loss, "grid": {"alpha": best, "loss": grid[best], "alpha by accuracy": self.alpha},
            "certificate": self.certificate,
            **{name: cell for name, cell in self.mean.cells().items() if name != "task"},
        }  # fmt: skip
        return Report(
            f"{title}, {self.regime}", tables, dict(self.provenance), result=result, warnings=self.warnings
        )


def solved_coefficients(
    model: EditedModel, free: Unknowns, vectors: Mapping[Task, TaskVector], *, per: Per, bounds: Bounds | None,
    ridge: float, l1: float, split: str, bootstrap: int, seed: int, tolerance: float, max_evaluations: int,
) -> SolvedCoefficients:  # fmt: skip
    """See `tauspan.coefficients`."""
    tasks = list(vectors)
    require_one_objective(tasks, "coefficients are chosen by the mean loss")
    box = Box.of(len(free.names), bounds, l1)
    needs = dict.fromkeys(tasks, free.directions.names)
    model.read(needs, split)
    if isinstance(model, TangentModel):
        outcome = _contracted(model, free, tasks, split, box, ridge, tolerance, bootstrap, seed)
    else:
        outcome = _evaluated(model, free, tasks, split, box, ridge, max_evaluations)
    alpha = _shared_alpha(model, free, tasks, split)
    model.read(needs, "test")
    rows = _accuracies(model, free, tasks, alpha, outcome.values, bootstrap, seed)
    facts = facts_of(model, vectors.values(), split=split, bounds=list(bounds) if bounds else None, ridge=ridge,
                     l1=l1, bootstrap=bootstrap, bootstrap_seed=seed)  # fmt: skip
    return SolvedCoefficients(
        encoder=model.encoder, vectors=free.directions.vectors, regime=model.regime, point=model.point,
        coefficients=free.directions.nested(free.at(outcome.values)), groups=free.directions.groups,
        per=per, outcome=outcome, alpha=alpha, tasks=rows[:-1], mean=rows[-1], unknowns=free, box=box, draws=bootstrap,
        metric=tasks[0].objective.metric, provenance=facts,
    )  # fmt: skip


def _contracted(
    model: TangentModel, free: Unknowns, tasks: Sequence[Task], split: str, box: Box, ridge: float, tolerance: float,
    draws: int, seed: int,
) -> Outcome:  # fmt: skip
    """The tangent regimes: contractions of the cached contributions, from the best shared coefficient."""
    parts = [free.of(model.passed(task, split)) for task in tasks]
    goal = objective(parts, ridge=ridge)
    size = len(free.names)
    grid = {alpha: goal.loss(np.full(size, alpha)) for alpha in PAPER_GRID}

    def total(alpha: float) -> float:
        at = np.full(size, alpha)
        inside = box.clipped(at)
        loss = grid[alpha] if np.array_equal(inside, at) else goal.loss(inside)
        return loss + ridge / 2 * float(inside @ inside) + box.penalty(inside)

    start = box.clipped(np.full(size, min(PAPER_GRID, key=total)))
    found = solve(goal, box, start.tolist(), tolerance)
    with progress("bootstrap", draws) as advance:
        intervals = coefficient_intervals(goal, box, found, draws, seed, advance)
    return Outcome(tuple(found.values.tolist()), found.loss, grid, found, intervals, found.evaluations)


def _evaluated(
    model: EditedModel, free: Unknowns, tasks: Sequence[Task], split: str, box: Box, ridge: float, most: int
) -> Outcome:
    """The standard regime: evaluations of the working copy."""
    size = len(free.names)
    with progress("evaluations", len(PAPER_GRID) + most) as advance:

        def loss(a: Sequence[float]) -> tuple[float, ...]:
            advance(1, "")
            return (sum(model.loss(task, split, free.at(a)) for task in tasks) / len(tasks),)

        memory = Memory(loss)
        grid = {alpha: memory([alpha] * size)[0] for alpha in PAPER_GRID}

        def score(a: Sequence[float], values: tuple[float, ...]) -> float:
            point = np.asarray(a)
            return values[0] + ridge / 2 * float(point @ point) + box.penalty(point)

        values = descend(memory, score, box, [[alpha] * size for alpha in PAPER_GRID], most)
    return Outcome(values, memory(values)[0], grid, None, Intervals({}, 0, 0), len(memory.seen))


def _shared_alpha(model: EditedModel, free: Unknowns, tasks: Sequence[Task], split: str) -> float:
    """The paper's choice, for comparison: most mean normalised accuracy on the grid, ties to the smallest."""
    single = {task: model.metric(task, split, own(free, task)) for task in tasks}

    def normalised(alpha: float) -> float:
        values = free.at([alpha] * len(free.names))
        return sum(normalised_metric(task, model.metric(task, split, values), single[task]) for task in tasks)

    return min(PAPER_GRID, key=lambda alpha: (-normalised(alpha), alpha))


def own(free: Unknowns, task: Task) -> dict[str, float]:
    """The task's own vector alone, whole."""
    return dict.fromkeys(free.directions.of(task.name), 1.0)


def _accuracies(
    model: EditedModel, free: Unknowns, tasks: Sequence[Task], alpha: float, values: Sequence[float], draws: int,
    seed: int,
) -> list[SolvedTask]:  # fmt: skip
    """Each task on the test split, and their mean."""
    solved, shared = free.at(values), free.at([alpha] * len(free.names))
    scores = {task: model.scores(task, "test", solved) for task in tasks}
    intervals, whole = metric_intervals(scores, draws, seed)
    rows = []
    for task in tasks:
        single, by_grid = (model.metric(task, "test", at) for at in (own(free, task), shared))
        chosen = model.metric(task, "test", solved)
        rows.append(SolvedTask(
            task=task.name, zero_shot=model.metric(task, "test", {}), single=single, shared_grid=by_grid, solved=chosen,
            shared_grid_normalised=task.objective.compared(by_grid, single),
            solved_normalised=task.objective.compared(chosen, single), interval=intervals[task],
        ))  # fmt: skip
    return [*rows, replace(mean_row(rows), interval=whole)]
