"""Edit a pre-trained PyTorch model by adding, negating and scaling task vectors, in the tangent space.

Names are loaded on first use, so that importing `tauspan` (and `tauspan --help`) stays light.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tauspan.computing import computing
    from tauspan.contributions import Contributions
    from tauspan.diagnose import diagnose
    from tauspan.disentangle import disentanglement
    from tauspan.edit import apply, load, save
    from tauspan.errors import (
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
    from tauspan.evaluate import evaluate
    from tauspan.kernel import TangentKernel, closed_form
    from tauspan.kernel.interference import interference
    from tauspan.linear import Linearized, linearize
    from tauspan.merge import METHODS, merge, merge_files
    from tauspan.merge.adapter_vector import adapter_vector
    from tauspan.models import Classifier, Encoder, Head, reinitialised
    from tauspan.recipe import Recipe
    from tauspan.report import Report
    from tauspan.run import run
    from tauspan.search import add, coefficients, negate
    from tauspan.suite import suite
    from tauspan.tasks import Task
    from tauspan.train import Finetuned, finetune, fit
    from tauspan.vector import TaskVector, cosine_matrix

_HOME = {
    "METHODS": "merge",
    "BaseMismatchError": "errors",
    "Classifier": "models",
    "Contributions": "contributions",
    "DataError": "errors",
    "Encoder": "models",
    "Finetuned": "train",
    "Head": "models",
    "Linearized": "linear",
    "MismatchError": "errors",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "PickleRefusedError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "report",
    "StoreError": "errors",
    "TangentKernel": "kernel",
    "Task": "tasks",
    "TaskVector": "vector",
    "TauspanError": "errors",
    "UsageError": "errors",
    "adapter_vector": "merge.adapter_vector",
    "add": "search",
    "apply": "edit",
    "closed_form": "kernel",
    "coefficients": "search",
    "computing": "computing",
    "cosine_matrix": "vector",
    "diagnose": "diagnose",
    "disentanglement": "disentangle",
    "evaluate": "evaluate",
    "finetune": "train",
    "fit": "train",
    "interference": "kernel.interference",
    "linearize": "linear",
    "load": "edit",
    "merge": "merge",
    "merge_files": "merge",
    "negate": "search",
    "reinitialised": "models",
    "run": "run",
    "save": "edit",
    "suite": "suite",
}

__all__ = [
    "METHODS",
    "BaseMismatchError",
    "Classifier",
    "Contributions",
    "DataError",
    "Encoder",
    "Finetuned",
    "Head",
    "Linearized",
    "MismatchError",
    "MissingExtraError",
    "ModelError",
    "NonFiniteError",
    "PickleRefusedError",
    "Recipe",
    "RecipeError",
    "Report",
    "StoreError",
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
    "reinitialised",
    "run",
    "save",
    "suite",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tauspan.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(types.ModuleType):
    """`tauspan.evaluate` and others stay functions when the modules of their names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
