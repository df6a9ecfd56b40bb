"""The lazy path of a training in closed form: what gradient descent would do if the tangent model held."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.diagnose.standing import Standing
from tauspan.kernel.rows.data import AnyBatch
from tauspan.kernel.solvers.flow import Modes

SquaredLoss = Literal["mean", "rows", "sum", "half"]


@dataclass(frozen=True)
class GradientDescent:
    """Full-batch gradient descent without momentum or decay, theta <- theta - lr dL/dtheta, on a squared loss L.

    Args:
        lr: the learning rate, which stays the same.
        loss: what L is, r = f - y over N rows of O outputs: `"mean"`, the mean of r² over both (`torch.nn.MSELoss()`);
            `"rows"`, 1/2 |r|² / N, the mean over rows of `Regression`'s loss, as `tauspan.finetune` has it; `"sum"`, the
            sum of r² (`MSELoss(reduction="sum")`); `"half"`, half of it, as `Modes` has it.

    Raises:
        UsageError: a learning rate that is not above 0.

    Example:
        >>> GradientDescent(0.5, "mean").rate(rows=4, outputs=2)  # 2 / (N O) of it
        0.125
    """

    lr: float
    loss: SquaredLoss = "mean"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UsageError(f"GradientDescent(lr={self.lr}): a learning rate is above 0.")

    def rate(self, rows: int, outputs: int) -> float:
        """The learning rate of the same steps on 1/2 |f - y|², summed over rows and outputs."""
        factors = {"mean": 2 / (rows * outputs), "rows": 1 / rows, "sum": 2.0, "half": 1.0}
        return self.lr * factors[self.loss]


class LazyPath:
    """f_0 + K alpha_t, alpha_t = K^-1 (1 - (1 - eta K)^t) (y - f_0), on training rows and others.

    Exact for the tangent model (Lee et al. 2019, arXiv 1902.06720, in discrete time).

    Args:
        standing: the model at the start.
        batches: the training rows.
        start: f_0 of them, shape (N, O).
        targets: y, shape (N, O).
        descent: how it is trained.

    Raises:
        UsageError: a learning rate with which descent diverges; more rows x outputs than a matrix holds.

    Cost:
        The kernel of all rows and outputs and its eigenvectors, about 9 (N O)^3 FLOPs.
    """

    def __init__(
        self,
        standing: Standing,
        batches: Sequence[AnyBatch],
        start: Tensor,
        targets: Tensor,
        descent: GradientDescent,
    ) -> None:
        self._standing, self._batches, self._start = standing, batches, start
        self._residual = targets.double().cpu() - start
        kernel = standing.kernel(batches, "all")
        self.modes = Modes.of(kernel)
        self._kernel, self._rate = kernel.dense(), descent.rate(*start.shape)
        if not self._rate < self.modes.lr_max:
            most = descent.lr * self.modes.lr_max / self._rate
            raise UsageError(
                f"GradientDescent(lr={descent.lr:g}, loss={descent.loss!r}): the tangent model diverges from lr = "
                f"2/lambda_max = {most:g} on. Train with a lower one, or leave `descent` out, and take the tangent model "
                "at the net's own weights alone."
            )

    def cross(self, batches: Sequence[AnyBatch]) -> Tensor:
        """The kernel between other rows and the training rows, shape (M O, N O)."""
        return self._standing.kernel(batches, "all", right=self._batches).dense()

    def coefficients(self, steps: int) -> Tensor:
        """The alpha after so many steps, shape (N O)."""
        return self.modes.descent(self._residual, steps, self._rate)

    def outputs(self, alpha: Tensor, start: Tensor | None = None, cross: Tensor | None = None) -> Tensor:
        """f_0 + K alpha, shape (N, O); of other rows with their f_0 and cross kernel."""
        base = self._start if start is None else start
        kernel = self._kernel if cross is None else cross
        found: Tensor = base + (kernel @ alpha).view_as(base)
        return found


def drawn(batches: Sequence[AnyBatch], sizes: Sequence[int], rows: int, seed: int) -> list[list[int]]:
    """Rows of each batch, at most so many in all, drawn by a permutation keyed by the seed, in their order."""
    total = sum(sizes)
    chosen = set(torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:rows].tolist())
    found, begin = [], 0
    for size in sizes:
        found.append([row for row in range(size) if begin + row in chosen])
        begin += size
    return found
