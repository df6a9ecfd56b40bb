"""The tangent engine: f(x; theta0) + J(x) tau for any module."""

from tauspan.tangent.cache.caches import Cache
from tauspan.tangent.linearized import Linearized, linearize

__all__ = ["Cache", "Linearized", "linearize"]
