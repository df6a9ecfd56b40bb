"""Activations as infinitely wide nets use them: second moments of s(u) and s'(u) under a Gaussian."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from tauspan.core.errors import UsageError, nearest

Moment: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """An activation s, with E[s(u) s(v)] and E[s'(u) s'(v)] for (u, v) ~ N(0, [[q_u, q_uv], [q_uv, q_v]]).

    Args:
        name: as it is asked for.
        function: s, elementwise.
        dual: (q_u, q_v, q_uv) -> E[s(u) s(v)]; tensors that broadcast.
        dual_prime: (q_u, q_v, q_uv) -> E[s'(u) s'(v)]. Where training replaces s' by a surrogate, s'(u) is true (the row
            that is predicted) and s'(v) the surrogate (the row that is trained on).
        symmetric: False where the two derivatives differ, so that the tangent kernel is not symmetric.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> relu = find("relu")
        >>> round(float(relu.dual(one, one, 0 * one)), 4), float(relu.dual_prime(one, one, one))
        (0.1592, 0.5)
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(repr=False)
    dual: Moment = field(repr=False)
    dual_prime: Moment = field(repr=False)
    symmetric: bool = True


def angle(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> tuple[Tensor, Tensor]:
    """The angle between u and v, in [0, pi], and |u| |v| times its sine.

    It is computed by atan2 from the determinant, because acos loses half of the digits near correlation 1. A
    determinant within 16 units in the last place of its terms counts as rounding: the angle is then 0 or pi, so that
    equal rows have an exact diagonal. If u or v is zero, the angle is pi/2.
    """
    scale = q_u * q_v
    left = scale - q_uv.square()
    apart = left > 16 * torch.finfo(scale.dtype).eps * scale
    sine = torch.where(apart, left, 1.0).sqrt() * apart
    empty = scale <= 0
    theta = torch.atan2(sine, torch.where(empty, 1.0, q_uv))
    return torch.where(empty, math.pi / 2, theta), sine


def leaky_relu(slope: float = 0.01) -> Activation:
    """max(u, 0) + slope min(u, 0): the arc-cosine kernels of degree 1 and 0. Slope 0 is ReLU, -1 the absolute value.

    With a = ((1 + slope)/2)^2, b = ((1 - slope)/2)^2, t the angle of u and v (Cho and Saul 2009):
    E[s s] = a q_uv + (2 b/pi) (|u| |v| sin t + (pi/2 - t) q_uv), E[s' s'] = a + (2 b/pi) (pi/2 - t).
    """
    straight, bent = ((1 + slope) / 2) ** 2, ((1 - slope) / 2) ** 2 * 2 / math.pi

    def dual(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
        theta, sine = angle(q_u, q_v, q_uv)
        return straight * q_uv + bent * (sine + (math.pi / 2 - theta) * q_uv)

    def dual_prime(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
        return straight + bent * (math.pi / 2 - angle(q_u, q_v, q_uv)[0])

    name = {0.0: "relu", -1.0: "abs"}.get(slope, f"leaky_relu({slope})")
    return Activation(name, lambda u: F.leaky_relu(u, slope), dual, dual_prime)


def _linear(_u: Tensor, _v: Tensor, q_uv: Tensor) -> Tensor:
    return q_uv


def _one(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    return torch.ones_like(q_u * q_v * q_uv)


def _erf(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """E[erf(u) erf(v)] (Williams 1996)."""
    return 2 / math.pi * torch.asin(2 * q_uv / ((1 + 2 * q_u) * (1 + 2 * q_v)).sqrt())


def _erf_prime(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    return 4 / math.pi / ((1 + 2 * q_u) * (1 + 2 * q_v) - 4 * q_uv.square()).sqrt()


def _gelu_parts(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[Phi(u) Phi(v)], E[phi(u) phi(v)] and det(I + Q)."""
    product = (1 + q_u) * (1 + q_v)
    volume = product - q_uv.square()
    both = 0.25 + torch.asin(q_uv / product.sqrt()) / (2 * math.pi)
    return both, 1 / (2 * math.pi * volume.sqrt()), volume


def _gelu(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """s(u) = u Phi(u): Stein's lemma in u, then in v, leaves the two integrals of `_gelu_parts`."""
    both, densities, _ = _gelu_parts(q_u, q_v, q_uv)
    square = q_uv.square()
    return q_uv * both + densities * (q_u * q_v - square + square / (1 + q_u) + square / (1 + q_v))


def _gelu_prime(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    both, densities, volume = _gelu_parts(q_u, q_v, q_uv)
    return both + densities * q_uv * (1 / (1 + q_u) + 1 / (1 + q_v) + 1 / volume)


class SurrogateSign(torch.autograd.Function):
    """sign(u) forward; backward as if it were erf(u), with the derivative 2/sqrt(pi) exp(-u^2)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        """sign(u)."""
        ctx.save_for_backward(u)
        return u.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient times the surrogate's derivative."""
        (u,) = ctx.saved_tensors
        return gradient * (2 / math.sqrt(math.pi) * torch.exp(-u.square()))


def _sign(u: Tensor) -> Tensor:
    found: Tensor = SurrogateSign.apply(u)  # type: ignore[no-untyped-call]
    return found


def _sign_dual(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    return 1 - 2 / math.pi * angle(q_u, q_v, q_uv)[0]


def _sign_prime(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """E[2 delta(u) 2/sqrt(pi) exp(-v^2)]: twice the density of u at 0, times the mean over v given u = 0."""
    given = angle(q_u, q_v, q_uv)[1].square() / q_u
    return 2 * math.sqrt(2) / math.pi / (q_u * (1 + 2 * given)).sqrt()


ACTIVATIONS = {
    "relu": leaky_relu(0.0),
    "leaky_relu": leaky_relu(),
    "abs": leaky_relu(-1.0),
    "identity": Activation("identity", lambda u: u, _linear, _one),
    "erf": Activation("erf", torch.erf, _erf, _erf_prime),
    "gelu": Activation("gelu", F.gelu, _gelu, _gelu_prime),
    "sign": Activation("sign", _sign, _sign_dual, _sign_prime, symmetric=False),
}


def find(activation: str | Activation) -> Activation:
    """The activation of that name; an `Activation` is returned as it is.

    `"sign"` is trained with the derivative of erf in place of its own.

    Raises:
        UsageError: an unknown name.

    Example:
        >>> find("gelu").name
        'gelu'
    """
    if isinstance(activation, Activation):
        return activation
    if activation not in ACTIVATIONS:
        raise UsageError(
            f"activation {activation!r}: {nearest(str(activation), ACTIVATIONS)} Others by "
            "dual_activation(hermite=...)."
        )
    return ACTIVATIONS[activation]
