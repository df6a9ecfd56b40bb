"""Rows of numbers as 16-bit integers with one scale each, how far off that is, and the blob that holds them."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tauspan.core.errors import NonFiniteError

Array: TypeAlias = NDArray[np.float64]
_TOP = 32767
_ALIGNED = 8


class Blob:
    """Arrays one after another in bytes, little-endian, each at an offset that is a multiple of 8.

    Example:
        >>> blob = Blob()
        >>> blob.add(np.zeros(3), "<u2"), blob.add(np.zeros(1), "<f4"), len(blob)
        (0, 8, 12)
    """

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, values: NDArray[Any], kind: str) -> int:
        """Append an array as this dtype, and return its offset."""
        self._bytes += bytes(-len(self._bytes) % _ALIGNED)
        offset = len(self._bytes)
        self._bytes += np.ascontiguousarray(values, kind).tobytes()
        return offset

    def content(self) -> bytes:
        """Everything that was added."""
        return bytes(self._bytes)


@dataclass(frozen=True)
class Packed:
    """Numbers v of shape (N, K + 1, C) as a page holds them.

    Args:
        numbers: int16 of that shape, of which v = scale * number; or float32, which are v themselves.
        scales: float32 of shape (N,); None with float32 numbers.
    """

    numbers: NDArray[Any]
    scales: NDArray[np.float32] | None

    def values(self) -> Array:
        """v, as the page reads it, in float64."""
        wide = self.numbers.astype(np.float64)
        return wide if self.scales is None else wide * self.scales.astype(np.float64)[:, None, None]

    def slack(self, coefficients: Array) -> Array:
        """By how much a difference v_c - v_d at (1, a_1 ... a_K) may be off, shape (N,).

        Each number is off by at most scale / 2 and a difference has two of them for each term, so that it is
        scale (1 + sum_k |a_k|); 0 with float32 numbers.
        """
        if self.scales is None:
            return np.zeros(len(self.numbers))
        return self.scales.astype(np.float64) * (1.0 + float(np.abs(coefficients).sum()))


def packed(values: Array, exact: bool = False) -> Packed:
    """Numbers of shape (N, K + 1, C) with one scale for each row n, max |v_n| / 32767; none is off by more than half.

    Args:
        values: what is packed.
        exact: keep them as float32.

    Raises:
        NonFiniteError: a number is NaN, infinite, or too large for float32.

    Example:
        >>> made = packed(np.array([[[1.0, -0.25]]]))
        >>> made.numbers.tolist(), made.values().round(4).tolist()
        ([[[32767, -8192]]], [[[1.0, -0.25]]])
    """
    largest = np.abs(values).max(axis=(1, 2), initial=0.0)
    if not (largest <= np.finfo(np.float32).max).all():  # NaN compares false
        row = int(np.argmax(~(largest <= np.finfo(np.float32).max)))
        raise NonFiniteError(
            f"the numbers of row {row} reach {largest[row]:g}, and a page holds float32, which ends at "
            f"{np.finfo(np.float32).max:g}: the model or a vector is broken."
        )
    if exact:
        return Packed(values.astype(np.float32), None)
    scales = (largest / _TOP).astype(np.float32)
    short = scales.astype(np.float64) * _TOP < largest
    scales[short] = np.nextafter(scales[short], np.float32(np.inf))
    steps = np.where(scales > 0, scales, 1).astype(np.float64)[:, None, None]
    return Packed(np.rint(values / steps).astype(np.int16), scales)
