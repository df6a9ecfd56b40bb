"""Editing: apply, save and evaluate edits, and the questions whose answers choose them.

Names are loaded on first use, so that what only lists or parses needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauspan.core.choices import EditRegime
    from tauspan.editing.editor import Editor
    from tauspan.editing.evaluation import Evaluation, evaluate
    from tauspan.editing.maps.asked import GRID
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

_HOME = {
    "GRID": "tauspan.editing.maps.asked",
    "AdaMerged": "tauspan.editing.search.entropy",
    "Addition": "tauspan.editing.search.addition",
    "EditRegime": "tauspan.core.choices",
    "Editor": "tauspan.editing.editor",
    "Evaluation": "tauspan.editing.evaluation",
    "Front": "tauspan.editing.search.pareto",
    "Maps": "tauspan.editing.maps.maps",
    "Negation": "tauspan.editing.search.negation",
    "PAPER_GRID": "tauspan.editing.search.grid",
    "Solution": "tauspan.editing.search.solve",
    "SolvedCoefficients": "tauspan.editing.search.choose",
    "adamerging": "tauspan.editing.questions",
    "add": "tauspan.editing.questions",
    "apply": "tauspan.editing.model.edit",
    "coefficients": "tauspan.editing.questions",
    "combine": "tauspan.editing.model.directions",
    "disentanglement": "tauspan.editing.questions",
    "evaluate": "tauspan.editing.evaluation",
    "front": "tauspan.editing.questions",
    "load": "tauspan.editing.model.edit",
    "minimise": "tauspan.editing.search.solve",
    "negate": "tauspan.editing.questions",
    "save": "tauspan.editing.model.edit",
}

__all__ = [
    "GRID",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan.editing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
