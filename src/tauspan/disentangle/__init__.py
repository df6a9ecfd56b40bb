"""How much two task vectors, added, disturb what each does alone: maps of the disentanglement error, and drift."""

from tauspan.disentangle.asked import GRID
from tauspan.disentangle.maps import disentanglement

__all__ = ["GRID", "disentanglement"]
