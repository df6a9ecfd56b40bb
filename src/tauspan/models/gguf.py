"""GGUF files as directories in transformers' format, in float32: dequantised once, and kept."""

import hashlib
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import ModelError
from tauspan.core.measure import underway
from tauspan.models.extras import quiet, require_extra

SUFFIX = ".gguf"


def converted(file: Path, cache: str | Path | None = None) -> Path:
    """The directory of a GGUF file's model, tokenizer and configuration; it is made when it is first asked for.

    The numbers are those of the quantised file in float32, which are another model's than those that it was quantised
    from. Directories are kept by the SHA-256 of the file.

    Args:
        file: the GGUF file.
        cache: the folder for it; None takes `tauspan` in the hub's own folder (`HF_HOME`).

    Raises:
        ModelError: transformers cannot read the file.
        MissingExtraError: gguf or accelerate is not installed.
        StoreError: the folder cannot be written.
    """
    transformers = require_extra("transformers", "transformers", f"loading {file}")
    for package in ("gguf", "accelerate"):
        require_extra(package, "gguf", f"reading {file}")
    hub = require_extra("huggingface_hub", "transformers", f"loading {file}")
    with file.open("rb") as handle:
        key = hashlib.file_digest(handle, "sha256").hexdigest()
    root = Path(cache) if cache is not None else Path(hub.constants.HF_HOME) / "tauspan"
    found = root / f"gguf-{key[:24]}"
    if not (found / "config.json").is_file():
        with (
            underway(f"dequantising {file.name}"),
            store.atomic(found, overwrite=found.exists()) as temporary,
        ):
            temporary.mkdir()
            _write(transformers, file, temporary)
    return found


def _write(transformers: Any, file: Path, directory: Path) -> None:
    """Write the model of a GGUF file as transformers writes one; its own `save_pretrained` refuses dequantised ones."""
    import torch

    try:
        with quiet(transformers):
            where: dict[str, Any] = {
                "gguf_file": file.name,
                "local_files_only": True,
                "trust_remote_code": False,
            }
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, dtype=torch.float32, **where
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **where)
    except Exception as error:  # the reader of damaged files raises many kinds
        raise ModelError(
            f"transformers could not read {file} as a GGUF language model ({error}): get the file again, or take the "
            "model's own safetensors weights."
        ) from error
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        config.pop(name, None)
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    state = {
        name: tensor.detach().contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    store.write_tensors(directory / "model.safetensors", state, {"format": "pt"})
    tokenizer.save_pretrained(directory)
    store.write_json(directory / "config.json", config)  # last: a directory with it is whole
