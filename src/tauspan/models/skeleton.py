"""A transformers model without weights, built from its configuration alone to learn which tensors it has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Size, nn

from tauspan import store
from tauspan.core.errors import ModelError
from tauspan.models.extras import quiet, require_extra
from tauspan.models.names import Names, names_between

Part = Literal["architecture", "backbone"]
# the classes that adapters and checkpoints of a model are made with, besides the one that its configuration names
TASKS = (
    "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering",
)  # fmt: skip


def has_config(directory: Path) -> bool:
    """Whether the directory has a configuration that transformers could know."""
    file = directory / "config.json"
    content = store.read_json(file) if file.is_file() else None
    return isinstance(content, dict) and bool(content.get("model_type"))


def skeleton(directory: Path, part: str = "architecture") -> nn.Module:
    """The module of a directory on the meta device: no memory for weights, and no weights are read.

    Args:
        directory: with a `config.json`.
        part: `"architecture"`, the class that the configuration names; `"backbone"`, the one without a head; or the
            name of one of transformers' automatic classes.

    Raises:
        ModelError: transformers does not know the configuration, or has no such class for it.
        MissingExtraError: transformers is not installed.
    """
    transformers = require_extra("transformers", "transformers", f"reading the architecture of {directory}")
    try:
        with quiet(transformers), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            own = _class(transformers, config) if part == "architecture" else None
            if own is not None:
                return own._from_config(config)  # type: ignore[no-any-return]
            family = getattr(transformers, part if part in TASKS else "AutoModel")
            return family.from_config(config, trust_remote_code=False)  # type: ignore[no-any-return]
    except Exception as error:  # a wrong configuration can raise any kind of error
        raise ModelError(f"transformers makes no {part} of {directory}/config.json: {error}") from error


def _class(transformers: Any, config: Any) -> Any:
    named = (getattr(config, "architectures", None) or [""])[0]
    found = getattr(transformers, str(named), None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def directory_names(directory: Path, stored: Mapping[str, Size], part: str = "architecture") -> Names:
    """How names translate between a directory's files and the module of its configuration; see `skeleton`."""
    return names_between(skeleton(directory, part), stored)
