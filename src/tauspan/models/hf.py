"""Encoders from directories that transformers wrote."""

import dataclasses
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import store
from tauspan.errors import ModelError, StoreError, listed
from tauspan.models.encoder import Batch, Encoder, Inputs, Interpolation
from tauspan.models.home import Home, home_of
from tauspan.models.sources import require_extra, weights_of

_POOLING_FILE = Path("1_Pooling") / "config.json"  # where sentence-transformers says how it pools
_MODULES_FILE = "modules.json"  # and which layers it stacks
_SQUASHED = 384  # ConvNeXt's processor crops below this side, and squashes from it on
_TEXT_SCALE = 20.0  # logits = 20 cos(z, w): the usual factor of sentence encoders
_RESAMPLE: dict[int, Interpolation] = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def load(directory: Path, source: str) -> Encoder:
    """The encoder in a transformers directory: text (BERT, GPT-2, Llama, T5, ...), CLIP or a vision model.

    Pooling of a text model follows sentence-transformers' own file where there is one; else the last token
    for decoders and the mean over real tokens for encoders. Of an encoder-decoder the encoder reads the text, and the
    decoder does not train. Vision models give their pooled output, or the first token.
    """
    transformers = require_extra("transformers", "transformers", f"loading {source!r}")
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json: it is not a directory that transformers wrote.")
    weights = weights_of(directory)
    config = store.read_json(directory / "config.json")
    kind = config.get("model_type")
    if not kind:
        raise ModelError(
            f"{directory}/config.json has no `model_type`. For timm and open_clip write local-dir:{directory}."
        )
    model = _pretrained(transformers, _family(transformers, config), directory)
    home = home_of(directory, weights, model)
    if kind == "clip":
        return _clip(transformers, model, directory, source, home)
    if model.main_input_name == "pixel_values":
        inputs, extras = _image_inputs(directory), copies(directory)
        return Encoder(model, vision_features, inputs, source=source, save_extras=extras, home=home)
    tokenizer = _tokenizer(transformers, directory)
    features = _pooling(directory, model)
    return Encoder(
        model,
        features,
        Inputs("text", tokenizer),
        source=source,
        label_features=features,
        logit_scale=_TEXT_SCALE,
        prefixes=_reading_path(model),
        save_extras=copies(directory),
        home=home,
    )


def _family(transformers: Any, config: Mapping[str, Any]) -> Any:
    """What reads a directory: CLIP with both towers, an encoder that was saved alone, else the base model."""
    if config["model_type"] == "clip":
        return transformers.CLIPModel
    alone = str((config.get("architectures") or [""])[0]).endswith("EncoderModel")
    return transformers.AutoModelForTextEncoding if alone else transformers.AutoModel


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Inside, transformers draws no progress bar and gives no notice; afterwards it is as it was."""
    log = transformers.utils.logging
    had_bar, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bar:
            log.enable_progress_bar()


def _pretrained(transformers: Any, family: Any, directory: Path) -> nn.Module:
    """The model in float32; missing or misshapen weights are an error, never re-drawn.

    Attention is fused where the model has that, which is transformers' default; to ask for it by name is refused for
    models without attention. A pooler that the checkpoint does not hold is left out.
    """
    try:
        with quiet(transformers):
            model, info = family.from_pretrained(
                directory, local_files_only=True, use_safetensors=True, trust_remote_code=False,
                dtype=torch.float32, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"transformers could not load {directory}: {error}") from error
    missing = set(info["missing_keys"])
    pooler = {name for name, _ in model.named_parameters() if name.startswith("pooler.")}
    if pooler and pooler <= missing:  # many checkpoints never had one, and transformers draws it at random
        model.pooler = None
        missing -= pooler
    if missing:
        raise StoreError(
            f"{directory} lacks {len(missing)} weights of {type(model).__name__} ({listed(sorted(missing))})."
        )
    result: nn.Module = model.eval()
    return result


def _tokenizer(transformers: Any, directory: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory} has no usable tokenizer: {error}") from error
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # transformers makes an empty one where files lack
        raise ModelError(f"{directory} has no usable tokenizer: its vocabulary is empty. Add tokenizer.json.")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer in {directory} has neither a padding nor an end token, so texts of different "
            "lengths make no batch. Name a `pad_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"  # on the left it would shift the positions of GPT-2 and its like
    return tokenizer


def _pooling(directory: Path, model: Any) -> Callable[[nn.Module, Batch], Tensor]:
    _require_plain_modules(directory / _MODULES_FILE)
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

    is_decoder = model.config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not hasattr(
        model, "encoder"
    )
    return last_token if is_decoder else mean_pooled


def _require_plain_modules(file: Path) -> None:
    """Raise if sentence-transformers would run more layers after the pooling: they must not be left out."""
    if not file.is_file():
        return
    kinds = [str(entry.get("type")).rpartition(".")[2] for entry in store.read_json(file)]
    unknown = [kind for kind in kinds if kind not in {"Transformer", "Pooling", "Normalize"}]
    if unknown:
        raise ModelError(
            f"{file} asks for the layers {listed(unknown)}, which are not read from such a directory. Load "
            "it with sentence-transformers and pass a module that returns the features."
        )


def _reader(model: Any) -> Any:
    """What reads the text: the encoder of an encoder-decoder, else the model itself."""
    config = getattr(model, "config", None)
    return model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model


def _reading_path(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the reader's parameters; one that it shares with the decoder has its first name outside."""
    reader = _reader(model)
    if reader is model:
        return ()
    inside = next(f"{name}." for name, module in model.named_modules() if module is reader)
    own = {id(parameter) for parameter in reader.parameters()}
    shared = [name for name, p in model.named_parameters() if id(p) in own and not name.startswith(inside)]
    return (inside, *shared)


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last layer's states, shape (N, tokens, d); decoders keep no cache."""
    assert isinstance(batch, Mapping)  # noqa: S101 - text encoders always make mappings
    reader = _reader(model)
    caches = reader is model and hasattr(getattr(model, "config", None), "use_cache")
    options = {"use_cache": False} if caches else {}
    states: Tensor = reader(**batch, **options).last_hidden_state
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


