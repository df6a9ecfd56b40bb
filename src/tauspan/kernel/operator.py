"""`TangentKernel`: the kernel of the tangent model as one operator."""

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from tauspan import models
from tauspan.errors import ModelError, UsageError, nearest
from tauspan.kernel.layers import Pieces, Written, pieces, product
from tauspan.kernel.selector import Outputs
from tauspan.kernel.side import Data, Side
from tauspan.linear import linearize
from tauspan.linear.linearized import Point
from tauspan.params import Params
from tauspan.vector import TaskVector

log = logging.getLogger(__name__)
Backend = Literal["auto", "contraction", "products", "structured"]
BACKENDS: tuple[Backend, ...] = ("auto", "contraction", "products", "structured")


class TangentKernel:
    """K = J(x) J(x2)^T, J = df/dtheta at theta0: the neural tangent kernel of a module between rows of data.

    Entry (n, o) of a side has the index n O + o. Numbers are float64, whatever the model's dtype.

    Args:
        module: any module that `linearize` takes.
        x: the rows of the left side: a batch as the module is called with, or a sequence of batches.
        x2: the rows of the right side; None takes x itself, which makes the kernel symmetric.
        params: the parameters whose tangents count, as in `linearize`.
        outputs: `"all"`, `"sum"`, `"trace"`, an output's number, `("signs", seed)` or weights (N, C); see `selector`.
        backend: how entries are computed; all give the same numbers.
        point: where the model is linearised.
        batch_size: rows of a batch, where x is one.

    Raises:
        UsageError, ModelError, NonFiniteError: an impossible choice, a model that cannot be linearised, NaN in the data.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> x = torch.eye(2)
        >>> bool(torch.equal(TangentKernel(layer, x).dense(), torch.eye(2, dtype=torch.float64)))
        True
    """

    def __init__(
        self,
        module: nn.Module,
        x: Data,
        x2: Data | None = None,
        params: str | Sequence[str] = "all",
        outputs: Outputs = "all",
        backend: Backend = "auto",
        *,
        point: Point | None = None,
        batch_size: int = 32,
    ) -> None:
        if backend not in BACKENDS:
            raise UsageError(f"backend={backend!r}. {nearest(str(backend), BACKENDS)}")
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: it must be at least 1.")
        self.tangent = linearize(module, params, point)
        self.backend = backend
        self.left = Side.of(self.tangent, x, batch_size, outputs)
        self.symmetric = x2 is None
        self.right = self.left if x2 is None else Side.of(self.tangent, x2, batch_size, outputs)
        self._matrix: Tensor | None = None

    @property
    def samples(self) -> int:
        """N, the rows of the left side."""
        return self.left.samples

    @property
    def outputs(self) -> int:
        """O, outputs of a row."""
        return self.left.select.outputs

    @property
    def shape(self) -> tuple[int, int]:
        """(N O, M O)."""
        return self.samples * self.outputs, self.right.samples * self.outputs

    def __repr__(self) -> str:
        module = type(models.core(self.tangent.base)[0]).__name__
        return f"TangentKernel({module}, {self.shape[0]} x {self.shape[1]}, {self.outputs} outputs a row)"

    # -- entries ---------------------------------------------------------------------------------------------

    def block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The entries between some rows of the left side and some of the right, shape (n O, m O)."""
        if self.backend == "products":
            return self._by_products(rows, columns)
        total = torch.zeros(len(rows) * self.outputs, len(columns) * self.outputs, dtype=torch.float64)
        top = 0
        for places, left in self._pieces(self.left, rows):
            begin = 0
            for others, right in self._pieces(self.right, columns):
                found = product(left, right, self.left.select.traced)
                total[top : top + len(found), begin : begin + found.shape[1]] = found
                begin += len(others) * self.outputs
            top += len(places) * self.outputs
        return total

    def _pieces(self, side: Side, rows: Sequence[int]) -> Iterator[tuple[list[int], Pieces]]:
        """The rows' Jacobians by parameter: as layers' factors where the model's operations allow it."""
        for places, batch in side.parts(rows):
            if self.backend != "contraction":
                try:
                    yield places, pieces(side, places, batch)
                    continue
                except ModelError as error:
                    if self.backend == "structured":
                        raise
                    log.info("%s", error)
                    self.backend = "contraction"
            for some, written in side.jacobian(places):
                yield some, {name: Written(rows.flatten(2)) for name, rows in written.items()}

    def _by_products(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        places = [place * self.outputs + o for place in columns for o in range(self.outputs)]
        units = torch.zeros(self.shape[1], len(places), dtype=torch.float64)
        units[places, range(len(places))] = 1.0
        kept = [place * self.outputs + o for place in rows for o in range(self.outputs)]
        return self.matmat(units)[kept]

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows by their index n O + o, shape (len(places), M O)."""
        self._require_places(places)
        samples = sorted({place // self.outputs for place in places})
        at = {sample: number for number, sample in enumerate(samples)}
        found = self.block(samples, range(self.right.samples))
        return found[[at[place // self.outputs] * self.outputs + place % self.outputs for place in places]]

    def _require_places(self, places: Sequence[int]) -> None:
        for place in places:
            if not 0 <= place < self.shape[0]:
                raise UsageError(f"row {place} of a kernel with rows 0 to {self.shape[0] - 1}.")

    def diag(self) -> Tensor:
        """The diagonal of a symmetric kernel, shape (N O): the squared norms of the rows of J."""
        self._require_symmetric("a diagonal")
        parts = []
        for _, rows in self.left.jacobian():
            squares = torch.stack([one.flatten(2).square().sum(-1) for one in rows.values()]).sum(0)
            parts.append(squares.mean(1) if self.left.select.traced else squares.flatten())
        return torch.cat(parts)

    def dense(self) -> Tensor:
        """The whole matrix, computed once; of a symmetric kernel one half."""
        if self._matrix is None:
            self._matrix = self._filled()
        return self._matrix

    def _filled(self) -> Tensor:
        total = torch.empty(self.shape, dtype=torch.float64)
        out = self.outputs
        for i, (places, _) in enumerate(self.left.parts()):
            for j, (others, _) in enumerate(self.right.parts()):
                if self.symmetric and j < i:
                    continue
                found = self.block(places, others)
                if self.symmetric and i == j:  # exactly so, also where sums were formed in another order
                    found = (found + found.T) / 2
                top, begin = places[0] * out, others[0] * out
                total[top : top + found.shape[0], begin : begin + found.shape[1]] = found
                if self.symmetric and j > i:
                    total[begin : begin + found.shape[1], top : top + found.shape[0]] = found.T
        return total

    def _require_symmetric(self, what: str) -> None:
        if not self.symmetric:
            raise UsageError(
                f"{what} belongs to a symmetric kernel, and this one is between two sets of rows."
            )

    # -- products --------------------------------------------------------------------------------------------

    def matvec(self, vector: Tensor) -> Tensor:
        """K v, shape (N O): J'^T v by one backward pass, J of it by one pass; no matrix."""
        return self.matmat(vector.reshape(-1, 1)).squeeze(1)

    def matmat(self, vectors: Tensor) -> Tensor:
        """K V for V of shape (M O, k); by the matrix where it is there already."""
        if vectors.dim() != 2 or len(vectors) != self.shape[1]:
            raise UsageError(
                f"a kernel of shape {self.shape} times {tuple(vectors.shape)}: give ({self.shape[1]}, k)."
            )
        if self._matrix is not None:
            return self._matrix @ vectors.double()
        inner = self.left.select.inner
        if not self.left.select.traced:
            return self._multiplied(vectors.double())
        # the mean over the diagonal blocks: each output alone, times its own copy of the vectors
        total = torch.zeros(self.samples, vectors.shape[1], dtype=torch.float64)
        for o in range(inner):
            spread = torch.zeros(self.right.samples, inner, vectors.shape[1], dtype=torch.float64)
            spread[:, o] = vectors.double()
            found = self._multiplied(spread.flatten(0, 1)).view(self.samples, inner, -1)
            total += found[:, o] / inner
        return total

    def _multiplied(self, vectors: Tensor, together: int = 8) -> Tensor:
        """J (J'^T V), so many columns a pass."""
        parts = []
        for begin in range(0, vectors.shape[1], together):
            pulled = [self.right.pull(column) for column in vectors[:, begin : begin + together].T]
            parts.append(self.left.push(pulled).T)
        return torch.cat(parts, 1) if parts else vectors.new_zeros(len(vectors), 0)

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha for alpha of shape (N O), one backward pass over the left rows; float64.

        Raises:
            UsageError: alpha of another length, or a trace kernel, which is not J J^T of one Jacobian.
        """
        self._require_jacobian()
        if alpha.numel() != self.shape[0]:
            raise UsageError(f"J^T of {alpha.numel()} numbers: the kernel has {self.shape[0]} rows.")
        return self.left.pull(alpha)

    def push(self, tau: Params | TaskVector) -> Tensor:
        """J tau, shape (N O), one pass over the left rows."""
        self._require_jacobian()
        deltas = tau.deltas if isinstance(tau, TaskVector) else tau
        return self.left.push([deltas])[0]

    def _require_jacobian(self) -> None:
        if self.left.select.traced:
            raise UsageError(
                "a trace kernel is a mean over outputs and has no Jacobian of its own: use outputs='all' or 'sum'."
            )

    def linear_operator(self) -> LinearOperator:
        """The kernel as scipy's `LinearOperator`, for its solvers."""
        turned = self if self.symmetric else self.transposed()

        def product(kernel: "TangentKernel") -> Any:
            return lambda array: kernel.matmat(torch.as_tensor(array).reshape(len(array), -1)).numpy()

        return LinearOperator(
            self.shape, dtype=np.float64, matvec=product(self), rmatvec=product(turned),
            matmat=product(self), rmatmat=product(turned),
        )  # fmt: skip

    def transposed(self) -> "TangentKernel":
        """K^T: the sides exchanged."""
        other = copy.copy(self)
        other.left, other.right = self.right, self.left
        other._matrix = None if self._matrix is None else self._matrix.T
        return other
