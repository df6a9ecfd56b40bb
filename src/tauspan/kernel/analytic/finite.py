"""The finite layers of infinite-width programs, in the NTK parametrisation: (N, T, channels) to the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel.analytic.parametrize import NTKLinear
from tauspan.kernel.analytic.positions import still

if TYPE_CHECKING:  # a layer builds modules, and a chain of layers is built here
    from tauspan.kernel.analytic.layers import Layer


@dataclass(frozen=True)
class Build:
    """What modules are made with.

    Args:
        width: units of every layer.
        generator: draws the numbers.
        dtype: of the parameters.
    """

    width: int
    generator: torch.Generator
    dtype: torch.dtype

    def linear(self, inputs: int, weight_std: float, bias_std: float) -> NTKLinear:
        """Weights to `width` units."""
        return NTKLinear(inputs, self.width, weight_std, bias_std, generator=self.generator, dtype=self.dtype)


class Chain(nn.Module):
    """One layer after the other; each gets the units and which positions are no padding."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels) to (N, U, channels)."""
        for layer in self.layers:
            s = layer(s, present)
            present = still(present, s.shape[1])
        return s


def chained(layers: Sequence["Layer"], channels: int, build: Build) -> tuple[Chain, int]:
    """The modules of some layers, and how many channels the last gives."""
    made = []
    for layer in layers:
        module, channels = layer.module(channels, build)
        made.append(module)
    return Chain(made), channels


class Reading(nn.Module):
    """A linear map of each position, or of those that the taps of each output position read."""

    def __init__(self, linear: NTKLinear, taps: Tensor | None) -> None:
        super().__init__()
        self.linear, self.taps = linear, taps

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels) to (N, U, width)."""
        if self.taps is not None:
            kept = s * present.to(s)[..., None]
            framed = torch.cat([kept, torch.zeros_like(kept[:, :1])], 1)  # position -1 is one of zeros
            s = framed[:, self.taps.T.remainder(framed.shape[1])].flatten(2)
        found: Tensor = self.linear(s)
        return found


class Elementwise(nn.Module):
    """A function of each unit."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """s(h)."""
        return self.function(s)


class Norm(nn.Module):
    """Units divided by their root mean square."""

    def __init__(self, center: bool, eps: float) -> None:
        super().__init__()
        self.center, self.eps = center, eps

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels)."""
        if self.center:
            s = s - s.mean(2, keepdim=True)
        return s * (s.square().mean(2, keepdim=True) + self.eps).rsqrt()


class BatchNorm(nn.Module):
    """A function of units that are standardised over all positions of a batch that are no padding."""

    def __init__(self, channels: int, eps: float, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not eps:
            raise UsageError(
                "BatchNorm with eps=0 has no finite net, since torch's needs one above 0: take eps=1e-12."
            )
        self.norm = nn.BatchNorm1d(channels, eps, affine=False, track_running_stats=False)
        self.function = function

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels)."""
        seen = present.bool()
        require_batch(int(seen.sum()))
        found = torch.zeros_like(s)
        found[seen] = self.norm(s[seen])
        return self.function(found)


class Mixing(nn.Module):
    """A s with weights of positions A that may depend on the mean products of the units."""

    def __init__(self, weights: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels) to (N, U, channels)."""
        return self.weights(s @ s.mT / s.shape[2], present) @ s


class Residual(nn.Module):
    """s + body(s)."""

    def __init__(self, body: Chain) -> None:
        super().__init__()
        self.body = body

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels)."""
        found: Tensor = self.body(s, present)
        if found.shape != s.shape:
            raise MismatchError(
                f"a residual body gives {tuple(found.shape[1:])} for {tuple(s.shape[1:])}: it must keep the shape."
            )
        return s + found


class Recurrent(nn.Module):
    """s_t = s(step(s_{t-1}) + drive(x_t)); all states."""

    def __init__(self, drive: NTKLinear, step: NTKLinear, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.drive, self.step, self.function = drive, step, function

    def forward(self, s: Tensor, present: Tensor) -> Tensor:
        """(N, T, channels) to (N, T, width)."""
        states: list[Tensor] = []
        for driven in self.drive(s).unbind(1):
            states.append(self.function(driven + self.step(states[-1]) if states else driven))
        return torch.stack(states, 1)


def require_batch(rows: int) -> None:
    """Raise `UsageError` for a batch that has no variance."""
    if rows < 2:
        raise UsageError(
            "batch norm of a batch of one row: its units are their own mean, and nothing is left. Give the rows of a "
            "whole batch."
        )
