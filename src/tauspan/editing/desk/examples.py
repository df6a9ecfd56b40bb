"""The rows that a page shows: texts cut short, pictures as thumbnails."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tauspan.models.extras import require_extra
from tauspan.models.pictures import is_picture, rgb
from tauspan.tasks import Split
from tauspan.tasks.images import Images

LONGEST = 300  # characters of a text
_SIDE = 48  # pixels of the longer side of a thumbnail
_COLOURS = 64


def shown(rows: Split, places: Sequence[int]) -> list[str] | None:
    """The rows at some places as texts or `data:` addresses of PNG thumbnails; None for rows that are neither.

    Example:
        >>> import torch
        >>> shown(Split(["a" * 400, "b"], torch.tensor([0, 1])), [1])
        ['b']
    """
    inputs = rows.inputs
    first = inputs[0] if len(inputs) else None
    if isinstance(first, str):
        return [_cut(str(inputs[place])) for place in places]
    if isinstance(inputs, Images) or is_picture(first) or _pixels(first):
        return [_thumbnail(inputs[place], f"row {place}") for place in places]
    return None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _pixels(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 3 and item.shape[-1] == 3


def _thumbnail(item: Any, name: str) -> str:
    image = require_extra("PIL.Image", "data", "drawing thumbnails")
    picture = image.fromarray(rgb(item, name) if is_picture(item) else np.asarray(item))
    picture.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    picture.quantize(_COLOURS).save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")
