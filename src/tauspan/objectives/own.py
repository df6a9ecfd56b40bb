"""`OwnLoss`: a function of the user's as an objective, checked when it is first used."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.objectives.objective import Apart, Objective, told
from tauspan.objectives.regression import Regression

Function = Callable[[Tensor, Tensor], Tensor]
_ROWS = 4  # that are looked at
_STEP, _FAR = 1e-5, 1e-4  # of the central difference in float64, and its relative error


@dataclass(frozen=True)
class OwnLoss(Objective):
    """A loss of your own: `function(outputs, targets)` gives the loss of each row, shape (N,).

    Outputs have shape (N, O), and targets are whatever tensor the rows have, first axis N. When it is first used, it is
    tried on some rows in float64: one finite loss for each row, which depends on that row alone; a gradient that a
    central difference confirms; and, where you say that it is convex, no direction of negative curvature among random
    ones.

    Args:
        function: differentiable by autograd.
        name: what reports call it; None takes the function's.
        convex: whether each row's loss is convex in its outputs. It decides whether `coefficients` calls a solution the
            minimum, and whether `fit` may be used.
        score: the metric of each row, `score(outputs, targets)` of shape (N,); None takes the loss itself.
        metric: its name.
        higher: whether more of it is better.
        ratio: whether the metric is never negative. If it may be, differences are compared in place of ratios.

    Raises:
        UsageError: the function is not such a loss; the message says what of it is not.

    Example:
        >>> def absolute(outputs, targets):
        ...     return (outputs - targets).abs().sum(-1)
        >>> one = OwnLoss(absolute, convex=True)
        >>> one.losses(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])).tolist(), one.word
        ([1.0, 2.0], 'absolute')
    """

    function: Function
    name: str | None = None
    convex: bool = False
    score: Function | None = None
    metric: str = "loss"  # type: ignore[misc]  # a class attribute of the built-in ones
    higher: bool = False  # type: ignore[misc]
    ratio: bool = True
    _tried: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)
    distances: ClassVar[dict[str, Apart]] = Regression.distances

    def __post_init__(self) -> None:
        for what, given in (("function", self.function), ("score", self.score)):
            if not callable(given) and not (what == "score" and given is None):
                raise UsageError(
                    f"{what}={given!r} of an own loss is no function: give one of outputs and targets that returns a "
                    "number for each row."
                )

    def __repr__(self) -> str:
        """Without the function's address, so that two processes say the same."""
        score = getattr(self.score, "__qualname__", self.score)
        said = f"convex={self.convex}, score={score}, metric={self.metric!r}, higher={self.higher}, ratio={self.ratio}"
        return f"OwnLoss({self.word}, {said})"

    @property
    def word(self) -> str:  # type: ignore[override]
        """The function's name."""
        return self.name or str(getattr(self.function, "__qualname__", None) or type(self.function).__name__)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the function gives."""
        if not self._tried and len(outputs):
            self._try(outputs.detach()[:_ROWS].double().cpu(), targets[:_ROWS].cpu())
            self._tried.append(True)
        found: Tensor = self._called(outputs, targets)
        return found

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The metric of each row."""
        found = (
            self.losses(outputs, targets)
            if self.score is None
            else self._called(outputs, targets, self.score)
        )
        found = found.detach() if isinstance(found, Tensor) else found
        if not isinstance(found, Tensor) or found.shape != (len(outputs),):
            raise UsageError(
                f"the metric of {self.word} gives {told(found)} for {len(outputs)} rows: one number for each row is "
                "wanted."
            )
        return found.double()

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Any tensor is a target."""
        return (
            None
            if isinstance(targets, Tensor) and targets.ndim
            else f"targets are a tensor with a row each, not {told(targets)}."
        )

    def _try(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise unless the function is a loss of each row, on some rows."""
        generator = torch.Generator().manual_seed(0)
        targets = targets.double() if targets.is_floating_point() else targets
        found = self._called(outputs, targets)
        if not isinstance(found, Tensor) or found.shape != (len(outputs),):
            raise self._wrong(
                f"gives {told(found)} for {len(outputs)} rows: return the loss of each row, without a mean"
            )
        if not found.isfinite().all():
            raise NonFiniteError(
                f"the loss {self.word} is {found.tolist()} on some rows: NaN or infinity cannot be minimised. Look at "
                "their targets."
            )
        alone = torch.cat([self._called(outputs[n : n + 1], targets[n : n + 1]) for n in range(len(outputs))])
        if not torch.allclose(alone, found, rtol=1e-6, atol=1e-9):
            raise self._wrong(
                f"gives a row {found[0]:.6g} among others and {alone[0]:.6g} alone: a row's loss is its own"
            )
        along = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
        slope = (self._slopes(outputs, targets) * along).sum(-1)
        ahead, behind = (self._called(outputs + sign * _STEP * along, targets) for sign in (1, -1))
        wanted = (ahead - behind) / (2 * _STEP)
        if not torch.allclose(slope, wanted, rtol=_FAR, atol=_FAR * max(1.0, float(wanted.abs().max()))):
            raise self._wrong(
                f"has the slope {float(wanted[0]):.6g} by a central difference and {float(slope[0]):.6g} by autograd: "
                "compute it from `outputs` without detaching"
            )
        if self.convex:
            self._try_convex(outputs, targets, generator)

    def _try_convex(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> None:
        """The loss at a midpoint is at most the mean of the ends."""
        ends = [
            outputs + torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype) for _ in range(2)
        ]
        first, second, middle = (self._called(at, targets) for at in (*ends, (ends[0] + ends[1]) / 2))
        above = middle - (first + second) / 2
        if bool((above > 1e-9 * (1 + first.abs() + second.abs())).any()):
            raise self._wrong(
                f"is {float(above.max()):.3g} higher between two points than at both in the mean, so it is not convex: "
                "say convex=False"
            )

    def _called(self, outputs: Tensor, targets: Tensor, function: Function | None = None) -> Any:
        try:
            return (function or self.function)(outputs, targets)
        except Exception as error:  # a user's function raises what it will
            raise self._wrong(
                f"raised {type(error).__name__} for outputs of {told(outputs)} and targets of {told(targets)}: {error}"
            ) from error

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The gradient in the outputs, by autograd."""
        with torch.inference_mode(False), torch.enable_grad():
            free = outputs.detach().clone().requires_grad_()
            total = self._called(free, targets).sum()
            if not total.requires_grad:
                raise self._wrong(
                    "has no gradient: compute it from `outputs` by operations that autograd knows"
                )
            return torch.autograd.grad(total, free)[0]

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"the loss {self.word} {what}.")
