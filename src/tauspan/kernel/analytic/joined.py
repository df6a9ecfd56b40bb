"""Layers of infinite-width programs that are made of others: sums with a body, and recurrence over positions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tauspan.core.errors import UsageError
from tauspan.kernel.analytic import finite
from tauspan.kernel.analytic.activation import Activation, find
from tauspan.kernel.analytic.finite import Build
from tauspan.kernel.analytic.layers import Dense, Layer, require_positions, require_scales
from tauspan.kernel.analytic.positions import Kind, Pair, Side


@dataclass(frozen=True)
class Residual(Layer):
    """s + body(s); S and Theta are the sums of both, because the body ends with fresh weights.

    Args:
        body: layers, with a `Dense` after the last activation.

    Raises:
        UsageError: in a program, a body whose output is not Gaussian or that stands before any weights.

    Example:
        >>> from tauspan.kernel.analytic.layers import Act
        >>> Residual([Act("relu"), Dense()]).after("gaussian")
        'gaussian'
    """

    body: Sequence[Layer]

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether all layers of the body are."""
        return all(layer.symmetric for layer in self.body)

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether any layer of the body is."""
        return any(layer.batched for layer in self.body)

    def after(self, kind: Kind) -> Kind:
        """What came in."""
        fresh, inner = False, kind
        for layer in self.body:
            inner = layer.after(inner)
            fresh = inner == "gaussian" and (fresh or isinstance(layer, Dense))
        if kind == "rows" or not fresh:
            raise UsageError(
                f"Residual of {kind} units with a body that ends with "
                f"{type(self.body[-1]).__name__ if self.body else 'nothing'}: the sum is that of kernels only where the "
                "units come from weights, and a Dense follows the body's last activation."
            )
        return kind

    def pair(self, pair: Pair) -> Pair:
        """The sum of both."""
        inner = pair
        for layer in self.body:
            inner = layer.pair(inner)
        require_positions(
            pair.left.present.shape[1], inner.left.present.shape[1], "positions before Residual"
        )
        left, right = (
            Side(one.covariance + other.covariance, one.present)
            for one, other in ((pair.left, inner.left), (pair.right, inner.right))
        )
        return Pair(left, right, pair.cross + inner.cross, pair.tangent + inner.tangent, pair.kind)

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """The sum of both."""
        body, _ = finite.chained(self.body, channels, build)
        return finite.Residual(body), channels

    def redrawn(self, draw: int) -> Layer:
        """With a body that is."""
        body = [layer.redrawn(draw) for layer in self.body]
        same = all(one is other for one, other in zip(body, self.body, strict=True))
        return self if same else replace(self, body=body)


@dataclass(frozen=True)
class Recurrent(Layer):
    """s_t = s(w_h W s_{t-1} / sqrt(n) + w_x U x_t / sqrt(d) + b beta), s_0 = 0, one W, U, beta for all steps (Yang 2019).

    K_tr = w_h^2 S_{t-1,r-1} + w_x^2 S^in_tr + b^2, S_tr = E[s(u) s(v)] under K; Theta_tr = (K_tr + w_x^2 Theta^in_tr +
    w_h^2 Theta_{t-1,r-1}) E[s'(u) s'(v)]. Padding at a row's end has no effect on what is before it.

    Args:
        activation: as in `Act`.
        recurrent_std: w_h.
        weight_std: w_x.
        bias_std: b.

    Raises:
        UsageError: a standard deviation that is no scale.

    Cost:
        T steps, each over all pairs (n, m, R).

    Example:
        >>> Recurrent("erf", recurrent_std=1.2).after("rows")
        'activated'
    """

    activation: str | Activation = "erf"
    recurrent_std: float = 1.0
    weight_std: float = 1.0
    bias_std: float = 0.0

    def __post_init__(self) -> None:
        find(self.activation)
        require_scales(recurrent_std=self.recurrent_std, weight_std=self.weight_std, bias_std=self.bias_std)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Whether both derivatives are the activation's own."""
        return find(self.activation).symmetric

    def after(self, kind: Kind) -> Kind:
        """States are activations."""
        return "activated"

    def pair(self, pair: Pair) -> Pair:
        """The recursion over steps, for all pairs (t, r) along diagonals."""
        driven = pair.affine(self.weight_std, self.bias_std)
        u, v = (self._variances(side.variance) for side in (driven.left, driven.right))
        none = torch.zeros(())
        left, right = (
            replace(side, covariance=self._steps(side.covariance, none, of, of)[0])
            for side, of in ((driven.left, u), (driven.right, v))
        )
        cross, tangent = self._steps(driven.cross, driven.tangent, u[:, None], v[None])
        return Pair(left, right, cross, tangent, "activated")

    def _variances(self, driven: Tensor) -> Tensor:
        """Of every step before the activation, (n, T)."""
        found: list[Tensor] = []
        for one in driven.unbind(1):
            before = find(self.activation).dual(found[-1], found[-1], found[-1]) if found else 0.0
            found.append(one + self.recurrent_std**2 * before)
        return torch.stack(found, 1)

    def _steps(self, driven: Tensor, tangent: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """S and Theta of the states (..., T, R) from those of w_x U x + b beta."""
        act, w2 = find(self.activation), self.recurrent_std**2
        states, carried = [torch.zeros_like(driven[..., 0, :])], [torch.zeros_like(driven[..., 0, :])]
        tangent = tangent.expand_as(driven)
        for t in range(driven.shape[-2]):
            before, held = (torch.nn.functional.pad(one[-1][..., :-1], (1, 0)) for one in (states, carried))
            covariance = driven[..., t, :] + w2 * before
            theta = tangent[..., t, :] + w2 * (before + held)  # Theta of the drive holds its own S already
            at = (u[..., t, None], v, covariance)
            states.append(act.dual(*at))
            carried.append(theta * act.dual_prime(*at))
        return torch.stack(states[1:], -2), torch.stack(carried[1:], -2)

    def module(self, channels: int, build: Build) -> tuple[nn.Module, int]:
        """A loop over steps."""
        drive = build.linear(channels, self.weight_std, self.bias_std)
        step = build.linear(build.width, self.recurrent_std, 0.0)
        return finite.Recurrent(drive, step, find(self.activation).function), build.width
