"""Batch norm in infinite-width programs: units that are standardised over the rows of a batch, before an activation."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel.analytic import finite
from tauspan.kernel.analytic.activation import Activation, find
from tauspan.kernel.analytic.finite import Build
from tauspan.kernel.analytic.layers import Layer
from tauspan.kernel.analytic.positions import Kind, Pair, Side

DRAWS = 8  # independent estimates of a kernel that has no quadrature; their spread is its error
_CLOSE = 1e-11  # how far the weights of the quadrature may be from their sum, which is 1


@dataclass(frozen=True)
class BatchNorm(Layer):
    """s(G h / sqrt(|G h|^2 / B + eps)) for each unit's values h over B rows, G = I - 11'/B; no scale, no shift.

    This is batch norm in training mode, with the activation behind it. The rows of a batch depend on one another, so
    the limit takes all of them at once. Let S be their covariance, y = G h ~ N(0, G S G), u = y / sqrt(|y|^2 / B + eps).
    Then K = E[s(u) s(u)'] (Yang et al. 2019, arXiv 1902.08129). Where s(c u) = c s(u) for c > 0, as for ReLU and other
    piecewise linear functions, K is one integral. With V(C) = E[s(v) s(v)'], v ~ N(0, C), and
    C_t = G S G (I + 2 t G S G)^{-1},

        K = B int_0^inf exp(-t B eps) det(I + 2 t G S G)^{-1/2} V(C_t) dt,

    computed by the trapezoid rule. Its step is halved until the weights have their known sum to 1e-11. A function of the
    sign alone needs no integral: K = V(G S G). Other functions are averaged over scrambled Sobol points, and
    `Program.nngp` gives the standard error. There is no tangent kernel. All positions that are no padding count as rows,
    as in `torch.nn.BatchNorm1d`.

    Args:
        activation: s, as in `Act`; `"identity"` for none.
        eps: added to the variance.
        samples: points of each of the eight draws, where there is no integral.
        seed: of the points.

    Raises:
        UsageError: an eps that is negative or not finite, or no samples.

    Cost:
        O(B^3) for each of 30 to 400 nodes; without an integral O(8 samples B^2).

    Example:
        >>> layer = BatchNorm("relu", eps=0.0)
        >>> alike = torch.ones(4, 4).double() + torch.eye(4)  # any such S: K = B / (B - 1) V(G)
        >>> [round(float(one), 4) for one in layer.kernel(alike)[0, :2]]
        [0.5, 0.0847]
    """

    activation: str | Activation = "relu"
    eps: float = 1e-5
    samples: int = 2**13
    seed: int = 0
    batched = True

    def __post_init__(self) -> None:
        find(self.activation)
        if not 0 <= self.eps < math.inf:
            raise UsageError(f"eps={self.eps}: it must be finite and at least 0.")
        if self.samples < 1:
            raise UsageError(f"samples={self.samples}: it must be at least 1.")

    def after(self, kind: Kind) -> Kind:
        """Of Gaussian units alone."""
        if kind != "gaussian":
            raise UsageError(
                f"BatchNorm after {kind} units: its limit needs Gaussian ones. Put a Dense before it."
            )
        return "activated"

    def pair(self, pair: Pair) -> Pair:
        """The batch with itself: both sides are the same rows. The tangent kernel is NaN."""
        n, positions = pair.left.present.shape
        seen = pair.left.present.flatten().nonzero()[:, 0]
        units = pair.cross.transpose(1, 2).reshape(n * positions, -1)
        found = torch.zeros_like(units)
        found[seen[:, None], seen] = self.kernel(units[seen[:, None], seen])
        cross = found.view(n, positions, n, positions).transpose(1, 2)
        side = Side(cross.diagonal(dim1=0, dim2=1).permute(2, 0, 1), pair.left.present)
        return Pair(side, side, cross, torch.full_like(cross, math.nan), "activated")

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """The batch norm of torch with the statistics of each batch, and the function."""
        return finite.BatchNorm(channels, self.eps, find(self.activation).function), channels

    def redrawn(self, draw: int) -> Layer:
        """With other points, where there are any."""
        if _degree(find(self.activation)) is not None:
            return self
        return replace(self, seed=DRAWS * self.seed + draw)

    def kernel(self, covariance: Tensor) -> Tensor:
        """K of a batch, (B, B), from the covariance S of its units.

        Raises:
            UsageError: a batch of one row, or rows whose units are the same where eps is 0.
            NonFiniteError: NaN or infinity in S.
        """
        rows = len(covariance)
        finite.require_batch(rows)
        if not bool(torch.isfinite(covariance).all()):
            raise NonFiniteError("the covariance before BatchNorm is not finite: scale the rows.")
        centred = covariance - covariance.mean(0) - covariance.mean(1, keepdim=True) + covariance.mean()
        spread, basis = torch.linalg.eigh((centred + centred.T) / 2)
        spread = spread.clamp(min=0)
        if self.eps == 0 and float(spread[-1]) <= 1e-12 * float(covariance.diagonal().max()):
            raise UsageError(
                f"batch norm of {rows} rows with the same units: their variance is 0. Give rows that differ, or an eps "
                "above 0."
            )
        act = find(self.activation)
        degree = _degree(act)
        if degree == 0:
            return _moment(act, centred)
        if degree is None:
            return self._sampled(act, basis * spread.sqrt())
        total = torch.zeros_like(covariance)
        for t, weight in zip(*_rule(spread, rows * self.eps), strict=True):
            total += rows * weight * _moment(act, (basis * (spread / (1 + 2 * t * spread))) @ basis.T)
        return total

    def _sampled(self, act: Activation, factor: Tensor) -> Tensor:
        """The mean over points u, from y = factor z; the largest directions come first, where Sobol points are best."""
        rows = len(factor)
        engine = torch.quasirandom.SobolEngine(rows - 1, scramble=True, seed=self.seed)  # type: ignore[no-untyped-call]
        z = torch.special.ndtri(engine.draw(self.samples, dtype=torch.float64).clamp(min=2.0**-31))
        y = z @ factor.flip(1)[:, :-1].T
        s = act.function(y * (y.square().mean(1, keepdim=True) + self.eps).rsqrt())
        return s.T @ s / self.samples


def _moment(act: Activation, covariance: Tensor) -> Tensor:
    variance = covariance.diagonal()
    return act.dual(variance[:, None], variance[None], covariance)


def _degree(act: Activation) -> Literal[0, 1] | None:
    """The k with s(c u) = c^k s(u) for every c > 0."""
    u = torch.tensor([-8.0, -3, -1, -0.125, 0.125, 1, 3, 8], dtype=torch.float64)
    s, unit = act.function(u), act.function(u.sign())
    if torch.allclose(s, u.abs() * unit, rtol=1e-12, atol=0):
        return 1
    return 0 if torch.allclose(s, unit, rtol=1e-12, atol=0) else None


def _rule(spread: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Nodes t and weights of the integral of exp(-t floor) det(I + 2 t D)^{-1/2} f(t), D the diagonal matrix of `spread`.

    The trapezoid rule in x, t = exp(x - exp(-x)) / scale. With f = tr(D (I + 2 t D)^{-1}) + floor the integrand is minus
    the derivative of exp(-t floor) det(I + 2 t D)^{-1/2}, so its integral is 1. This decides about the step.
    """
    for halvings in range(9):
        step = 0.5 / 2**halvings
        x = torch.arange(-5, 90, step, dtype=torch.float64)
        t = (x - (-x).exp()).exp() / (2 * spread[-1] + floor)
        weight = t * (1 + (-x).exp()) * step
        weight = weight * (-t * floor - torch.log1p(2 * t[:, None] * spread).sum(1) / 2).exp()
        mass = weight * ((spread / (1 + 2 * t[:, None] * spread)).sum(1) + floor)
        if abs(float(mass.sum()) - 1) < _CLOSE:
            kept = mass > 1e-18
            return t[kept], weight[kept]
    raise NonFiniteError(
        f"the integral of batch norm over {len(spread)} rows does not settle: its weights sum to {float(mass.sum()):.6g} "
        "and not to 1. Scale the rows, or raise eps."
    )
