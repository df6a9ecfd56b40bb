"""Prefixes of attention as task vectors: (Z, kappa) of each layer, trained or made of a prompt."""

from tauspan.prefix.adding import with_prefix
from tauspan.prefix.features import FeatureMap
from tauspan.prefix.prompt import prompt_vector

__all__ = ["FeatureMap", "prompt_vector", "with_prefix"]
