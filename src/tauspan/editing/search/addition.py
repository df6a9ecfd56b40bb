"""Task addition with one shared coefficient, as in the paper."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tauspan.core.errors import listed
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import mean_row
from tauspan.editing.model.chosen import ChosenEdit, alpha_series, facts_of
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.search.bootstrap import DRAWS, Interval, bracketed, metric_intervals
from tauspan.editing.search.grid import Grid, Scores, named
from tauspan.editing.search.guide import Chooser, Guide
from tauspan.editing.search.metrics import normalised_metric
from tauspan.objectives import Classification
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class AddedTask:
    """One task on the test split, by its metric: accuracy as a fraction, where its rows have classes.

    Args:
        task: its name, or `mean` for the mean over tasks, which is None of several metrics.
        zero_shot: the pre-trained model.
        single: the task's own vector alone, at alpha = 1.
        added: all vectors at the chosen alpha.
        at_one: all vectors at alpha = 1.
        normalised: `added` relative to `single`; 1 is as good, more is better.
        at_one_normalised: `at_one` relative to `single`.
        metric: the metric's name.
        higher: whether more of it is better.
        interval: of `added`, 95 %: the exact one of an accuracy, else by resampling test rows.
        difference: of `added` less `single`, 95 %, by resampling test rows in pairs.
        right: of tasks with classes a 0 or a 1 for each test row, at the chosen alpha.
    """

    task: str
    zero_shot: float
    single: float
    added: float
    at_one: float
    normalised: float | None
    at_one_normalised: float | None
    metric: str = Classification.metric
    higher: bool = True
    interval: Interval | None = None
    difference: Interval | None = None
    right: str = field(default="", repr=False)

    @property
    def worse(self) -> bool:
        """Whether the sum is worse than the pre-trained model."""
        return self.added < self.zero_shot if self.higher else self.added > self.zero_shot

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        kind: dict[str, Cell] = {} if self.metric == Classification.metric else {"metric": self.metric}
        return {
            "task": self.task, **kind, "zero shot": self.zero_shot, "single": self.single, "added": self.added,
            "added 95 %": bracketed(self.interval), "less single": bracketed(self.difference, "+"),
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
        title = f"Addition{self._whose}, {self.regime}"
        single = "; single: of a task's untangled vector" if self._whose else ""
        note = (
            f"alpha = {self.alpha:g}, chosen on validation by mean normalised {self.mean.metric}{self.remark}; 95 % "
            f"intervals over test rows, in pairs of rows for added less single{single}"
        )
        rows = [row.cells() for row in (*self.tasks, self.mean)]
        if self.mean.metric != Classification.metric:  # said of each task, also of those with classes
            pairs = zip((*self.tasks, self.mean), rows, strict=True)
            rows = [{"task": one.task, "metric": one.metric, **cells} for one, cells in pairs]
        table = Table(title, rows, note)
        means = {name: cell for name, cell in self.mean.cells().items() if not isinstance(cell, str)}
        result = {
            "alpha": self.alpha,
            "regime": self.regime,
            "coefficients": dict(self.coefficients),
            **means,
            "added interval": None if self.mean.interval is None else list(self.mean.interval),
        }
        series = alpha_series(f"addition{self._whose}, {self.regime}", self.alpha, self.curve)
        if self.mean.metric != Classification.metric:
            series = [{**one, "upward": f"validation {self.mean.metric}"} for one in series]
        facts = dict(self.provenance)
        return Report(title, [table], facts, series, result, self.warnings, verdict=self.verdict)

    @property
    def _whose(self) -> str:
        """Whether the vectors are what `untangle` made of given ones."""
        return (
            " of untangled vectors" if any("untangled" in one.info for one in self.vectors.values()) else ""
        )

    @property
    def verdict(self) -> str:
        """What of the single accuracies is left, and which tasks are worse than before any training."""
        kept = (
            ""
            if self.mean.normalised is None
            else f" keeps {self.mean.normalised:.1%} of single-task {self.mean.metric}"
        )
        worse = [row for row in self.tasks if row.worse]
        kept = kept or f" has mean {self.mean.metric} {self.mean.added:.3f}"
        said = f"At alpha = {self.alpha:g} the sum{self._whose}{kept} on test rows"
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
    guide: Guide | None = None,
    check: bool = False,
) -> Addition:
    """theta0 + alpha * whole, alpha by mean normalised accuracy on validation; the test split is read once, after it.

    Args:
        model: the edited model.
        vectors: the tasks and their vectors.
        whole: the coefficients of the sum of all vectors.
        own: the coefficients of each task's own vector.
        grid: the candidates.
        guide: what chooses alpha in place of `model`, at less cost.
        check: evaluate `model` at the guide's alpha and its neighbours on the grid, as far as they are better.
    """
    tasks = list(vectors)
    needs = {task: list({**whole, **own[task]}) for task in tasks}
    chooser: Chooser = model if guide is None else guide
    chooser.read(needs, "validation")
    alpha, scores = search_shared(chooser, tasks, whole, own, grid, f"add, {chooser.regime}")
    remark = scores.remark(grid, alpha)
    if guide is not None and check:
        candidates, start = sorted(scores.rows), alpha
        alpha, scores = _climb(model, tasks, whole, own, candidates, start)
        remark = f", from {start:g}, which the tangent model proposed{scores.remark(candidates, alpha)}"
    elif guide is not None:
        remark = f"{guide.remark}{remark}"
    model.read(needs, "test")
    rows, mean = tested(model, tasks, alpha, whole, own)
    return Addition(
        encoder=model.encoder, vectors={task.name: vector for task, vector in vectors.items()},
        regime=model.regime, point=model.point, coefficients={task.name: alpha for task in tasks},
        alpha=alpha, tasks=rows, mean=mean, curve=scores.rows, remark=remark,
        provenance=facts_of(model, vectors.values(), grid=named(grid)),
    )  # fmt: skip


def search_shared(
    model: Chooser, tasks: Sequence[Task], whole: Coefs, own: Mapping[Task, Coefs], grid: Grid, title: str
) -> tuple[float, Scores]:
    """The alpha of theta0 + alpha * whole with the best mean normalised accuracy on validation; ties: the shortest."""
    scores = Scores()
    return scores.search(_validated(model, tasks, whole, own), _best, grid, title), scores


def _climb(
    model: EditedModel, tasks: Sequence[Task], whole: Coefs, own: Mapping[Task, Coefs], points: Sequence[float],
    start: float,
) -> tuple[float, Scores]:  # fmt: skip
    """The best alpha from `start` on: its neighbours are evaluated, and those of the better one, until both are worse."""
    at, scores, best = _validated(model, tasks, whole, own), Scores(), start
    while True:
        here = points.index(best)
        missing = [alpha for alpha in points[max(here - 1, 0) : here + 2] if alpha not in scores.rows]
        if not missing:
            return best, scores
        best = scores.search(at, _best, missing, f"add, {model.regime}")


def _validated(
    model: Chooser, tasks: Sequence[Task], whole: Coefs, own: Mapping[Task, Coefs]
) -> Callable[[float], dict[str, float]]:
    """The metrics on validation as a function of alpha."""
    single = {task: model.metric(task, "validation", own[task]) for task in tasks}

    def at(alpha: float) -> dict[str, float]:
        found = {task.name: model.metric(task, "validation", scaled(whole, alpha)) for task in tasks}
        normalised = [normalised_metric(task, found[task.name], single[task]) for task in tasks]
        return {**found, "mean normalised": sum(normalised) / len(tasks)}

    return at


def _best(rows: Mapping[float, Mapping[str, float]]) -> float:
    return min(rows, key=lambda alpha: (-rows[alpha]["mean normalised"], alpha))


def tested(
    model: EditedModel, tasks: Sequence[Task], alpha: float, whole: Coefs, own: Mapping[Task, Coefs]
) -> tuple[list[AddedTask], AddedTask]:
    """Each task on the test split at alpha times the sum, and the mean over tasks."""
    added = {task: model.scores(task, "test", scaled(whole, alpha)) for task in tasks}
    single = {task: model.scores(task, "test", own[task]) for task in tasks}
    intervals, around_mean = metric_intervals(added, DRAWS)
    differences, around_gap = metric_intervals(added, DRAWS, less=single)
    rows = []
    for task in tasks:
        of = task.objective
        at, alone = (of.summary(float(scores[task].mean())) for scores in (added, single))
        plain = model.metric(task, "test", whole)
        right = "".join("1" if score else "0" for score in added[task]) if task.classes else ""
        rows.append(AddedTask(
            task=task.name, zero_shot=model.metric(task, "test", {}), single=alone, added=at, at_one=plain,
            normalised=of.compared(at, alone), at_one_normalised=of.compared(plain, alone), metric=of.metric,
            higher=of.higher, interval=intervals[task], difference=differences[task], right=right,
        ))  # fmt: skip
    return rows, replace(_mean(rows), interval=around_mean, difference=around_gap, right="")


def _mean(rows: Sequence[AddedTask]) -> AddedTask:
    """The mean over tasks; of several metrics the normalised ones alone."""
    metrics = dict.fromkeys(row.metric for row in rows)
    mean = replace(mean_row(rows), metric=" and ".join(metrics), higher=rows[0].higher)
    if len(metrics) == 1:
        return mean
    none: Any = None  # a missing number is missing
    return replace(mean, zero_shot=none, single=none, added=none, at_one=none)


def scaled(coefficients: Coefs, alpha: float) -> Coefs:
    """Alpha times coefficients."""
    return {name: alpha * value for name, value in coefficients.items()}
