"""What adding two ordinary vectors will do to each other's task, before they are added; calibrated on pairs that were."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from tauspan.core.errors import UsageError
from tauspan.core.measure import progress
from tauspan.core.records import LIVE
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.several import EditedModels
from tauspan.editing.search.bootstrap import Interval, bracketed
from tauspan.editing.search.metrics import require_one_objective
from tauspan.tasks import Task
from tauspan.vector import TaskVector

Pair = tuple[str, str]


@dataclass(frozen=True)
class ForecastPair:
    """What adding one vector to another does to the metric of the second one's task, both at coefficient 1.

    Args:
        task: whose rows, with its own vector.
        added: the task of the vector that is added to it.
        single: the metric with the own vector alone; measured.
        tangent: the change of the metric if the added vector moved the logits by J tau; a loss is negative, also of a
            metric of which less is better.
        change: the forecast: `tangent` as the measured pairs correct it.
        interval: of the change; None where fewer than two other pairs were measured.
        measured: the change of the ordinary model; None where the pair was not measured.
    """

    task: str
    added: str
    single: float
    tangent: float
    change: float
    interval: Interval | None
    measured: float | None

    @property
    def held(self) -> bool | None:
        """Whether the interval contained what was measured; None where one of them is missing."""
        if self.interval is None or self.measured is None:
            return None
        return self.interval[0] - 1e-12 <= self.measured <= self.interval[1] + 1e-12


@dataclass(frozen=True, kw_only=True)
class Forecast(Result):
    """A forecast for each ordered pair of vectors, and how often forecasts of measured pairs were right.

    Each forecast of a measured pair is made from the other pairs alone.

    Args:
        pairs: one for each task and vector that is added to it.
        level: of the intervals.
        split: whose rows.
        error: the mean distance of forecast and measured change.
        error_of_mean: the same if each forecast were the mean change of the other measured pairs.
        held: the share of measured changes inside their interval; None without intervals.
    """

    pairs: Sequence[ForecastPair] = field(repr=False, metadata=LIVE)
    level: float
    split: str
    error: float
    error_of_mean: float
    held: float | None

    @property
    def worst(self) -> ForecastPair:
        """The pair with the largest expected loss."""
        return min(self.pairs, key=lambda one: one.change)

    @property
    def verdict(self) -> str:
        """The worst pair, and what the forecast was worth on pairs that were measured."""
        one, count = self.worst, sum(pair.measured is not None for pair in self.pairs)
        around = "" if one.interval is None else f" {bracketed(one.interval, '+')}"
        said = f"The worst pair: {one.added} takes {one.change:+.3f} from {one.task}{around}."
        said += f" On {count} measured changes, each forecast from the other pairs, the mean error is {self.error:.3f}"
        said += f"; {self.error_of_mean:.3f} if the mean of the others were the forecast"
        said += "" if self.held is None else f". {self.held:.0%} were inside their {self.level:.0%} interval"
        useless = self.error >= self.error_of_mean
        return (
            f"{said}.{' The forecast is no better than the mean here: measure instead.' if useless else ''}"
        )

    def report(self) -> Report:
        """A row for each ordered pair, the worst first."""
        rows: list[dict[str, Cell]] = [
            {"task": one.task, "added": one.added, "single": one.single, "forecast": one.change,
             f"{self.level:.0%} interval": bracketed(one.interval, "+"), "measured": one.measured}
            for one in sorted(self.pairs, key=lambda one: one.change)
        ]  # fmt: skip
        note = f"changes of the task's metric when the other vector is added to its own, on {self.split} rows"
        table = Table("Forecast of pairs", rows, note)
        return Report("Forecast", [table], dict(self.provenance), verdict=self.verdict)


def forecast(
    models: EditedModels,
    vectors: Mapping[Task, TaskVector],
    measured: int,
    level: float,
    split: str,
    seed: int,
) -> Forecast:
    """Forecast all pairs from one tangent pass, and correct the forecasts by `measured` pairs of the ordinary model."""
    tasks = list(vectors)
    _require(models.regime, tasks, measured, level)
    ordinary = models.whole(tasks)
    tangent = models.tangent(ordinary.directions, tasks, ahead=True)
    single, guessed = _guessed(ordinary, tangent, tasks, split)
    pairs = list(combinations([task.name for task in tasks], 2))
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:measured]
    actual = _measured(
        ordinary, {task.name: task for task in tasks}, [pairs[k] for k in sorted(drawn)], split
    )
    rank = tasks[0].objective.rank
    actual = {at: rank(value) - rank(single[at[0]]) for at, value in actual.items()}
    found, means = [], []
    for at, guess in guessed.items():
        others = {key: value for key, value in actual.items() if set(key) != set(at)}
        change, interval = _corrected(guess, [guessed[key] for key in others], list(others.values()), level)
        found.append(ForecastPair(*at, single[at[0]], guess, change, interval, actual.get(at)))
        if at in actual and others:
            means.append(abs(actual[at] - math.fsum(others.values()) / len(others)))
    missed = [abs(one.change - one.measured) for one in found if one.measured is not None]
    held = [one.held for one in found if one.held is not None]
    return Forecast(
        pairs=found, level=level, split=split, error=float(np.mean(missed)), error_of_mean=float(np.mean(means)),
        held=float(np.mean(held)) if held else None,
        provenance=facts_of(ordinary, vectors.values(), split=split, measured=measured, seed=seed),
    )  # fmt: skip


def _guessed(
    ordinary: EditedModel, tangent: EditedModel, tasks: Sequence[Task], split: str
) -> tuple[dict[str, float], dict[Pair, float]]:
    """Each task's metric with its own vector, and its change by each other's J tau on top of it."""
    names = [task.name for task in tasks]
    tangent.read(dict.fromkeys(tasks, names), split)
    single, guessed = {}, {}
    for task in tasks:
        own, start = ordinary.logits(task, split, {task.name: 1.0}), tangent.logits(task, split, {})
        labels, of = ordinary.targets(task, split), task.objective
        single[task.name] = of.value(own, labels)
        for name in names:
            if name != task.name:
                moved = own + (tangent.logits(task, split, {name: 1.0}) - start)
                guessed[task.name, name] = of.rank(of.value(moved, labels)) - of.rank(single[task.name])
    return single, guessed


def _measured(
    model: EditedModel, by_name: Mapping[str, Task], pairs: Sequence[Pair], split: str
) -> dict[Pair, float]:
    """The ordinary model's metric of both tasks of each pair, with both vectors."""
    found = {}
    with progress("pairs", len(pairs)) as advance:
        for first, second in pairs:
            both = {first: 1.0, second: 1.0}
            for one, other in ((first, second), (second, first)):
                found[one, other] = model.metric(by_name[one], split, both)
            advance(1, f"{first} and {second}")
    return found


