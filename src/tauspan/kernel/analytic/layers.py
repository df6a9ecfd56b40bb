"""Layers of infinite-width programs: each knows its limit on pairs of positions, and its finite module."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel.analytic import finite
from tauspan.kernel.analytic.activation import Activation, find
from tauspan.kernel.analytic.conv import Convolution, Pairs
from tauspan.kernel.analytic.finite import Build
from tauspan.kernel.analytic.positions import Kind, Pair, scaling


class Layer(ABC):
    """One layer. The rules of its limit hold for some kinds of input alone, which `after` decides."""

    symmetric = True  # False where training replaces a derivative
    batched = False  # True where the rows of a batch depend on one another

    @abstractmethod
    def after(self, kind: Kind) -> Kind:
        """What the units are after the layer; raises `UsageError` where the limit has another form."""

    @abstractmethod
    def pair(self, pair: Pair) -> Pair:
        """The limit after the layer, from that before it."""

    @abstractmethod
    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """The finite layer for inputs of so many channels, and how many channels it gives."""

    def redrawn(self, draw: int) -> "Layer":
        """The layer with other random numbers in its limit; itself where there are none."""
        return self


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """h_t = w W s_t / sqrt(n) + b beta, the same W at every position; S -> w^2 S + b^2, Theta -> S + w^2 Theta.

    With `taps`, an output position reads K input positions, each by a matrix of its own, as a convolution does:
    h_u = w sum_k W_k s_{taps[k, u]} / sqrt(K n) + b beta, and S and Theta are averaged over k first.

    Args:
        weight_std: w.
        bias_std: b; 0 makes no biases.
        taps: integers (K, U): which position tap k of output position u reads; -1 reads zeros. `windows` and `flattened`
            make them.

    Raises:
        UsageError: a standard deviation that is no scale, or taps that are no table of positions.

    Example:
        >>> Dense(1.5, 0.1).after("activated")
        'gaussian'
    """

    weight_std: float = 1.0
    bias_std: float = 0.0
    taps: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_scales(weight_std=self.weight_std, bias_std=self.bias_std)
        taps = self.taps
        if taps is not None and (taps.dim() != 2 or taps.is_floating_point() or 0 in taps.shape):
            raise UsageError(
                f"taps of shape {tuple(taps.shape)} and {taps.dtype}: give integers (taps, output positions)."
            )

    def after(self, kind: Kind) -> Kind:
        """Fresh weights make a Gaussian process of anything."""
        return "gaussian"

    def pair(self, pair: Pair) -> Pair:
        """The affine rule, after the mean over taps."""
        if self.taps is not None:
            pair = _read(pair, self.taps)
        return pair.affine(self.weight_std, self.bias_std)

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """One `NTKLinear` for all positions."""
        taps = 1 if self.taps is None else len(self.taps)
        linear = build.linear(channels * taps, self.weight_std, self.bias_std)
        return finite.Reading(linear, self.taps), build.width


def windows(size: int | tuple[int, int], convolution: Convolution) -> Tensor:
    """The taps of a convolution: (k, T) over a sequence of T positions, (k^2, H W) over images, row by row.

    Args:
        size: T, or (H, W).
        convolution: the window and what it reads beyond the ends.

    Raises:
        UsageError: a window that reaches beyond the positions twice.

    Example:
        >>> windows(4, Convolution(3, "zeros")).tolist()
        [[-1, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, -1]]
    """
    height, width = (1, size) if isinstance(size, int) else size
    convolution.require_fits(width if isinstance(size, int) else height, width)
    moved = Pairs.of(height, width, convolution, every=False).moved
    if isinstance(size, int):  # of the window's lines the one in the middle
        moved = moved[convolution.kernel_size * (convolution.kernel_size // 2) :][: convolution.kernel_size]
    return torch.where(moved == height * width, -1, moved)


def flattened(positions: int) -> Tensor:
    """The taps (P, 1) of a layer that reads all positions, each by a matrix of its own.

    Example:
        >>> flattened(3).tolist()
        [[0], [1], [2]]
    """
    return torch.arange(positions)[:, None]


def _read(pair: Pair, taps: Tensor) -> Pair:
    """The mean over taps of S and Theta at the positions that each tap reads; padding and -1 read zeros."""
    for side in (pair.left, pair.right):
        require_positions(int(taps.max()) + 1, side.present.shape[1], "taps", exact=False)

    def mean(covariance: Tensor, a: Tensor, b: Tensor) -> Tensor:
        kept = scaling(covariance, a, b)
        framed = torch.nn.functional.pad(kept, (0, 1, 0, 1))  # position -1 is one of zeros
        total = torch.zeros(())
        for places in taps:
            total = total + framed[..., places[:, None], places[None]]
        return total / len(taps)

    return pair.through(mean, pair.left.present.double(), pair.right.present.double())


@dataclass(frozen=True)
class Act(Layer):
    """s of every unit; S -> E[s(u) s(v)], Theta -> Theta E[s'(u) s'(v)].

    Args:
        activation: a name, or an `Activation`; with a surrogate derivative the tangent kernel is not symmetric.

    Example:
        >>> Act("erf").after("gaussian")
        'activated'
    """

    activation: str | Activation = "relu"

    def __post_init__(self) -> None:
        find(self.activation)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether both derivatives are the activation's own."""
        return find(self.activation).symmetric

    def after(self, kind: Kind) -> Kind:
        """Of Gaussian units alone."""
        if kind != "gaussian":
            raise UsageError(f"Act after {kind} units: its limit needs Gaussian ones. Put a Dense before it.")
        return "activated"

    def pair(self, pair: Pair) -> Pair:
        """Moments of s and s'."""
        return pair.activated(find(self.activation))

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """The function."""
        return finite.Elementwise(find(self.activation).function), channels


