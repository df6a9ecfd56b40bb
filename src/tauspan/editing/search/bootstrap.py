"""Percentile intervals by resampling rows: of chosen coefficients (refitted) and of metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.editing.search.box import Box
from tauspan.editing.search.numbers import require_at_least
from tauspan.editing.search.objective import Objective
from tauspan.editing.search.solve import Solution, solve
from tauspan.tangent.contributions import Advance, silent
from tauspan.tasks import Task

Interval = tuple[float, float]
_LEVEL = 0.95


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
    scores: Mapping[Task, Tensor], draws: int, seed: int = 0
) -> tuple[dict[Task, Interval | None], Interval | None]:
    """95 % intervals of each task's metric, and of their mean, by resampling each task's rows.

    Args:
        scores: what each task's metric is the mean of, for each row, shape (N,).
        draws: resamples; 0 gives None.
        seed: of the resamples.

    Returns:
        An interval for each task, and that of the mean: None where the tasks have several metrics.
    """
    resampled = counts([len(one) for one in scores.values()], draws, seed)
    if not resampled:
        return dict.fromkeys(scores), None
    values = np.array([
        [task.objective.summary(float(n @ one) / len(one)) for n, (task, one) in zip(drawn, scores.items(), strict=True)]
        for drawn in resampled
    ])  # fmt: skip
    whole = (
        _percentiles(values.mean(1, keepdims=True))[0]
        if len({t.objective.metric for t in scores}) == 1
        else None
    )
    return dict(zip(scores, _percentiles(values), strict=True)), whole


def mean_interval(values: Tensor, draws: int, seed: int = 0) -> Interval | None:
    """The 95 % interval of a mean over rows, by resampling them; None without resamples."""
    drawn = counts([len(values)], draws, seed)
    if not drawn:
        return None
    return _percentiles(np.array([[float(n @ values.double()) / len(values)] for (n,) in drawn]))[0]


def _percentiles(table: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> list[Interval]:
    """Low and high of each column."""
    tail = 50 * (1 - _LEVEL)
    low, high = np.percentile(table, [tail, 100 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
