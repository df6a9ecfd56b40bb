"""Entries of a kernel against rows of J by ordinary autograd on the module itself, which knows nothing of layers."""

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tauspan.core.errors import ModelError
from tauspan.kernel.rows.jacobian import Jacobian
from tauspan.tangent.engine.check import rounding

_KEPT = 3  # rows of J: the pairs of a block have so many in all


def require_entries(
    sides: tuple[Jacobian, Jacobian], found: Tensor, rows: Sequence[int], columns: Sequence[int], backend: str
) -> None:
    """Raise unless some entries of a block are the products of two rows of J.

    A random row is compared with a random column, for the same output of both and for two different outputs. If the row
    is also among the columns of the same side, its product with itself is compared too.

    Args:
        sides: left and right.
        found: the block, shape (n O, m O).
        rows: the left side's samples of the block.
        columns: the right side's.
        backend: for the message.

    Raises:
        ModelError: an entry is another number.

    Cost:
        At most three passes forward and backward over a batch, or twice as many as outputs for a trace kernel.
    """
    left, right = sides
    mine = lru_cache(_KEPT)(left.plain_row)
    theirs = mine if right is left else lru_cache(_KEPT)(right.plain_row)
    draw = random.Random(0)
    row, column = rows[draw.randrange(len(rows))], columns[draw.randrange(len(columns))]
    outputs = left.select.outputs
    for second, o, p in _pairs(left, row, column, right is left and row in columns, draw):
        place = rows.index(row) * outputs + (0 if left.select.traced else o)
        other = columns.index(second) * outputs + (0 if left.select.traced else p)
        which = range(left.select.inner) if left.select.traced else (o,)
        products = [_product(mine(row, one), theirs(second, one if len(which) > 1 else p)) for one in which]
        expected = sum(value for value, _, _ in products) / len(products)
        precision = rounding(next(iter(left.tangent.theta0().values())).dtype)
        allowed = max(precision * scale + least for _, scale, least in products)
        entry = float(found[place, other])
        if not abs(entry - expected) <= allowed:
            raise ModelError(
                f"entry ({row}, {second}) of the kernel is {entry:.6g} and ordinary autograd makes it {expected:.6g} "
                f"(backend={backend!r}). Take backend='products'; if it fails too, the model is no function of its rows."
            )


def _pairs(
    left: Jacobian, row: int, column: int, itself: bool, draw: random.Random
) -> Iterator[tuple[int, int, int]]:
    """The columns to compare a row with, each with the output of the row and of the column."""
    if left.select.traced:
        yield column, 0, 0
        return
    o, p = draw.randrange(left.select.inner), draw.randrange(left.select.inner)
    yield column, o, o
    if p != o:
        yield column, o, p
    if itself and row != column:
        yield row, o, o


def _product(
    first: tuple[dict[str, Tensor], float], second: tuple[dict[str, Tensor], float]
) -> tuple[float, float, float]:
    """The product <g, h>, the product of the norms |g| |h|, and the largest <g, h> that is only rounding."""
    (g, short), (h, low) = first, second
    value = sum(float((g[name] * h[name]).sum()) for name in g)
    mine, theirs = (math.sqrt(sum(float(part.square().sum()) for part in one.values())) for one in (g, h))
    return value, mine * theirs, mine * low + short * theirs + short * low


def require_squares(side: Jacobian, found: Tensor, backend: str) -> None:
    """Raise unless an entry of the diagonal is the squared length of its row of J; see `require_entries`."""
    place = random.Random(0).randrange(side.samples)
    block = torch.diag(found[place * side.select.outputs : (place + 1) * side.select.outputs])
    if side.select.outputs == 1:
        require_entries((side, side), block, [place], [place], backend)
        return
    o = random.Random(0).randrange(side.select.inner)
    expected, scale, least = _product(*[side.plain_row(place, o)] * 2)
    precision = rounding(next(iter(side.tangent.theta0().values())).dtype)
    if not abs(float(block[o, o]) - expected) <= precision * scale + least:
        raise ModelError(
            f"entry {place} of the kernel's diagonal is {float(block[o, o]):.6g} and ordinary autograd makes it "
            f"{expected:.6g} (backend={backend!r}). Take backend='contraction'."
        )
