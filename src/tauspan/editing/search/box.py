"""`Box`: bounds and the l1 part, and the conditions of a minimum under them."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tauspan.core.errors import UsageError
from tauspan.editing.search.numbers import Vector, require_at_least

Bounds: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """The constraint lo <= a <= hi and the l1 weight: what is not smooth about a problem."""

    lo: Vector
    hi: Vector
    l1: float = 0.0

    @staticmethod
    def of(size: int, bounds: Bounds | None, l1: float = 0.0) -> "Box":
        """The same bounds for every coefficient, checked."""
        lo, hi = (-math.inf, math.inf) if bounds is None else bounds
        if not lo <= hi or lo == math.inf or hi == -math.inf:
            raise UsageError(f"bounds={bounds}: two numbers, the lower one first, or None for no bounds.")
        require_at_least(0, l1=l1)
        return Box(np.full(size, float(lo)), np.full(size, float(hi)), l1)

    def clipped(self, a: Vector) -> Vector:
        """The nearest allowed point."""
        return np.clip(a, self.lo, self.hi)

    def penalty(self, a: Vector) -> float:
        """l1 |a|_1."""
        return self.l1 * float(np.abs(a).sum())

    def inside(self, a: Vector) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        """Where the penalised objective is smooth: off the bounds, and off 0 if there is an l1 part."""
        off_zero = (a != 0) | (self.l1 == 0)
        return (a > self.lo) & (a < self.hi) & off_zero  # type: ignore[no-any-return]

    def residual(self, a: Vector, gradient: Vector) -> float:
        """The distance from 0 to gradient + l1 d|a| + the normal cone at a, in the infinity norm."""
        kink = (a == 0) & (self.l1 > 0)
        low = gradient + self.l1 * np.where(kink, -1.0, np.sign(a))
        high = gradient + self.l1 * np.where(kink, 1.0, np.sign(a))
        low = np.where(a <= self.lo, -np.inf, low)  # at the lower bound the cone reaches down
        high = np.where(a >= self.hi, np.inf, high)
        return float(np.maximum(np.maximum(low, -high), 0.0).max(initial=0.0))
