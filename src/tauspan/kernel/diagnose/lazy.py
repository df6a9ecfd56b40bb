"""Lazy or rich training: how well the tangent model approximates the model along a task vector."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tauspan import models
from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, ModelError, NonFiniteError, UsageError
from tauspan.core.params import Params
from tauspan.core.results import ratio
from tauspan.kernel import Estimate
from tauspan.kernel.operator.interference import accuracy, rms
from tauspan.kernel.solvers.estimates import exactly
from tauspan.models import Batch
from tauspan.tangent import Linearized
from tauspan.tangent.engine.reference import forward_mode
from tauspan.vector import TaskVector

SCALES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_ROUNDING = 64  # the rounding error of a network's outputs, in units in the last place


@checked
def lazy_coefficient(tangent: Linearized, vector: TaskVector | Params, batches: Sequence[Batch]) -> Estimate:
    """The curvature q = |d^2/ds^2 f(theta0 + s tau)| / (2 |J tau|) at s = 0, norms over all rows and outputs; exact.

    The second Taylor term over the first at s = 1: small means lazy, so that the tangent model holds along tau. It scales
    with tau: q of a tau is a q. Chizat, Oyallon and Bach's coefficient, in one direction.

    Args:
        tangent: the linearised model.
        vector: tau, any regime.
        batches: the rows.

    Raises:
        UsageError: no rows, or J tau = 0 on all of them.
        MismatchError: the vector holds other tensors.
        NonFiniteError: a derivative is NaN or infinite.
        ModelError: an operation has no second forward derivative.

    Cost:
        One nested forward-mode pass over the rows, about 4 forward passes.

    Example:
        >>> from torch import nn
        >>> from tauspan.tangent import linearize
        >>> class Square(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.ones(1))
        ...     def forward(self, x):
        ...         return x * self.w**2  # along tau = 1: x (1 + 2 s + s^2)
        >>> lazy_coefficient(linearize(Square()), {"w": torch.ones(1)}, [torch.ones(3, 1)]).value
        0.5
    """
    theta0, tau = _direction(tangent, vector, batches)
    first, second = 0.0, 0.0
    for batch in batches:
        slope, bend = _derivatives(tangent, batch, theta0, tau)
        for what, found in (("first", slope), ("second", bend)):
            params.require_finite_rows(found, f"the {what} derivative along the vector, in a batch")
        first += float(slope.double().square().sum())
        second += float(bend.double().square().sum())
    if not first:
        raise UsageError(
            "J tau is 0 on these rows: the vector moves no output there. Give rows of its own task."
        )
    return exactly(math.sqrt(second / first) / 2, "exact on these rows")


def _derivatives(tangent: Linearized, batch: Batch, theta0: Params, tau: Params) -> tuple[Tensor, Tensor]:
    """First and second derivative of f(theta0 + s tau) in s at 0."""
    function = tangent.function(batch)
    device = next(iter(theta0.values())).device
    zero, one = torch.zeros((), device=device), torch.ones((), device=device)

    def along(s: Tensor) -> Tensor:
        return function({name: theta + s.to(theta.dtype) * tau[name] for name, theta in theta0.items()})

    def slope(s: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(along, (s,), (one,))[1]  # type: ignore[no-untyped-call, unused-ignore]
        return found

    try:
        with forward_mode(), torch.no_grad(), models.eval_mode(tangent.base):
            pair: tuple[Tensor, Tensor] = torch.func.jvp(slope, (zero,), (one,))  # type: ignore[assignment]
    except RuntimeError as error:  # torch's NotImplementedError is one too
        raise ModelError(
            f"the second derivative along the vector needs a forward-mode rule that torch lacks: {error} "
            "Look at `linearity` instead, which only evaluates the model."
        ) from error
    return pair


def _direction(
    tangent: Linearized, vector: TaskVector | Params, batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """theta0 and tau in its dtypes, on its device."""
    if not batches:
        raise UsageError(
            "no rows: a model is compared with its linearisation on data; give at least one batch."
        )
    theta0 = tangent.theta0()
    deltas = tangent.direction(vector) if isinstance(vector, TaskVector) else vector
    label = repr(vector.label) if isinstance(vector, TaskVector) else "the vector"
    pairs = params.zip_strict(theta0, deltas, "the linearised module", label)
    params.require_finite(deltas, label)
    return theta0, {name: delta.to(theta) for name, theta, delta in pairs}


@dataclass(frozen=True, eq=False)
class Linearity:
    """Outputs of a model and of its linearisation along s tau, on some rows.

    Args:
        scales: s, rising.
        start: f(theta0), shape (N, C).
        tangent: J tau, shape (N, C).
        moved: f(theta0 + s tau), shape (S, N, C).
        precision: the unit of the last place of the model's dtype.
    """

    scales: Sequence[float]
    start: Tensor
    tangent: Tensor
    moved: Tensor
    precision: float

    def __repr__(self) -> str:
        last = self.relative[-1]
        error = "J tau = 0" if last is None else f"relative error {last:.3g} at s = {self.scales[-1]:g}"
        return f"Linearity({len(self.start)} rows, {len(self.scales)} scales, {error})"

    @property
    def errors(self) -> list[float]:
        """The root mean square of f(theta0 + s tau) - f_lin(s tau) for each s, in units of the outputs."""
        return [
            rms(moved - self.start - s * self.tangent)
            for s, moved in zip(self.scales, self.moved, strict=True)
        ]

    @property
    def relative(self) -> list[float | None]:
        """The errors over the root mean square of s J tau; None where that is 0."""
        size = rms(self.tangent)
        return [ratio(error, s * size) for s, error in zip(self.scales, self.errors, strict=True)]

    @property
    def slope(self) -> float | None:
        """The slope d log(error) / d log(s) between the two smallest scales whose error is above rounding; 2 for small s.

        None if fewer than two errors are above rounding: the model is then affine along tau as far as its dtype can
        tell.
        """
        floor = _ROUNDING * self.precision * max(rms(self.start), rms(self.moved))
        pairs = [(s, e) for s, e in zip(self.scales, self.errors, strict=True) if e > floor]
        if len(pairs) < 2:
            return None
        (s, e), (t, f) = pairs[:2]
        return math.log(f / e) / math.log(t / s)


@torch.no_grad()
@checked
def linearity(
    tangent: Linearized,
    vector: TaskVector | Params,
    batches: Sequence[Batch],
    scales: Sequence[float] = SCALES,
) -> Linearity:
    """Evaluate f(theta0 + s tau) and its linearisation for several s.

    Args:
        tangent: the linearised model.
        vector: tau, any regime.
        batches: the rows.
        scales: s, above 0 and rising.

    Raises:
        UsageError: no rows, or scales that are not above 0 and rising.
        MismatchError: the vector holds other tensors.
        NonFiniteError: an edited model gives NaN or infinity; it names s.

    Cost:
        A tangent pass, and a forward pass for each s, over the rows; no second copy of the model's frozen part.

    Example:
        >>> from tauspan.tangent import linearize
        >>> layer = torch.nn.Linear(2, 1)  # affine in its parameters
        >>> tau = {name: torch.ones_like(p) for name, p in layer.named_parameters()}
        >>> max(linearity(linearize(layer), tau, [torch.ones(1, 2)]).errors) < 1e-6
        True
    """
    if not scales or scales[0] <= 0 or any(low >= high for low, high in pairwise(scales)):
        raise UsageError(f"scales={list(scales)}: give numbers above 0 in rising order.")
    theta0, tau = _direction(tangent, vector, batches)
    start, slope = [], []
    for batch in batches:
        value, moved = tangent.tangent(batch, vectors=[tau])
        start.append(value.double().cpu())
        slope.append(moved[0].double().cpu())
    whole = []
    for s in scales:
        point = {name: theta + s * tau[name] for name, theta in theta0.items()}
        with models.eval_mode(tangent.base):
            found = torch.cat([tangent.function(batch)(point).double().cpu() for batch in batches])
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(
                f"the model at theta0 + {s:g} tau gives NaN or infinity: take a smaller scale."
            )
        whole.append(found)
    precision = max(torch.finfo(theta.dtype).eps for theta in theta0.values())
    return Linearity(tuple(scales), torch.cat(start), torch.cat(slope), torch.stack(whole), float(precision))


@dataclass(frozen=True)
class PosthocGap:
    """A model at theta0 + tau compared with its linearisation, both as classifiers.

    Args:
        relative: |f(theta0 + tau) - f_lin(tau)| / |f(theta0 + tau) - f(theta0)|; 0 where the model is affine along tau.
        agreement: share of rows where both name one class.
        nonlinear: accuracy of f(theta0 + tau).
        linear: accuracy of f_lin(tau).
    """

    relative: Estimate
    agreement: float
    nonlinear: float
    linear: float

    @property
    def advantage(self) -> float:
        """The non-linear advantage: accuracy of the model less that of its linearisation."""
        return self.nonlinear - self.linear


@checked
def posthoc_gap(start: Tensor, tangent: Tensor, moved: Tensor, labels: Tensor) -> PosthocGap:
    """`PosthocGap` from the logits f(theta0), J tau and f(theta0 + tau), each of shape (N, C), and labels of shape (N,).

    Raises:
        DataError: another number of labels than rows.
        UsageError: tau changes no output.

    Example:
        >>> zero, one = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
        >>> gap = posthoc_gap(zero, -one, one, torch.tensor([1]))
        >>> gap.relative.value, gap.agreement, gap.advantage
        (2.0, 0.0, 1.0)
    """
    if labels.shape != (len(start),):
        raise DataError(
            f"{len(start)} rows and labels of shape {tuple(labels.shape)}: give one label per row."
        )
    size = rms(moved - start)
    if not size:
        raise UsageError(
            "theta0 + tau and theta0 give equal outputs: the vector moves nothing on these rows."
        )
    linear = start + tangent
    agreement = float((moved.argmax(-1) == linear.argmax(-1)).double().mean())
    relative = exactly(rms(moved - linear) / size, "exact on these rows")
    return PosthocGap(relative, agreement, accuracy(moved, labels), accuracy(linear, labels))
