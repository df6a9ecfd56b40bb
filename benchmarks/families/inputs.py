"""What a tiny model is called with, read off its forward and its configuration."""

import inspect
from typing import Any

import torch
from benchmarks.families.shrink import LENGTH, ROWS, SIDE
from torch import Tensor


def drawn(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: int = ROWS, length: int = LENGTH, seed: int = 2) -> dict[str, Tensor]:
    """A padded batch: each row is one token shorter than the one before; none of its tokens is a special one."""
    ids = torch.randint(10, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(length) < length - torch.arange(rows).unsqueeze(1)).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def found_in(config: Any, name: str) -> Any:
    """A field of a configuration, or of the first configuration inside it that has the field."""
    value = getattr(config, name, None)
    if value is not None and not (name == "image_size" and isinstance(value, dict)):
        return value
    parts = [part for part in vars(config).values() if hasattr(part, "to_dict")]
    return next((v for v in (found_in(part, name) for part in parts) if v is not None), None)


def images(config: Any, rows: int = ROWS) -> Tensor:
    """Pictures of the size that a configuration says."""
    size = found_in(config, "image_size") or SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return drawn(rows, found_in(config, "num_channels") or 3, height, width)


def inputs_of(model: Any) -> dict[str, Tensor]:
    """What a model is called with, read off its forward."""
    config, names = model.config, set(inspect.signature(model.forward).parameters)
    main = model.main_input_name if isinstance(model.main_input_name, str) else model.main_input_name[0]
    given: dict[str, Tensor] = {}
    if main == "input_ids" or (
        main == "pixel_values" and "input_ids" in names and "vision_config" in vars(config)
    ):
        given |= tokens()
    if "attention_mask" not in names:
        given.pop("attention_mask", None)
    if main == "pixel_values" or (
        main == "input_ids" and "pixel_values" in names and hasattr(model, "get_text_features")
    ):
        given["pixel_values"] = images(config)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        given["decoder_input_ids"] = tokens(length=5, seed=3)["input_ids"]
    if main == "input_values":
        given["input_values"] = drawn(ROWS, 1200)
    if main == "input_features":
        given["input_features"] = drawn(ROWS, 24, found_in(config, "num_mel_bins") or 16)
    if main == "past_values":
        given["past_values"] = drawn(ROWS, 32, 1)
    if main == "pixel_values_videos":
        given["pixel_values_videos"] = drawn(ROWS, 2, 3, SIDE, SIDE)
    if "use_cache" in names:
        given["use_cache"] = False
    return given
