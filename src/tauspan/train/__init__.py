"""Fine-tuning: one loop for the standard and the linear regime, and convex solvers for the linear one.

Names are loaded on first use, so that the program's parser can read `Settings` without torch.
"""

from typing import TYPE_CHECKING

from tauspan.core.lazy import loader

if TYPE_CHECKING:
    from tauspan.train.convex import fit
    from tauspan.train.finetuning import Finetuned, finetune
    from tauspan.train.planning import Plan, plan
    from tauspan.train.pretraining import self_pretrained
    from tauspan.train.settings import Settings

_HOME = {
    "Finetuned": "finetuning", "Plan": "planning", "Settings": "settings", "finetune": "finetuning", "fit": "convex",
    "plan": "planning", "self_pretrained": "pretraining",
}  # fmt: skip

__all__ = ["Finetuned", "Plan", "Settings", "finetune", "fit", "plan", "self_pretrained"]


__getattr__ = loader(globals(), _HOME)
