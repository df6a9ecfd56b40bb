"""Percentile intervals by resampling rows: of chosen coefficients (refitted) and of metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.editing.search.box import Box
from tauspan.editing.search.exact import interval
from tauspan.editing.search.numbers import require_at_least
from tauspan.editing.search.objective import Objective
from tauspan.editing.search.solve import Solution, solve
from tauspan.tangent.contributions import Advance, silent
from tauspan.tasks import Task

Interval = tuple[float, float]
_LEVEL = 0.95
DRAWS = 1000  # resamples behind intervals that nobody asked another number of
_AT_ONCE = 2**22  # counts of rows held at once


def counts(sizes: Sequence[int], draws: int, seed: int) -> list[list[Tensor]]:
    """For each draw and part, how often each row is in a resample with replacement; shape (N,) float64.

    A draw depends on the seed and its number alone, not on how many there are.
    """
    require_at_least(0, bootstrap=draws)
    return [
        [
            torch.as_tensor(
                np.random.default_rng([seed, draw, part]).multinomial(size, np.full(size, 1 / size)),
                dtype=torch.float64,
            )
            for part, size in enumerate(sizes)
        ]
        for draw in range(draws)
    ]


@dataclass(frozen=True)
class Intervals:
    """95 % percentile intervals of coefficients.

    Args:
        by_name: low and high by direction; empty without resamples.
        draws: the number of resamples that were refitted.
        without_minimum: the number that had no finite minimum (their rows are separable) and count in no interval.
    """

    by_name: Mapping[str, Interval]
    draws: int
    without_minimum: int


def coefficient_intervals(
    goal: Objective, box: Box, found: Solution, draws: int, seed: int = 0, advance: Advance = silent
) -> Intervals:
    """Resample each part's rows, minimise again from the solution, and take the percentiles of each coefficient.

    Rows are drawn within a part, not stratified by class. The interval says how much the choice depends on which
    validation rows there were; it is not a test of the model.
    """
    values, lost = [], 0
    for drawn in counts([len(one.weights) for one in goal.terms], draws, seed):
        advance(1, "")
        try:
            again = solve(goal.reweighted(drawn), box, found.values.tolist(), found.tolerance)
        except UsageError:  # the resample is separable: `solve` has checked every argument before
            lost += 1
            continue
        values.append(again.values.numpy())
    by_name = dict(zip(found.names, _percentiles(np.stack(values)), strict=True)) if values else {}
    return Intervals(by_name, draws, lost)


def metric_intervals(
    scores: Mapping[Task, Tensor], draws: int, seed: int = 0, less: Mapping[Task, Tensor] | None = None
) -> tuple[dict[Task, Interval | None], Interval | None]:
    """95 % intervals of each task's metric, and of their mean, by resampling each task's rows.

    The interval of one task's accuracy is the exact one of Clopper and Pearson, which resamples cannot give where all
    rows are right, or none.

    Args:
        scores: what each task's metric is the mean of, for each row, shape (N,).
        draws: resamples; 0 gives None.
        seed: of the resamples.
        less: the same of another model on the same rows: intervals are those of the difference, resampled in pairs.

    Returns:
        An interval for each task, and that of the mean: None where the tasks have several metrics.
    """
    require_at_least(0, bootstrap=draws)
    if not draws:
        return dict.fromkeys(scores), None
    columns = []
    for part, (task, one) in enumerate(scores.items()):
        both = torch.stack([one, one if less is None else less[task]]).double()
        values = [task.objective.summary(value) for value in _means(both[0], draws, [seed, part])]
        if less is not None:
            again = _means(both[1], draws, [seed, part])
            values = [a - task.objective.summary(b) for a, b in zip(values, again, strict=True)]
        columns.append(values)
    table, whole = np.array(columns).T, None
    if len({task.objective.metric for task in scores}) == 1:
        whole = _percentiles(table.mean(1, keepdims=True))[0]
    found = dict[Task, Interval | None](zip(scores, _percentiles(table), strict=True))
    if less is None:
        for task, one in scores.items():
            if task.classes:
                exact = interval(int(one.sum()), len(one))
                found[task] = exact.low, exact.high
    return found, whole


def mean_interval(values: Tensor, draws: int, seed: int = 0) -> Interval | None:
    """The 95 % interval of a mean over rows, by resampling them; None without resamples."""
    require_at_least(0, bootstrap=draws)
    return _percentiles(np.array([_means(values, draws, [seed, 0])]).T)[0] if draws else None


def quotient_interval(tops: Tensor, bottoms: Tensor, draws: int, seed: int = 0) -> Interval:
    """The 95 % interval of sum(tops) / sum(bottoms), by resampling rows, which have one of each."""
    above, below = (np.array(_means(one.double(), draws, [seed, 0])) for one in (tops, bottoms))
    return _percentiles((above / below)[:, None])[0]


def bracketed(interval: Interval | None, sign: str = "") -> str | None:
    """An interval as a cell of a table; `sign="+"` for a difference.

    Example:
        >>> bracketed((0.25, 0.5)), bracketed((-0.1, 0.2), "+"), bracketed(None)
        ('[0.250, 0.500]', '[-0.100, +0.200]', None)
    """
    return None if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _means(values: Tensor, draws: int, seeds: list[int]) -> list[float]:
    """The means of resamples of rows, drawn many at once; equal seeds draw the same rows."""
    random, size = np.random.default_rng(seeds), len(values)
    found: list[float] = []
    while len(found) < draws:
        some = min(draws - len(found), max(_AT_ONCE // size, 1))
        how_often = random.multinomial(size, np.full(size, 1 / size), size=some)
        found += (how_often @ values.double().numpy() / size).tolist()
    return found


def _percentiles(table: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> list[Interval]:
    """Low and high of each column."""
    tail = 50 * (1 - _LEVEL)
    low, high = np.percentile(table, [tail, 100 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
