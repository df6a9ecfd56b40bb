"""Prefixes of attention as task vectors: (Z, kappa) of each layer, trained or made of a prompt."""

from tauspan.prefix.adding import with_prefix

__all__ = ["with_prefix"]
