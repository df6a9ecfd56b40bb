"""Distances between edited models' predictions, and their means over rows and over parts of a grid."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.editing.maps.asked import CLOSE, Axis, Pair, inside
from tauspan.objectives import Apart

At: TypeAlias = tuple[float, float]  # the coefficients of a pair
Logits: TypeAlias = Callable[
    [int, At], Tensor
]  # on the rows of the first (0) or the second (1) task of a pair


def distances(
    logits: Logits,
    pair: Pair,
    axes: tuple[Axis, Axis],
    kinds: Sequence[Apart],
    advance: Callable[[int, str], None],
) -> list[Tensor]:
    """For each task of a pair, the distance of each row at each grid point, shape (G1, G2, N_t), float64.

    NaN where a coefficient is: such a point cannot be reached.
    """
    reached = [[a for a in axis if not math.isnan(a)] for axis in axes]
    alone = ({a: logits(0, (a, 0.0)) for a in reached[0]}, {a: logits(1, (0.0, a)) for a in reached[1]})
    rows = [len(next(iter(own.values()))) for own in alone]
    found = [torch.full((len(axes[0]), len(axes[1]), count), math.nan, dtype=torch.float64) for count in rows]
    for i, first in enumerate(axes[0]):
        for j, second in enumerate(axes[1]):
            where = (first, second)
            if math.isnan(first + second):
                continue
            for place, own in enumerate(alone):
                single = own[where[place]]
                mixed = single if where[1 - place] == 0 else logits(place, where)
                found[place][i, j] = kinds[place](single, mixed)
        advance(1, " + ".join(task.name for task in pair))
    return found


def mean(apart: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The error and its standard error from distances of two independent samples of rows, the last axis."""
    xi = torch.stack([one.mean(-1) for one in apart]).sum(0)
    variance = torch.stack([one.var(-1) / one.shape[-1] for one in apart]).sum(0)
    return xi, variance.sqrt()


def numbers(
    apart: Sequence[Tensor], axes: tuple[Axis, Axis], box: tuple[float, float]
) -> dict[str, float | None]:
    """Means over parts of the grid; rows are the sample, so each row is averaged over the points first.

    None where a part has a point that cannot be reached: a mean over the others would not compare.
    """
    first, second = (inside(axis, box) for axis in axes)
    one = [[k for k, a in enumerate(axis) if abs(a - 1) < CLOSE] for axis in axes]
    parts = {
        "box": [each[first][:, second].mean((0, 1)) for each in apart],
        "grid": [each.mean((0, 1)) for each in apart],
        "at (1, 1)": [each[one[0][0], one[1][0]] for each in apart] if all(one) else None,
    }
    found: dict[str, float | None] = {}
    for name, rows in parts.items():
        if rows is None or any(bool(each.isnan().any()) for each in rows):
            xi, stderr = None, None
        else:
            xi, stderr = map(float, mean(rows))
        found |= {name: xi, f"{name} s.e.": stderr}
    return found
