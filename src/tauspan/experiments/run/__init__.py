"""`run`: a recipe from data to report, stage by stage; a finished stage is reused, never done twice.

Names are loaded on first use, so that what a recipe needs can be counted without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauspan.experiments.run.planned import plan
    from tauspan.experiments.run.whole import run

_HOME = {"plan": "planned", "run": "whole"}

__all__ = ["plan", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan.experiments.run' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tauspan.experiments.run.{_HOME[name]}"), name)
    globals()[name] = value
    return value
