"""Near neighbours among 64-bit hashes, without comparing all pairs."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]
_CHUNK = 1 << 21  # pairs at a time: bounds the memory where many hashes share a band
_ONES = np.array([bin(number).count("1") for number in range(1 << 16)], dtype=np.uint8)


def distances(left: Hashes, right: Hashes) -> NDArray[np.int64]:
    """The number of bits in which hashes differ, element by element.

    Example:
        >>> distances(np.array([0b0110], np.uint64), np.array([0b0101], np.uint64))
        array([2])
    """
    different = np.ascontiguousarray(left ^ right)
    counted: NDArray[np.int64] = _ONES[different.view(np.uint16).reshape(*different.shape, 4)].sum(
        -1, dtype=np.int64
    )
    return counted


def within(left: Hashes, right: Hashes, distance: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """All pairs (i, j) for which `left[i]` and `right[j]` differ in at most `distance` bits: i, j and the bits.

    The result is exact. The 64 bits are cut into `distance + 1` bands. By the pigeonhole principle two such hashes agree
    in at least one whole band, so only pairs that agree in a band are compared. Memory: one chunk of pairs, and the
    result. Time: about (distance + 1) n m / 2^(64 / (distance + 1)) for evenly spread hashes, up to n m if many are
    equal.

    Args:
        left: hashes of shape (n,), best without repetitions.
        right: of shape (m,).
        distance: 0 to 8; more makes bands too short to help.
    """
    found: list[tuple[NDArray[Any], ...]] = []
    bands = _bands(distance + 1)
    for place, mask in enumerate(bands):
        for i, j in _sharing(left & mask, right & mask):
            bits = distances(left[i], right[j])
            near = bits <= distance
            for earlier in bands[:place]:  # a pair that shares an earlier band was seen there
                near &= (left[i] ^ right[j]) & earlier != 0
            found.append((i[near], j[near], bits[near]))
    empty = np.zeros(0, dtype=np.int64)
    i, j, bits = (
        (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else (empty, empty, empty)
    )
    order = np.lexsort((i, j))
    return i[order], j[order], bits[order]


def _bands(count: int) -> list[np.uint64]:
    """Masks that cut 64 bits into `count` runs of nearly equal length."""
    edges = [64 * place // count for place in range(count + 1)]
    return [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]


def _sharing(left: Hashes, right: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs of equal values, a chunk at a time."""
    order = np.argsort(left, kind="stable")
    ordered = left[order]
    first = np.searchsorted(ordered, right, "left")
    counts = np.searchsorted(ordered, right, "right") - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, _CHUNK):
        pairs = np.arange(begin, min(begin + _CHUNK, total))
        j = np.searchsorted(ends, pairs, "right")
        yield order[first[j] + pairs - (ends[j] - counts[j])], j
