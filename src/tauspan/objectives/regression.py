"""Regression: numbers as targets."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tauspan.objectives.objective import Apart, Objective, numbers_fault


def _euclidean(first: Tensor, second: Tensor) -> Tensor:
    return (first.double() - second.double()).square().mean(-1).sqrt()


@dataclass(frozen=True)
class Regression(Objective):
    """Numbers for each row: l = 1/2 sum_k (f_k - y_k)^2, and the root mean squared error (RMSE).

    Targets have shape (N, O), floating point. The RMSE is over rows and outputs, in the targets' own units, so outputs of
    other units should be scaled before.

    Example:
        >>> import torch
        >>> one = Regression()
        >>> outputs, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [1.0]])
        >>> one.losses(outputs, targets).tolist(), round(one.value(outputs, targets), 4)
        ([0.0, 2.0], 1.4142)
    """

    word: ClassVar[str] = "regression"
    metric: ClassVar[str] = "RMSE"
    higher: ClassVar[bool] = False
    distances: ClassVar[dict[str, Apart]] = {"difference": _euclidean}

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Half the squared distance."""
        return 0.5 * (outputs - targets.to(outputs)).square().sum(-1)

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The residual, f - y."""
        return outputs - targets.to(outputs)

    def curvature(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """The direction itself."""
        return along

    def lifts(self, tangents: Tensor, targets: Tensor) -> Tensor:
        """The squared loss rises along every direction that moves an output."""
        return tangents.new_zeros(len(tangents), 0)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error of each row."""
        return (outputs.double() - targets.double()).square().mean(-1)

    def summary(self, mean: float) -> float:
        """Its root."""
        return math.sqrt(mean)

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are finite numbers."""
        return numbers_fault(targets, outputs)
