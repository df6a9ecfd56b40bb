"""Merging: many task vectors or models into one, by any method of `METHODS`, in memory or streamed over files."""

from tauspan.merge.memory import merge
from tauspan.merge.method import Block, Method, Option
from tauspan.merge.table import METHODS

__all__ = ["METHODS", "Block", "Method", "Option", "merge"]
