"""Surgery on checkpoints: another vocabulary (E' = P E) and another depth, for models and for their task vectors.

Names are loaded on first use, so that the program's parser does not load torch.
"""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.surgery.depth import LayerMap
    from tauspan.surgery.files import Graft, Surgery, change_depth, graft, move, planned_depth, planned_graft
    from tauspan.surgery.options import Filling, Running
    from tauspan.surgery.rowmap import RowMap
    from tauspan.surgery.vectors import move_adapter, move_low, move_vector
    from tauspan.surgery.vocabularies import Vocabulary, open_vocabulary
    from tauspan.surgery.ways import HOW, Pair, Way, row_map

_HOME = {
    "HOW": "ways", "Filling": "options", "Graft": "files", "LayerMap": "depth", "Pair": "ways", "RowMap": "rowmap",
    "Running": "options", "Surgery": "files", "Vocabulary": "vocabularies", "Way": "ways", "change_depth": "files",
    "graft": "files", "move": "files", "move_adapter": "vectors", "move_low": "vectors", "move_vector": "vectors",
    "open_vocabulary": "vocabularies", "planned_depth": "files", "planned_graft": "files", "row_map": "ways",
}  # fmt: skip

__all__ = [
    "HOW", "Filling", "Graft", "LayerMap", "Pair", "RowMap", "Running", "Surgery", "Vocabulary", "Way", "change_depth",
    "graft", "move", "move_adapter", "move_low", "move_vector", "open_vocabulary", "planned_depth", "planned_graft",
    "row_map",
]  # fmt: skip

__getattr__ = loader(globals(), _HOME)
