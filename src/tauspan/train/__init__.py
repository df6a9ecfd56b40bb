"""Fine-tuning: one loop for the standard and the linear regime, and convex solvers for the linear one."""

from tauspan.train.convex import fit
from tauspan.train.finetuning import Finetuned, finetune
from tauspan.train.settings import Settings

__all__ = ["Finetuned", "Settings", "finetune", "fit"]
