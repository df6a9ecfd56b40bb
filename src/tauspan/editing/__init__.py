"""Editing: apply, save and evaluate edits, and the questions whose answers choose them."""

from tauspan.core.choices import EditRegime
from tauspan.editing.editor import Editor
from tauspan.editing.evaluation import Evaluation, evaluate
from tauspan.editing.maps.maps import Maps
from tauspan.editing.model.directions import combine
from tauspan.editing.model.edit import apply, load, save
from tauspan.editing.questions import adamerging, add, coefficients, disentanglement, front, negate
from tauspan.editing.search.addition import Addition
from tauspan.editing.search.choose import SolvedCoefficients
from tauspan.editing.search.entropy import AdaMerged
from tauspan.editing.search.grid import PAPER_GRID
from tauspan.editing.search.negation import Negation
from tauspan.editing.search.pareto import Front
from tauspan.editing.search.solve import Solution, minimise

__all__ = [
    "PAPER_GRID",
    "AdaMerged",
    "Addition",
    "EditRegime",
    "Editor",
    "Evaluation",
    "Front",
    "Maps",
    "Negation",
    "Solution",
    "SolvedCoefficients",
    "adamerging",
    "add",
    "apply",
    "coefficients",
    "combine",
    "disentanglement",
    "evaluate",
    "front",
    "load",
    "minimise",
    "negate",
    "save",
]
