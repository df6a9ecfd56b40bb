"""`Factor`: a matrix L L^T given by L, with what solvers do with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.estimates import finite, require_ridge


@dataclass(frozen=True, eq=False)
class Factor:
    """L of shape (n, r) that stands for the matrix L L^T.

    Raises:
        UsageError: not a matrix.
        NonFiniteError: NaN or infinity in it.

    Example:
        >>> factor = Factor(torch.tensor([[3.0], [4.0]], dtype=torch.float64))
        >>> factor.solve(torch.tensor([3.0, 4.0], dtype=torch.float64), ridge=25.0)
        tensor([0.0600, 0.0800], dtype=torch.float64)
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.dim() != 2:
            raise UsageError(f"a factor of shape {tuple(self.matrix.shape)}: give a matrix (n, r).")
        finite(self.matrix, "a factor's entries")

    @property
    def rank(self) -> int:
        """R, the number of columns."""
        return self.matrix.shape[1]

    def matmat(self, vectors: Tensor) -> Tensor:
        """L L^T V for V of shape (n, k) or (n,)."""
        return self.matrix @ (self.matrix.T @ vectors)

    def dense(self) -> Tensor:
        """L L^T, shape (n, n)."""
        return self.matrix @ self.matrix.T

    def diag(self) -> Tensor:
        """The diagonal of L L^T."""
        return self.matrix.square().sum(1)

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows of L L^T, shape (len(places), n)."""
        return self.matrix[list(places)] @ self.matrix.T

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors (n, r) and eigenvalues of L L^T, the largest first."""
        left, singular, _ = torch.linalg.svd(self.matrix, full_matrices=False)
        return left, singular.square()

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """(L L^T + ridge I)^-1 b for b of shape (n,) or (n, k).

        Woodbury's identity over the orthogonalised factor L = U S V^T: (b - U S^2 (S^2 + ridge)^-1 U^T b) / ridge.
        O(n r^2) the first time, O(n r) for every further b or ridge.

        Raises:
            UsageError: a ridge that is not above 0, or another length.
        """
        vectors, values = self._asked(right, ridge)
        return (right - vectors @ _scaled(values / (values + ridge), vectors.T @ right)) / ridge

    def precondition(self, right: Tensor, ridge: float) -> Tensor:
        """P^-1 b, where P is K + ridge I with every eigenvalue outside the factor's space taken for its smallest one.

        P^-1 = (lam_r + ridge) U (S^2 + ridge)^-1 U^T + (I - U U^T), the Nystrom preconditioner of Frangella, Tropp and
        Udell, for conjugate gradients. Arguments and errors as for `solve`.
        """
        vectors, values = self._asked(right, ridge)
        if not self.rank:
            return right
        share = 1 - (values[-1] + ridge) / (values + ridge)
        return right - vectors @ _scaled(share, vectors.T @ right)

    def _asked(self, right: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        require_ridge(ridge)
        if len(right) != len(self.matrix):
            raise UsageError(f"a right side of {len(right)} rows for a factor of {len(self.matrix)}.")
        return self._pairs


def _scaled(factors: Tensor, rows: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (rows.dim() - 1)) * rows
