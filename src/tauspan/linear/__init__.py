"""The tangent engine: f(x; theta0) + J(x) tau for any module."""

from tauspan.linear.caches import Cache, Kind
from tauspan.linear.linearized import Linearized, linearize

__all__ = ["Cache", "Kind", "Linearized", "linearize"]
