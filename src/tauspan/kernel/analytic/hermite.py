"""Activations given by their Hermite coefficients, and the coefficients of a function."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel.analytic.activation import Activation, Moment

MOST = 100  # the highest order: beyond it, rounding dominates the values of a polynomial


@dataclass(frozen=True)
class Expansion:
    """s = sum_k a_k h_k + rest, where h_k are the Hermite polynomials of unit variance under N(0, 1).

    Args:
        coefficients: a_0, a_1, ...
        residual: E[rest(u)^2], u ~ N(0, 1): what the coefficients leave out of E[s(u)^2].
    """

    coefficients: tuple[float, ...]
    residual: float


def dual_activation(hermite: Sequence[float], name: str = "hermite") -> Activation:
    """The activation s(u) = sum_k a_k h_k(u), exact for every variance.

    Under unit variances E[s(u) s(v)] = sum_k a_k^2 rho^k and E[s'(u) s'(v)] is its derivative. Other variances change the
    coefficients: E[s(u) s(v)] = sum_j c_j(q_u) c_j(q_v) q_uv^j with
    c_j(q) = sum_i a_{j+2i} (q - 1)^i sqrt((j + 2i)!/j!) / (i! 2^i). The kernel is that of the polynomial; where it
    approximates another function, keep variances near 1 (rows of norm sqrt(d), weight_std = 1, E[s^2] = 1).

    Args:
        hermite: a_0, a_1, ...; at most 101 of them.
        name: shown in errors.

    Raises:
        UsageError: no coefficients, too many, or zeros only.
        NonFiniteError: NaN or infinity among them.

    Example:
        >>> s = dual_activation([0.0, 0.5**0.5, 0.0, 0.5**0.5])
        >>> one = torch.ones((), dtype=torch.float64)
        >>> round(float(s.dual(one, one, one / 2)), 12)  # 0.5 rho + 0.5 rho^3
        0.3125
    """
    a = tuple(float(one) for one in hermite)
    if not 1 <= len(a) <= MOST + 1 or not any(a):
        raise UsageError(f"hermite={list(a)[:4]}...: give 1 to {MOST + 1} coefficients, not all zero.")
    if not all(map(math.isfinite, a)):
        raise NonFiniteError(f"hermite={list(a)}: every coefficient must be finite.")
    slopes = tuple(one * math.sqrt(k) for k, one in enumerate(a) if k) or (0.0,)  # h_k' = sqrt(k) h_{k-1}
    return Activation(name, lambda u: _polynomial(a, u), _moment(a), _moment(slopes))


def _moment(a: Sequence[float]) -> Moment:
    def moment(q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
        total = torch.zeros_like(q_u * q_v * q_uv)
        for j in reversed(range(len(a))):  # Horner in q_uv
            total = total * q_uv + _rescaled(a, j, q_u) * _rescaled(a, j, q_v)
        return total

    return moment


def _rescaled(a: Sequence[float], j: int, q: Tensor) -> Tensor:
    """The numbers c_j(q) of `dual_activation`: q^(j/2) c_j(q) is the coefficient of h_j(z) in s(sqrt(q) z)."""
    total = torch.zeros_like(q)
    for i in reversed(range((len(a) - 1 - j) // 2 + 1)):
        weight = math.sqrt(math.factorial(j + 2 * i) // math.factorial(j)) / (math.factorial(i) * 2**i)
        total = total * (q - 1) + a[j + 2 * i] * weight
    return total


def _polynomial(a: Sequence[float], u: Tensor) -> Tensor:
    before, now = torch.zeros_like(u), torch.ones_like(u)
    total = a[0] * now
    for k in range(1, len(a)):
        before, now = now, (u * now - math.sqrt(k - 1) * before) / math.sqrt(k)
        total = total + a[k] * now
    return total


def hermite_coefficients(function: Callable[[Tensor], Tensor], order: int) -> Expansion:
    """The first coefficients a_k = E[s(u) h_k(u)], u ~ N(0, 1), k = 0 to order, of any elementwise function.

    They are computed by Gauss-Legendre quadrature on panels of width 1/4 in [-24, 24] with one edge at 0, so a kink
    there costs no accuracy. The absolute error is below 1e-12 for a function that is smooth elsewhere and grows like a
    power.

    Raises:
        UsageError: an order outside 0 to 100, or a function that changes the shape.
        NonFiniteError: the function is not finite on [-24, 24].

    Example:
        >>> found = hermite_coefficients(torch.relu, 2)
        >>> [round(a, 4) for a in found.coefficients], round(found.residual, 4)
        ([0.3989, 0.5, 0.2821], 0.0113)
    """
    if not 0 <= order <= MOST:
        raise UsageError(f"order={order}: it must be between 0 and {MOST}.")
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.arange(-24, 24, 0.25)
    u = torch.from_numpy((edges[:, None] + (nodes + 1) / 8).ravel())
    density = torch.from_numpy(np.tile(weights / 8, len(edges))) * torch.exp(-u.square() / 2)
    density = density / math.sqrt(2 * math.pi)
    values = function(u)
    if values.shape != u.shape:
        raise UsageError(
            f"the function maps {tuple(u.shape)} to {tuple(values.shape)}: it must be elementwise."
        )
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError("the function has NaN or infinity between -24 and 24.")
    unit = [[0.0] * k + [1.0] for k in range(order + 1)]
    a = [float((density * values * _polynomial(one, u)).sum()) for one in unit]
    return Expansion(tuple(a), max(0.0, float((density * values.square()).sum()) - sum(one**2 for one in a)))
