"""Tasks one after another: one protocol for many ways, masks of entries, and rows that need not be kept.

Names are loaded on first use, so that the program's parser does not load torch.
"""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.sequence.comparison import Continual, Run, continual
    from tauspan.sequence.course import Course, FeatureMap, Learned
    from tauspan.sequence.gaussians import ClassGaussians
    from tauspan.sequence.masks import densities, moved, picked, require_disjoint, united
    from tauspan.sequence.options import Options
    from tauspan.sequence.protocols import PROTOCOLS, Protocol

_HOME = {
    "PROTOCOLS": "protocols", "ClassGaussians": "gaussians", "Continual": "comparison", "Course": "course",
    "FeatureMap": "course", "Learned": "course", "Options": "options", "Protocol": "protocols", "Run": "comparison",
    "continual": "comparison", "densities": "masks", "moved": "masks", "picked": "masks", "require_disjoint": "masks",
    "united": "masks",
}  # fmt: skip

__all__ = [
    "PROTOCOLS", "ClassGaussians", "Continual", "Course", "FeatureMap", "Learned", "Options", "Protocol", "Run",
    "continual", "densities", "moved", "picked", "require_disjoint", "united",
]  # fmt: skip

__getattr__ = loader(globals(), _HOME)
