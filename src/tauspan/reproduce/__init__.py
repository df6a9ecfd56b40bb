"""The paper, table by table, by one command.

```text
protocol    the paper's constants, each with its source
recipes/    one file a table or figure; variants/: the paper's hyper-parameters, and the corrected ones
experiment  such a file, and the recipes of `tauspan.run` that it stands for
presets     the paper's models
planning    what will be fetched, trained and paid; timing: seconds of a step here
rates       a learning rate chosen on validation
published   others' numbers with their certainty
carry_out   all parts, one report
```
"""

from tauspan.reproduce.carry_out import reproduce
from tauspan.reproduce.experiment import Changes, experiment, names, recipes
from tauspan.reproduce.planning import Plan, plan

__all__ = ["Changes", "Plan", "experiment", "names", "plan", "recipes", "reproduce"]
