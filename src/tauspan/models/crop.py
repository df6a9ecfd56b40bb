"""Random crops of training images, as torchvision's `RandomResizedCrop` draws them."""

import math
import random
from typing import NamedTuple

AREA = (0.9, 1.0)  # open_clip's default range for the share of the image's area; the paper trains with it
ASPECT = (3 / 4, 4 / 3)  # width / height of the box, before it is resized to a square
_ATTEMPTS = 10


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, draw: random.Random) -> Box:
    """A random box with 0.9 to 1 of the image's area, and with aspect ratio width / height in [3/4, 4/3].

    The area is uniform, the aspect ratio log-uniform, and the position uniform among those that fit. At most ten shapes
    are drawn; if none fits, the largest central box with an allowed aspect ratio is taken.

    Source: `RandomResizedCrop(size, scale=(0.9, 1.0))` of open_clip's training transform, with torchvision's default
    ratio; the official code of the paper trains with it. The distribution is the same, the drawn numbers are not.

    Example:
        >>> random_box(100, 100, random.Random("a"))
        Box(top=6, left=2, height=93, width=98)
    """
    for _ in range(_ATTEMPTS):
        area = height * width * draw.uniform(*AREA)
        aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = draw.randint(0, height - box_height), draw.randint(0, width - box_width)
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * ASPECT[1]))
    box_height = min(height, round(width / ASPECT[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
