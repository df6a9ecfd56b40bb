"""Merging: many task vectors or models into one, by any method of `METHODS`, in memory or streamed over files.

`__all__` lists what is public here.

Names are loaded on first use, so that merging in memory does not load what reads and writes files.
"""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.merge.checks.checks import Examination, check, doctor
    from tauspan.merge.data.statistics_file import Statistics, statistics_of
    from tauspan.merge.engine.memory import merge
    from tauspan.merge.engine.own import own_method
    from tauspan.merge.lora.adapters import AdapterSource, combine_adapters, save_adapter
    from tauspan.merge.lora.spaces import save_as_adapter
    from tauspan.merge.methods import METHODS
    from tauspan.merge.methods.method import Block, Method, Option
    from tauspan.merge.recipe.reading import json_schema, parse_recipe, read_recipe
    from tauspan.merge.recipe.recipe import MergeRecipe
    from tauspan.merge.sources.opening import open_source
    from tauspan.merge.sources.problems import Problem
    from tauspan.merge.sources.source import Source
    from tauspan.merge.stream.adapter_vector import adapter_vector
    from tauspan.merge.stream.files import merge_files
    from tauspan.merge.stream.plan import Plan
    from tauspan.merge.stream.planning import planned
    from tauspan.merge.stream.reproduce import reproduce
    from tauspan.merge.stream.result import MergeResult

_HOME = {
    "METHODS": "methods",
    "AdapterSource": "lora.adapters",
    "Block": "methods.method",
    "Examination": "checks.checks",
    "MergeRecipe": "recipe.recipe",
    "MergeResult": "stream.result",
    "Method": "methods.method",
    "Option": "methods.method",
    "Plan": "stream.plan",
    "Problem": "sources.problems",
    "Source": "sources.source",
    "Statistics": "data.statistics_file",
    "adapter_vector": "stream.adapter_vector",
    "check": "checks.checks",
    "combine_adapters": "lora.adapters",
    "doctor": "checks.checks",
    "json_schema": "recipe.reading",
    "merge": "engine.memory",
    "merge_files": "stream.files",
    "open_source": "sources.opening",
    "own_method": "engine.own",
    "parse_recipe": "recipe.reading",
    "planned": "stream.planning",
    "read_recipe": "recipe.reading",
    "reproduce": "stream.reproduce",
    "save_adapter": "lora.adapters",
    "save_as_adapter": "lora.spaces",
    "statistics_of": "data.statistics_file",
}

__all__ = [
    "METHODS",
    "AdapterSource",
    "Block",
    "Examination",
    "MergeRecipe",
    "MergeResult",
    "Method",
    "Option",
    "Plan",
    "Problem",
    "Source",
    "Statistics",
    "adapter_vector",
    "check",
    "combine_adapters",
    "doctor",
    "json_schema",
    "merge",
    "merge_files",
    "open_source",
    "own_method",
    "parse_recipe",
    "planned",
    "read_recipe",
    "reproduce",
    "save_adapter",
    "save_as_adapter",
    "statistics_of",
]


__getattr__ = loader(globals(), _HOME)
