"""Fine-tuning: one loop for the standard and the linear regime."""

from tauspan.train.loop import Finetuned, finetune, train
from tauspan.train.settings import Settings

__all__ = ["Finetuned", "Settings", "finetune", "train"]
