"""Editing: apply, save and evaluate edits, and the questions whose answers choose them.

Names are loaded on first use, so that what only lists or parses needs no torch.
"""

from typing import TYPE_CHECKING

from tauspan.core.choices import EditRegime
from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.editing.decoding import Decoder
    from tauspan.editing.desk.desk import Desk
    from tauspan.editing.editor import Editor
    from tauspan.editing.evaluation import Evaluation, evaluate
    from tauspan.editing.maps.asked import GRID
    from tauspan.editing.maps.maps import Maps
    from tauspan.editing.model.directions import combine
    from tauspan.editing.model.edit import apply, load, save
    from tauspan.editing.model.published import push_to_hub
    from tauspan.editing.questions import adamerging, add, coefficients, disentanglement, front, negate
    from tauspan.editing.rebasing.transport import Transported, transport
    from tauspan.editing.search.addition import Addition
    from tauspan.editing.search.choose import SolvedCoefficients
    from tauspan.editing.search.entropy import AdaMerged
    from tauspan.editing.search.grid import PAPER_GRID
    from tauspan.editing.search.negation import Negation
    from tauspan.editing.search.pareto import Front
    from tauspan.editing.search.solve import Solution, minimise

_HOME = {
    "GRID": "maps.asked",
    "AdaMerged": "search.entropy",
    "Addition": "search.addition",
    "Decoder": "decoding",
    "Desk": "desk.desk",
    "Editor": "editor",
    "Evaluation": "evaluation",
    "Front": "search.pareto",
    "Maps": "maps.maps",
    "Negation": "search.negation",
    "PAPER_GRID": "search.grid",
    "Solution": "search.solve",
    "SolvedCoefficients": "search.choose",
    "Transported": "rebasing.transport",
    "adamerging": "questions",
    "add": "questions",
    "apply": "model.edit",
    "coefficients": "questions",
    "combine": "model.directions",
    "disentanglement": "questions",
    "evaluate": "evaluation",
    "front": "questions",
    "load": "model.edit",
    "minimise": "search.solve",
    "negate": "questions",
    "push_to_hub": "model.published",
    "save": "model.edit",
    "transport": "rebasing.transport",
}

__all__ = [
    "GRID",
    "PAPER_GRID",
    "AdaMerged",
    "Addition",
    "Decoder",
    "Desk",
    "EditRegime",
    "Editor",
    "Evaluation",
    "Front",
    "Maps",
    "Negation",
    "Solution",
    "SolvedCoefficients",
    "Transported",
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
    "push_to_hub",
    "save",
    "transport",
]


__getattr__ = loader(globals(), _HOME)
