"""Subgradient descent on the hinge loss of the tangent model, in dual coefficients and in weights."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.hinge import signs_for, start_for
from tauspan.kernel.solvers.solution import matrix_of

Rate: TypeAlias = float | Literal["1/(ridge t)"]


def _rate(lr: Rate, ridge: float, step: int) -> float:
    return 1 / (ridge * step) if isinstance(lr, str) else lr


def _require_iteration(ridge: float, steps: int, lr: Rate) -> None:
    require_ridge(ridge)
    if steps < 0:
        raise UsageError(f"steps={steps}: give 0 or more.")
    if isinstance(lr, str):
        if lr != "1/(ridge t)":
            raise UsageError(f"lr={lr!r}: a number, or '1/(ridge t)'.")
    elif not 0 < lr < 2 / ridge:
        raise UsageError(
            f"lr={lr:g}: it must lie between 0 and 2/ridge = {2 / ridge:g}, or the decay itself diverges."
        )


def dual_steps(
    kernel: Kernel, signs: Tensor, ridge: float, steps: int, lr: Rate, start: Tensor | None = None
) -> Tensor:
    """Subgradient steps on the hinge loss in function space: a -> (1 - lr ridge) a + (lr/N) [s f < 1] s, from 0.

    The loss is (1/N) sum max(0, 1 - s f) + ridge/2 |tau|^2 with f = f0 + K a. The steps equal those of `primal_steps`,
    where tau = J^T a, but need no parameters.

    Args:
        kernel: symmetric, over the training rows.
        signs: s in {-1, +1}, shape (N O) or (N, O).
        ridge: above 0.
        steps: how many.
        lr: a number, which ends near the minimum but not at it, or `"1/(ridge t)"`, which converges.
        start: f0; None is 0.

    Returns:
        alpha, shape (N O).

    Raises:
        DataError: a label other than -1 and +1.
        UsageError: an impossible setting.
        NonFiniteError: NaN or infinity.

    Cost:
        2 (N O)^2 FLOPs per step.
    """
    _require_iteration(ridge, steps, lr)
    signs, base, matrix = signs_for(kernel, signs), start_for(kernel, start), matrix_of(kernel)
    alpha = torch.zeros_like(base)
    for step in range(1, steps + 1):
        rate = _rate(lr, ridge, step)
        short = signs * (base + matrix @ alpha) < 1
        alpha = (1 - rate * ridge) * alpha + (rate / kernel.samples) * signs * short
    return alpha


def primal_steps(
    kernel: Kernel, signs: Tensor, ridge: float, steps: int, lr: Rate, start: Tensor | None = None
) -> dict[str, Tensor]:
    """Subgradient steps on the hinge loss in the tangent model's weights, from tau = 0; see `dual_steps`.

    Returns:
        tau by parameter name, float64.

    Cost:
        One product with J and one with J^T per step.
    """
    _require_iteration(ridge, steps, lr)
    signs, base = signs_for(kernel, signs), start_for(kernel, start)
    tau = kernel.pullback(torch.zeros_like(base))
    for step in range(1, steps + 1):
        rate = _rate(lr, ridge, step)
        short = signs * (base + kernel.push(tau)) < 1
        pulled = kernel.pullback((rate / kernel.samples) * signs * short)
        tau = {name: (1 - rate * ridge) * delta + pulled[name] for name, delta in tau.items()}
    return tau
