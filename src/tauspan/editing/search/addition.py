"""Task addition with one shared coefficient, as in the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tauspan.core.errors import listed
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import mean_row, ratio
from tauspan.editing.model.chosen import ChosenEdit, alpha_series, facts_of
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.search.grid import Grid, Scores, named
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class AddedTask:
    """One task on the test split; accuracies as fractions.

    Args:
        task: its name, or `mean` for the mean over tasks.
        zero_shot: the pre-trained model.
        single: the task's own vector alone, at alpha = 1.
        added: all vectors at the chosen alpha.
        at_one: all vectors at alpha = 1.
    """

    task: str
    zero_shot: float
    single: float
    added: float
    at_one: float
    normalised: float | None
    at_one_normalised: float | None

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "task": self.task, "zero shot": self.zero_shot, "single": self.single, "added": self.added,
            "added norm.": self.normalised, "alpha 1": self.at_one, "alpha 1 norm.": self.at_one_normalised,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Addition(ChosenEdit):
    """What `add` chose, and its accuracies on the test split.

    Args:
        alpha: the shared coefficient.
        tasks: accuracies of each task.
        mean: their mean.
        curve: validation accuracies by alpha: of each task, and the mean normalised one.
        remark: what a reader must know about the grid; empty where nothing.
    """

    alpha: float
    tasks: Sequence[AddedTask] = field(repr=False)
    mean: AddedTask
    curve: Mapping[float, Mapping[str, float]] = field(repr=False)
    remark: str = ""

    def report(self) -> Report:
        """One table, and the curve over alpha."""
        title = f"Addition, {self.regime}"
        note = f"alpha = {self.alpha:g}, chosen on validation by mean normalised accuracy{self.remark}"
        table = Table(title, [row.cells() for row in (*self.tasks, self.mean)], note)
        means = {name: cell for name, cell in self.mean.cells().items() if name != "task"}
        result = {
            "alpha": self.alpha,
            "regime": self.regime,
            "coefficients": dict(self.coefficients),
            **means,
        }
        series = alpha_series(f"addition, {self.regime}", self.alpha, self.curve)
        facts = dict(self.provenance)
        return Report(title, [table], facts, series, result, self.warnings, verdict=self.verdict)

    @property
    def verdict(self) -> str:
        """What of the single accuracies is left, and which tasks are worse than before any training."""
        kept = (
            ""
            if self.mean.normalised is None
            else f" keeps {self.mean.normalised:.1%} of single-task accuracy"
        )
        worse = [row for row in self.tasks if row.added < row.zero_shot]
        said = f"At alpha = {self.alpha:g} the sum{kept or f' has mean accuracy {self.mean.added:.3f}'} on test rows"
        if not worse:
            return f"{said}, and no task is below the pre-trained model."
        below = listed([f"{row.task} ({row.added:.3f} against {row.zero_shot:.3f})" for row in worse])
        return (
            f"{said}; below the pre-trained model: {below}. A coefficient for each vector may do better: "
            "`Editor.coefficients`, `tauspan edit solve`."
        )


def addition(
    model: EditedModel,
    vectors: Mapping[Task, TaskVector],
    whole: Coefs,
    own: Mapping[Task, Coefs],
    grid: Grid,
) -> Addition:
    """theta0 + alpha * whole, alpha by mean normalised accuracy on validation; the test split is read once, after it.

    Args:
        model: the edited model.
        vectors: the tasks and their vectors.
        whole: the coefficients of the sum of all vectors.
        own: the coefficients of each task's own vector.
        grid: the candidates.
    """
    tasks = list(vectors)
    needs = {task: list({**whole, **own[task]}) for task in tasks}
    model.read(needs, "validation")
    alpha, scores = search_shared(model, tasks, whole, own, grid, f"add, {model.regime}")
    model.read(needs, "test")
    rows = [added_task(model, task, alpha, whole, own[task]) for task in tasks]
    return Addition(
        encoder=model.encoder, vectors={task.name: vector for task, vector in vectors.items()},
        regime=model.regime, point=model.point, coefficients={task.name: alpha for task in tasks},
        alpha=alpha, tasks=rows, mean=mean_row(rows), curve=scores.rows, remark=scores.remark(grid, alpha),
        provenance=facts_of(model, vectors.values(), grid=named(grid)),
    )  # fmt: skip


def search_shared(
    model: EditedModel, tasks: Sequence[Task], whole: Coefs, own: Mapping[Task, Coefs], grid: Grid, title: str
) -> tuple[float, Scores]:
    """The alpha of theta0 + alpha * whole with the best mean normalised accuracy on validation; ties: the shortest."""
    single = {task: model.accuracy(task, "validation", own[task]) for task in tasks}

    def at(alpha: float) -> dict[str, float]:
        accuracies = {task.name: model.accuracy(task, "validation", scaled(whole, alpha)) for task in tasks}
        normalised = sum(accuracies[task.name] / (single[task] or 1.0) for task in tasks) / len(tasks)
        return {**accuracies, "mean normalised": normalised}

    def choose(rows: Mapping[float, Mapping[str, float]]) -> float:
        return min(rows, key=lambda alpha: (-rows[alpha]["mean normalised"], alpha))

    scores = Scores()
    return scores.search(at, choose, grid, title), scores


def added_task(model: EditedModel, task: Task, alpha: float, whole: Coefs, own: Coefs) -> AddedTask:
    """One task on the test split, at alpha times the sum."""
    single = model.accuracy(task, "test", own)
    added, plain = (model.accuracy(task, "test", scaled(whole, at)) for at in (alpha, 1.0))
    zero_shot = model.accuracy(task, "test", {})
    return AddedTask(task.name, zero_shot, single, added, plain, ratio(added, single), ratio(plain, single))


def scaled(coefficients: Coefs, alpha: float) -> Coefs:
    """Alpha times coefficients."""
    return {name: alpha * value for name, value in coefficients.items()}