@dataclass(frozen=True)
class Norm(Layer):
    """h_t / sqrt(mean h_t^2 + eps) over the units, without scale and shift; S -> S_tr / sqrt((V_t + eps)(V_r + eps)).

    Theta gets the same factor, because the derivative of the norm vanishes as 1/n.

    Args:
        center: subtract the mean over units (layer norm) or not (RMS norm); the limits are the same, because the mean of
            Gaussian units vanishes.
        eps: added to the variance.

    Raises:
        UsageError: an eps that is negative or not finite.

    Example:
        >>> Norm().after("gaussian")
        'gaussian'
    """

    center: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise UsageError(f"eps={self.eps}: it must be finite and at least 0.")

    def after(self, kind: Kind) -> Kind:
        """Layer norm of Gaussian units, RMS norm of any."""
        if self.center and kind != "gaussian":
            raise UsageError(
                f"Norm(center=True) after {kind} units, whose mean does not vanish: put a Dense before it, or take "
                "Norm(center=False)."
            )
        return kind

    def pair(self, pair: Pair) -> Pair:
        """Divided by both standard deviations."""
        left, right = ((side.variance + self.eps).rsqrt() for side in (pair.left, pair.right))
        return pair.through(scaling, left, right)

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """The norm over channels."""
        return finite.Norm(self.center, self.eps), channels


def require_scales(**scales: float) -> None:
    """Raise `UsageError` for standard deviations that are no scales; that of biases may be 0."""
    for name, value in scales.items():
        if not (0 < value < math.inf or (name == "bias_std" and value == 0)):
            raise UsageError(
                f"{name}={value}: it must be finite and {'at least' if name == 'bias_std' else 'above'} 0."
            )


def require_positions(wanted: int, found: int, what: str, exact: bool = True) -> None:
    """Raise `MismatchError` where a layer is for another number of positions than there are."""
    if wanted != found if exact else wanted > found:
        raise MismatchError(
            f"{wanted} {what} for {found} positions: make the layer for as many as there are."
        )
