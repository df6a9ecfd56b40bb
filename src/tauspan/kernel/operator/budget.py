"""How long a start is trained: gradient flow or gradient descent of the tangent model on half the squared error."""

import math
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.flow import Modes


@dataclass(frozen=True)
class Flow:
    """Gradient flow on 1/2 |f - y|^2, summed over rows and outputs, for a time t (learning rate x steps).

    A relative time is in units of 1/lambda_max of each start's own kernel. Steps of gradient descent are stable below
    2/lambda_max, so that equal relative times are equally many steps, each start with a learning rate that fits it. An
    absolute time favours starts with large kernels, whose descent at that learning rate need not be stable.

    Args:
        time: 0 or more, also infinite.
        relative: whether it is in units of 1/lambda_max.

    Raises:
        UsageError: a negative time.

    Example:
        >>> import torch
        >>> modes = Modes(torch.tensor([1.0, 4.0]), torch.eye(2))
        >>> Flow(8.0).absolute(modes), Flow(8.0).loss(modes, torch.ones(2)) == modes.flow_loss(torch.ones(2), 2.0)
        (2.0, True)
    """

    time: float = 1000.0
    relative: bool = True

    def __post_init__(self) -> None:
        if not self.time >= 0:
            raise UsageError(f"time={self.time}: gradient flow starts at 0.")

    def absolute(self, modes: Modes) -> float:
        """The time t for this kernel."""
        return self.time * modes.lr_max / 2 if self.relative and self.time else self.time

    def loss(self, modes: Modes, residual: Tensor) -> float:
        """Half the squared error that is left of the residual y - f0, as `Modes.flow_loss`."""
        return modes.flow_loss(residual, self.absolute(modes))

    def alpha(self, modes: Modes, residual: Tensor) -> Tensor:
        """The dual coefficients, tau = J^T alpha, shape (N O); as `Modes.flow`."""
        return modes.flow(residual, self.absolute(modes))

    def __str__(self) -> str:
        return f"gradient flow for a time of {self.time:g}{' / lambda_max' if self.relative else ''}"


@dataclass(frozen=True)
class Descent:
    """Gradient descent on 1/2 |f - y|^2, summed over rows and outputs; at 2/lambda_max and above it diverges.

    Args:
        steps: 0 or more.
        lr: the learning rate; below 2 if relative. For the mean over N rows and O outputs of (f - y)^2, as torch's
            `mse_loss` has it, an absolute one is 2/(N O) times the optimiser's.
        relative: whether it is in units of 1/lambda_max of each start's own kernel (see `Flow`), or one for all.

    Raises:
        UsageError: negative steps, or a learning rate at which nothing converges.

    Example:
        >>> import torch
        >>> modes = Modes(torch.tensor([1.0, 4.0]), torch.eye(2))
        >>> Descent(1, 1.0).loss(modes, torch.ones(2)), Descent(1, 0.6, relative=False).loss(modes, torch.ones(2))
        (0.28125, inf)
    """

    steps: int = 1000
    lr: float = 1.0
    relative: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise UsageError(f"steps={self.steps}: gradient descent starts at 0.")
        if not 0 < self.lr < (2 if self.relative else math.inf):
            raise UsageError(
                f"lr={self.lr:g}: give a number above 0"
                + (" and below 2, in units of 1/lambda_max, or `relative=False`." if self.relative else ".")
            )

    def absolute(self, modes: Modes) -> float:
        """The learning rate for this kernel."""
        return self.lr * modes.lr_max / 2 if self.relative else self.lr

    def loss(self, modes: Modes, residual: Tensor) -> float:
        """Half the squared error that is left of the residual y - f0; infinite where the steps diverge."""
        lr = self.absolute(modes)
        return modes.descent_loss(residual, self.steps, lr) if lr < modes.lr_max else math.inf

    def alpha(self, modes: Modes, residual: Tensor) -> Tensor:
        """The dual coefficients, tau = J^T alpha, shape (N O).

        Raises:
            UsageError: the steps diverge.
        """
        return modes.descent(residual, self.steps, self.absolute(modes))

    def __str__(self) -> str:
        unit = " / lambda_max" if self.relative else ""
        return f"{self.steps} steps of descent at a learning rate of {self.lr:g}{unit}"


Budget: TypeAlias = Flow | Descent
