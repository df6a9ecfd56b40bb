"""Coefficients of a model that is not affine in them: scipy's COBYQA, which needs values alone."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import optimize

from tauspan.editing.search.box import Box
from tauspan.editing.search.numbers import require_at_least

Values = tuple[float, ...]


class Memory:
    """A function of coefficients that is computed once at each point."""

    def __init__(self, function: Callable[[Sequence[float]], Values]) -> None:
        self._function = function
        self.seen: dict[tuple[float, ...], Values] = {}

    def __call__(self, a: Sequence[float]) -> Values:
        """The function's values at a."""
        key = tuple(float(x) for x in a)
        if key not in self.seen:
            self.seen[key] = self._function(key)
        return self.seen[key]


def descend(
    memory: Memory,
    score: Callable[[Sequence[float], Values], float],
    box: Box,
    starts: Iterable[Sequence[float]],
    max_evaluations: int,
) -> tuple[float, ...]:
    """The best point found: of `starts`, and of a derivative-free search from the best of them.

    It is no worse than any start inside the bounds and carries no certificate: the objective is not convex, and its
    slope is not known.

    Args:
        memory: the values at a point, remembered.
        score: what to minimise, from the point and its values.
        box: the bounds.
        starts: points to compare first.
        max_evaluations: how many further points may be computed.
    """
    require_at_least(1, max_evaluations=max_evaluations)

    def at(a: Sequence[float]) -> float:
        return score(a, memory(a))

    inside = {tuple(box.clipped(np.asarray(start, dtype=np.float64)).tolist()) for start in starts}
    best = min(sorted(inside, key=np.linalg.norm), key=at)  # ties: the shortest edit
    known = set(memory.seen)
    spread = np.where(np.isfinite(box.hi - box.lo), box.hi - box.lo, 1.0)
    if (spread > 0).any():
        optimize.minimize(
            lambda a: at(box.clipped(a).tolist()), np.asarray(best), method="COBYQA",
            bounds=optimize.Bounds(box.lo, box.hi),
            options={"maxfev": max_evaluations, "initial_tr_radius": float(spread.max()) / 8, "final_tr_radius": 1e-4},
        )  # fmt: skip
    return min([best, *(point for point in memory.seen if point not in known)], key=at)
