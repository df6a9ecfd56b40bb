"""`Kernel`: what every kernel can do, from its products with vectors and its diagonal."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.params import Params
from tauspan.tangent.cache.room import free_memory

if TYPE_CHECKING:
    from tauspan.kernel.solvers.eigenpairs import EigenPairs
    from tauspan.kernel.solvers.estimates import Estimate
    from tauspan.kernel.solvers.solution import DualSolution

_STRIP = 256  # columns of the identity per product, where the whole matrix is made of products


class Kernel(ABC):
    """A kernel matrix K of shape (N O, M O) as a linear operator: N and M rows of data with O outputs each.

    Entry (n, o), output o of row n, has the index n O + o. A kernel of your own is a subclass with `shape`, `matmat` and
    `diag`; everything else follows from these, and a subclass overrides what it can do for less. Results are float64,
    whatever the dtype of the vectors.

    A subclass may also set `outputs` (O, 1 by default) and `symmetric` (whether K = K^T; by default every square kernel
    is). Where K is not symmetric, it should define `rmatmat`, or K^T V takes the whole matrix.

    `K @ v` is the product. `K + L`, `K - L`, `c * K` and `K / c` are kernels again, and `K + 0.1` is K + 0.1 I: a number
    is added to the diagonal, not to every entry. Nothing is computed before the result is multiplied or read.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        >>> class Linear(Kernel):
        ...     shape = (2, 2)
        ...     def matmat(self, vectors):
        ...         return x @ (x.T @ vectors)
        ...     def diag(self):
        ...         return x.square().sum(1)
        >>> kernel = Linear()
        >>> (2 * kernel + 0.5).dense()
        tensor([[2.5000, 4.0000],
                [4.0000, 8.5000]], dtype=torch.float64)
        >>> kernel.solve(torch.tensor([1.0, 2.0]), ridge=1.0).alpha
        tensor([0.1667, 0.3333], dtype=torch.float64)
    """

    _matrix: Tensor | None = None  # what `dense` computed

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(N O, M O)."""

    @abstractmethod
    def matmat(self, vectors: Tensor) -> Tensor:
        """K V for V of shape (M O, k) in float64: shape (N O, k)."""

    @abstractmethod
    def diag(self) -> Tensor:
        """The diagonal of a square kernel, shape (N O), float64."""

    @property
    def outputs(self) -> int:
        """O, the outputs of each row of data."""
        return 1

    @property
    def symmetric(self) -> bool:
        """Whether K = K^T."""
        return self.shape[0] == self.shape[1]

    @property
    def samples(self) -> int:
        """N, the rows of data of the left side."""
        return self.shape[0] // self.outputs

    @property
    def parts(self) -> Sequence[tuple[slice, int]]:
        """The entries of each stretch of rows with one number of outputs, and that number."""
        return [(slice(0, self.shape[0]), self.outputs)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all results: float64."""
        return torch.float64

    # -- products --------------------------------------------------------------------------------------------

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """K^T V for V of shape (N O, k); from the whole matrix, unless K is symmetric or the subclass overrides it."""
        return self.matmat(vectors) if self.symmetric else self.dense().T @ self._taken(vectors, 0)

    @checked
    def matvec(self, vector: Tensor) -> Tensor:
        """K v for v of shape (M O): shape (N O)."""
        return self.matmat(self._taken(vector.reshape(-1, 1))).squeeze(1)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """K v or K V."""
        if not isinstance(vectors, Tensor) or vectors.dim() not in (1, 2):
            shape = f" of shape {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else ""
            raise UsageError(
                f"a kernel of shape {self.shape} times a {type(vectors).__name__}{shape}: give a tensor of shape "
                f"({self.shape[1]},) or ({self.shape[1]}, k); `torch.as_tensor(...)` makes one."
            )
        return self.matvec(vectors) if vectors.dim() == 1 else self.matmat(self._taken(vectors))

    def _taken(self, vectors: Tensor, side: int = 1) -> Tensor:
        """Vectors to be multiplied, in float64; raises `UsageError` unless they have the length of a side."""
        if vectors.dim() != 2 or len(vectors) != self.shape[side]:
            what = "a kernel" if side else "the transpose of a kernel"
            raise UsageError(
                f"{what} of shape {self.shape} times {tuple(vectors.shape)}: give ({self.shape[side]}, k)."
            )
        return vectors.double()

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha, a displacement by parameter name, of a kernel J J^T whose Jacobian is known.

        Raises:
            UsageError: this kernel has no parameters.
        """
        raise UsageError(f"a {type(self).__name__} has no parameters: J^T alpha needs a TangentKernel.")

    def push(self, tau: Params) -> Tensor:
        """J tau, shape (N O), of a kernel J J^T whose Jacobian is known.

        Raises:
            UsageError: this kernel has no parameters.
        """
        raise UsageError(f"a {type(self).__name__} has no parameters: J tau needs a TangentKernel.")

    # -- entries ---------------------------------------------------------------------------------------------

    @checked
    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows of the matrix by their index n O + o, shape (len(places), M O).

        Raises:
            UsageError: a row that does not exist; they count from 0.
        """
        require_places("row", places, self.shape[0])
        if self._matrix is not None:
            return self._matrix[list(places)]
        return self.rmatmat(_units(self.shape[0], torch.tensor(list(places), dtype=torch.int64))).T

    @checked
    def block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The entries between some rows of data of the left side and some of the right, shape (n O, m O).

        Raises:
            UsageError: a row or column that does not exist; they count from 0.
        """
        require_places("row", rows, self.samples)
        require_places("column", columns, self.shape[1] // self.outputs)
        return self._block(rows, columns)

    def _block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        left, right = self._entries(rows), self._entries(columns)
        if self._matrix is not None:
            return self._matrix[left[:, None], right[None]]
        return self.matmat(_units(self.shape[1], right))[left]

    def _entries(self, samples: Sequence[int]) -> Tensor:
        """The indices n O + o of some rows of data."""
        first = torch.tensor(samples, dtype=torch.int64)[:, None] * self.outputs
        return (first + torch.arange(self.outputs)).flatten()

    def dense(self) -> Tensor:
        """The whole matrix, float64, computed once.

        Raises:
            UsageError: the matrix does not fit into the free memory.
        """
        if self._matrix is None:
            self._require_memory()
            self._matrix = self._whole()
        return self._matrix

    def _whole(self) -> Tensor:
        total = torch.empty(self.shape, dtype=torch.float64)
        for places in torch.split(torch.arange(self.shape[1]), _STRIP):
            total[:, places] = self.matmat(_units(self.shape[1], places))
        return total

    def _require_memory(self) -> None:
        needed, free = 8 * self.shape[0] * self.shape[1], free_memory()
        if needed > free:
            raise UsageError(
                f"the whole kernel of {self.samples} x {self.shape[1] // self.outputs} rows with {self.outputs} outputs "
                f"each needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free. Take fewer outputs "
                "(outputs='sum' or 'trace') or fewer rows, or do without the matrix: matmat, pullback, push, rows, diag."
            )

    # -- algebra ---------------------------------------------------------------------------------------------

    @property
    def T(self) -> "Kernel":  # noqa: N802 - as of tensors and arrays
        """K^T."""
        from tauspan.kernel.solvers.kernels import TransposedKernel

        return self if self.symmetric else TransposedKernel(self)

    def shifted(self, ridge: float) -> "Kernel":
        """K + ridge I, of a square kernel."""
        return self._combined([(1.0, self)], ridge)

    def __add__(self, other: "Kernel | float") -> "Kernel":
        """K + L, or K + ridge I for a number."""
        if isinstance(other, Kernel):
            return self._combined([(1.0, self), (1.0, other)])
        return self.shifted(other) if _is_number(other) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: "Kernel | float") -> "Kernel":
        return self + -other if isinstance(other, Kernel) or _is_number(other) else NotImplemented

    def __mul__(self, factor: float) -> "Kernel":
        return self._combined([(float(factor), self)]) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Kernel":
        return self * (1 / divisor) if _is_number(divisor) else NotImplemented

    def __neg__(self) -> "Kernel":
        return self * -1.0

    def _combined(self, terms: Sequence[tuple[float, "Kernel"]], ridge: float = 0.0) -> "Kernel":
        from tauspan.kernel.solvers.kernels import CombinedKernel

        return CombinedKernel(terms, ridge)

    def to_scipy(self) -> LinearOperator:
        """The kernel as a `scipy.sparse.linalg.LinearOperator`, for scipy's solvers; products copy no matrix."""

        def product(times: Callable[[Tensor], Tensor]) -> Any:
            return lambda array: times(torch.as_tensor(array).reshape(len(array), -1)).numpy()

        there, back = product(self.__matmul__), product(self.rmatmat)
        return LinearOperator(
            self.shape, dtype=np.float64, matvec=there, rmatvec=back, matmat=there, rmatmat=back
        )

    # -- solvers ---------------------------------------------------------------------------------------------

    def solve(self, y: Tensor, ridge: float = 0.0) -> "DualSolution":
        """The alpha with (K + ridge I) alpha = y by Cholesky, with its residual; see `solve_ridge`."""
        from tauspan.kernel.solvers.regression import solve_ridge

        return solve_ridge(self, y, ridge)

    def eigsh(self, r: int, *, seed: int = 0) -> "EigenPairs":
        """The r largest eigenvalues of a symmetric kernel, with vectors and residuals; see `eigenpairs`."""
        from tauspan.kernel.solvers.eigenpairs import eigenpairs

        return eigenpairs(self, r, seed=seed)

    def logdet(self, ridge: float = 0.0, probes: int | None = None, *, seed: int = 0) -> "Estimate":
        """Log det(K + ridge I): exactly from the matrix, or by Lanczos quadrature from so many random vectors."""
        from tauspan.kernel.solvers.quadrature import logdet

        return logdet(self, ridge, probes, seed=seed)

    def trace(self, probes: int | None = None, *, seed: int = 0) -> "Estimate":
        """Tr K: exactly from the diagonal, without a matrix, or from so many random vectors."""
        from tauspan.kernel.solvers.estimates import trace

        return trace(self, probes, seed)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_places(which: str, places: Sequence[int], count: int) -> None:
    """Raises `UsageError` for a row or column that does not exist."""
    outside = [place for place in places if not 0 <= place < count]
    if outside:
        raise UsageError(f"{which} {outside[0]} of a kernel with {which}s 0 to {count - 1}.")


def _units(length: int, places: Tensor) -> Tensor:
    """Some columns of the identity."""
    units = torch.zeros(length, len(places), dtype=torch.float64)
    units[places, torch.arange(len(places))] = 1.0
    return units
