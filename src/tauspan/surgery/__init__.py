"""Surgery on checkpoints: another vocabulary (E' = P E) and another depth, for models and for their task vectors.

Names are loaded on first use, so that the program's parser does not load torch.
"""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.surgery.carrying import Surgery
    from tauspan.surgery.deepening import change_depth, planned_depth
    from tauspan.surgery.depth import LayerMap
    from tauspan.surgery.grafting import Graft, graft, move, planned_graft
    from tauspan.surgery.options import Filling, Running
    from tauspan.surgery.reading import Readings, compare
    from tauspan.surgery.rowmap import RowMap
    from tauspan.surgery.tying import TiedDepth
    from tauspan.surgery.vectors import move_adapter, move_low, move_statistics, move_vector
    from tauspan.surgery.vocabularies import Vocabulary, open_vocabulary
    from tauspan.surgery.ways import HOW, Pair, Way, row_map

_HOME = {
    "HOW": "ways", "Filling": "options", "Graft": "grafting", "LayerMap": "depth", "Pair": "ways", "Readings": "reading",
    "RowMap": "rowmap", "Running": "options", "Surgery": "carrying", "TiedDepth": "tying",
    "Vocabulary": "vocabularies", "Way": "ways",
    "change_depth": "deepening", "compare": "reading", "graft": "grafting", "move": "grafting", "move_adapter": "vectors",
    "move_low": "vectors", "move_statistics": "vectors", "move_vector": "vectors", "open_vocabulary": "vocabularies",
    "planned_depth": "deepening", "planned_graft": "grafting", "row_map": "ways",
}  # fmt: skip

__all__ = [
    "HOW", "Filling", "Graft", "LayerMap", "Pair", "Readings", "RowMap", "Running", "Surgery", "TiedDepth", "Vocabulary",
    "Way", "change_depth", "compare", "graft", "move", "move_adapter", "move_low", "move_statistics", "move_vector",
    "open_vocabulary", "planned_depth", "planned_graft", "row_map",
]  # fmt: skip

__getattr__ = loader(globals(), _HOME)
