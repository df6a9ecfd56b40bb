"""Activations that are trained with a surrogate derivative, and the kernels that such training follows."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, nearest
from tauspan.kernel.analytic.activation import Activation, Moment, angle
from tauspan.kernel.analytic.means import GaussianMeans

Derivative = Literal["erf", "straight-through"]


def scaled_erf(slope: float) -> Activation:
    """erf(m u), with its own derivative; m = slope. It tends to sign(u) as m grows, and its tangent kernel then diverges.

    E[s s] = (2/pi) asin(q_uv / sqrt((a + q_u)(a + q_v))), E[s' s'] = (2/pi) / sqrt((a + q_u)(a + q_v) - q_uv^2) with
    a = 1/(2 m^2) (Williams 1996).

    Args:
        slope: m.

    Raises:
        UsageError: a slope that is not positive and finite.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> round(float(scaled_erf(2.0).dual(one, one, one / 2)), 4)
        0.2932
    """
    _require_slope("slope", slope, finite=True)
    a = _spread(slope)
    return Activation(
        f"erf({slope} u)",
        lambda u: torch.erf(slope * u),
        partial(_product, a),
        lambda q_u, q_v, q_uv: _slopes(a, a, q_u, q_v, q_uv),
    )


def surrogate(
    slope: float = math.inf,
    derivative: Derivative | Callable[[Tensor], Tensor] = "erf",
    *,
    surrogate_slope: float = 1.0,
    kinks: Sequence[float] = (0.0,),
) -> Activation:
    """erf(m u), or sign(u), trained as if its derivative were another (Eilers et al. 2024, arXiv 2405.15539).

    With a = 1/(2 m^2), 0 for sign, the true derivative is 2 N(u; 0, a). So E[s'(u) t(v)] = 2 E[t(v)] / sqrt(2 pi
    (a + q_u)), where v ~ N(0, q_v - q_uv^2 / (a + q_u)) is v where u + sqrt(a) noise = 0. It is a closed form for
    t = (erf(m2 v))' and for t = 1. For any other t it is computed by quadrature, to 1e-9 of E |t|; an integral that does
    not settle under finer nodes is an error.

    Args:
        slope: m; infinity is sign.
        derivative: t: `"erf"`, that of erf(m2 v); `"straight-through"`, 1; or a function of a tensor, elementwise.
        surrogate_slope: m2, for `"erf"`.
        kinks: where a function t is not smooth or has narrow peaks. Jumps and kinks elsewhere are found, as long as
            nothing is narrower than 1/200 of its distance from 0 and from each kink.

    Raises:
        UsageError: a slope that is not positive, or an unknown word. From the kernel: an integral that does not settle.

    Cost:
        For a function t about 0.1 s for each half octave of standard deviations when it is first asked for, 1 s where t
        has jumps that are not named; after that 16 multiplications for each entry of the kernel.

    Example:
        >>> triangle = surrogate(derivative=lambda v: (1 - v.abs()).clamp(min=0), kinks=(-1, 0, 1))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> round(float(triangle.dual_prime(one, one, 0 * one)), 4), triangle.symmetric
        (0.2942, False)
    """
    _require_slope("slope", slope)
    _require_slope("surrogate_slope", surrogate_slope, finite=True)
    a = _spread(slope)
    if not callable(derivative) and derivative not in get_args(Derivative):
        raise UsageError(
            f"derivative={derivative!r}. {nearest(str(derivative), get_args(Derivative))} Or a function."
        )
    own: Callable[[Tensor], Tensor]
    prime: Moment
    if derivative == "erf":
        own, prime = partial(_bell, surrogate_slope), partial(_slopes, a, _spread(surrogate_slope))
        name = f"erf({surrogate_slope} v)'"
    elif callable(derivative):
        own, prime = derivative, partial(_averaged, GaussianMeans(derivative, kinks), a)
        name = getattr(derivative, "__name__", "surrogate")
    else:
        own, prime, name = torch.ones_like, partial(_straight, a), "1"
    forward = torch.sign if slope == math.inf else lambda u: torch.erf(slope * u)
    word = "sign" if slope == math.inf else f"erf({slope} u)"
    symmetric = derivative == "erf" and surrogate_slope == slope
    return Activation(
        f"{word} trained by {name}", partial(_replaced, forward, own), partial(_product, a), prime, symmetric
    )


def _replaced(
    forward: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], u: Tensor
) -> Tensor:
    """The value of `forward`, and in every mode of differentiation the derivative given."""
    still = u.detach()  # not no_grad, which leaves forward mode on
    return forward(still) + derivative(still) * (u - still)


def _bell(slope: float, v: Tensor) -> Tensor:
    """The derivative of erf(slope v)."""
    return 2 * slope / math.sqrt(math.pi) * torch.exp(-(slope * v).square())


def _spread(slope: float) -> float:
    """The variance of the Gaussian that half of erf(slope u)' is the density of."""
    return 0.5 / slope**2


def _product(a: float, q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """E[s(u) s(v)] of erf with spread a: sign where a = 0, by the angle, which keeps the digits near correlation 1."""
    return 1 - 2 / math.pi * angle(a + q_u, a + q_v, q_uv)[0]


def _slopes(a: float, b: float, q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """E[s'(u) t(v)] of erf with spread a and the derivative of erf with spread b."""
    return 2 / math.pi / ((a + q_u) * (b + q_v) - q_uv.square()).sqrt()


def _straight(a: float, q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """E[s'(u)] of erf with spread a."""
    return math.sqrt(2 / math.pi) * torch.ones_like(q_u * q_v * q_uv) / (a + q_u).sqrt()


def _averaged(means: GaussianMeans, a: float, q_u: Tensor, q_v: Tensor, q_uv: Tensor) -> Tensor:
    """2 E[t(sigma z)] / sqrt(2 pi (a + q_u)), z ~ N(0, 1), sigma^2 = q_v - q_uv^2 / (a + q_u)."""
    variance = q_v - q_uv.square() / (a + q_u)
    rounded = variance <= 16 * torch.finfo(variance.dtype).eps * q_v  # as in `angle`
    sigma = variance.masked_fill(rounded, 1.0).sqrt().masked_fill(rounded, 0.0)
    return math.sqrt(2 / math.pi) * means(sigma) / (a + q_u).sqrt()


def _require_slope(name: str, slope: float, finite: bool = False) -> None:
    if not slope > 0 or (finite and slope == math.inf):
        raise UsageError(f"{name}={slope}: it must be above 0{' and finite' if finite else ''}.")
