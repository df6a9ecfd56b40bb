"""From a Pillow picture to RGB pixels, in the same way for every source of pictures."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauspan.core.errors import DataError
from tauspan.models.extras import require_extra

_ORIENTATION = 0x0112  # the EXIF tag
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # converting these modes to 8 bits would clip values


def is_picture(raw: Any) -> bool:
    """Whether this is a Pillow image; Pillow is not imported."""
    return type(raw).__module__.startswith("PIL.") and hasattr(raw, "convert")


def rgb(picture: Any, name: str) -> NDArray[np.uint8]:
    """The pixels of a picture as RGB, uint8 of shape (H, W, 3).

    A palette's colours are looked up, grey is repeated, CMYK is converted, the orientation in its EXIF data is applied,
    and transparency is left out (the colours below it stay), as transformers and torchvision do it.

    Args:
        picture: a Pillow image, decoded or not; of an animation the first frame is taken.
        name: of the file or row, for errors.

    Raises:
        DataError: pixels of 16 bits or floats, whose scale is unknown.
    """
    if picture.mode in _WIDE:
        raise DataError(
            f"{name} has pixels of mode {picture.mode!r}; 8-bit images are read. Convert it, so that the "
            "scale of its values is your choice."
        )
    if _turned(picture):
        picture = require_extra("PIL.ImageOps", "data", f"turning {name}").exif_transpose(picture)
    if "transparency" in picture.info:  # else Pillow warns about palettes with transparency
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def _turned(picture: Any) -> bool:
    """Whether the EXIF data contain a rotation; damaged EXIF data count as none."""
    try:
        return bool(picture.getexif().get(_ORIENTATION, 1) != 1)
    except Exception:  # damaged EXIF data raise errors of many kinds; no program turns such a picture
        return False
