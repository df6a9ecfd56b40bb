"""The choice of coefficients: the paper's grid, and solvers with a certificate."""

from tauspan.editing.search.choose import coefficients
from tauspan.editing.search.directions import combine
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.pareto import front
from tauspan.editing.search.protocol import add, negate
from tauspan.editing.search.solve import Solution, minimise

__all__ = [
    "PAPER_GRID",
    "Solution",
    "add",
    "coefficients",
    "combine",
    "front",
    "minimise",
    "negate",
]
