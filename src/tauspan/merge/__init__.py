"""Merging: many task vectors or models into one, by any method of `METHODS`, in memory or streamed over files.

Names are loaded on first use, so that merging in memory does not load what reads and writes files.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauspan.merge.data.statistics_file import Statistics, statistics_of
    from tauspan.merge.engine.memory import merge
    from tauspan.merge.engine.own import own_method
    from tauspan.merge.methods import METHODS
    from tauspan.merge.methods.method import Block, Method, Option
    from tauspan.merge.recipe.reading import parse_recipe, read_recipe
    from tauspan.merge.recipe.recipe import MergeRecipe
    from tauspan.merge.stream.files import merge_files

_HOME = {
    "METHODS": "methods",
    "Block": "methods.method",
    "MergeRecipe": "recipe.recipe",
    "Method": "methods.method",
    "Option": "methods.method",
    "Statistics": "data.statistics_file",
    "merge": "engine.memory",
    "merge_files": "stream.files",
    "own_method": "engine.own",
    "parse_recipe": "recipe.reading",
    "read_recipe": "recipe.reading",
    "statistics_of": "data.statistics_file",
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
    "parse_recipe",
    "read_recipe",
    "statistics_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan.merge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tauspan.merge.{_HOME[name]}"), name)
    globals()[name] = value
    return value
