"""What infinitely wide nets carry between layers: covariances and tangent kernels of pairs of positions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tauspan.kernel.analytic.activation import Activation

Kind = Literal["rows", "gaussian", "activated"]
Rule: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Side:
    """The n rows of one side of a kernel, each with T positions.

    Args:
        covariance: between the positions of each row, shape (n, T, T).
        present: which positions are no padding, shape (n, T).
    """

    covariance: Tensor
    present: Tensor

    @property
    def variance(self) -> Tensor:
        """Of every position, shape (n, T)."""
        return self.covariance.diagonal(dim1=1, dim2=2)

    def through(self, rule: Rule, of: Tensor) -> "Side":
        """After a map of S."""
        found = rule(self.covariance, of, of)
        return Side(found, still(self.present, found.shape[1]))


@dataclass(frozen=True)
class Pair:
    """What is known of a layer's units for n rows with T positions and m rows with R positions.

    Args:
        left, right: the two sides.
        cross: the covariance S of a unit at position t of a left row with itself at r of a right row, (n, m, T, R).
        tangent: the tangent kernel Theta of the same, (n, m, T, R).
        kind: what the units are: `"rows"` (the data themselves), `"gaussian"` (their limit is a centred Gaussian
            process), `"activated"` (a function of one).
    """

    left: Side
    right: Side
    cross: Tensor
    tangent: Tensor
    kind: Kind = "rows"

    def affine(self, weight: float, bias: float) -> "Pair":
        """After a layer with fresh weights: S -> w^2 S + b^2, Theta -> the new S + w^2 Theta."""
        left, right = (
            replace(side, covariance=weight**2 * side.covariance + bias**2)
            for side in (self.left, self.right)
        )
        cross = weight**2 * self.cross + bias**2
        return Pair(left, right, cross, cross + weight**2 * self.tangent, "gaussian")

    def through(self, rule: Rule, left: Tensor, right: Tensor) -> "Pair":
        """After a map of S and Theta alike: rule(S, a, b) with what it needs of the left rows a and of the right b."""
        cross, tangent = (rule(one, left[:, None], right[None]) for one in (self.cross, self.tangent))
        return Pair(self.left.through(rule, left), self.right.through(rule, right), cross, tangent, self.kind)

    def activated(self, act: Activation) -> "Pair":
        """After s: S -> E[s(u) s(v)], Theta -> Theta E[s'(u) s'(v)] with (u, v) ~ N(0, S)."""

        def rule(covariance: Tensor, u: Tensor, v: Tensor) -> Tensor:
            return act.dual(u[..., :, None], v[..., None, :], covariance)

        u, v = self.left.variance, self.right.variance
        slopes = act.dual_prime(u[:, None, :, None], v[None, :, None, :], self.cross)
        left, right = self.left.through(rule, u), self.right.through(rule, v)
        return Pair(left, right, rule(self.cross, u[:, None], v[None]), self.tangent * slopes, "activated")


def mixing(covariance: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A S B^T for weights of positions A (..., U, T) and B (..., V, R)."""
    return a @ covariance @ b.mT


def scaling(covariance: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a_t S_tr b_r for a factor of each position."""
    return a[..., :, None] * covariance * b[..., None, :]


def still(present: Tensor, positions: int) -> Tensor:
    """Which of the positions after a layer are no padding: the same if there are as many, else all."""
    return present if present.shape[1] == positions else present.new_ones(len(present), positions)


def inputs(x: Tensor, x2: Tensor, present: Tensor, present2: Tensor) -> Pair:
    """The data as the first layer finds them: S = x_t . x'_r / d, Theta = 0. Rows (n, T, d) and (m, R, d)."""
    d = x.shape[2]
    cross = torch.einsum("ntd,mrd->nmtr", x, x2) / d
    return Pair(Side(x @ x.mT / d, present), Side(x2 @ x2.mT / d, present2), cross, torch.zeros_like(cross))
