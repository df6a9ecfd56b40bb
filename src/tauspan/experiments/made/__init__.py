"""A comparison of ways to make task vectors: regimes, penalties, closed forms, and rules that merge them."""

from tauspan.experiments.made.ways import WAYS

__all__ = ["WAYS"]
