"""Exact order statistics in linear time: histograms of the bits of non-negative floats, digit by digit.

The bits of a non-negative IEEE float, read as an integer, order like the float. A histogram of the first 16 bits finds
the bin that holds the wanted rank, a second one over that bin's entries the next 16 bits, and so on: two passes for
float32, four for float64, no sorting, and sums of histograms are the histogram of the whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_BITS = 16
_BINS = 1 << _BITS
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def digits(dtype: torch.dtype) -> int:
    """How many 16-bit digits a float of that type has."""
    return torch.finfo(dtype).bits // _BITS


def histogram(keys: Tensor, digit: int, found: Sequence[Sequence[int]]) -> Tensor:
    """For each row, counts of the digit's values among the entries whose earlier digits are `found[row]`.

    Args:
        keys: shape (R, n), not negative, float32 or float64.
        digit: 0 is the most significant.
        found: the earlier digits, one list a row.

    Returns:
        int64, shape (R, 65536).
    """
    shift = _BITS * (digits(keys.dtype) - 1 - digit)
    rows = []
    for bits, earlier in zip(keys.contiguous().view(_INTEGERS[keys.dtype]), found, strict=True):
        if digit:
            prefix = 0
            for value in earlier:
                prefix = (prefix << _BITS) | value
            bits = bits[(bits >> (shift + _BITS)) == prefix]
        rows.append(torch.bincount((bits >> shift) & (_BINS - 1), minlength=_BINS))
    return torch.stack(rows)


def place(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest entry, and its rank among that bin's entries."""
    above = counts.flip(0).cumsum(0)  # entries in the highest bins
    behind = int((above < rank).sum())
    if rank < 1 or behind >= len(counts):
        return 0, 0
    before = int(above[behind - 1]) if behind else 0
    return len(counts) - 1 - behind, rank - before


def joined(found: Sequence[Sequence[int]], ranks: Sequence[int], entries: int, dtype: torch.dtype) -> Tensor:
    """The floats of the found digits; infinity for rank 0 and 0 for a rank above the number of entries."""
    values = []
    for row, rank in zip(found, ranks, strict=True):
        bits = 0
        for digit in row:
            bits = (bits << _BITS) | digit
        number = torch.tensor(bits, dtype=_INTEGERS[dtype]).view(dtype)
        values.append(float("inf") if rank < 1 else 0.0 if rank > entries else float(number))
    return torch.tensor(values, dtype=dtype)
