"""Low-rank approximations of a symmetric kernel from some of its rows, the landmarks, with their trace residual."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, nearest
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.eigenpairs import eigenpairs, require_rank
from tauspan.kernel.solvers.estimates import (
    EPSILON,
    finite,
    finite_diagonal,
    finite_entries,
    require_semidefinite,
    require_square,
    require_symmetric,
)
from tauspan.kernel.solvers.kernels import LowRankKernel

Process = Literal["k-dpp", "leading"]
_RANK = 200  # of a preconditioner


@dataclass(frozen=True)
class Nystrom:
    """The approximation K_{:S} K_{SS}^-1 K_{S:} of K from its rows S, the landmarks.

    K less the approximation is positive semi-definite, so the trace of this difference measures the error.

    Args:
        kernel: the approximation L L^T, a kernel for every solver, and a preconditioner for `solve_cg`.
        landmarks: the rows S; as many as the rank, or more where K_SS is singular.
        residual: tr(K - L L^T), which bounds the spectral and the Frobenius norm of the error.
        trace: tr K.
        estimator: how the landmarks were chosen.
        exact: whether the residual is within rounding of 0.
    """

    kernel: LowRankKernel
    landmarks: tuple[int, ...]
    residual: float
    trace: float
    estimator: str
    exact: bool

    @property
    def relative_residual(self) -> float:
        """tr(K - L L^T) / tr K; 0 for a kernel that is zero."""
        return self.residual / self.trace if self.trace else 0.0


def pivoted_cholesky(
    kernel: Kernel, rank: int, seed: int = 0, *, block: int = 8, tolerance: float = 0.0
) -> Nystrom:
    """Nystrom approximation, with landmarks drawn one after the other in proportion to the residual's diagonal.

    Randomly pivoted Cholesky (Chen, Epperly, Tropp, Webber). Its expected trace residual is within a factor 1 + eps of
    the best rank-r error from about r / eps + r log(1 / (eps eta)) landmarks on. Proposals are drawn `block` at a time
    and thinned by rejection (Epperly, Tropp, Webber), which leaves the distribution of the landmarks as it is.

    Args:
        kernel: symmetric positive semi-definite.
        rank: the most landmarks; fewer are taken once nothing is left, about r of them for a kernel of rank r.
        seed: of the draws.
        block: proposals for each call of `kernel.rows`.
        tolerance: stop once the trace residual is at most this share of tr K. A model in single precision is known to
            about 1e-6, and further landmarks fit its rounding.

    Raises:
        UsageError: a rank outside 1 to n, a tolerance outside [0, 1), a kernel that is not square, symmetric or positive
            semi-definite.
        NonFiniteError: NaN in the kernel.

    Cost:
        The diagonal, `rank` rows and those of rejected proposals; n rank^2 operations and 8 n rank bytes.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> x = torch.arange(6.0, dtype=torch.float64).view(3, 2)
        >>> pivoted_cholesky(DenseKernel(x @ x.T), rank=3).kernel.rank
        2
    """
    require_rank(kernel, rank)
    if block < 1 or not 0 <= tolerance < 1:
        raise UsageError(f"block={block}, tolerance={tolerance}: at least 1, and from 0 to below 1.")
    diagonal = _diagonal(kernel)
    generator = torch.Generator().manual_seed(seed)
    matrix, pivots = _pivoted(diagonal, kernel.rows, rank, generator, block, tolerance)
    return _measured(matrix, pivots, diagonal, "randomly pivoted Cholesky")


def preconditioner(kernel: Kernel) -> LowRankKernel:
    """A low-rank kernel near this one, with which `solve_cg` takes fewer steps where the kernel is no matrix."""
    return pivoted_cholesky(kernel, min(_RANK, kernel.shape[0])).kernel


def nystrom(kernel: Kernel, landmarks: Sequence[int]) -> Nystrom:
    """The Nystrom approximation from given landmarks: any rows, such as those of `determinantal`.

    Directions of K_SS below rounding are left out, so landmarks may have equal rows.

    Raises:
        UsageError: no landmarks, one twice or outside the kernel, a kernel that is not square.
        NonFiniteError: NaN in the kernel.
    """
    n = require_square(kernel, "a low-rank approximation")
    chosen = tuple(landmarks)
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= place < n for place in chosen):
        raise UsageError(
            f"landmarks={list(chosen[:8])}{'...' if len(chosen) > 8 else ''}: name rows from 0 to {n - 1}, each once."
        )
    columns = finite(kernel.rows(chosen), "the kernel's rows").T
    inner = columns[list(chosen)]
    require_symmetric(inner)
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    kept = values > len(values) * EPSILON * values[-1].clamp(min=0)
    matrix = columns @ (vectors[:, kept] / values[kept].sqrt())
    return _measured(matrix, chosen, _diagonal(kernel), "Nystrom")


def _measured(matrix: Tensor, pivots: Sequence[int], diagonal: Tensor, estimator: str) -> Nystrom:
    kernel, trace = LowRankKernel(matrix), float(diagonal.sum())
    rest = diagonal - kernel.diag()
    require_semidefinite(float(rest.min()), float(diagonal.max()), "the diagonal of K - L L^T")
    residual = max(0.0, float(rest.sum()))
    exact = residual <= 4 * len(diagonal) * EPSILON * trace
    return Nystrom(kernel, tuple(pivots), residual, trace, estimator, exact)


def _diagonal(kernel: Kernel) -> Tensor:
    diagonal = finite_diagonal(kernel)
    require_semidefinite(float(diagonal.min()), float(diagonal.max()), "its diagonal")
    return diagonal.clamp(min=0)


def _pivoted(
    diagonal: Tensor,
    rows: Callable[[Sequence[int]], Tensor],
    rank: int,
    generator: torch.Generator,
    block: int,
    tolerance: float,
) -> tuple[Tensor, list[int]]:
    """The Cholesky factor over pivots drawn in proportion to the residual's diagonal."""
    rest, matrix = diagonal.clone(), diagonal.new_zeros(len(diagonal), rank)
    floor = 4 * len(diagonal) * EPSILON * diagonal.max()  # what rounding leaves of a residual that is 0
    pivots: list[int] = []
    while len(pivots) < rank and float(rest.sum()) > tolerance * float(diagonal.sum()):
        done = len(pivots)
        drawn = torch.multinomial(rest, min(block, rank - done), replacement=True, generator=generator)
        found = finite(rows(drawn.tolist()), "the kernel's rows")
        require_symmetric(found[:, drawn])
        columns = found.T - matrix[:, :done] @ matrix[drawn, :done].T
        inner = (columns[drawn] + columns[drawn].T) / 2
        kept = _accepted(inner, rest[drawn], floor, generator)
        lower = torch.linalg.cholesky(inner[kept][:, kept])
        new = torch.linalg.solve_triangular(lower.T, columns[:, kept], upper=True, left=False)
        matrix[:, done : done + len(kept)] = new
        pivots += drawn[kept].tolist()
        rest = rest - new.square().sum(1)
        rest[pivots] = 0.0
        rest[drawn[inner.diagonal() <= floor]] = 0.0
        rest[rest < floor] = 0.0
    return matrix[:, : len(pivots)].clone(), pivots


