"""Where a model comes from, what of it is trainable, and how it is wrapped for tasks."""

from tauspan.models.encoder import Batch, Classifier, Encoder, Head
from tauspan.models.fresh import reinitialised
from tauspan.models.intact import working_copy
from tauspan.models.select import (
    FrozenError,
    blocks,
    core,
    eval_mode,
    fingerprint_of,
    movable,
    named_unique,
    require_deterministic,
    select,
    state_of,
)
from tauspan.models.sources import load_model, model_directory, save_model
from tauspan.models.trim import trimmed

__all__ = [
    "Batch",
    "Classifier",
    "Encoder",
    "FrozenError",
    "Head",
    "blocks",
    "core",
    "eval_mode",
    "fingerprint_of",
    "load_model",
    "model_directory",
    "movable",
    "named_unique",
    "reinitialised",
    "require_deterministic",
    "save_model",
    "select",
    "state_of",
    "trimmed",
    "working_copy",
]
