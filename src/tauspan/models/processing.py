"""A model's own image processor, and a faster way to make the same input where the two agree."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tauspan import store
from tauspan.core.errors import DataError, ModelError, StoreError
from tauspan.models.extras import quiet, require_extra
from tauspan.models.inputs import Inputs, Interpolation

FILES = ("preprocessor_config.json", "processor_config.json")
_FILTERS: dict[int, Interpolation] = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_SQUASHED = 384  # ConvNeXt's processor crops below this side, and squashes from it on
_ROUNDING = 1e-4  # the largest difference of a normalised pixel: float32 against float64
_USUAL = 224  # pixels
_DEFAULTS: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
    "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
_KNOWN = {
    *_DEFAULTS, "do_center_crop", "size", "crop_size", "image_processor_type", "feature_extractor_type", "data_format",
    "do_convert_rgb", "default_to_square", "processor_class",
}  # fmt: skip


class OwnProcessor:
    """A model's own image processor, applied to one picture at a time.

    Args:
        processor: a processor of transformers.
        where: the directory, for errors.
    """

    def __init__(self, processor: Any, where: str) -> None:
        self.processor, self._where = processor, where

    def __call__(self, picture: NDArray[np.uint8]) -> Tensor:
        """The model's input, shape (C, H', W'), for one RGB picture of shape (H, W, 3)."""
        if picture.dtype != np.uint8:
            raise DataError(
                f"the image processor of {self._where} reads bytes, and a picture has {picture.dtype} values. Give it as "
                "uint8 in 0..255."
            )
        try:
            made = self.processor(images=[picture], return_tensors="pt", input_data_format="channels_last")
        except Exception as error:  # each processor has errors of its own
            raise ModelError(f"the image processor of {self._where} failed on a picture: {error}") from error
        values = made.get("pixel_values")
        if not isinstance(values, Tensor) or values.ndim != 4 or len(values) != 1:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ModelError(
                f"the image processor of {self._where} makes {shape} of a picture, and one array of (channels, "
                "height, width) is read. Give the model tensors: wrap it in an Encoder with inputs of your own."
            )
        return values[0].float()

    def __repr__(self) -> str:
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"{type(self.processor).__name__}({settings})"


def image_inputs(directory: Path) -> Inputs:
    """The `Inputs` of a vision model: its own image processor, or a faster way that gives the same.

    The faster way resizes, crops and normalises without the processor. It is used if the settings ask for nothing else
    and both agree on sample pictures up to rounding.

    Raises:
        ModelError: the settings cannot be read.
    """
    if not any((directory / name).is_file() for name in FILES):
        return _unsaid(directory)
    try:
        own = OwnProcessor(_processor(directory), str(directory))
        fast = _fast(own.processor)
        sample = own(_samples(fast.size if fast else _USUAL)[0])
    except ModelError as error:
        return _as_written(directory, error)
    if fast is not None and _agree(fast, own):
        return fast
    return Inputs("image", size=int(sample.shape[-1]), processor=own)


def _processor(directory: Path) -> Any:
    """The image processor as transformers loads it, in the version for Pillow, which needs no torchvision."""
    transformers = require_extra(
        "transformers", "transformers", f"reading the image processor of {directory}"
    )
    require_extra("PIL.Image", "data", f"the image processor of {directory}")
    try:
        with quiet(transformers):
            return transformers.AutoImageProcessor.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, backend="pil"
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        first = str(error).strip().partition("\n")[0].partition(". ")[0][:160]
        raise ModelError(
            f"{directory} has no image processor that transformers can read: {first}. Save the model's own beside it "
            "(`processor.save_pretrained`)."
        ) from error


def _as_written(directory: Path, error: ModelError) -> Inputs:
    """The inputs that a processor's file describes, where transformers cannot run the processor; warns of this.

    Raises:
        ModelError: `error` itself, if the file asks for more than resizing, cropping and normalising.
    """
    file = next(directory / name for name in FILES if (directory / name).is_file())
    try:
        content = store.read_json(file)
    except StoreError:
        raise error from None
    content = content.get("image_processor", content) if isinstance(content, dict) else {}
    said = {key: value for key, value in content.items() if value is not None}
    said.setdefault("do_center_crop", "crop_size" in said)
    unknown = sorted(set(said) - _KNOWN)
    found = (
        None
        if unknown or not isinstance(said.get("size"), Mapping)
        else _fast(SimpleNamespace(**_DEFAULTS | said))
    )
    if found is None:
        raise error
    warnings.warn(
        f"{error} What {file.name} says is done without it, and is not compared: {found.told()}, "
        f"{found.interpolation}, mean {found.mean}, standard deviation {found.std}.",
        stacklevel=5,
    )
    return found


