"""Which vectors to add: all subsets from one pass, and what each vector is worth to each task (Shapley values)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, listed
from tauspan.core.measure import progress
from tauspan.core.records import LIVE
from tauspan.core.report import Cell, Report, Table
from tauspan.editing.model.chosen import ChosenEdit, facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.search.bootstrap import Interval, bracketed, mean_interval, metric_intervals
from tauspan.editing.search.metrics import keeps, least_kept
from tauspan.tasks import Task
from tauspan.vector import TaskVector

Subset = tuple[str, ...]
MOST = 12
"""Vectors of which all subsets are still measured: 4,096."""


@dataclass(frozen=True)
class Worth:
    """What one vector adds to one task's metric, averaged over all orders in which the vectors could be added.

    Args:
        vector: the task that the vector was made for.
        task: the task that is measured.
        value: the Shapley value on validation rows; over all vectors they sum to the metric with all vectors less that
            without any.
        interval: its 95 % interval over resampled rows; None without resamples.
    """

    vector: str
    task: str
    value: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Subsets(ChosenEdit):
    """The best subset of the vectors, and the worth of each vector for each task.

    Args:
        chosen: the vectors of the best subset.
        floor: the share of its own vector's metric that every task of a subset keeps.
        worths: by vector and task.
        means: the mean metric over all tasks on validation, by subset.
        test: the mean metric on test rows of no vector, of all, and of the chosen ones.
        gain: the 95 % interval of chosen less all on test rows, resampled in pairs; None without resamples.
        remark: what a reader must know about the choice; empty where nothing.
    """

    chosen: Subset
    floor: float
    worths: Sequence[Worth]
    means: Mapping[Subset, float] = field(repr=False, metadata=LIVE)
    test: Mapping[str, float]
    gain: Interval | None
    remark: str = ""

    @property
    def verdict(self) -> str:
        """Which vectors to add, and what that is worth on test rows."""
        everything = len(self.chosen) == len(self.vectors)
        which = "all vectors" if everything else f"{', '.join(self.chosen) or 'no vector'}"
        said = f"Add {which}: mean {self.test['chosen']:.3f} on test rows, {self.test['none']:.3f} before"
        if everything:
            return f"{said}.{self.remark}"
        low, high = self.gain or (math.nan, math.nan)
        apart = "" if self.gain is None else f" (difference {low:+.3f} to {high:+.3f})"
        return f"{said}, {self.test['all']:.3f} with all{apart}.{self.remark}"

    def report(self) -> Report:
        """The worth of each vector for each task, and the best subsets."""
        names = list(self.vectors)
        at = {(one.vector, one.task): one for one in self.worths}
        rows: list[dict[str, Cell]] = []
        for vector in names:
            cells: dict[str, Cell] = {"vector of": vector}
            for task in names:
                one = at[vector, task]
                around = "" if one.interval is None else f" {bracketed(one.interval, '+')}"
                cells[f"for {task}"] = f"{one.value:+.3f}{around}"
            rows.append({**cells, "all": f"{sum(at[vector, task].value for task in names):+.3f}"})
        note = "Shapley values of the metric at coefficient 1, on validation rows; 95 % intervals over resampled rows"
        best = sorted(self.means, key=lambda subset: (-self.means[subset], len(subset), subset))[:8]
        tops: list[dict[str, Cell]] = [
            {"vectors": ", ".join(subset) or "none", "mean on validation": self.means[subset]}
            for subset in best
        ]
        tables = [
            Table(f"Worth of each vector, {self.regime}", rows, note),
            Table("Best subsets", tops, f"of {len(self.means)}; mean metric over all tasks{self.remark}"),
        ]
        return Report("Which vectors to add", tables, dict(self.provenance), verdict=self.verdict)


def subsets(
    model: EditedModel, vectors: Mapping[Task, TaskVector], floor: float, bootstrap: int, seed: int
) -> Subsets:
    """Measure every subset at coefficient 1 on validation, choose, and measure the choice on test."""
    tasks, names = list(vectors), [task.name for task in vectors]
    _require(tasks)
    model.read(dict.fromkeys(tasks, names), "validation")
    every: list[Subset] = [one for size in range(len(names) + 1) for one in combinations(names, size)]
    scores: dict[Subset, dict[str, Tensor]] = {}
    with progress(f"subsets, {model.regime}", len(every)) as advance:
        for subset in every:
            scores[subset] = {
                t.name: model.scores(t, "validation", dict.fromkeys(subset, 1.0)) for t in tasks
            }
            advance(1, f"{len(subset)} vectors")
    worths = [
        _worth(
            vector,
            task.name,
            {one: found[task.name] for one, found in scores.items()},
            names,
            bootstrap,
            seed,
        )
        for vector in names
        for task in tasks
    ]
    metrics = {
        one: {name: float(score.mean()) for name, score in found.items()} for one, found in scores.items()
    }
    means = {one: sum(found.values()) / len(tasks) for one, found in metrics.items()}
    allowed = [
        one for one in every if all(_kept(task, metrics, one, floor) for task in tasks if task.name in one)
    ]
    chosen = max(allowed, key=lambda one: (means[one], -len(one)))
    remark = "" if any(allowed) else f" No subset keeps {floor:.0%} of every one of its tasks."
    test, gain = _tested(model, tasks, chosen, tuple(names), bootstrap, seed)
    return Subsets(
        encoder=model.encoder, vectors={task.name: vector for task, vector in vectors.items()}, regime=model.regime,
        point=model.point, coefficients={name: float(name in chosen) for name in names}, chosen=chosen, floor=floor,
        worths=worths, means=means, test=test, gain=gain, remark=remark,
        provenance=facts_of(model, vectors.values(), floor=floor, bootstrap=bootstrap, seed=seed),
    )  # fmt: skip


def _require(tasks: Sequence[Task]) -> None:
    """Raise unless all subsets can be measured and compared."""
    if not 2 <= len(tasks) <= MOST:
        raise UsageError(
            f"{len(tasks)} vectors: all subsets of 2 to {MOST} are measured. `coefficients(l1=...)` sets those to 0 that "
            "are not worth their place, of any number."
        )
    other = [f"{task.name} ({task.objective.word})" for task in tasks if not task.classes]
    if other:
        raise UsageError(
            f"{listed(other)}: subsets are compared by accuracy; `coefficients` chooses by loss."
        )


def _worth(
    vector: str, task: str, scores: Mapping[Subset, Tensor], names: Sequence[str], bootstrap: int, seed: int
) -> Worth:
    """The Shapley value as a mean over rows of each row's own value, since it is linear in scores."""
    total, count = torch.zeros_like(next(iter(scores.values()))), len(names)
    for without, found in scores.items():
        if vector not in without:
            share = 1 / (count * math.comb(count - 1, len(without)))
            joined = tuple(name for name in names if name in without or name == vector)
            total += share * (scores[joined] - found)
    return Worth(vector, task, float(total.mean()), mean_interval(total, bootstrap, seed))


def _kept(task: Task, metrics: Mapping[Subset, Mapping[str, float]], subset: Subset, floor: float) -> bool:
    least = least_kept(task.objective, metrics[task.name,][task.name], floor)
    return keeps(task.objective, metrics[subset][task.name], least)


def _tested(
    model: EditedModel, tasks: Sequence[Task], chosen: Subset, names: Subset, bootstrap: int, seed: int
) -> tuple[dict[str, float], Interval | None]:
    """Mean metrics on test rows, and the interval of chosen less all in pairs of rows."""
    model.read(dict.fromkeys(tasks, names), "test")
    which = {"none": (), "all": names, "chosen": chosen}
    found = {
        label: {task: model.scores(task, "test", dict.fromkeys(subset, 1.0)) for task in tasks}
        for label, subset in which.items()
    }
    means = {
        label: sum(float(one.mean()) for one in scores.values()) / len(tasks)
        for label, scores in found.items()
    }
    return means, metric_intervals(found["chosen"], bootstrap, seed, less=found["all"])[1]