def _corrected(
    guess: float, guesses: Sequence[float], changes: Sequence[float], level: float
) -> tuple[float, Interval | None]:
    """A guess corrected by a line through other pairs' guesses and changes, and the interval of their residuals.

    Of few pairs the line has slope 1, and the interval spans all residuals, which is then less than `level` says.
    """
    x, y = np.array(guesses), np.array(changes)
    if not len(x):
        return guess, None
    slope = float(np.polyfit(x, y, 1)[0]) if len(x) >= 8 and np.ptp(x) > 1e-9 else 1.0
    residuals = np.sort(y - slope * x)
    change = slope * guess + float(residuals.mean())
    if len(x) < 4:
        return change, None
    tail = (1 - level) / 2 * (len(x) + 1)  # the ranks of a conformal interval
    low, high = max(math.floor(tail), 1) - 1, min(math.ceil(len(x) + 1 - tail), len(x)) - 1
    return change, (slope * guess + float(residuals[low]), slope * guess + float(residuals[high]))


def _require(regime: str, tasks: Sequence[Task], measured: int, level: float) -> None:
    if regime != "standard":
        raise UsageError(
            f"a forecast in the regime {regime!r}: one pass gives every sum exactly. Ask `subsets`."
        )
    most = len(tasks) * (len(tasks) - 1) // 2
    if most < 3:
        raise UsageError(
            f"{len(tasks)} vectors have {most} pairs: a forecast is calibrated on others. Evaluate the sum."
        )
    if not measured >= 2:
        raise UsageError(
            f"measured={measured}: at least 2 pairs are measured, so that one is forecast from another."
        )
    if not 0 < level < 1:
        raise UsageError(f"level={level}: a probability between 0 and 1.")
    require_one_objective(tasks, "changes of one metric are forecast from changes of others")
    if tasks[0].objective.headless:
        raise UsageError(
            f"a forecast reads logits, and tasks of {tasks[0].objective.word} have none. Evaluate the sum instead."
        )
