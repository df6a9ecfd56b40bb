"""Edit a pre-trained PyTorch model by adding, negating and scaling task vectors, in the tangent space.

Names are loaded on first use, so that importing `tauspan` (and `tauspan --help`) stays light.
"""

import sys
import types
from typing import TYPE_CHECKING, Any

from tauspan.core.lazy import loader

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tauspan.core.computing import computing
    from tauspan.core.errors import (
        BaseMismatchError,
        DataError,
        MismatchError,
        MissingExtraError,
        ModelError,
        NonFiniteError,
        PickleRefusedError,
        RecipeError,
        StoreError,
        TauspanError,
        UsageError,
    )
    from tauspan.core.measure import quiet
    from tauspan.core.reading import Reading
    from tauspan.core.report import Report, Table
    from tauspan.editing import (
        Editor,
        add,
        apply,
        coefficients,
        disentanglement,
        evaluate,
        load,
        negate,
        save,
    )
    from tauspan.editing.questions import desk
    from tauspan.experiments.run import run
    from tauspan.experiments.run.recipe import Recipe
    from tauspan.kernel import Ghosts, TangentKernel, closed_form, interference, superpose
    from tauspan.kernel.diagnose import diagnose
    from tauspan.merge import METHODS, merge, merge_files
    from tauspan.merge.stream.adapter_vector import adapter_vector
    from tauspan.models import Classifier, Encoder, Head, reinitialised, restrict, with_token_head
    from tauspan.prefix import with_prefix
    from tauspan.tangent import Linearized, linearize
    from tauspan.tangent.contributions import Contributions
    from tauspan.tasks import Task
    from tauspan.tasks.data.suite import suite
    from tauspan.train import Finetuned, Settings, finetune, fit, plan, self_pretrained
    from tauspan.vector import TaskVector, cosine_matrix

_HOME = {
    "METHODS": "merge",
    "BaseMismatchError": "core.errors",
    "Classifier": "models",
    "Contributions": "tangent.contributions",
    "DataError": "core.errors",
    "Editor": "editing",
    "Encoder": "models",
    "Finetuned": "train",
    "Ghosts": "kernel",
    "Head": "models",
    "Linearized": "tangent",
    "MismatchError": "core.errors",
    "MissingExtraError": "core.errors",
    "ModelError": "core.errors",
    "NonFiniteError": "core.errors",
    "PickleRefusedError": "core.errors",
    "Reading": "core.reading",
    "Recipe": "experiments.run.recipe",
    "RecipeError": "core.errors",
    "Report": "core.report",
    "Settings": "train",
    "StoreError": "core.errors",
    "Table": "core.report",
    "TangentKernel": "kernel",
    "Task": "tasks",
    "TaskVector": "vector",
    "TauspanError": "core.errors",
    "UsageError": "core.errors",
    "adapter_vector": "merge.stream.adapter_vector",
    "add": "editing",
    "apply": "editing",
    "closed_form": "kernel",
    "coefficients": "editing",
    "computing": "core.computing",
    "cosine_matrix": "vector",
    "desk": "editing.questions",
    "diagnose": "kernel.diagnose",
    "disentanglement": "editing",
    "evaluate": "editing",
    "finetune": "train",
    "fit": "train",
    "interference": "kernel",
    "linearize": "tangent",
    "load": "editing",
    "merge": "merge",
    "merge_files": "merge",
    "negate": "editing",
    "plan": "train",
    "quiet": "core.measure",
    "reinitialised": "models",
    "restrict": "models",
    "run": "experiments.run",
    "save": "editing",
    "self_pretrained": "train",
    "suite": "tasks.data.suite",
    "superpose": "kernel",
    "with_prefix": "prefix",
    "with_token_head": "models",
}

__all__ = [
    "METHODS",
    "BaseMismatchError",
    "Classifier",
    "Contributions",
    "DataError",
    "Editor",
    "Encoder",
    "Finetuned",
    "Ghosts",
    "Head",
    "Linearized",
    "MismatchError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteError",
    "PickleRefusedError",
    "Reading",
    "Recipe",
    "RecipeError",
    "Report",
    "Settings",
    "StoreError",
    "Table",
    "TangentKernel",
    "Task",
    "TaskVector",
    "TauspanError",
    "UsageError",
    "adapter_vector",
    "add",
    "apply",
    "closed_form",
    "coefficients",
    "computing",
    "cosine_matrix",
    "desk",
    "diagnose",
    "disentanglement",
    "evaluate",
    "finetune",
    "fit",
    "interference",
    "linearize",
    "load",
    "merge",
    "merge_files",
    "negate",
    "plan",
    "quiet",
    "reinitialised",
    "restrict",
    "run",
    "save",
    "self_pretrained",
    "suite",
    "superpose",
    "with_prefix",
    "with_token_head",
]


__getattr__ = loader(globals(), _HOME)


class _Package(types.ModuleType):
    """`tauspan.evaluate` and others stay functions when the modules of their names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
