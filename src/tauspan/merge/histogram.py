"""Exact order statistics in linear time: bins of the bits of magnitudes, narrowed until one pattern is left.

The bits of a non-negative IEEE float, read as an integer, order like the float. An interval of patterns is cut into
bins, the entries of each bin are counted, and the bin that holds the wanted rank becomes the interval. Nothing is sorted,
and counts of blocks add up to the counts of the whole. The answer is exact from any first interval; one that misses the
rank costs another pass. From the quantile of a sample one pass is enough for most float32 data; from the interval of all
patterns it takes two.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bits = npt.NDArray[np.signedinteger]

_BINS = 1 << 20  # at most, for one row: 8 MB of counts
_FOLD = 1 << 20  # offsets that wait for being counted together
_MARGIN = (
    0.005  # share of the entries by which a first interval reaches past the sample's quantile, to each side
)
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


def directly(bits: Bits, ranks: Sequence[int]) -> list[int]:
    """The pattern of each row's `rank`-th largest entry, of rows that are all there; ranks from 1 to n."""
    places = [row.size - rank for row, rank in zip(bits, ranks, strict=True)]
    return [int(np.partition(row, place)[place]) for row, place in zip(bits, places, strict=True)]


@dataclass(frozen=True)
class Interval:
    """The patterns `low` to `high`, both included."""

    low: int
    high: int

    @staticmethod
    def whole(dtype: torch.dtype) -> "Interval":
        """All patterns of a float without its sign."""
        return Interval(0, _largest(dtype))

    def around(self, sample: Bits, share: float) -> "Interval":
        """The part that probably holds the pattern which a share of the entries reaches, by a sorted sample of them."""
        margin = _MARGIN + 3 * (share * (1 - share) / len(sample)) ** 0.5
        first, last = (int((1 - share + way * margin) * len(sample)) for way in (-1, 1))
        low = int(sample[first]) if first >= 0 else self.low
        high = int(sample[last]) if last < len(sample) else self.high
        return Interval(low, high)

    @property
    def shift(self) -> int:
        """The bits that a bin leaves open: 0 when each pattern has its own."""
        return max((self.high - self.low).bit_length() - _BINS.bit_length() + 1, 0)

    def located(self, row: Bits) -> tuple[int, Bits]:
        """How many entries lie above, and the bins of those inside."""
        above = int(np.count_nonzero(row > self.high))
        offsets = row - row.dtype.type(self.low)
        wide = offsets.view(f"u{row.itemsize}")  # below `low` they wrap around and are large
        return above, offsets[np.flatnonzero(wide <= self.high - self.low)] >> self.shift


@dataclass
class Search:
    """One row's rank, and the interval that is left; `add` all blocks, then `narrow`, until `found`."""

    rank: int
    interval: Interval
    whole: Interval
    found: int | None = None
    _above: int = 0
    _bins: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _waiting: list[Bits] = field(default_factory=list)
    _length: int = 0

    def add(self, above: int, bins: Bits) -> None:
        """Take in what `Interval.located` says of a block."""
        self._above += above
        self._waiting.append(bins)
        self._length += len(bins)
        if self._length >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        """Count the bins that wait; one count for many blocks, because it costs as much as there are bins."""
        if not self._waiting:
            return
        counts = np.bincount(np.concatenate(self._waiting))
        longer, shorter = (counts, self._bins) if len(counts) > len(self._bins) else (self._bins, counts)
        longer[: len(shorter)] += shorter
        self._bins = longer
        self._waiting, self._length = [], 0

    def narrow(self) -> None:
        """Go on in the bin that holds the rank, or on the side on which the interval missed it."""
        self._fold()
        low, high, shift = self.interval.low, self.interval.high, self.interval.shift
        behind = self._bins[::-1].cumsum() + self._above  # entries in this bin and all above
        if self.rank <= self._above:
            self.interval = Interval(high + 1, self.whole.high)
        elif not len(behind) or self.rank > behind[-1]:
            self.interval = Interval(self.whole.low, low - 1)
        else:
            place = len(behind) - 1 - int(np.searchsorted(behind, self.rank))
            start = low + (place << shift)
            self.interval = Interval(start, min(start + (1 << shift) - 1, high))
            self.found = start if shift == 0 else None
        self._above, self._bins = 0, np.zeros(0, np.int64)
