"""Ridge regression by products alone: preconditioned conjugate gradients."""

from typing import Any, Protocol, cast

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import finite, require_ridge
from tauspan.kernel.solvers.solution import DualSolution, reached, require_steps, vector_for


class Preconditioner(Protocol):
    """A kernel near another one whose inverse is known: `LowRankKernel`, `KroneckerKernel`, or one of your own."""

    def precondition(self, right: Tensor, ridge: float) -> Tensor:
        """About (K + ridge)^-1 r for r of shape (N O), symmetric and positive definite."""
        ...


@checked
def solve_cg(
    kernel: Kernel,
    residual: Tensor,
    ridge: float,
    preconditioner: Preconditioner | None = None,
    *,
    tolerance: float = 1e-10,
    max_steps: int = 1000,
) -> DualSolution:
    """(K + ridge) alpha = r by conjugate gradients, for kernels that are too large to be a matrix.

    With a preconditioner the number of steps depends on how near it is to K: for many outputs
    `kronecker(kernel)`, else `pivoted_cholesky(kernel, rank).kernel`.

    Args:
        kernel: symmetric, over the training rows; only products with it are computed.
        residual: r = y - f0, shape (N O) or (N, O).
        ridge: above 0.
        preconditioner: anything with the method `precondition(right, ridge)`, of N O rows; None takes none.
        tolerance: end where |(K + ridge) alpha - r| <= tolerance |r|.
        max_steps: end after so many products, with a warning and `converged` False.

    Returns:
        alpha with `relative_residual`, from one more product with K, and `error_bound` on |tau - tau*|.

    Raises:
        UsageError: ridge not above 0, or shapes that do not fit.
        NonFiniteError: NaN or infinity in the residual or a product.

    Cost:
        One product with K per step (about 6 N forward passes' FLOPs), and one call of the preconditioner.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> solve_cg(DenseKernel(torch.eye(2).double()), torch.tensor([2.0, 4.0]), 1.0).alpha
        tensor([1., 2.], dtype=torch.float64)
    """
    found = conjugate_gradients(kernel, residual, ridge, preconditioner, tolerance, max_steps)
    reached(
        found.converged, "conjugate gradients: relative residual", found.relative_residual or 0.0,
        found.iterations, tolerance, "a larger ridge or a nearer preconditioner",
    )  # fmt: skip
    return found


def conjugate_gradients(
    kernel: Kernel, residual: Tensor, ridge: float, preconditioner: Preconditioner | None,
    tolerance: float, max_steps: int,
) -> DualSolution:  # fmt: skip
    """`solve_cg` without a word where it does not converge, for callers that go on in another way."""
    require_ridge(ridge)
    require_steps(max_steps, tolerance)
    flat = vector_for(kernel, residual, "the residual y - f0")
    steps = 0

    def product(array: Any) -> Any:
        vector = torch.from_numpy(np.array(array)).flatten()
        return (finite(kernel.matvec(vector).double(), "products with the kernel") + ridge * vector).numpy()

    def preconditioned(array: Any) -> Any:
        return (
            cast(Preconditioner, preconditioner)
            .precondition(torch.from_numpy(np.array(array)).flatten(), ridge)
            .numpy()
        )

    def count(_: Any) -> None:
        nonlocal steps
        steps += 1

    shape = kernel.shape
    system = LinearOperator(shape, matvec=product, dtype=np.float64)
    nearby = (
        None if preconditioner is None else LinearOperator(shape, matvec=preconditioned, dtype=np.float64)
    )
    found, _ = cg(system, flat.numpy(), rtol=tolerance, maxiter=max_steps, M=nearby, callback=count)
    alpha = torch.from_numpy(found)
    left = torch.from_numpy(product(found)) - flat
    relative = float(left.norm()) / (float(flat.norm()) or 1.0)
    converged = relative <= 2 * tolerance  # the true residual, where the recursion's own drifts by rounding
    # |J^T d|^2 = d^T K d <= |left|^2 max_l l/(l + ridge)^2 <= |left|^2 / (4 ridge) for d = (K + ridge)^-1 left
    bound = float(left.norm()) / (2 * ridge**0.5)
    return DualSolution(
        alpha, "ridge by conjugate gradients", float(ridge), False, converged, steps,
        relative_residual=relative, error_bound=bound,
    )  # fmt: skip
