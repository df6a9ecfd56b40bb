"""The tangent engine: f(x; theta0) + J(x) tau for any module."""

from tauspan.linear.linearized import Linearized, linearize

__all__ = ["Linearized", "linearize"]
