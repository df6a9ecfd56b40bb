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

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader
from tauspan.experiments.reproduce.experiment import Changes, experiment, names, recipes

if TYPE_CHECKING:
    from tauspan.experiments.reproduce.carry_out import reproduce
    from tauspan.experiments.reproduce.planning import Plan, plan

_HOME = {"Plan": "planning", "plan": "planning", "reproduce": "carry_out"}

__all__ = ["Changes", "Plan", "experiment", "names", "plan", "recipes", "reproduce"]


__getattr__ = loader(globals(), _HOME)
