"""What solvers and approximations ask of a kernel, and the simplest thing that answers: a matrix."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.core.params import Params


class Kernel(Protocol):
    """K = J J'^T as an operator, shape (N O, M O); entry (n, o) of a side has the index n O + o."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N O, M O)."""

    @property
    def samples(self) -> int:
        """N, the rows of the left side."""

    @property
    def outputs(self) -> int:
        """O, outputs of a row."""

    def matvec(self, vector: Tensor) -> Tensor:
        """K v, shape (N O)."""

    def matmat(self, vectors: Tensor) -> Tensor:
        """K V for the columns of V, shape (N O, k)."""

    def diag(self) -> Tensor:
        """The diagonal of a square kernel, shape (N O)."""

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows, shape (len(places), M O)."""

    def dense(self) -> Tensor:
        """The whole matrix."""

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha, a displacement under the parameters' names."""

    def push(self, tau: Params) -> Tensor:
        """J tau, shape (N O)."""


class DenseKernel:
    """A kernel given by its matrix, without a Jacobian behind it.

    Args:
        matrix: shape (N O, M O).
        outputs: O.

    Example:
        >>> import torch
        >>> DenseKernel(2 * torch.eye(2)).matvec(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, matrix: Tensor, outputs: int = 1) -> None:
        if matrix.dim() != 2 or outputs < 1 or any(size % outputs for size in matrix.shape):
            raise UsageError(
                f"a matrix of shape {tuple(matrix.shape)} is no kernel of {outputs} outputs a row: both sides must be "
                "multiples of it."
            )
        self.matrix, self.outputs = matrix, outputs
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.samples = matrix.shape[0] // outputs

    def matvec(self, vector: Tensor) -> Tensor:
        """K v."""
        return self.matrix @ vector

    def matmat(self, vectors: Tensor) -> Tensor:
        """K V."""
        return self.matrix @ vectors

    def diag(self) -> Tensor:
        """The diagonal."""
        return self.matrix.diagonal()

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows."""
        return self.matrix[list(places)]

    def dense(self) -> Tensor:
        """The matrix."""
        return self.matrix

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """Not known."""
        raise UsageError("a kernel given as a matrix has no parameters: J^T alpha needs a TangentKernel.")

    def push(self, tau: Params) -> Tensor:
        """Not known."""
        raise UsageError("a kernel given as a matrix has no parameters: J tau needs a TangentKernel.")
