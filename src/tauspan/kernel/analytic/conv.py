"""Convolutions in nets of infinite width: covariances between pairs of pixels, averaged over the window."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, nearest

Padding = Literal["circular", "zeros"]
Readout = Literal["pool", "flatten"]


@dataclass(frozen=True)
class Convolution:
    """Layers that are convolutions with stride 1 and as many pixels out as in.

    Args:
        kernel_size: the side of the square window, odd.
        padding: `"circular"`, or `"zeros"`.
        readout: `"pool"`: the mean over all pixels, then an affine map (global average pooling). `"flatten"`: an affine
            map of all pixels.

    Raises:
        UsageError: an even window, or an unknown word.

    Example:
        >>> Convolution(padding="zeros").readout
        'pool'
    """

    kernel_size: int = 3
    padding: Padding = "circular"
    readout: Readout = "pool"

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UsageError(f"kernel_size={self.kernel_size}: it must be odd and at least 1.")
        for what, value, known in (
            ("padding", self.padding, get_args(Padding)),
            ("readout", self.readout, get_args(Readout)),
        ):
            if value not in known:
                raise UsageError(f"{what}={value!r}. {nearest(str(value), known)}")

    def require_fits(self, height: int, width: int) -> None:
        """Raise `UsageError` if half of the window is larger than the image."""
        if self.kernel_size // 2 > min(height, width):
            raise UsageError(
                f"a window of {self.kernel_size} reaches beyond an image of {height} x {width} twice: use a smaller one."
            )


@dataclass(frozen=True)
class Pairs:
    """The A pairs of pixels (p, q) whose covariance is computed, and the pair at each shift of the window.

    Args:
        left, right: the pixels p and q, shape (A).
        moved: for each shift of the window the pair (p + shift, q + shift), shape (S, A); A itself where it leaves.
    """

    left: Tensor
    right: Tensor
    moved: Tensor

    @staticmethod
    def of(height: int, width: int, convolution: Convolution, every: bool) -> "Pairs":
        """Every pair of pixels, or each pixel with itself alone, which is all that a flattened readout needs."""
        pixels = height * width
        one = torch.arange(pixels)
        left = one.repeat_interleave(pixels) if every else one
        right = one.repeat(pixels) if every else one
        reach = range(-(convolution.kernel_size // 2), convolution.kernel_size // 2 + 1)
        targets = [
            _shifted(height, width, down, across, convolution.padding) for down in reach for across in reach
        ]
        moved = []
        for target in targets:
            pair = target[left] * pixels + target[right] if every else target[left]
            moved.append(torch.where((target[left] < 0) | (target[right] < 0), len(left), pair))
        return Pairs(left, right, torch.stack(moved))

    def window(self, covariance: Tensor) -> Tensor:
        """The mean of covariances (..., A) over the window's shifts; pairs outside the image count as 0."""
        if len(self.moved) == 1:
            return covariance
        framed = torch.nn.functional.pad(covariance, (0, 1))
        total = torch.zeros_like(covariance)
        for places in self.moved:
            total += framed[..., places]
        return total / len(self.moved)


def _shifted(height: int, width: int, down: int, across: int, padding: Padding) -> Tensor:
    """For each pixel, the index of the pixel at this offset; -1 if that is outside the image."""
    row = torch.arange(height)[:, None] + down
    column = torch.arange(width)[None, :] + across
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row.remainder(height) * width + column.remainder(width)
    return (place if padding == "circular" else torch.where(inside, place, -1)).flatten()
