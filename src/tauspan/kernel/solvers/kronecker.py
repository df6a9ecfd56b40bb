"""`KroneckerKernel`: a kernel between rows times one between outputs, which is solved as two small matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.base import Kernel, require_places
from tauspan.kernel.solvers.estimates import finite, require_ridge
from tauspan.kernel.solvers.solution import DualSolution, vector_for

_ASYMMETRY = 1e-6  # of the largest entry


class KroneckerKernel(Kernel):
    """A (x) B with A (N, N) between rows of data and B (O, O) between outputs: K[(n, o), (m, p)] = A_nm B_op.

    With A = U diag(a) U^T and B = V diag(b) V^T everything is known: the eigenvalues are a_i b_j, and
    (A (x) B + ridge)^-1 r is U ((U^T R V) / (a b^T + ridge)) V^T for R = r as a matrix (N, O).

    Args:
        rows: A, symmetric positive semi-definite.
        outputs: B, symmetric positive semi-definite.

    Raises:
        UsageError: a matrix that is not square, symmetric and positive semi-definite.
        NonFiniteError: NaN or infinity in a matrix.

    Cost:
        N^3 + O^3 once, then N O (N + O) for a product, a solve or all leave-one-out blocks.

    Example:
        >>> kernel = KroneckerKernel(2 * torch.eye(2), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> kernel.shape, kernel.outputs, kernel.solve(torch.ones(4), ridge=4.0).alpha
        ((4, 4), 2, tensor([0.1000, 0.1000, 0.1000, 0.1000], dtype=torch.float64))
    """

    def __init__(self, rows: Tensor, outputs: Tensor) -> None:
        self.between_rows, *of_rows = _factor(rows, "rows")
        self.between_outputs, *of_outputs = _factor(outputs, "outputs")
        self._pairs = (*of_rows, *of_outputs)

    @property
    def shape(self) -> tuple[int, int]:
        """(N O, N O)."""
        size = len(self.between_rows) * len(self.between_outputs)
        return size, size

    @property
    def outputs(self) -> int:
        """O, the side of B."""
        return len(self.between_outputs)

    def matmat(self, vectors: Tensor) -> Tensor:
        """A R B for each column R as a matrix (N, O)."""
        cubes = self._taken(vectors).T.reshape(-1, self.samples, self.outputs)
        return (self.between_rows @ cubes @ self.between_outputs).flatten(1).T

    def diag(self) -> Tensor:
        """A_nn B_oo."""
        return torch.outer(self.between_rows.diagonal(), self.between_outputs.diagonal()).flatten()

    def dense(self) -> Tensor:
        """The whole matrix."""
        return torch.kron(self.between_rows, self.between_outputs)

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows by their index n O + o."""
        require_places("row", places, self.shape[0])
        chosen = torch.tensor(list(places), dtype=torch.int64)
        left = self.between_rows[chosen // self.outputs]
        return (left[:, :, None] * self.between_outputs[chosen % self.outputs][:, None]).flatten(1)

    @property
    def eigenvalues(self) -> Tensor:
        """All N O eigenvalues, in no order."""
        a, _, b, _ = self._pairs
        return torch.outer(a, b).flatten()

    def solve(self, y: Tensor, ridge: float = 0.0) -> DualSolution:
        """The alpha with (A (x) B + ridge I) alpha = y for a ridge above 0, with its residual."""
        flat = vector_for(self, y, "the right side")
        alpha = self.precondition(flat, ridge)
        left = float((self.matvec(alpha) + ridge * alpha - flat).norm()) / (float(flat.norm()) or 1.0)
        name = "ridge by a Kronecker product"
        return DualSolution(alpha, name, float(ridge), True, True, relative_residual=left)

    def precondition(self, right: Tensor, ridge: float) -> Tensor:
        """(A (x) B + ridge I)^-1 r for r of shape (N O), the preconditioner for a kernel near A (x) B.

        Raises:
            UsageError: a ridge that is not above 0.
        """
        require_ridge(ridge)
        a, left, b, into = self._pairs
        inside = left.T @ right.double().view(self.samples, self.outputs) @ into
        return (left @ (inside / (torch.outer(a, b) + ridge)) @ into.T).flatten()

    def left_out_blocks(self, ridge: float) -> Tensor:
        """The diagonal blocks G_nn of G = (A (x) B + ridge I)^-1, shape (N, O, O), of which leave-one-out is made."""
        require_ridge(ridge)
        a, left, b, into = self._pairs
        weights = left.square() @ (1 / (torch.outer(a, b) + ridge))
        return (into * weights[:, None, :]) @ into.T


def _factor(matrix: Tensor, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """A factor in float64, exactly symmetric, with its eigenvalues (those below 0 by rounding are 0) and eigenvectors."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise UsageError(f"the matrix between {what} has the shape {tuple(matrix.shape)}: give a square one.")
    whole = finite(matrix.double(), f"the matrix between {what}")
    scale = float(whole.abs().max()) if whole.numel() else 0.0
    if float((whole - whole.T).abs().max()) > _ASYMMETRY * scale:
        raise UsageError(f"the matrix between {what} is not symmetric: give that of one set of {what}.")
    even = (whole + whole.T) / 2
    values, vectors = torch.linalg.eigh(even)
    least = float(values[0])
    if least < -1e-6 * scale:
        raise UsageError(
            f"the matrix between {what} has the eigenvalue {least:.3g}: it must be positive semi-definite."
        )
    return even, values.clamp(min=0), vectors
