"""The losses of closed forms: each is a function that solves for alpha, and a row of `LOSSES`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.approximate.lowrank import preconditioner
from tauspan.kernel.operator.factored import kronecker
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.cg import conjugate_gradients, solve_cg
from tauspan.kernel.solvers.hinge import Margins, margins, one_vs_rest, solve_hinge
from tauspan.kernel.solvers.kernels import DenseKernel, ScaledKernel
from tauspan.kernel.solvers.newton import solve_cross_entropy
from tauspan.kernel.solvers.regression import RidgeChoice, choose_ridge, roots_of, solve_ridge
from tauspan.kernel.solvers.solution import DENSE, DualSolution, matrix_of

log = logging.getLogger(__name__)
By = Literal["auto", "matrix", "products"]
BYS: tuple[By, ...] = ("auto", "matrix", "products")
_OUTPUTS, _SIZE = 8, 1000  # outputs, and rows x outputs, from which products take less time
_STEPS = 40  # of products, after which the matrix would have been faster


@dataclass(frozen=True)
class LossProblem:
    """What a loss is minimised on.

    Args:
        kernel: of the N training rows with O outputs each.
        start: f0, shape (N, O), float64.
        labels: classes, shape (N,); numbers, shape (N, O), of regression.
        ridge: a number; None where leave-one-out is to choose it.
        gap: target distance of the right logit from the others, for the squared loss of classes; None where the labels
            are the targets.
        grid: what leave-one-out chooses from.
        tolerance: of iterative solvers.
        max_steps: of iterative solvers.
        by: what the squared loss is solved with; see `closed_form`.
        weights: what each row counts in the squared loss, shape (N,); None counts all alike.
    """

    kernel: TangentKernel
    start: Tensor
    labels: Tensor
    ridge: float | None = None
    gap: float | None = None
    grid: Sequence[float] | None = None
    tolerance: float = 1e-8
    max_steps: int = 1000
    by: By = "auto"
    weights: Tensor | None = None

    @property
    def by_products(self) -> bool:
        """Whether the squared loss is solved without a matrix of N O rows."""
        size, outputs = self.kernel.shape[0], self.kernel.outputs
        auto = size > DENSE or (outputs >= _OUTPUTS and size >= _SIZE and not self.kernel.formed)
        return auto if self.by == "auto" else self.by == "products"

    @property
    def strength(self) -> float:
        """The ridge of a loss that needs a number."""
        return cast(float, self.ridge)

    def centred_start(self) -> Tensor:
        """f0 less each row's mean."""
        return self.start - self.start.mean(1, keepdim=True)

    def residual(self) -> Tensor:
        """What the squared loss asks J tau to be: gap (onehot - 1/C) - (f0 - mean f0), or y - f0 of numbers y.

        Raises:
            UsageError: a gap that is not above 0.
        """
        if self.gap is None:
            return self.labels.double() - self.start
        return squared_residual(self.start, self.labels, self.gap)


def squared_residual(start: Tensor, labels: Tensor, gap: float) -> Tensor:
    """What the squared loss asks of the logits f0 of classes: gap (onehot - 1/C) - (f0 - mean f0), shape (N, C).

    Raises:
        UsageError: a gap that is not above 0.
    """
    if not (math.isfinite(gap) and gap > 0):
        raise UsageError(f"gap={gap}: it must be above 0.")
    classes = start.shape[1]
    hot = F.one_hot(labels, classes).to(start)  # whole numbers less 1/C would be single precision
    return gap * (hot - 1 / classes) - (start - start.mean(1, keepdim=True))


class LossSolution(NamedTuple):
    """The solution for one loss; `facts` are for provenance."""

    solution: DualSolution
    facts: Mapping[str, Any]
    choice: RidgeChoice | None = None
    margins: Margins | None = None


@dataclass(frozen=True)
class Loss:
    """One loss of `closed_form`.

    Args:
        solve: minimises it.
        contrast: of two classes it sees the difference of the two logits alone.
        ridge: where none is named: a number (that of `tauspan.fit`), or None for leave-one-out, which only a loss with
            None can do.
    """

    solve: Callable[[LossProblem], LossSolution]
    contrast: bool = False
    ridge: float | None = 1e-3


