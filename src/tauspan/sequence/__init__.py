"""Tasks one after another, by many protocols; and rounds of training on one task, whose vectors are merged.

Names are loaded on first use, so that the program's parser does not load torch.
"""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.sequence.comparison import Continual, Run, continual
    from tauspan.sequence.course import Course, FeatureMap, Learned
    from tauspan.sequence.discovery import Discovered, discover
    from tauspan.sequence.gaussians import ClassGaussians
    from tauspan.sequence.masks import densities, moved, picked, require_disjoint, united
    from tauspan.sequence.options import Options
    from tauspan.sequence.protocols import PROTOCOLS, Protocol
    from tauspan.train.weights import WorstGroup

_HOME = {
    "PROTOCOLS": "protocols", "ClassGaussians": "gaussians", "Continual": "comparison", "Course": "course",
    "Discovered": "discovery", "FeatureMap": "course", "Learned": "course", "Options": "options",
    "Protocol": "protocols", "Run": "comparison", "WorstGroup": "discovery", "continual": "comparison",
    "densities": "masks", "discover": "discovery", "moved": "masks", "picked": "masks", "require_disjoint": "masks",
    "united": "masks",
}  # fmt: skip

__all__ = [
    "PROTOCOLS", "ClassGaussians", "Continual", "Course", "Discovered", "FeatureMap", "Learned", "Options",
    "Protocol", "Run", "WorstGroup", "continual", "densities", "discover", "moved", "picked", "require_disjoint",
    "united",
]  # fmt: skip

__getattr__ = loader(globals(), _HOME)
