"""Cross-entropy of the tangent model by Newton's method in the dual coefficients."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.solution import DualSolution, matrix_of, reached, require_steps, vector_for


@checked
def solve_cross_entropy(
    kernel: Kernel,
    labels: Tensor,
    ridge: float,
    start: Tensor | None = None,
    *,
    tolerance: float = 1e-10,
    max_steps: int = 100,
) -> DualSolution:
    """Minimise mean_n CE(f0 + K alpha, y)_n + ridge/2 alpha^T K alpha, the tangent model's loss at tau = J^T alpha.

    The minimum is where F(alpha) = g + ridge alpha vanishes, g = (softmax - one-hot)/N. Newton's step solves
    (W K + ridge) d = -F with W the softmax's Hessian over N, block by row; steps are halved until the loss falls. This is
    the loss of `tauspan.fit`, whose ridge means the same.

    Args:
        kernel: symmetric, over the training rows, all outputs.
        labels: classes, shape (N), int64.
        ridge: above 0.
        start: f0, shape (N, O); None is 0.
        tolerance: end where the Euclidean norm of the gradient in tau is at most this.
        max_steps: end after so many Newton steps.

    Returns:
        alpha with `loss`, `gradient_norm` and, as the loss is ridge-strongly convex, `error_bound` =
        gradient_norm / ridge on |tau - tau*|.

    Raises:
        DataError: labels of another shape or outside the classes.
        UsageError: ridge not above 0, one output only, a kernel that is too large.
        NonFiniteError: NaN or infinity in the kernel or f0.

    Cost:
        2/3 (N O)^3 FLOPs per step and three matrices of 8 (N O)^2 bytes.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> found = solve_cross_entropy(DenseKernel(torch.eye(4).double(), 2), torch.tensor([0, 1]), 0.1)
        >>> found.converged, found.alpha.view(2, 2).argmax(1).tolist()
        (True, [0, 1])
    """
    require_ridge(ridge)
    require_steps(max_steps, tolerance)
    require_labels(kernel, labels)
    zeros = torch.zeros(kernel.shape[0], dtype=torch.float64)
    base = vector_for(kernel, zeros if start is None else start, "f0")
    matrix = matrix_of(kernel)
    problem = _Problem(matrix, base, labels, ridge, kernel.outputs)
    alpha, here, steps = zeros, problem.at(zeros), 0
    while here.norm > tolerance and steps < max_steps:
        found = _searched(problem, alpha, here, problem.direction(here))
        if found is None:  # no further progress is possible at this precision
            break
        alpha, here = found
        steps += 1
    norm = here.norm
    converged = reached(
        norm <= tolerance, "Newton: gradient norm", norm, steps, tolerance, "or a larger ridge"
    )
    return DualSolution(
        alpha, "cross-entropy by Newton", float(ridge), False, converged, steps,
        loss=here.loss, gradient_norm=norm, error_bound=norm / ridge,
    )  # fmt: skip


def require_labels(kernel: Kernel, labels: Tensor) -> None:
    """Raise unless labels are N class indices below O, and O is 2 or more."""
    if kernel.outputs < 2:
        raise UsageError(
            "cross-entropy needs an output for each class, and the kernel has 1 a row: use outputs='all'."
        )
    if labels.shape != (kernel.samples,) or labels.dtype != torch.long:
        raise DataError(
            f"labels of shape {tuple(labels.shape)}, {labels.dtype}: the kernel has {kernel.samples} rows, so give int64 "
            f"({kernel.samples},)."
        )
    outside = ((labels < 0) | (labels >= kernel.outputs)).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        raise DataError(f"row {row}: label {int(labels[row])} lies outside 0..{kernel.outputs - 1}.")


class _Here(NamedTuple):
    """The values at one alpha: probabilities (N, O), F, K F, the loss, and sqrt(F^T K F), the gradient's norm."""

    p: Tensor
    slope: Tensor
    moved: Tensor
    loss: float
    norm: float


class _Problem:
    """The loss as a function of alpha."""

    def __init__(self, matrix: Tensor, base: Tensor, labels: Tensor, ridge: float, outputs: int) -> None:
        self.matrix, self.base, self.labels, self.ridge, self.outputs = matrix, base, labels, ridge, outputs
        self.goal = F.one_hot(labels, outputs).double()

    def at(self, alpha: Tensor) -> _Here:
        """Loss and gradient at alpha."""
        change = self.matrix @ alpha
        logits = (self.base + change).view(-1, self.outputs)
        loss = float(F.cross_entropy(logits, self.labels)) + 0.5 * self.ridge * float(alpha @ change)
        p = logits.softmax(-1)
        slope = ((p - self.goal) / len(p)).flatten() + self.ridge * alpha
        moved = self.matrix @ slope
        return _Here(p, slope, moved, loss, max(float(slope @ moved), 0.0) ** 0.5)

    def direction(self, here: _Here) -> Tensor:
        """Newton's step: (W K + ridge) d = -F."""
        rows = self.matrix.view(len(here.p), self.outputs, -1)
        mean = (here.p[:, :, None] * rows).sum(1, keepdim=True)
        system = (here.p[:, :, None] * (rows - mean) / len(here.p)).flatten(0, 1)
        system.diagonal().add_(self.ridge)
        step: Tensor = torch.linalg.solve(system, -here.slope)
        return step


def _searched(
    problem: _Problem, alpha: Tensor, here: _Here, direction: Tensor
) -> tuple[Tensor, _Here] | None:
    """The first of the step sizes 1, 1/2, ... that lowers the loss enough or, at equal loss, the gradient; else None."""
    falling = float(here.moved @ direction)
    size = 1.0
    for _ in range(40):
        tried = alpha + size * direction
        there = problem.at(tried)
        if there.loss <= here.loss + 1e-4 * size * falling and there.loss < here.loss:
            return tried, there
        rounding = abs(there.loss - here.loss) <= 1e-13 * max(abs(here.loss), 1.0)
        if rounding and there.norm < 0.5 * here.norm:
            return tried, there
        size /= 2
    return None
