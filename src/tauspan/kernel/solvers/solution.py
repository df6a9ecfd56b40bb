"""What a solver of a kernel returns, and the checks that every solver makes first."""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel.solvers.estimates import require_square

if TYPE_CHECKING:
    from tauspan.kernel.solvers.base import Kernel

log = logging.getLogger(__name__)
DENSE = 20_000
"""Rows of a kernel that is still solved as a matrix: 3.2 GB per copy in float64."""


@dataclass(frozen=True, eq=False)
class DualSolution:
    """Dual coefficients alpha, whose task vector is tau = J^T alpha, with the numbers that bound their error.

    A number that the solver does not compute is None.

    Args:
        alpha: shape (N O), float64.
        solver: which method computed it.
        ridge: strength of the pull to the base.
        exact: whether the solver is direct, so that the error is rounding alone.
        converged: whether the iteration reached its tolerance; True for a direct solver.
        iterations: steps of an iterative solver; 0 for a direct one.
        loss: the objective at alpha, ridge included.
        gradient_norm: Euclidean norm of the objective's gradient in tau.
        duality_gap: the objective less its dual, an upper bound of its distance to the minimum.
        relative_residual: |(K + ridge) alpha - r| / |r|.
        error_bound: an upper bound of |tau - tau*|, in the units of the parameters.
    """

    alpha: Tensor
    solver: str
    ridge: float
    exact: bool
    converged: bool
    iterations: int = 0
    loss: float | None = None
    gradient_norm: float | None = None
    duality_gap: float | None = None
    relative_residual: float | None = None
    error_bound: float | None = None

    def __repr__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        return f"{type(self).__name__}({self.solver}, {self.alpha.numel()} numbers, ridge {self.ridge:g}, {state})"

    def facts(self) -> dict[str, Any]:
        """Everything that is known but alpha, for a vector's provenance."""
        certificate = {
            "loss": self.loss, "gradient_norm": self.gradient_norm, "duality_gap": self.duality_gap,
            "relative_residual": self.relative_residual, "error_bound": self.error_bound,
        }  # fmt: skip
        known = {name: value for name, value in certificate.items() if value is not None}
        return {
            "name": self.solver, "ridge": self.ridge, "exact": self.exact, "converged": self.converged,
            "steps": self.iterations, **known,
        }  # fmt: skip


def reached(converged: bool, what: str, value: float, iterations: int, tolerance: float, repair: str) -> bool:
    """Whether an iteration converged; where not, a warning says how far it came and what would help."""
    if not converged:
        words = "%s %g after %d steps, above tolerance %g; allow more steps, %s"
        log.warning(words, what, value, iterations, tolerance, repair)
    return converged


def vector_for(kernel: "Kernel", values: Tensor, what: str) -> Tensor:
    """One number per row and output as a float64 vector of shape (N O).

    Raises:
        UsageError: a kernel between two sets of rows, or another number of values.
        NonFiniteError: NaN or infinity, with the first row that has one.
    """
    require_square(kernel, "a solution")
    flat = values.detach().double().cpu().flatten()
    if len(flat) != kernel.shape[0]:
        raise UsageError(
            f"{what} of shape {tuple(values.shape)}: the kernel has {kernel.samples} rows of {kernel.outputs} outputs, "
            f"so give ({kernel.samples}, {kernel.outputs}), or the same numbers in one row."
        )
    bad = (~torch.isfinite(flat)).nonzero().flatten()
    if len(bad):
        raise NonFiniteError(
            f"{what}, row {int(bad[0]) // kernel.outputs}: {float(flat[bad[0]])}. Clean the rows, or look at the model."
        )
    return flat


def matrix_of(kernel: "Kernel") -> Tensor:
    """The whole symmetric matrix in float64.

    Raises:
        UsageError: more than `DENSE` rows, or not symmetric.
        NonFiniteError: NaN or infinity, with the first row that has one.
    """
    size = kernel.shape[0]
    if size > DENSE:
        raise UsageError(
            f"a kernel of {size} rows x outputs is solved as a matrix up to {DENSE} only: take fewer rows "
            "(`task.subset(train=...)`), or ridge regression with a number as ridge, which needs products alone."
        )
    matrix = kernel.dense()
    bad = (~torch.isfinite(matrix)).any(1).nonzero().flatten()
    if len(bad):
        raise NonFiniteError(
            f"the kernel holds NaN or infinity in row {int(bad[0]) // kernel.outputs} of the data: "
            "clean the row, or look at the model's weights."
        )
    require_symmetric(matrix, "the kernel")
    return matrix


def require_symmetric(matrix: Tensor, what: str) -> None:
    """Raise `UsageError` unless a square matrix is symmetric up to rounding, with the pair that differs most."""
    if not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * float(matrix.abs().max())):
        row, column = divmod(int((matrix - matrix.T).abs().argmax()), len(matrix))
        raise UsageError(
            f"{what} is not symmetric: entry ({row}, {column}) is {float(matrix[row, column]):g} and ({column}, {row}) "
            f"{float(matrix[column, row]):g}. Solvers take K = J J^T of one set of rows; give that block of it."
        )


def cholesky(matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor L of K + ridge I = L L^T.

    Raises:
        UsageError: a negative ridge, or a matrix singular to working precision.
        NonFiniteError: NaN in the matrix.
    """
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise UsageError(f"ridge={ridge}: it must be a finite number, at least 0.")
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("the kernel holds NaN or infinity: check the model's weights and the data.")
    shifted = matrix.clone()
    shifted.diagonal().add_(ridge)
    factored = torch.linalg.cholesky_ex(shifted)
    lower: Tensor = factored.L
    failed = int(factored.info)
    scale = float(matrix.diagonal().max())
    least = float(lower.diagonal().square().min()) if not failed else 0.0
    if failed and scale < 0:
        raise UsageError(
            f"the largest diagonal entry of a kernel of {len(matrix)} rows is {scale:g}, and none can be negative. "
            "Blocks of rows that arrive must be of the same kernel as the rows that are there."
        )
    if failed or least <= len(matrix) * torch.finfo(matrix.dtype).eps * scale:
        size = f", say {1e-6 * scale:.1g} (1e-6 of the largest diagonal entry)" if scale else " above 0"
        raise UsageError(
            f"the kernel of {len(matrix)} rows and ridge={ridge:g} is singular to working precision: a row is there "
            f"twice, or there are more rows than parameters. Give a ridge{size}."
        )
    return lower


def rounding_floor(values: Tensor) -> float:
    """The size below which an eigenvalue among `values` is rounding; 0 for no values."""
    largest = float(values.max()) if len(values) else 0.0
    return largest * len(values) * torch.finfo(torch.float64).eps


def require_steps(max_steps: int, tolerance: float) -> None:
    """Raises `UsageError` for an iteration that may not take a step or has no positive tolerance."""
    if max_steps < 1:
        raise UsageError(f"max_steps={max_steps}: it must be at least 1.")
    if not 0 < tolerance < math.inf:
        raise UsageError(f"tolerance={tolerance}: it must be above 0.")