def _accepted(inner: Tensor, proposed: Tensor, floor: Tensor, generator: torch.Generator) -> list[int]:
    """The proposals that draws one after the other would have taken.

    Each is kept with the probability (its residual now) / (its residual when it was proposed).
    """
    rest, kept = inner.clone(), []
    chances = torch.rand(len(inner), generator=generator, dtype=inner.dtype)
    for i in range(len(inner)):
        if rest[i, i] > floor and chances[i] * proposed[i] < rest[i, i]:
            kept.append(i)
            rest = rest - torch.outer(rest[:, i], rest[i]) / rest[i, i]
    return kept


def determinantal(kernel: Kernel, size: int, seed: int = 0, kind: Process = "k-dpp") -> tuple[int, ...]:
    """Landmarks drawn from a determinantal point process, which prefers rows that differ.

    Args:
        kernel: symmetric positive semi-definite.
        size: how many.
        seed: of the draws.
        kind: `"k-dpp"`: P(S) proportional to det K_SS over all S of this size, from the eigenvalues of the dense
            matrix. `"leading"`: the projection process of the `size` leading eigenvectors V, P(S) = det (V V^T)_SS,
            which needs products with the kernel only.

    Raises:
        UsageError: a size outside 1 to the kernel's rank, an unknown kind, a kernel that is not square or symmetric.
        NonFiniteError: NaN in the kernel.

    Cost:
        `"k-dpp"`: O(n^3). `"leading"`: that of `eigenpairs`. Both: O(n size^2) for the draws.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> 2 in determinantal(DenseKernel(x @ x.T), size=2)  # never the two equal rows
        True
    """
    n = require_rank(kernel, size)
    if kind not in get_args(Process):
        raise UsageError(f"kind={kind!r}. {nearest(str(kind), get_args(Process))}")
    if kind == "leading":
        pairs = eigenpairs(kernel, size, seed=seed)
        values, vectors = pairs.values, pairs.vectors
    else:
        matrix = finite_entries(kernel)
        require_symmetric(matrix)
        values, vectors = (found.flip(-1) for found in torch.linalg.eigh((matrix + matrix.T) / 2))
    rank = int((values > n * EPSILON * values[0].clamp(min=0)).sum())
    if rank < size:
        raise UsageError(f"size={size}: the kernel has rank {rank}, and larger sets have determinant 0.")
    generator = torch.Generator().manual_seed(seed)
    if kind == "k-dpp":
        vectors = vectors[:, _chosen(values[:rank], size, generator)]
    return projection_draw(vectors, generator)


def projection_draw(vectors: Tensor, generator: torch.Generator) -> tuple[int, ...]:
    """Rows of the projection process P(S) = det (V V^T)_SS of m orthonormal columns V, shape (n, m): always m of them.

    Row i is among them with probability |V_i|^2, its leverage score.

    Cost:
        O(n m^2).
    """
    process = LowRankKernel(vectors)
    # drawing from a projection process one row after the other is randomly pivoted Cholesky of the projection
    _, pivots = _pivoted(process.diag(), process.rows, vectors.shape[1], generator, 8, 0.0)
    return tuple(pivots)


def _chosen(values: Tensor, size: int, generator: torch.Generator) -> list[int]:
    """Eigenvectors of a k-DPP: sets E of `size` with probability proportional to the product of their eigenvalues."""
    logs = values.log()
    # polynomials[i, k]: log of the sum over all k-sets of the first i eigenvalues
    polynomials = torch.full((len(logs) + 1, size + 1), -torch.inf, dtype=torch.float64)
    polynomials[:, 0] = 0.0
    for i, value in enumerate(logs):
        polynomials[i + 1, 1:] = torch.logaddexp(polynomials[i, 1:], value + polynomials[i, :-1])
    chances = torch.rand(len(logs), generator=generator, dtype=torch.float64).log()
    kept: list[int] = []
    for i in range(len(logs), 0, -1):
        left = size - len(kept)
        share = logs[i - 1] + polynomials[i - 1, left - 1] - polynomials[i, left] if left else -torch.inf
        if left == i or chances[i - 1] < share:
            kept.append(i - 1)
    return kept
