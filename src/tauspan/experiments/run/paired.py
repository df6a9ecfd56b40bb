"""Differences of accuracies in pairs of test rows, over seeds: intervals and McNemar's test."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tauspan.editing.search.bootstrap import bracketed, metric_intervals
from tauspan.editing.search.comparison import mcnemar
from tauspan.tasks import Task

_DRAWS = 2000


def note(seeds: Sequence[int]) -> str:
    """What the intervals are of, for the note of a table.

    Example:
        >>> "of one seed" in note([3])
        True
    """
    if len(seeds) == 1:
        return (
            "95 % intervals by resampling rows in pairs, of one seed: another training may differ by more; p: McNemar's "
            "exact test"
        )
    return "95 % intervals by resampling rows in pairs, each with its mean over seeds; p: McNemar's exact test by seed"


def difference(tasks: Sequence[Task], first: Sequence[Sequence[str]], second: Sequence[Sequence[str]]) -> str:
    """The mean accuracy of one model less another's, as a cell of a table.

    Args:
        tasks: whose test rows.
        first: for each seed and task a text with a 1 for each row that is right and a 0 for each other one.
        second: the same of the other model.
    """
    pairs = [
        [bits(one[place]) - bits(two[place]) for one, two in zip(first, second, strict=True)]
        for place in range(len(tasks))
    ]
    each = {task: torch.stack(own).mean(0) for task, own in zip(tasks, pairs, strict=True)}
    nothing = {task: torch.zeros_like(one) for task, one in each.items()}
    around = metric_intervals(each, _DRAWS, less=nothing)[1] or (math.nan, math.nan)
    mean = sum(float(one.mean()) for one in each.values()) / len(each)
    by_seed = [torch.cat([own[seed] for own in pairs]) for seed in range(len(first))]
    return f"{mean:+.3f} {bracketed(around, '+')}, p {', '.join(f'{mcnemar(one):.2g}' for one in by_seed)}"


def bits(text: str) -> Tensor:
    """A text of 0 and 1 as numbers."""
    return torch.tensor([float(bit) for bit in text], dtype=torch.float64)
