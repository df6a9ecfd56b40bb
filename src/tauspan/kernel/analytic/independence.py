"""Where gradients are not independent of the weights they go back through: readouts whose weights have a mean."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel.analytic.activation import Activation, find
from tauspan.kernel.analytic.layers import require_scales

_NODES, _REACH = 80, 10.0  # on both sides of 0, where activations have their kinks


class Gradients(NamedTuple):
    """Second moments of what goes back through a matrix of weights, (N, N) each.

    `independent`: as if the weights going back were fresh. `exact`: with what the same weights add.
    """

    independent: Tensor
    exact: Tensor


def mean_readout(
    incoming: Tensor,
    activation: str | Activation = "relu",
    *,
    weight_std: float = 1.0,
    readout_mean: float = 1.0,
    readout_std: float = 0.0,
) -> Gradients:
    """The covariance of g = W^T (v s'(h)), h = W x, for readout weights v that have a mean (Yang 2019, section 7).

    W has n x n entries N(0, w^2/n), v entries of mean m and variance r^2, and x units with E[x x'] = `incoming`. If the
    weights going back were fresh, E[g g'] = w^2 (m^2 + r^2) E[s'(h) s'(h')]. But h depends on W: by Stein's lemma, g
    also contains m w^2 E[s''(h)] x, so that E[g g'] grows by m^2 w^4 E[s''(h)] E[s''(h')] E[x x']. With m = 0 both are
    equal; that is why a `Program` ends with a `Dense`, whose weights have no mean.

    Args:
        incoming: E[x x'] of the N rows before W, shape (N, N).
        activation: s; with a surrogate derivative, s' and s'' are the surrogate's.
        weight_std: w.
        readout_mean: m.
        readout_std: r.

    Raises:
        MismatchError: a matrix that is not square.
        NonFiniteError: NaN or infinity in it.
        UsageError: a variance or standard deviation that is not positive, or a mean that is not finite.

    Example:
        >>> found = mean_readout(torch.ones(1, 1, dtype=torch.float64), weight_std=2**0.5)
        >>> round(float(found.independent), 3), round(float(found.exact), 3)
        (1.0, 1.318)
    """
    if incoming.dim() != 2 or incoming.shape[0] != incoming.shape[1]:
        raise MismatchError(f"a covariance of shape {tuple(incoming.shape)}: give a square one.")
    if not bool(torch.isfinite(incoming).all()):
        raise NonFiniteError("the covariance holds NaN or infinity.")
    require_scales(weight_std=weight_std)
    if not math.isfinite(readout_mean) or not 0 <= readout_std < math.inf:
        raise UsageError(
            f"readout_mean={readout_mean}, readout_std={readout_std}: both must be finite, the second at least 0."
        )
    if not bool((incoming.diagonal() > 0).all()):
        raise UsageError("a variance is not positive: drop rows without units.")
    act, before = find(activation), incoming.double()
    covariance = weight_std**2 * before
    variance = covariance.diagonal()
    moments = _slope_moment(act, variance)
    slopes = act.dual_prime(variance[:, None], variance[None], covariance)
    independent = weight_std**2 * (readout_mean**2 + readout_std**2) * slopes
    extra = readout_mean**2 * weight_std**4 * moments[:, None] * moments * before
    return Gradients(independent, independent + extra)


def _slope_moment(act: Activation, variance: Tensor) -> Tensor:
    """E[s''(u)] = E[u s'(u)] / q for u ~ N(0, q) (Stein), which needs no second derivative."""
    nodes, weights = (torch.from_numpy(one) for one in np.polynomial.legendre.leggauss(_NODES))
    half = (nodes + 1) * _REACH / 2
    z, w = torch.cat([-half, half]), torch.cat([weights, weights]) * _REACH / 2
    u = (variance.sqrt()[:, None] * z).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(act.function(u).sum(), u)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return (u.detach() * slope * density * w).sum(1) / variance
