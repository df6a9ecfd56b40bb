"""One coefficient on a grid: the points, the choice among them, and a grid that grows."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from tauspan.core.errors import UsageError
from tauspan.core.measure import progress

PAPER_GRID = tuple(round(0.05 * step, 2) for step in range(21))
_WIDEST = 8.0
Grid = Literal["paper", "auto"] | Sequence[float]


def points_of(grid: Grid) -> tuple[float, ...]:
    """The coefficients of a grid, checked."""
    if isinstance(grid, str) and grid not in ("paper", "auto"):
        raise UsageError(
            f"grid={grid!r}: 'paper' (21 points on [0, 1]), 'auto' (widened until the best point is "
            "interior) or a list of coefficients."
        )
    try:
        points = PAPER_GRID if isinstance(grid, str) else tuple(float(alpha) for alpha in grid)
    except (TypeError, ValueError):
        points = ()
    if not points or not all(map(math.isfinite, points)):
        raise UsageError(
            f"grid={grid!r}: it needs at least one coefficient, and each must be a finite number."
        )
    return points


def named(grid: Grid) -> str | list[float]:
    """A grid as it stands in a report's provenance."""
    return grid if isinstance(grid, str) else list(grid)


def _widened(points: Sequence[float]) -> tuple[float, ...]:
    """The next stretch of the grid, half as long again in ten steps, never beyond the widest alpha."""
    top = max(points)
    step = max(top / 20, 0.05)
    return tuple(dict.fromkeys(min(round(top + step * k, 4), _WIDEST) for k in range(1, 11)))


At = Callable[[float], dict[str, float]]
Choice = Callable[[Mapping[float, Mapping[str, float]]], float]


class Scores:
    """Values on a grid of alpha, the choice among them, and whether the grid had to grow."""

    def __init__(self) -> None:
        self.rows: dict[float, dict[str, float]] = {}
        self.widened = False

    def search(self, at: At, choose: Choice, grid: Grid, title: str) -> float:
        """Evaluate the grid, an `"auto"` one until its best point is interior, and return the best alpha."""
        self._fill(points_of(grid), at, title)
        best = choose(self.rows)
        while grid == "auto" and best == max(self.rows) and best < _WIDEST:
            self.widened = True
            self._fill(_widened(tuple(self.rows)), at, title)
            best = choose(self.rows)
        return best

    def _fill(self, points: Sequence[float], at: At, title: str) -> None:
        with progress(title, len(points)) as advance:
            for alpha in points:
                if alpha not in self.rows:
                    self.rows[alpha] = at(alpha)
                advance(1, f"alpha {alpha:g}")

    def remark(self, grid: Grid, best: float) -> str:
        """What a reader must know about the grid."""
        if best == max(self.rows):
            wider = "" if grid == "auto" else ": try grid='auto' (--grid auto)"
            return f"; the best point is the end of the grid{wider}"
        return "; the grid was widened until the best point was interior" if self.widened else ""
