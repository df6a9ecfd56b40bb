"""The leading eigenpairs of a symmetric kernel from products with blocks of vectors."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import EPSILON, require_square, require_symmetric, times
from tauspan.kernel.solvers.kernels import LowRankKernel


def require_rank(kernel: Kernel, rank: int) -> int:
    """The number of rows; raises `UsageError` for a rank that such a kernel cannot have, or one that is not square."""
    n = require_square(kernel, "a low-rank approximation")
    if not 1 <= rank <= n:
        raise UsageError(f"rank={rank} of a kernel with {n} rows: choose 1 to {n}.")
    return n


@dataclass(frozen=True, eq=False)
class EigenPairs:
    """The largest eigenvalues of a kernel, in falling order, and their vectors. What was not computed is None.

    Args:
        values: lam, shape (r,).
        vectors: orthonormal columns v, shape (n, r).
        exact: whether the search space was the whole space.
        estimator: which method computed them.
        residuals: |K v - lam v| for each pair, shape (r,): K has an eigenvalue within this distance of lam.
        products: how many products of the kernel with a vector it took.
    """

    values: Tensor
    vectors: Tensor
    exact: bool
    estimator: str
    residuals: Tensor | None = None
    products: int | None = None

    def __repr__(self) -> str:
        count, rows = len(self.values), len(self.vectors)
        ends = f"{float(self.values[0]):.4g} to {float(self.values[-1]):.4g}" if count else "none"
        worst = ""
        if self.residuals is not None and count:
            worst = f", residuals at most {float(self.residuals.max()):.1g}"
        return f"EigenPairs({count} of {rows}: {ends}{worst}, {self.estimator})"

    @cached_property
    def kernel(self) -> LowRankKernel:
        """V lam V^T, the best approximation of its rank where the pairs are exact."""
        return LowRankKernel(self.vectors * self.values.clamp(min=0).sqrt())


@checked
def eigenpairs(
    kernel: Kernel,
    rank: int,
    *,
    oversampling: int = 10,
    iterations: int = 10,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> EigenPairs:
    """The leading eigenpairs by a block Krylov space from a random start (Musco and Musco), in float64.

    The space of Q, K Q, K^2 Q, ... is kept whole, each block orthogonalised against all others, and the pairs are those
    of the kernel restricted to it (Rayleigh-Ritz). Residuals cost no further product.

    Args:
        kernel: symmetric.
        rank: how many pairs.
        oversampling: columns of a block beyond `rank`.
        iterations: the most blocks after the first.
        tolerance: stop once every residual is at most this share of the largest eigenvalue; a model in single precision
            stays at about 1e-6.
        seed: of the start.

    Raises:
        UsageError: a rank outside 1 to n, negative counts or tolerance, a kernel that is not square or symmetric.
        NonFiniteError: NaN in the kernel.

    Cost:
        At most (rank + oversampling) (iterations + 1) products, and 16 n bytes for each.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> matrix = torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64))
        >>> [round(value, 6) for value in eigenpairs(DenseKernel(matrix), 2).values.tolist()]
        [5.0, 3.0]
    """
    n = require_rank(kernel, rank)
    if oversampling < 0 or iterations < 0 or not tolerance >= 0:
        raise UsageError(
            f"oversampling={oversampling}, iterations={iterations}, tolerance={tolerance}: none below 0."
        )
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(n, min(n, rank + oversampling), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(start).Q
    image = latest = times(kernel, basis)
    for step in range(iterations + 1):
        form = basis.T @ image
        require_symmetric(form)
        values, inner = (found[..., -rank:].flip(-1) for found in torch.linalg.eigh((form + form.T) / 2))
        vectors = basis @ inner
        residuals = (image @ inner - vectors * values).norm(dim=0)
        close = float(residuals.max()) <= tolerance * float(values.abs().max())
        block = _beyond(basis, latest)
        if close or step == iterations or not block.shape[1]:
            break
        latest = times(kernel, block)
        basis, image = torch.cat([basis, block], 1), torch.cat([image, latest], 1)
    whole = basis.shape[1] == n
    return EigenPairs(
        values, vectors, whole, "block Krylov, Rayleigh-Ritz", residuals, products=basis.shape[1]
    )


def _beyond(basis: Tensor, block: Tensor) -> Tensor:
    """An orthonormal basis of what a block adds to the space, as far as that is above rounding."""
    outside = block - basis @ (basis.T @ block)
    outside = outside - basis @ (basis.T @ outside)
    left, singular, _ = torch.linalg.svd(outside, full_matrices=False)
    kept = singular > len(block) * EPSILON * block.norm()
    found = left[:, kept][:, : len(basis) - basis.shape[1]]
    orthonormal: Tensor = torch.linalg.qr(found - basis @ (basis.T @ found)).Q
    return orthonormal