def squared(problem: LossProblem) -> LossSolution:
    """Ridge regression on the problem's residual."""
    residual = problem.residual()
    facts: dict[str, Any] = {} if problem.gap is None else {"gap": problem.gap}
    if problem.weights is not None:
        return _weighted(problem, residual, facts)
    products = problem.by_products
    near = kronecker(problem.kernel) if products and problem.kernel.outputs > 1 else None
    choice, ridge = None, problem.ridge
    if ridge is None:
        choice = choose_ridge(problem.kernel if near is None else near, residual, problem.grid)
        ridge = choice.ridge
        facts["leave_one_out"] = {"grid": list(choice.grid), "errors": list(choice.errors)}
        if near is not None:
            facts["leave_one_out"]["kernel"] = "Kronecker product"
    if not products:
        return LossSolution(solve_ridge(problem.kernel, residual, ridge), facts, choice)
    quick = problem.kernel.recorded()
    if problem.by == "auto" and problem.kernel.shape[0] <= DENSE:
        steps = min(problem.max_steps, _STEPS)
        tried = conjugate_gradients(quick, residual, ridge, near, problem.tolerance, steps)
        if tried.converged:
            return LossSolution(tried, facts, choice)
        log.info("products were not enough after %d steps, so the whole kernel is computed", steps)
        return squared(replace(problem, by="matrix"))
    solution = solve_cg(
        quick, residual, ridge, near or preconditioner(problem.kernel),
        tolerance=problem.tolerance, max_steps=problem.max_steps,
    )  # fmt: skip
    return LossSolution(solution, facts, choice)


def _weighted(problem: LossProblem, residual: Tensor, facts: dict[str, Any]) -> LossSolution:
    """Ridge regression with weights of rows, from the whole kernel.

    Raises:
        UsageError: it was to be solved by products.
    """
    if problem.by == "products":
        raise UsageError(
            "by='products' with weights: weighted rows are solved with the matrix. Take by='matrix'."
        )
    weights, choice, ridge = cast(Tensor, problem.weights), None, problem.ridge
    if ridge is None:
        root = roots_of(problem.kernel, weights)
        choice = choose_ridge(ScaledKernel(problem.kernel, root), root * residual.flatten(), problem.grid)
        ridge = choice.ridge
        facts["leave_one_out"] = {"grid": list(choice.grid), "errors": list(choice.errors)}
    return LossSolution(
        solve_ridge(problem.kernel, residual, ridge, weights), {**facts, "weighted": True}, choice
    )


def cross_entropy(problem: LossProblem) -> LossSolution:
    """The loss of `fit`, minimised by Newton's method."""
    solution = solve_cross_entropy(
        problem.kernel, problem.labels, problem.strength, problem.start,
        tolerance=problem.tolerance, max_steps=problem.max_steps,
    )  # fmt: skip
    return LossSolution(solution, {})


def hinge(problem: LossProblem) -> LossSolution:
    """The hinge loss of the difference of two logits or, for more classes, of each class's centred logit."""
    outputs = problem.kernel.outputs
    kernel: Kernel = problem.kernel
    start, signs = problem.start, 2 * problem.labels.double() - 1
    if outputs > 1:
        kernel = DenseKernel(_centred(matrix_of(kernel), outputs), outputs)
        start, signs = problem.centred_start(), one_vs_rest(problem.labels, outputs)
    solution = solve_hinge(
        kernel, signs, problem.strength, start, tolerance=problem.tolerance, max_steps=problem.max_steps
    )
    bounds = margins(kernel, solution, signs, start)
    if outputs > 1:  # centring is its own transpose
        alpha = solution.alpha.view_as(start)
        solution = replace(solution, alpha=(alpha - alpha.mean(1, keepdim=True)).flatten())
    return LossSolution(solution, {"support": len(bounds.support), "norm": bounds.norm}, margins=bounds)


def _centred(matrix: Tensor, outputs: int) -> Tensor:
    """The kernel of each row's outputs less their mean."""
    cubes = matrix.view(len(matrix) // outputs, outputs, -1, outputs)
    left = cubes - cubes.mean(1, keepdim=True)
    return (left - left.mean(3, keepdim=True)).view_as(matrix)


LOSSES: dict[str, Loss] = {
    "squared": Loss(squared, ridge=None),
    "cross_entropy": Loss(cross_entropy),
    "hinge": Loss(hinge, contrast=True),
}
