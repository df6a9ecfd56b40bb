"""Gradient flow and gradient descent of the tangent model in closed form, from eigenpairs of its kernel."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import finite
from tauspan.kernel.solvers.solution import matrix_of, rounding_floor


@dataclass(frozen=True)
class Modes:
    """Eigenpairs of a kernel, and the whole path of fine-tuning from tau = 0 that follows from them.

    The loss is 1/2 |f0 + J tau - y|^2, summed over rows and outputs; `residual` is r = y - f0, shape (N O). Under
    gradient flow f_t - y decays as exp(-K t), and tau_t = J^T alpha_t. With some eigenpairs only, alpha is the part of
    the path in their span.

    Args:
        values: eigenvalues, shape (k).
        vectors: orthonormal eigenvectors as columns, shape (N O, k).

    Example:
        >>> path = Modes(torch.tensor([1.0, 4.0]), torch.eye(2))
        >>> path.lr_max, path.flow(torch.ones(2), math.inf)
        (0.5, tensor([1.0000, 0.2500], dtype=torch.float64))
    """

    values: Tensor
    vectors: Tensor

    def __post_init__(self) -> None:
        if self.vectors.shape[1:] != self.values.shape:
            raise UsageError(
                f"{tuple(self.values.shape)} eigenvalues and eigenvectors of shape {tuple(self.vectors.shape)}: "
                "each eigenvalue needs a column."
            )

    @staticmethod
    def of(kernel: Kernel) -> "Modes":
        """All eigenpairs, in increasing order; about 9 (N O)^3 FLOPs. Values below 0 by rounding become 0.

        Raises:
            UsageError: a kernel that is too large or not symmetric.
            NonFiniteError: NaN or infinity in the kernel.
        """
        values, vectors = torch.linalg.eigh(matrix_of(kernel))
        return Modes(values.clamp(min=0), vectors)

    @property
    def exact(self) -> bool:
        """Whether all eigenpairs are there."""
        return self.vectors.shape[0] == self.vectors.shape[1]

    @property
    def lr_max(self) -> float:
        """2 / lambda_max: gradient descent with this learning rate or a larger one does not converge."""
        largest = float(self.values.max()) if len(self.values) else 0.0
        return 2 / largest if largest > 0 else math.inf

    def flow(self, residual: Tensor, time: float) -> Tensor:
        """alpha_t = K^-1 (1 - exp(-K t)) r, shape (N O): gradient flow for a time (learning rate x steps), also inf.

        A direction that the kernel does not see (eigenvalue 0) grows as t r and moves nothing; at inf it is left out.

        Raises:
            UsageError: a negative time, or a residual of another length.
            NonFiniteError: NaN or infinity in the residual, as in every other method.
        """
        if not time >= 0:
            raise UsageError(f"time={time}: gradient flow starts at 0.")
        seen = self.values.double() > rounding_floor(self.values)
        safe = torch.where(seen, self.values.double(), 1.0)
        filled = 0.0 if math.isinf(time) else time
        return self._filtered(residual, torch.where(seen, -torch.expm1(-safe * time) / safe, filled))

    def descent(self, residual: Tensor, steps: int, lr: float) -> Tensor:
        """The alpha after so many steps of gradient descent: K^-1 (1 - (1 - lr K)^steps) r, shape (N O).

        Raises:
            UsageError: negative steps, or a learning rate outside (0, `lr_max`), with which the steps diverge.
        """
        self._require_descent(steps, lr)
        seen = self.values.double() > rounding_floor(self.values)
        safe = torch.where(seen, self.values.double(), 1.0)
        left = 1 - lr * safe
        # small steps lose no digits to 1 - (1 - small)
        done = torch.where(
            left > 0.5, -torch.expm1(steps * torch.log1p(-(lr * safe).clamp(max=0.5))), 1 - left**steps
        )
        return self._filtered(residual, torch.where(seen, done / safe, lr * steps))

    def ridge(self, residual: Tensor, ridge: float) -> Tensor:
        """(K + ridge)^-1 r, shape (N O), with ridge above 0."""
        if not ridge > 0:
            raise UsageError(f"ridge={ridge}: the path of ridges is above 0; `flow` at time inf is its end.")
        return self._filtered(residual, 1 / (self.values.double() + ridge))

    def flow_loss(self, residual: Tensor, time: float) -> float:
        """The training loss 1/2 |f_t - y|^2 = 1/2 sum_i (u_i r)^2 exp(-2 lambda_i t) of gradient flow.

        The part outside the span of the eigenpairs counts as not learned.
        """
        if not time >= 0:
            raise UsageError(f"time={time}: gradient flow starts at 0.")
        seen = self.values.double() > rounding_floor(self.values)
        return self._loss(residual, torch.where(seen, torch.exp(-self.values.double() * time), 1.0))

    def descent_loss(self, residual: Tensor, steps: int, lr: float) -> float:
        """The training loss after so many steps of gradient descent, as `flow_loss`."""
        self._require_descent(steps, lr)
        return self._loss(residual, (1 - lr * self.values.double()) ** steps)

    def _require_descent(self, steps: int, lr: float) -> None:
        if steps < 0:
            raise UsageError(f"steps={steps}: gradient descent starts at 0.")
        if not 0 < lr < self.lr_max:
            raise UsageError(
                f"lr={lr:g}: gradient descent converges between 0 and lr_max = 2/lambda_max = {self.lr_max:g}."
            )

    def _coordinates(self, residual: Tensor) -> Tensor:
        flat = residual.detach().double().cpu().flatten()
        if len(flat) != len(self.vectors):
            raise UsageError(
                f"{len(flat)} residuals: the eigenvectors have {len(self.vectors)} rows x outputs."
            )
        return self.vectors.double().T @ finite(flat, "the residuals")

    def _filtered(self, residual: Tensor, factors: Tensor) -> Tensor:
        return self.vectors.double() @ (factors * self._coordinates(residual))

    def _loss(self, residual: Tensor, left: Tensor) -> float:
        found = self._coordinates(residual)
        outside = 0.0
        if not self.exact:
            outside = max(float(residual.double().square().sum() - found.square().sum()), 0.0)
        return 0.5 * (float((left * found).square().sum()) + outside)
