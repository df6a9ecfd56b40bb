"""Merging: many task vectors or models into one, by any method of `METHODS`, in memory or streamed over files.

Names are loaded on first use, so that merging in memory does not load what reads and writes files.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauspan.merge.files import merge_files
    from tauspan.merge.memory import merge
    from tauspan.merge.method import Block, Method, Option
    from tauspan.merge.own import own_method
    from tauspan.merge.recipe import MergeRecipe
    from tauspan.merge.statistics_file import Statistics, statistics_of
    from tauspan.merge.table import METHODS

_HOME = {
    "METHODS": "table",
    "Block": "method",
    "MergeRecipe": "recipe",
    "Method": "method",
    "Option": "method",
    "Statistics": "statistics_file",
    "merge": "memory",
    "merge_files": "files",
    "own_method": "own",
    "statistics_of": "statistics_file",
}

__all__ = [
    "METHODS",
    "Block",
    "MergeRecipe",
    "Method",
    "Option",
    "Statistics",
    "merge",
    "merge_files",
    "own_method",
    "statistics_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan.merge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tauspan.merge.{_HOME[name]}"), name)
    globals()[name] = value
    return value
