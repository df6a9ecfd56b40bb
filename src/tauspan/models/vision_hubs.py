"""Encoders from timm and open_clip directories (`hf-hub:` and `local-dir:` ids); both need torchvision."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tauspan import store
from tauspan.core.errors import ModelError, StoreError, listed
from tauspan.models.encoder import Batch, Encoder, Inputs
from tauspan.models.extras import require_extra
from tauspan.models.hf import copies
from tauspan.models.home import same_names
from tauspan.models.inputs import Interpolation
from tauspan.models.sources import OPEN_CLIP_CONFIG, weights_of
from tauspan.models.trial import tried

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}  # timm's default


def load(directory: Path, source: str) -> Encoder:
    """The encoder of a timm or open_clip directory; the configuration file says which of the two it is."""
    of = _open_clip if (directory / OPEN_CLIP_CONFIG).is_file() else _timm
    return of(directory, source, weights_of(directory))


def _timm(directory: Path, source: str, weights: Path) -> Encoder:
    timm = require_extra("timm", "timm", f"loading {source!r}")
    config = store.read_json(directory / "config.json")
    kind = config.get("architecture")
    if not kind:
        raise ModelError(
            f"{directory}/config.json has no `architecture`: it is not a directory that timm wrote."
        )
    arguments = {**config.get("model_args", {}), "num_classes": 0}
    try:
        model = timm.create_model(kind, pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"timm could not build {kind!r} of {directory}: {error}") from error
    saved = store.Checkpoint(weights).read()
    wanted = model.state_dict()  # a head in the file is not among them
    missing = sorted(set(wanted) - set(saved))
    if missing:
        raise StoreError(f"{directory} lacks {len(missing)} weights of {kind} ({listed(missing)}).")
    _fill(model, {name: saved[name] for name in wanted}, directory)
    data = config.get("pretrained_cfg", config)  # older files have one level only
    size = _square(data.get("input_size", (3, 224, 224)), directory)
    side = math.floor(size / (data.get("crop_pct") or 0.875))  # timm's own rule and its default
    statistics = {key: data.get(key) or own for key, own in _IMAGENET.items()}
    inputs = image_inputs({**data, **statistics}, size, side, data.get("crop_mode"), directory)

    home, said = same_names(directory, weights, model), "the model's output below its classifier"
    made = Encoder(
        model.eval(), inputs=inputs, source=source, save_extras=copies(directory), pooling=said, home=home
    )
    return tried(made)


def _square(shape: Sequence[int], directory: Path) -> int:
    """The side of square pictures in three colours, given as (channels, height, width)."""
    if len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise ModelError(
            f"{directory} reads pictures of shape {tuple(shape)}; read are square ones of three colours. Wrap the "
            "model in an Encoder and give it tensors."
        )
    return int(shape[-1])


def image_inputs(
    settings: Mapping[str, Any], size: int, side: int, mode: str | None, directory: Path
) -> Inputs:
    """The preprocessing that settings of timm or open_clip ask for: images are resized to `side`, then cropped to `size`.

    Raises:
        ModelError: a way of resizing or interpolating that is not known here.
    """
    ways: dict[str | None, int | tuple[int, int]]
    ways = {None: side, "center": side, "shortest": side, "squash": (side, side)}
    if mode not in ways:
        raise ModelError(f"{directory} resizes images by {mode!r}; known: center, shortest and squash.")
    smooth: dict[str | None, Interpolation]
    smooth = {None: "bicubic", "random": "bicubic", "bicubic": "bicubic", "bilinear": "bilinear"}
    chosen = settings.get("interpolation")
    if chosen not in smooth:
        raise ModelError(f"{directory} interpolates images by {chosen!r}; known: bicubic and bilinear.")
    mean, std = (tuple(settings.get(key) or _HALF) for key in ("mean", "std"))
    return Inputs("image", None, size, mean, std, ways[mode], smooth[chosen], centre="torchvision")


def _fill(model: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise StoreError(f"the weights in {directory} do not fit its configuration: {error}") from error


def _open_clip(directory: Path, source: str, weights: Path) -> Encoder:
    open_clip = require_extra("open_clip", "open-clip", f"loading {source!r}")
    name = f"local-dir:{directory}"
    file = weights if weights.is_file() else next(weights.glob("*.safetensors"))
    try:  # open_clip's own search for weights prefers some pickles to safetensors
        with _unwarned():
            model = open_clip.create_model(name, precision="fp32", load_weights=False, pretrained_text=False)
            tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"open_clip could not build the model of {directory}: {error}") from error
    try:
        open_clip.load_checkpoint(model, str(file), strict=True)
    except (RuntimeError, KeyError) as error:
        raise StoreError(f"{file} does not fit the configuration beside it: {error}") from error
    shape = model.visual.image_size
    size = _square((3, shape, shape) if isinstance(shape, int) else (3, *shape), directory)
    statistics = {"mean": model.visual.image_mean, "std": model.visual.image_std}
    own = {**getattr(model.visual, "preprocess_cfg", {}), **statistics}
    images = image_inputs(own, size, size, own.get("resize_mode"), directory)

    def tokens(prompts: list[str], **_: Any) -> dict[str, Tensor]:
        ids: Tensor = tokenizer(prompts)
        return {"input_ids": ids}

    encoder = Encoder(
        model.eval(),
        _open_clip_image,
        dataclasses.replace(images, tokenizer=tokens),
        source=source,
        label_features=_open_clip_text,
        logit_scale=math.exp(model.logit_scale.item()),
        prefixes=("visual.",),
        save_extras=copies(directory),
        pooling="the projected image embedding",
        home=same_names(directory, file, model),
    )
    return tried(encoder)


@contextmanager
def _unwarned() -> Iterator[None]:
    """Inside the block the root logger drops warnings: open_clip warns there that the weights are random."""
    root = logging.getLogger()

    def serious(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    root.addFilter(serious)
    try:
        yield
    finally:
        root.removeFilter(serious)


def _open_clip_image(model: nn.Module, batch: Batch) -> Tensor:
    encode: Any = model.encode_image
    features: Tensor = encode(batch)
    return features


def _open_clip_text(model: nn.Module, batch: Batch) -> Tensor:
    encode: Any = model.encode_text
    assert isinstance(batch, Mapping)  # noqa: S101 - the tokenizer above makes mappings
    features: Tensor = encode(batch["input_ids"])
    return features