def _unsaid(directory: Path) -> Inputs:
    """The inputs if no file describes them: pictures squashed to a square, mean and std 0.5; warns, as it is a guess."""
    config = store.read_json(directory / "config.json")
    config = config.get("vision_config") or config  # CLIP keeps it one level down
    size = config.get("image_size")
    side = size[0] if isinstance(size, list) else size
    if isinstance(size, list) and size[0] != size[-1]:
        raise ModelError(
            f"{directory} reads images of {size[0]} x {size[-1]} pixels and has no image processor. Save its own "
            "beside it (`processor.save_pretrained`)."
        )
    said = f"the {side} pixels of its configuration" if side else f"{_USUAL} pixels"
    warnings.warn(
        f"{directory} has no {FILES[0]}, which says how pictures become its input: they are squashed to {said}, with "
        "mean 0.5 and standard deviation 0.5. If it was trained otherwise, save its own processor beside it "
        "(`processor.save_pretrained`).",
        stacklevel=5,
    )
    side = int(side or _USUAL)
    return Inputs("image", size=side, resize=(side, side))


def _fast(processor: Any) -> Inputs | None:
    """The settings as `Inputs`; None if they ask for more than resizing, cropping and normalising."""
    on = {
        key: getattr(processor, f"do_{key}", None)
        for key in ("resize", "rescale", "normalize", "center_crop")
    }
    chosen = _FILTERS.get(_number(getattr(processor, "resample", None)))
    factor = getattr(processor, "rescale_factor", None)
    resize = _resize(processor)
    if not on["resize"] or not on["rescale"] or factor is None or abs(255 * factor - 1) > 1e-6:
        return None
    crop = _square(getattr(processor, "crop_size", None)) if on["center_crop"] else None
    if on["center_crop"] is not True and isinstance(resize, tuple) and resize[0] == resize[1]:
        crop = resize[0]
    if getattr(processor, "crop_pct", None):
        crop = _side(processor)
    if chosen is None or resize is None or crop is None:
        return None
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if on["normalize"]:
        mean, std = (_three(getattr(processor, key, None)) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        return None
    return Inputs("image", None, crop, mean, std, resize, chosen)


def _number(resample: Any) -> int:
    return -1 if resample is None else int(resample)


def _three(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(map(float, values or ()))


def _resize(processor: Any) -> int | tuple[int, int] | None:
    """What the shorter side is resized to, or the height and width; None where it is neither."""
    size = getattr(processor, "size", None)
    share = getattr(processor, "crop_pct", None)
    side = _side(processor)
    if share and side:  # ConvNeXt's: the crop is a share of the side, and large images are squashed
        return int(side / share) if side < _SQUASHED else (side, side)
    height, width = _pixels(size, "height"), _pixels(size, "width")
    if height and width:
        return height, width
    return None if _pixels(size, "longest_edge") else side


def _side(processor: Any) -> int | None:
    return _pixels(getattr(processor, "size", None), "shortest_edge")


def _square(size: Any) -> int | None:
    height, width = _pixels(size, "height"), _pixels(size, "width")
    return height if height == width else None


def _pixels(size: Any, key: str) -> int | None:
    """One entry of a size, which is a mapping or has attributes."""
    found = size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)
    return int(found) if found else None


def _samples(size: int) -> list[NDArray[np.uint8]]:
    """Pictures in three colours and of three shapes, with edges that tell filters apart."""
    draw = np.random.default_rng(0)
    shapes = [(size, size), (2 * size + 3, size + 5), (size // 2 + 1, size + 9)]
    made = []
    for height, width in shapes:
        coarse = draw.integers(40, 216, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        made.append(coarse.repeat(4, 0).repeat(4, 1)[:height, :width])
    return made


def _agree(fast: Inputs, own: OwnProcessor) -> bool:
    """Whether both give the same pixels for the sample pictures, up to rounding."""
    for picture in _samples(fast.size):
        expected = own(picture)
        found = fast.pixels(picture)
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=_ROUNDING):
            return False
    return True
