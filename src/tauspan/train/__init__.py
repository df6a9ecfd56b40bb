"""Fine-tuning: one loop for the standard and the linear regime, and convex solvers for the linear one.

Names are loaded on first use, so that the program's parser can read `Settings` without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauspan.train.convex import fit
    from tauspan.train.finetuning import Finetuned, finetune
    from tauspan.train.settings import Settings

_HOME = {"Finetuned": "finetuning", "Settings": "settings", "finetune": "finetuning", "fit": "convex"}

__all__ = ["Finetuned", "Settings", "finetune", "fit"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tauspan.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tauspan.train.{_HOME[name]}"), name)
    globals()[name] = value
    return value
