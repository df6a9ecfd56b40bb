"""Models: where they come from, which parameters are trainable, and how they are wrapped for tasks."""

from tauspan.models.copying import kept_outside, working_copy
from tauspan.models.encoder import Batch, Classifier, Encoder, Head
from tauspan.models.fresh import reinitialised
from tauspan.models.frozen import Frozen, Origin, Prediction, chosen_head, predicted
from tauspan.models.home import encoder_in, fingerprint_of, names_of, stored_state
from tauspan.models.names import Names
from tauspan.models.points import Beyond, aligned, differing, in_memory, point_of
from tauspan.models.select import (
    FrozenError,
    blocks,
    core,
    eval_mode,
    movable,
    named_unique,
    on_path,
    require_deterministic,
    require_values,
    select,
    state_of,
)
from tauspan.models.skeleton import directory_names, has_config
from tauspan.models.sources import (
    checkpoint_of,
    load_model,
    model_directory,
    require_storable,
    save_model,
    weights_of,
    write_model,
)
from tauspan.models.spaces import Space, read_space, restrict, space_of, unrestricted
from tauspan.models.token_head import with_token_head
from tauspan.models.trim import trimmed

__all__ = [
    "Batch",
    "Beyond",
    "Classifier",
    "Encoder",
    "Frozen",
    "FrozenError",
    "Head",
    "Names",
    "Origin",
    "Prediction",
    "Space",
    "aligned",
    "blocks",
    "checkpoint_of",
    "chosen_head",
    "core",
    "differing",
    "directory_names",
    "encoder_in",
    "eval_mode",
    "fingerprint_of",
    "has_config",
    "in_memory",
    "kept_outside",
    "load_model",
    "model_directory",
    "movable",
    "named_unique",
    "names_of",
    "on_path",
    "point_of",
    "predicted",
    "read_space",
    "reinitialised",
    "require_deterministic",
    "require_storable",
    "require_values",
    "restrict",
    "save_model",
    "select",
    "space_of",
    "state_of",
    "stored_state",
    "trimmed",
    "unrestricted",
    "weights_of",
    "with_token_head",
    "working_copy",
    "write_model",
]
