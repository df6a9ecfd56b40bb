"""Two edits on the same rows: differences in pairs of rows, with intervals and McNemar's test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import binomtest
from torch import Tensor

from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result, mean_row
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.search.bootstrap import Interval, bracketed, metric_intervals
from tauspan.tasks import Task


@dataclass(frozen=True)
class ComparedTask:
    """One task under two edits, by its metric.

    Args:
        task: its name, or `mean`.
        first: the metric of the first edit.
        second: that of the second one.
        interval: of first less second, 95 %, by resampling rows in pairs; None without resamples.
        p: how likely gains and losses are so unequal by chance, by McNemar's exact test; None for metrics that are no
            accuracies.
    """

    task: str
    first: float
    second: float
    interval: Interval | None
    p: float | None

    @property
    def difference(self) -> float:
        """First less second."""
        return self.first - self.second


@dataclass(frozen=True, kw_only=True)
class EditComparison(Result):
    """Two edits of one editor on the same rows.

    Args:
        regime: of the edits.
        split: whose rows.
        tasks: a row for each task.
        mean: their mean, with one p for the rows of all tasks; None for tasks of several metrics.
        metric: the metric's name.
    """

    regime: EditRegime
    split: str
    tasks: Sequence[ComparedTask]
    mean: ComparedTask | None
    metric: str

    @property
    def verdict(self) -> str:
        """Whether the rows can tell the edits apart."""
        if self.mean is None or self.mean.interval is None:
            return ""
        one, (low, high) = self.mean, self.mean.interval
        said = f"mean {self.metric} {one.first:.3f} against {one.second:.3f}, difference {bracketed(one.interval, '+')}"
        return (
            f"These rows tell the two apart: {said}."
            if low > 0 or high < 0
            else f"These rows cannot tell the two apart: {said}."
        )

    def report(self) -> Report:
        """A row for each task, and the mean."""
        rows: list[dict[str, Cell]] = [
            {"task": one.task, "first": one.first, "second": one.second, "difference": one.difference,
             "95 %": bracketed(one.interval, "+"), "p": one.p}
            for one in (*self.tasks, *([self.mean] if self.mean else []))
        ]  # fmt: skip
        note = (
            f"{self.split} rows; first less second, 95 % by resampling rows in pairs; p: McNemar's exact test"
        )
        title = f"Two edits, {self.metric}, {self.regime}"
        return Report(title, [Table(title, rows, note)], dict(self.provenance), verdict=self.verdict)


def compared(
    model: EditedModel,
    tasks: Sequence[Task],
    first: Coefs,
    second: Coefs,
    split: str,
    bootstrap: int,
    seed: int,
) -> EditComparison:
    """Score both edits on the rows of each task, and compare row by row."""
    needs = [name for name in model.directions.names if name in {**first, **second}]
    model.read(dict.fromkeys(tasks, needs), split)
    one, two = ({task: model.scores(task, split, at) for task in tasks} for at in (first, second))
    intervals, around = metric_intervals(one, bootstrap, seed, less=two)
    rows = []
    for task in tasks:
        values = [task.objective.summary(float(scores[task].mean())) for scores in (one, two)]
        p = mcnemar(one[task] - two[task]) if task.classes else None
        rows.append(ComparedTask(task.name, values[0], values[1], intervals[task], p))
    metrics = dict.fromkeys(task.objective.metric for task in tasks)
    mean = None
    if len(metrics) == 1:
        p = mcnemar(torch.cat([one[task] - two[task] for task in tasks])) if tasks[0].classes else None
        mean = replace(mean_row(rows), interval=around, p=p)
    return EditComparison(
        regime=model.regime, split=split, tasks=rows, mean=mean, metric=" and ".join(metrics),
        provenance=facts_of(model, [], split=split, first=dict(first), second=dict(second)),
    )  # fmt: skip


def mcnemar(differences: Tensor) -> float:
    """McNemar's exact test, two-sided: how likely are gains and losses so unequal if a row is as likely either?

    Args:
        differences: 1 for a row that only the first has right, -1 for one that only the second has, 0 for the others.

    Example:
        >>> mcnemar(torch.tensor([1.0, 1.0, 1.0, -1.0, 0.0])), mcnemar(torch.zeros(3))
        (0.625, 1.0)
    """
    gains, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(gains, gains + losses).pvalue) if gains + losses else 1.0
