"""The choice of coefficients: the paper's grid, and solvers with a certificate."""

from tauspan.search.choose import coefficients
from tauspan.search.directions import combine
from tauspan.search.grid import PAPER_GRID
from tauspan.search.merging import WIDE_GRID, Methods, compare
from tauspan.search.pareto import front
from tauspan.search.protocol import add, negate
from tauspan.search.solve import Solution, minimise

__all__ = [
    "PAPER_GRID",
    "WIDE_GRID",
    "Methods",
    "Solution",
    "add",
    "coefficients",
    "combine",
    "compare",
    "front",
    "minimise",
    "negate",
]