def _clip(transformers: Any, model: nn.Module, directory: Path, source: str, home: Home | None) -> Encoder:
    images = _image_inputs(directory)
    scale: Any = model.logit_scale
    return Encoder(
        model,
        clip_image_features,
        dataclasses.replace(images, tokenizer=_tokenizer(transformers, directory)),
        source=source,
        label_features=clip_text_features,
        logit_scale=math.exp(scale.item()),
        prefixes=("vision_model.", "visual_projection."),
        save_extras=copies(directory),
        home=home,
    )


def _image_inputs(directory: Path) -> Inputs:
    file = directory / "preprocessor_config.json"
    if file.is_file():
        settings = store.read_json(file)
    else:  # newer processors of two modalities write one file for both
        file = directory / "processor_config.json"
        settings = store.read_json(file).get("image_processor", {}) if file.is_file() else {}
    config = store.read_json(directory / "config.json")
    config = config.get("vision_config") or config  # CLIP keeps it one level down
    resized = settings.get("size") or config.get("image_size")
    crop = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    size = _side(crop or resized, file)
    if size is None:
        warnings.warn(f"{directory} does not say its image size; 224 is taken.", stacklevel=2)
        size = 224
    side = _side(resized, file) or size
    half = (0.5, 0.5, 0.5)
    resample = 3 if settings.get("resample") is None else settings["resample"]
    if resample not in _RESAMPLE:
        raise ModelError(f"{file} has resample={resample!r}; known: {', '.join(map(str, _RESAMPLE))}.")
    return Inputs(
        "image", None, size, tuple(settings.get("image_mean", half)), tuple(settings.get("image_std", half)),
        _resize(settings, resized, side), _RESAMPLE[resample],
    )  # fmt: skip


def _resize(settings: Mapping[str, Any], resized: Any, side: int) -> int | tuple[int, int]:
    """What the processor resizes the shorter side to before it crops, or the square that it squashes images into."""
    square = (side, side)
    if settings.get("crop_pct"):  # ConvNeXt's: the crop is a share of the side, and large images are squashed
        return int(side / settings["crop_pct"]) if side < _SQUASHED else square
    if isinstance(resized, dict):
        return side if "shortest_edge" in resized and settings.get("do_center_crop") is not False else square
    return side if not settings or settings.get("do_center_crop") else square


def _side(size: Any, file: Path) -> int | None:
    """The side of a square in the forms that are written: 224, [224, 224], or by `shortest_edge`, `height`, `width`."""
    if isinstance(size, dict):
        size = [size.get(key) or size.get("shortest_edge") for key in ("height", "width")]
    if isinstance(size, list):
        if size[0] != size[-1]:
            raise ModelError(
                f"{file} asks for images of {size[0]} x {size[-1]} pixels; only square ones are read. Wrap the model "
                "in an Encoder and give it tensors."
            )
        size = size[0]
    return None if size is None else int(size)


def copies(directory: Path, config: bool = False) -> Callable[[Any], None]:
    """Copy tokenizer, pooling and preprocessing files beside edited weights; never weights or code.

    `config` says whether `config.json` is copied too: transformers writes its own.
    """
    skip = {"README.md", "tauspan.json"} | (set() if config else {"config.json"})

    def copy(target: Path) -> None:
        for file in directory.rglob("*"):
            inner = file.relative_to(directory)
            plain = file.suffix in {".json", ".txt", ".model", ".jinja"} and not file.name.endswith(
                store.INDEX_SUFFIX
            )
            if file.is_file() and plain and str(inner) not in skip and not inner.name.startswith("."):
                (target / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / inner)

    return copy
