"""Exact order statistics in linear time: the entry at a rank, by magnitude and then by place, without sorting.

The bits of a non-negative IEEE float, read as an integer, order like the float. Entries of equal magnitude, which are
the rule in 16 bits, are ordered by their place: the lower one comes first, so that every rank has one entry and no cut
into blocks decides which. An interval of (pattern, place) that holds the wanted rank is narrowed until one entry is left.
From the quantile of a sample the interval is so narrow that its entries are kept and one pass is enough; where they are
too many they are counted in bins of patterns instead, and the bin that holds the rank becomes the interval. The answer is
exact from any first interval; one that misses the rank costs another pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bits = npt.NDArray[np.signedinteger]
Places = npt.NDArray[np.int64]

_BINS = 1 << 20  # at most, for one row: 8 MB of counts
_ROOM = 1 << 21  # entries of one row that are kept with their places: 24 MB at most
_MARGIN = (
    0.005  # share of the entries by which a first interval reaches past the sample's quantile, to each side
)
_MANY = 0.002  # share of the sample from which equal magnitudes are distinguished by place
END = 1 << 62  # beyond every place
_INTEGERS: dict[torch.dtype, np.dtype[np.signedinteger]] = {
    torch.float32: np.dtype(np.int32),
    torch.float64: np.dtype(np.int64),
}


def patterns(keys: Tensor) -> Bits:
    """The bits of |keys|, shape (R, n), as integers that order like the magnitudes."""
    bits: Bits = keys.detach().contiguous().cpu().numpy().view(_INTEGERS[keys.dtype])
    magnitudes: Bits = bits & _largest(keys.dtype)  # without the sign
    return magnitudes


def _largest(dtype: torch.dtype) -> int:
    return (1 << (8 * dtype.itemsize - 1)) - 1


def magnitude(pattern: int, dtype: torch.dtype) -> float:
    """The float with those bits."""
    return float(np.array(pattern, dtype=_INTEGERS[dtype]).view(f"f{dtype.itemsize}"))


class Found(NamedTuple):
    """The entry at a rank.

    Args:
        pattern: of its magnitude.
        end: the place after it; beyond all places where equal magnitudes are alike.
        reached: how many entries come up to it: the rank, or more where equal magnitudes are alike.
    """

    pattern: int
    end: int
    reached: int


def directly(bits: Bits, ranks: Sequence[int], alike: bool = False) -> list[Found]:
    """Each row's `rank`-th entry, for rows that are wholly in memory; ranks from 1 to n.

    Example:
        >>> directly(np.array([[2, 1, 2, 2]]), [2])
        [Found(pattern=2, end=3, reached=2)]
    """
    return [_ranked(row, rank, alike) for row, rank in zip(bits, ranks, strict=True)]


def _ranked(row: Bits, rank: int, alike: bool, places: Places | None = None) -> Found:
    """The `rank`-th entry; places rise, and are 0, 1, ... where None."""
    at = row.size - rank
    pattern = int(np.partition(row, at)[at])
    if alike:
        return Found(pattern, END, int(np.count_nonzero(row >= pattern)))
    before = int(np.count_nonzero(row > pattern))
    equal = int(np.flatnonzero(row == pattern)[rank - before - 1])
    return Found(pattern, (equal if places is None else int(places[equal])) + 1, rank)


class Sample(NamedTuple):
    """Some entries of one row: their patterns, their rising places, and the patterns sorted."""

    bits: Bits
    places: Places
    ascending: Bits

    def place(self, number: int) -> int | None:
        """The place of the `number`-th entry in ascending order; None where few have its magnitude."""
        pattern = self.ascending[number]
        first, last = (int(np.searchsorted(self.ascending, pattern, side)) for side in ("left", "right"))
        if last - first < _MANY * len(self.bits):
            return None
        return int(
            self.places[self.bits == pattern][last - 1 - number]
        )  # of equal ones the last place is lowest


@dataclass(frozen=True)
class Interval:
    """The entries of the patterns `low` to `high`, both included.

    Of the entries with the pattern `high`, only those from the place `first` on belong to it; of those with the pattern
    `low`, only those before the place `last`. A block that contains such a place counts as a whole, which makes the
    interval larger but the result no less exact.
    """

    low: int
    high: int
    first: int = 0
    last: int = END

    @staticmethod
    def whole(dtype: torch.dtype) -> "Interval":
        """All patterns of a float without its sign."""
        return Interval(0, _largest(dtype))

    def around(self, sample: Sample, share: float, alike: bool = False) -> "Interval":
        """The part that probably holds the entry at the rank of `share` times all entries; whole patterns if `alike`."""
        count = len(sample.bits)
        margin = _MARGIN + 3 * (share * (1 - share) / count) ** 0.5
        lower, upper = (int((1 - share + way * margin) * count) for way in (-1, 1))
        low, high, first, last = self.low, self.high, None, None
        if lower >= 0:
            low, last = int(sample.ascending[lower]), None if alike else sample.place(lower)
        if upper < count:
            high, first = int(sample.ascending[upper]), None if alike else sample.place(upper)
        return Interval(low, high, first or 0, END if last is None else last + 1)

    @property
    def shift(self) -> int:
        """The bits that a bin leaves open: 0 when each pattern has its own."""
        return max((self.high - self.low).bit_length() - _BINS.bit_length() + 1, 0)

    def located(self, row: Bits, start: int = 0) -> "Located":
        """What a block holds above the interval and inside it; `start` is the place of the block's first entry."""
        stop = start + row.size
        low, high = self.low + (start >= self.last), self.high - (stop <= self.first)
        above = int(np.count_nonzero(row > high))
        if low > high:  # arrays of their own: an empty view would keep the whole block alive
            return Located(above, np.empty(0, row.dtype), np.empty(0, np.int64), start, stop)
        wide = (row - row.dtype.type(low)).view(
            f"u{row.itemsize}"
        )  # below `low` they wrap around and are large
        inside = np.flatnonzero(wide <= high - low)
        return Located(above, row[inside], inside + start, start, stop)


