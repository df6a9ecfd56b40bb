"""Reproduction of the paper's tables and figures, each by one command.

```text
recipes/    one file for each table or figure; variants/: the paper's hyper-parameters, and the corrected ones
experiment  such a file, and the recipes of `tauspan.run` that it describes; the list of them
presets     the paper's models
planning    what will be fetched and trained, and its cost; timing: seconds of a step on this machine
rates       a learning rate chosen on validation
leaks       rows of a data set that are in two of its splits
published   others' numbers with their certainty
carry_out   all parts, one report
```
"""

import importlib
from typing import TYPE_CHECKING, Any

from tauspan.experiments.reproduce.experiment import Changes, experiment, names, recipes

if TYPE_CHECKING:
    from tauspan.experiments.reproduce.carry_out import reproduce
    from tauspan.experiments.reproduce.planning import Plan, plan

_HOME = {"Plan": "planning", "plan": "planning", "reproduce": "carry_out"}

__all__ = ["Changes", "Plan", "experiment", "names", "plan", "recipes", "reproduce"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan.experiments.reproduce' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tauspan.experiments.reproduce.{_HOME[name]}"), name)
    globals()[name] = value
    return value
