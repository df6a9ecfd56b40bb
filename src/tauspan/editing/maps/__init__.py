"""How much two task vectors, added, disturb what each does alone: maps of the disentanglement error, and drift."""

from tauspan.editing.maps.asked import GRID
from tauspan.editing.maps.maps import disentanglement

__all__ = ["GRID", "disentanglement"]