class Located(NamedTuple):
    """What one block holds above an interval (a count) and inside it (patterns and places), and the block's places."""

    above: int
    bits: Bits
    places: Places
    start: int
    stop: int


@dataclass
class Search:
    """The search for the entry at a rank in one row: `add` all blocks in order, then `narrow`, until `found` is set.

    `alike` asks for the magnitude at the rank only, and for the number of entries that reach it.
    """

    rank: int
    interval: Interval
    whole: Interval
    alike: bool = False
    found: Found | None = None
    _above: int = 0
    _inside: int = 0
    _filled: int = 0  # blocks with entries inside
    _kept: list[Located] = field(default_factory=list)
    _bins: npt.NDArray[np.int64] | None = None
    _blocks: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, part: Located) -> None:
        """Take in what `Interval.located` says of a block."""
        self._above += part.above
        self._inside += len(part.bits)
        self._filled += len(part.bits) > 0
        self._kept.append(part)
        if self._bins is not None or (
            self._inside > _ROOM and self._filled > 1
        ):  # a block alone fits in memory
            self._count()

    def _count(self) -> None:
        """Replace the entries that were kept by counts: by pattern, and by block for a single pattern."""
        if self._bins is None:
            self._bins = np.zeros(0, np.int64)
        self._blocks += [(len(part.bits), part.start, part.stop) for part in self._kept]
        offsets = np.concatenate([part.bits for part in self._kept]) - self.interval.low
        counts = np.bincount(offsets >> self.interval.shift)
        longer, shorter = (counts, self._bins) if len(counts) > len(self._bins) else (self._bins, counts)
        longer[: len(shorter)] += shorter
        self._bins, self._kept = longer, []

    def narrow(self) -> None:
        """Settle on the entry, or go on in the part that holds the rank, or beside the interval if that missed it."""
        low, high = self.interval.low, self.interval.high
        rank = self.rank - self._above
        if rank <= 0:
            self.interval = Interval(high, self.whole.high)
        elif rank > self._inside:
            self.interval = Interval(self.whole.low, low)
        elif self._bins is None:
            bits, places = (np.concatenate([part[side] for part in self._kept]) for side in (1, 2))
            self._settle(_ranked(bits, rank, self.alike, places))
        elif low == high and not self.alike:
            reached = np.cumsum([count for count, _, _ in self._blocks])
            _, start, stop = self._blocks[int(np.searchsorted(reached, rank))]
            self.interval = Interval(low, high, start, stop)
        else:
            shift = self.interval.shift
            behind = self._bins[::-1].cumsum()  # entries in this bin and all above
            bin_ = int(np.searchsorted(behind, rank))
            start = low + (len(behind) - 1 - bin_ << shift)
            self.interval = Interval(start, min(start + (1 << shift) - 1, high))
            if shift == 0 and self.alike:
                self._settle(Found(start, END, int(behind[bin_])))
        self._above, self._inside, self._filled, self._kept, self._bins, self._blocks = 0, 0, 0, [], None, []

    def _settle(self, found: Found) -> None:
        self.found = found._replace(reached=found.reached + self._above)
