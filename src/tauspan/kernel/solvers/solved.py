"""What a solver of a kernel returns, and the checks that every solver makes first."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.kernel.solvers.estimates import require_square
from tauspan.kernel.solvers.protocol import Kernel

DENSE = 20_000
"""Rows of a kernel that is still solved as a matrix: 3.2 GB a copy in float64."""


@dataclass(frozen=True)
class Solved:
    """Dual coefficients alpha, whose task vector is tau = J^T alpha, and what shows that they are right.

    Args:
        alpha: shape (N O), float64.
        solver: how they were found.
        ridge: strength of the pull to the base.
        exact: whether the solver is direct, up to rounding; otherwise the certificate says how far it went.
        converged: whether the certificate meets what was asked for.
        certificate: numbers that bound the error, by name; each solver says which.
        steps: iterations of an iterative solver.
    """

    alpha: Tensor
    solver: str
    ridge: float
    exact: bool
    converged: bool
    certificate: Mapping[str, float]
    steps: int = 0

    def facts(self) -> dict[str, Any]:
        """Everything but alpha, for provenance."""
        return {
            "name": self.solver, "ridge": self.ridge, "exact": self.exact, "converged": self.converged,
            "steps": self.steps, **self.certificate,
        }  # fmt: skip


def vector_for(kernel: Kernel, values: Tensor, what: str) -> Tensor:
    """Numbers for each row and output as one float64 vector of shape (N O).

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


def matrix_of(kernel: Kernel) -> Tensor:
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
    matrix = kernel.dense().double()
    bad = (~torch.isfinite(matrix)).any(1).nonzero().flatten()
    if len(bad):
        raise NonFiniteError(
            f"the kernel holds NaN or infinity in row {int(bad[0]) // kernel.outputs} of the data: "
            "clean the row, or look at the model's weights."
        )
    if not torch.allclose(matrix, matrix.T, rtol=1e-6, atol=1e-9 * float(matrix.abs().max())):
        raise UsageError("the kernel is not symmetric: solvers take K = J J^T of one set of rows.")
    return matrix


def require_steps(max_steps: int, tolerance: float) -> None:
    """Raise unless an iteration may run at all."""
    if max_steps < 1:
        raise UsageError(f"max_steps={max_steps}: it must be at least 1.")
    if not 0 < tolerance < math.inf:
        raise UsageError(f"tolerance={tolerance}: it must be above 0.")
