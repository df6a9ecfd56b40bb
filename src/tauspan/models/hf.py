"""Encoders from directories that transformers wrote."""

import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import store
from tauspan.errors import ModelError, StoreError, listed
from tauspan.models.encoder import Batch, Encoder, Inputs
from tauspan.models.sources import require_extra, require_weights

_POOLING_FILE = Path("1_Pooling") / "config.json"  # where sentence-transformers says how it pools
_TEXT_SCALE = 20.0  # logits = 20 cos(z, w): the usual factor of sentence encoders


def load(directory: Path, source: str) -> Encoder:
    """The encoder in a transformers directory: text (BERT, GPT-2, Llama, ...), CLIP or a vision model.

    Pooling of a text model follows sentence-transformers' own file where there is one; else the last token
    for decoders and the mean over real tokens for encoders. Vision models give their pooled output, or the
    first token.
    """
    transformers = require_extra("transformers", "transformers", f"loading {source!r}")
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json: it is not a directory that transformers wrote.")
    require_weights(directory)
    config = store.read_json(directory / "config.json")
    kind = config.get("model_type")
    if not kind:
        raise ModelError(f"{directory}/config.json has no `model_type`. For timm and open_clip write local-dir:{directory}.")
    model = _pretrained(transformers, transformers.CLIPModel if kind == "clip" else transformers.AutoModel, directory)
    if kind == "clip":
        return _clip(transformers, model, directory, source)
    if model.main_input_name == "pixel_values":
        return Encoder(model, vision_features, _image_inputs(directory), source=source, save_extras=_copies(directory))
    tokenizer = _tokenizer(transformers, directory)
    features = _pooling(directory, model)
    return Encoder(
        model,
        features,
        Inputs("text", tokenizer),
        source=source,
        label_features=features,
        logit_scale=_TEXT_SCALE,
        save_extras=_copies(directory),
    )


def _pretrained(transformers: Any, family: Any, directory: Path) -> nn.Module:
    """The model in float32 with fused attention; missing or misshapen weights are an error, never re-drawn."""
    was_bar = transformers.utils.logging.is_progress_bar_enabled()
    was_level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        model, info = family.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, trust_remote_code=False,
            dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"transformers could not load {directory}: {error}") from error
    finally:
        transformers.utils.logging.set_verbosity(was_level)
        if was_bar:
            transformers.utils.logging.enable_progress_bar()
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise StoreError(f"{directory} lacks {len(missing)} weights of {type(model).__name__} ({listed(missing)}).")
    result: nn.Module = model.eval()
    return result


def _tokenizer(transformers: Any, directory: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory} has no usable tokenizer: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _pooling(directory: Path, model: Any) -> Callable[[nn.Module, Batch], Tensor]:
    file = directory / _POOLING_FILE
    if file.is_file():
        modes = store.read_json(file)
        chosen = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on]
        known = {"pooling_mode_mean_tokens": mean_pooled, "pooling_mode_cls_token": first_token,
                 "pooling_mode_lasttoken": last_token}  # fmt: skip
        if len(chosen) != 1 or chosen[0] not in known:
            raise ModelError(f"{file} asks for the pooling {listed(chosen)}; known: {', '.join(known)}.")
        return known[chosen[0]]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    is_decoder = model.config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not hasattr(model, "encoder")
    return last_token if is_decoder else mean_pooled


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last layer's states, shape (N, tokens, d); decoders keep no cache."""
    assert isinstance(batch, Mapping)  # noqa: S101 - text encoders always make mappings
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    states: Tensor = model(**batch, **options).last_hidden_state
    return states


def _mask(batch: Batch) -> Tensor:
    assert isinstance(batch, Mapping)  # noqa: S101
    return batch["attention_mask"]


def mean_pooled(model: nn.Module, batch: Batch) -> Tensor:
    """The mean state over real tokens."""
    states = hidden_states(model, batch)
    mask = _mask(batch).unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


def first_token(model: nn.Module, batch: Batch) -> Tensor:
    """The state of the first token."""
    return hidden_states(model, batch)[:, 0]


def last_token(model: nn.Module, batch: Batch) -> Tensor:
    """The state of each row's last real token."""
    states = hidden_states(model, batch)
    mask = _mask(batch)
    positions = torch.arange(mask.shape[1], device=mask.device).mul(mask).argmax(1)
    return states[torch.arange(len(states), device=states.device), positions]


def vision_features(model: nn.Module, batch: Batch) -> Tensor:
    """The pooled output of a vision model, or its first token where there is no pooler."""
    output = model(pixel_values=batch)
    pooled = getattr(output, "pooler_output", None)
    features: Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled
    return features.flatten(1)


def clip_image_features(model: nn.Module, batch: Batch) -> Tensor:
    """CLIP's projected image embedding, before its normalisation."""
    vision: Any = model.vision_model
    projection: Any = model.visual_projection
    features: Tensor = projection(vision(pixel_values=batch).pooler_output)
    return features


def clip_text_features(model: nn.Module, batch: Batch) -> Tensor:
    """CLIP's projected text embedding, before its normalisation."""
    assert isinstance(batch, Mapping)  # noqa: S101
    text: Any = model.text_model
    projection: Any = model.text_projection
    features: Tensor = projection(text(**batch).pooler_output)
    return features


def _clip(transformers: Any, model: nn.Module, directory: Path, source: str) -> Encoder:
    images = _image_inputs(directory)
    scale: Any = model.logit_scale
    return Encoder(
        model,
        clip_image_features,
        Inputs("image", _tokenizer(transformers, directory), images.size, images.mean, images.std),
        source=source,
        label_features=clip_text_features,
        logit_scale=math.exp(float(scale)),
        prefixes=("vision_model.", "visual_projection."),
        save_extras=_copies(directory),
    )


def _image_inputs(directory: Path) -> Inputs:
    file = directory / "preprocessor_config.json"
    settings = store.read_json(file) if file.is_file() else {}
    size = settings.get("crop_size") or settings.get("size") or store.read_json(directory / "config.json").get("image_size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if size is None:
        warnings.warn(f"{directory} does not say its image size; 224 is taken.", stacklevel=2)
        size = 224
    half = (0.5, 0.5, 0.5)
    return Inputs("image", None, int(size), tuple(settings.get("image_mean", half)), tuple(settings.get("image_std", half)))


def _copies(directory: Path) -> Callable[[Any], None]:
    """Copy tokenizer, pooling and preprocessing files beside edited weights; never weights or code."""
    skip = {"config.json", "README.md", "tauspan.json"}

    def copy(target: Path) -> None:
        for file in directory.rglob("*"):
            inner = file.relative_to(directory)
            plain = file.suffix in {".json", ".txt", ".model", ".jinja"} and not file.name.endswith(store.INDEX_SUFFIX)
            if file.is_file() and plain and str(inner) not in skip and not inner.name.startswith("."):
                (target / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / inner)

    return copy
