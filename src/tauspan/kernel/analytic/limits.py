"""The limit of an infinitely wide net's kernel classifier as its depth grows."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel.analytic.activation import Activation, find

Kind = Literal["majority vote", "nearest neighbour", "singular kernel", "linear"]


@dataclass(frozen=True)
class DepthLimit:
    """The limit in depth of the classifier sign(K(x, X) K(X, X)^-1 y) on a sphere, K = Theta_L.

    p is the dual activation divided by its value at 1: the map from one layer's correlation to the next.

    Args:
        kind: the classifier.
        alpha: the singular kernel's pole |x - x'|^-alpha; None for the other kinds.
        at_zero: p(0).
        slope_at_zero: p'(0).
        slope_at_one: p'(1).
    """

    kind: Kind
    alpha: float | None
    at_zero: float
    slope_at_zero: float
    slope_at_one: float


def depth_limit(activation: str | Activation, tolerance: float = 1e-12) -> DepthLimit:
    """Which of three classifiers depth leads to, at weights that keep variances at 1 (Radhakrishnan et al. 2023).

    With A = p(0), B = p'(0), C = p'(1): A > 0, the majority class everywhere; A = B = 0, the nearest neighbour;
    A = 0 < B < 1, a singular kernel of pole |x - x'|^-alpha, alpha = -2 log B / log C, Bayes-consistent where alpha is
    the data's dimension. B = 1 is a linear net, whose kernel no depth changes.

    Args:
        activation: a name, or an `Activation`.
        tolerance: below it A, B and 1 - B count as 0.

    Raises:
        UsageError: an activation trained with a surrogate derivative, which is not p'.

    Example:
        >>> limit = depth_limit("erf")
        >>> limit.kind, round(limit.alpha, 4)
        ('singular kernel', 0.8882)
    """
    act = _unsurrogated(activation)
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64)
    scale = act.dual(one, one, one)
    a = float(act.dual(one, one, zero) / scale)
    b, c = (float(act.dual_prime(one, one, at) / scale) for at in (zero, one))
    if abs(a) > tolerance:
        return DepthLimit("majority vote", None, a, b, c)
    if abs(b) <= tolerance:
        return DepthLimit("nearest neighbour", None, a, b, c)
    if 1 - b <= tolerance:
        return DepthLimit("linear", None, a, b, c)
    return DepthLimit("singular kernel", -2 * math.log(b) / math.log(c), a, b, c)


def on_sphere(activation: str | Activation, similarity: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """S_L and Theta_L at cosines of unit rows, with weights that keep variances at 1; shapes of `similarity`, float64.

    S_{l+1} = p(S_l), Theta_{l+1} = S_{l+1} + Theta_l p'(S_l), from S_0 = Theta_0 = similarity. The variance is held at 1
    exactly, so that any depth can be asked for.

    Raises:
        UsageError, NonFiniteError: as in `limit_kernel`; depth below 1.

    Example:
        >>> s, theta = on_sphere("identity", torch.tensor(0.5), depth=4)
        >>> float(s), float(theta)
        (0.5, 2.5)
    """
    if depth < 1:
        raise UsageError(f"depth={depth}: a net has at least one hidden layer.")
    act, s = _unsurrogated(activation), _cosines(similarity)
    one = torch.ones_like(s)
    scale, theta = act.dual(one, one, one), s
    for _ in range(depth):
        following = act.dual(one, one, s) / scale
        theta = following + theta * act.dual_prime(one, one, s) / scale
        s = following
    return s, theta


def limit_kernel(activation: str | Activation, similarity: Tensor, most: int = 100_000) -> Tensor:
    """Lim S_L / B^L, the singular kernel to which Theta_L / (L B^L) tends, at cosines in [-1, 1]; same shape, float64.

    It satisfies F(p(s)) = B F(s) and has the pole |x - x'|^-alpha at s = 1. Test exponents on it: the raw tangent kernel
    of depth L shows alpha + 2 where |x - x'| is much smaller than L^-1/2.

    Args:
        activation: one whose `depth_limit` is a singular kernel.
        similarity: x.x' of unit rows.
        most: layers after which to give up.

    Raises:
        UsageError: another kind of limit, a similarity outside [-1, 1], or no convergence within `most` layers.
        NonFiniteError: NaN.

    Cost:
        About log(1/(1 - s)) / log C layers to leave the pole, then 36 / log(1/B).

    Example:
        >>> found = limit_kernel("erf", torch.tensor([0.5, 1.0]).double())
        >>> round(float(found[0]), 4), float(found[1])
        (0.5687, inf)
    """
    limit, act = depth_limit(activation), find(activation)
    if limit.kind != "singular kernel":
        raise UsageError(f"{act.name} tends to a {limit.kind}: only a singular kernel has this limit.")
    s, one = _cosines(similarity), torch.ones((), dtype=torch.float64)
    scale = act.dual(one, one, one)
    found = s.clone()
    for _ in range(most):
        following = act.dual(one, one, s) / scale
        moving = (s.abs() > 1e-17) & (following != s)
        if not bool(moving.any()):
            pole = torch.sign(s) * math.inf
            return torch.where(
                s.abs() > 0.5, pole, found
            )  # 1, and for an odd activation also -1, are fixed points
        found = torch.where(moving, found * following / (limit.slope_at_zero * s), found)
        s = torch.where(moving, following, s)
    raise UsageError(f"{act.name}: no limit after {most} layers; p'(1) = {limit.slope_at_one} is close to 1.")


def _unsurrogated(activation: str | Activation) -> Activation:
    act = find(activation)
    if not act.symmetric:
        raise UsageError(
            f"{act.name} is trained with a surrogate derivative, which decides no limit in depth."
        )
    return act


def _cosines(similarity: Tensor) -> Tensor:
    """The cosines in float64; values within rounding of 1 or -1 become exactly 1 or -1.

    Depth would move a value just below 1 away from the pole.
    """
    s = similarity.double()
    if bool(s.isnan().any()):
        raise NonFiniteError("the similarities hold NaN.")
    most = float(s.abs().max())
    if most > 1 + 1e-9:
        raise UsageError(f"a similarity of {most}: cosines lie between -1 and 1.")
    return torch.where(s.abs() > 1 - 16 * torch.finfo(s.dtype).eps, s.sign(), s)
