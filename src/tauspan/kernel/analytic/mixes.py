"""Layers of infinite-width programs that mix positions: fixed matrices, attention and pooling."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tauspan.core.errors import NonFiniteError, UsageError, nearest
from tauspan.kernel.analytic import finite
from tauspan.kernel.analytic.finite import Build
from tauspan.kernel.analytic.layers import Layer, require_positions
from tauspan.kernel.analytic.positions import Kind, Pair, mixing

Choice = Literal["mean", "last"]


class Positions(Layer):
    """Linear maps of positions s -> A s that do not depend on single units: S -> A S A'^T, Theta -> A Theta A'^T.

    A may depend on the mean products of a row's units, which have a limit: a net's own products are taken in the finite
    module, and S in the limit.
    """

    @abstractmethod
    def weights(self, products: Tensor, present: Tensor) -> Tensor:
        """A (n, U, T), of the mean products of units (n, T, T) and of the positions that are no padding (n, T)."""

    def after(self, kind: Kind) -> Kind:
        """The same kind."""
        return kind

    def pair(self, pair: Pair) -> Pair:
        """A S A'^T."""
        left, right = (self.weights(side.covariance, side.present) for side in (pair.left, pair.right))
        return pair.through(mixing, left, right)

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """A s."""
        return finite.Mixing(self.weights), channels


@dataclass(frozen=True, eq=False)
class Mix(Positions):
    """A fixed matrix over positions: a blur, a graph's propagation, a patch mean. Padding counts as zeros.

    Args:
        matrix: A (U, T).

    Raises:
        UsageError: no matrix.
        NonFiniteError: NaN or infinity in it.

    Example:
        >>> tuple(Mix(torch.full((1, 4), 0.25)).weights(torch.zeros(2, 4, 4), torch.ones(2, 4)).shape)
        (2, 1, 4)
    """

    matrix: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.matrix.dim() != 2:
            raise UsageError(f"a matrix over positions of shape {tuple(self.matrix.shape)}: give (U, T).")
        if not bool(torch.isfinite(self.matrix).all()):
            raise NonFiniteError("the matrix over positions holds NaN or infinity.")

    def weights(self, products: Tensor, present: Tensor) -> Tensor:
        """A, with zeros where a position is padding."""
        require_positions(self.matrix.shape[1], present.shape[1], "columns of Mix's matrix")
        return self.matrix.to(products) * present.to(products)[:, None]


@dataclass(frozen=True)
class Attention(Positions):
    """A = softmax(scale S) of each row's own positions: scores h_t . h_r / n, where queries and keys are the units.

    Put a `Dense` before it for a common matrix of queries, keys and values. The limit has no gradient through A, which
    vanishes as 1/sqrt(n). Scores by 1/sqrt(n) of different matrices stay random in the limit and are not this layer.

    Args:
        scale: of the scores.
        causal: a position sees itself and earlier ones alone.

    Raises:
        UsageError: a scale that is not finite.

    Example:
        >>> Attention().weights(torch.zeros(1, 2, 2), torch.ones(1, 2)).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """

    scale: float = 1.0
    causal: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageError(f"scale={self.scale}: it must be finite.")

    def weights(self, products: Tensor, present: Tensor) -> Tensor:
        """The softmax over positions that may be seen."""
        seen = present.bool()[:, None].expand_as(products)
        if self.causal:
            seen = seen & torch.ones_like(seen[0]).tril()
        return torch.softmax((self.scale * products).masked_fill(~seen, -math.inf), -1)


@dataclass(frozen=True)
class Pool(Positions):
    """One position from all that are no padding.

    Args:
        choice: their `"mean"`, or the `"last"`.

    Raises:
        UsageError: another word.

    Example:
        >>> Pool("last").weights(torch.zeros(1, 3, 3), torch.tensor([[1.0, 1, 0]])).tolist()
        [[[0.0, 1.0, 0.0]]]
    """

    choice: Choice = "mean"

    def __post_init__(self) -> None:
        if self.choice not in get_args(Choice):
            raise UsageError(f"choice={self.choice!r}. {nearest(str(self.choice), get_args(Choice))}")

    def weights(self, products: Tensor, present: Tensor) -> Tensor:
        """One row of weights, whose sum is 1."""
        there = present.to(products)
        if self.choice == "mean":
            return (there / there.sum(1, keepdim=True))[:, None]
        one: Tensor = torch.nn.functional.one_hot(there.sum(1).long() - 1, there.shape[1]).to(products)
        return one[:, None]
