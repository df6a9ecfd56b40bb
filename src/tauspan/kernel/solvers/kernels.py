"""Kernels made of a matrix, of a factor, or of other kernels."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import finite, require_ridge
from tauspan.kernel.solvers.solution import DualSolution, vector_for


class DenseKernel(Kernel):
    """A kernel given by its matrix, without a Jacobian behind it.

    Args:
        matrix: shape (N O, M O); kept in float64.
        outputs: O.

    Raises:
        UsageError: no matrix, or a side that is no multiple of O.

    Example:
        >>> DenseKernel(2 * torch.eye(2)) @ torch.ones(2)
        tensor([2., 2.], dtype=torch.float64)
    """

    outputs: int = 1

    def __init__(self, matrix: Tensor, outputs: int = 1) -> None:
        if matrix.dim() != 2 or outputs < 1 or any(size % outputs for size in matrix.shape):
            raise UsageError(
                f"a matrix of shape {tuple(matrix.shape)} is no kernel of {outputs} outputs per row: both sides must be "
                "multiples of it."
            )
        self.matrix, self.outputs = matrix.double(), outputs

    @property
    def shape(self) -> tuple[int, int]:
        """(N O, M O)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def symmetric(self) -> bool:
        """Whether the matrix equals its transpose."""
        return self.shape[0] == self.shape[1] and bool(torch.equal(self.matrix, self.matrix.T))

    def matmat(self, vectors: Tensor) -> Tensor:
        """K V."""
        return self.matrix @ self._taken(vectors)

    def diag(self) -> Tensor:
        """The diagonal."""
        return self.matrix.diagonal()

    def dense(self) -> Tensor:
        """The matrix."""
        return self.matrix

    def _block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        return self.matrix[self._entries(rows)[:, None], self._entries(columns)[None]]

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows by their index n O + o."""
        return self.matrix[list(places)]


class LowRankKernel(Kernel):
    """L L^T for a root L of shape (n, r): products and solves cost O(n r) instead of O(n^2).

    Args:
        root: L; rows of several outputs count as rows of one.

    Raises:
        UsageError: no matrix.
        NonFiniteError: NaN or infinity in it.

    Example:
        >>> kernel = LowRankKernel(torch.tensor([[3.0], [4.0]], dtype=torch.float64))
        >>> kernel.solve(torch.tensor([3.0, 4.0]), ridge=25.0).alpha
        tensor([0.0600, 0.0800], dtype=torch.float64)
    """

    def __init__(self, root: Tensor) -> None:
        if root.dim() != 2:
            raise UsageError(f"a root of shape {tuple(root.shape)}: give a matrix (n, r).")
        self.root = finite(root.double(), "the entries of a root")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return len(self.root), len(self.root)

    @property
    def rank(self) -> int:
        """r, the columns of the root."""
        return self.root.shape[1]

    def matmat(self, vectors: Tensor) -> Tensor:
        """L (L^T V)."""
        return self.root @ (self.root.T @ self._taken(vectors))

    def diag(self) -> Tensor:
        """The squared norms of the rows of L."""
        return self.root.square().sum(1)

    def dense(self) -> Tensor:
        """L L^T."""
        return self.root @ self.root.T

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows of L L^T."""
        return self.root[list(places)] @ self.root.T

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors (n, r) and eigenvalues, the largest first."""
        left, singular, _ = torch.linalg.svd(self.root, full_matrices=False)
        return left, singular.square()

    def solve(self, y: Tensor, ridge: float = 0.0) -> DualSolution:
        """The alpha with (L L^T + ridge I) alpha = y for a ridge above 0, by `solve_columns`, with its residual."""
        flat = vector_for(self, y, "the right side")
        alpha = self.solve_columns(flat[:, None], ridge)[:, 0]
        left = float((self.matvec(alpha) + ridge * alpha - flat).norm()) / (float(flat.norm()) or 1.0)
        return DualSolution(alpha, "ridge by Woodbury", float(ridge), True, True, relative_residual=left)

    def solve_columns(self, right: Tensor, ridge: float) -> Tensor:
        """(L L^T + ridge I)^-1 B for B of shape (n, k) or (n,), float64.

        Woodbury's identity with L = U S V^T: (B - U S^2 (S^2 + ridge)^-1 U^T B) / ridge. O(n r^2) the first time, O(n r)
        for every further column or ridge.

        Raises:
            UsageError: a ridge that is not above 0, or another number of rows.
        """
        right, vectors, values = self._solvable(right, ridge)
        return (right - vectors @ _scaled(values / (values + ridge), vectors.T @ right)) / ridge

    def precondition(self, right: Tensor, ridge: float) -> Tensor:
        """P^-1 B, where P is L L^T + ridge I with the smallest eigenvalue of L L^T also outside the span of L.

        P^-1 = (lam_r + ridge) U (S^2 + ridge)^-1 U^T + (I - U U^T), the Nystrom preconditioner of Frangella, Tropp and
        Udell (2023), for conjugate gradients. Arguments and errors as for `solve_columns`.
        """
        right, vectors, values = self._solvable(right, ridge)
        if not self.rank:
            return right
        share = 1 - (values[-1] + ridge) / (values + ridge)
        return right - vectors @ _scaled(share, vectors.T @ right)

    def _solvable(self, right: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        require_ridge(ridge)
        if len(right) != len(self.root):
            raise UsageError(f"a right side of {len(right)} rows for a kernel of {len(self.root)}.")
        return right.double(), *self._pairs


def _scaled(factors: Tensor, rows: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (rows.dim() - 1)) * rows


class CombinedKernel(Kernel):
    """sum_i c_i K_i + ridge I of kernels of one shape: what `+`, `-`, `*`, `/` and `shifted` make.

    Args:
        terms: numbers c_i and kernels K_i, one or more.
        ridge: added to the diagonal.

    Raises:
        MismatchError: kernels of different shapes or numbers of outputs.
        UsageError: a ridge on a kernel that is not square, or one that is not finite.

    Cost:
        A product costs one product with each K_i; `dense` keeps no matrix of its own.

    Example:
        >>> half = DenseKernel(torch.eye(2)) / 2
        >>> (half - half.shifted(1.0)).diag()
        tensor([-1., -1.], dtype=torch.float64)
    """

    outputs: int = 1

    def __init__(self, terms: Sequence[tuple[float, Kernel]], ridge: float = 0.0) -> None:
        self.terms: list[tuple[float, Kernel]] = []
        self.ridge = float(ridge)
        for factor, kernel in terms:
            if isinstance(kernel, CombinedKernel):
                self.terms += [(factor * inner, term) for inner, term in kernel.terms]
                self.ridge += factor * kernel.ridge
            else:
                self.terms.append((factor, kernel))
        first = terms[0][1]
        self.outputs = first.outputs
        for _, other in self.terms:
            if (other.shape, other.outputs) != (first.shape, first.outputs):
                raise MismatchError(
                    f"kernels of shapes {first.shape} and {other.shape} with {first.outputs} and {other.outputs} outputs "
                    "per row do not add: build both from the same rows and outputs."
                )
        if self.ridge and first.shape[0] != first.shape[1]:
            raise UsageError(
                f"ridge={ridge} on a kernel of shape {first.shape}: only a square one has a diagonal to add it to."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of every term."""
        return self.terms[0][1].shape

    @property
    def symmetric(self) -> bool:
        """Whether every term is symmetric."""
        return all(kernel.symmetric for _, kernel in self.terms)

    def matmat(self, vectors: Tensor) -> Tensor:
        """sum_i c_i K_i V + ridge V."""
        taken = self._taken(vectors)
        return self._sum([kernel.matmat(taken) for _, kernel in self.terms], taken)

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """sum_i c_i K_i^T V + ridge V."""
        taken = self._taken(vectors, 0)
        return self._sum([kernel.rmatmat(taken) for _, kernel in self.terms], taken)

    def diag(self) -> Tensor:
        """sum_i c_i diag K_i + ridge."""
        return self._sum([kernel.diag() for _, kernel in self.terms], torch.ones(()))

    def dense(self) -> Tensor:
        """The whole matrix, added up anew from those of the terms."""
        eye = torch.eye(self.shape[0], dtype=torch.float64) if self.ridge else torch.zeros(())
        return self._sum([kernel.dense() for _, kernel in self.terms], eye)

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows by their index n O + o, from those of the terms."""
        found = self._sum([kernel.rows(places) for _, kernel in self.terms], torch.zeros(()))
        if self.ridge:
            found[torch.arange(len(places)), list(places)] += self.ridge
        return found

    def _sum(self, parts: Sequence[Tensor], identity: Tensor) -> Tensor:
        total = self.terms[0][0] * parts[0]
        for (factor, _), part in zip(self.terms[1:], parts[1:], strict=True):
            total += factor * part
        return total + self.ridge * identity if self.ridge else total


class ScaledKernel(Kernel):
    """D K D of a symmetric kernel, D a diagonal: rows that count more or less, or not at all.

    Example:
        >>> ScaledKernel(DenseKernel(torch.ones(2, 2)), torch.tensor([1.0, 2.0])).dense()
        tensor([[1., 2.],
                [2., 4.]], dtype=torch.float64)
    """

    def __init__(self, kernel: Kernel, diagonal: Tensor) -> None:
        self.kernel, self.diagonal = kernel, diagonal.double()

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of K."""
        return self.kernel.shape

    @property
    def outputs(self) -> int:
        """Those of K."""
        return self.kernel.outputs

    @property
    def parts(self) -> Sequence[tuple[slice, int]]:
        """Those of K."""
        return self.kernel.parts

    def matmat(self, vectors: Tensor) -> Tensor:
        """D K D V."""
        return self.diagonal[:, None] * self.kernel.matmat(self.diagonal[:, None] * self._taken(vectors))

    def diag(self) -> Tensor:
        """D^2 diag K."""
        return self.diagonal.square() * self.kernel.diag()

    def dense(self) -> Tensor:
        """The whole matrix, made anew from that of K."""
        return self.diagonal[:, None] * self.kernel.dense() * self.diagonal

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows, from those of K."""
        return self.diagonal[list(places), None] * self.kernel.rows(places) * self.diagonal


class TransposedKernel(Kernel):
    """K^T of a kernel that is not symmetric: what `.T` makes."""

    outputs: int = 1
    symmetric: bool = False

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.outputs = kernel, kernel.outputs

    @property
    def T(self) -> Kernel:  # noqa: N802 - as of tensors and arrays
        """The kernel itself."""
        return self.kernel

    @property
    def shape(self) -> tuple[int, int]:
        """(M O, N O)."""
        return self.kernel.shape[1], self.kernel.shape[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """K^T V."""
        return self.kernel.rmatmat(self._taken(vectors))

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """K V."""
        return self.kernel.matmat(self._taken(vectors, 0))

    def diag(self) -> Tensor:
        """The diagonal."""
        return self.kernel.diag()

    def dense(self) -> Tensor:
        """The transposed matrix."""
        return self.kernel.dense().T
