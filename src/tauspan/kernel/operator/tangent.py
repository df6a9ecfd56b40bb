"""`TangentKernel`: the kernel of the tangent model as one operator."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from tauspan import models
from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.computing import Check, way
from tauspan.core.errors import UsageError, nearest
from tauspan.core.params import Params
from tauspan.core.processes import World, world
from tauspan.kernel.approximate import quadrature
from tauspan.kernel.approximate.eigenpairs import EigenPairs, eigenpairs
from tauspan.kernel.rows import blocks
from tauspan.kernel.rows.compare import require_entries, require_squares
from tauspan.kernel.rows.contract import product, squares
from tauspan.kernel.rows.data import Data, digest
from tauspan.kernel.rows.selector import Outputs
from tauspan.kernel.rows.side import Side
from tauspan.kernel.rows.tiles import BACKENDS, Backend, Tiles
from tauspan.kernel.solvers import estimates
from tauspan.kernel.solvers.estimates import Estimate
from tauspan.kernel.solvers.regression import solve_ridge
from tauspan.tangent import linearize
from tauspan.tangent.cache.room import free_memory
from tauspan.tangent.linearized import Point
from tauspan.vector import TaskVector

_COLUMNS = 32  # samples whose columns are formed at a time from products


class TangentKernel:
    """K = J(x) J(x2)^T, J = df/dtheta at theta0: the neural tangent kernel of a module between rows of data.

    Entry (n, o) of a side has the index n O + o. Numbers are float64, whatever the model's dtype.

    Args:
        module: any module that `linearize` takes.
        x: the rows of the left side: a batch as the module is called with (a tensor, a tuple of several inputs, a dict
            of inputs by name), a list of batches, a Dataset or a DataLoader of inputs without labels.
        x2: the rows of the right side; None takes x itself, which makes the kernel symmetric.
        params: the parameters whose tangents count, as in `linearize`.
        outputs: `"all"`, `"contrast"`, `"sum"`, `"trace"`, an output's number, `("signs", seed)` or weights (N, C); see
            `selector`.
        backend: how entries are computed; all give the same numbers.
        point: where the model is linearised.
        batch_size: rows of a batch, where x is one.
        room: the most bytes of recorded rows that are kept, in tiles of at most half of it; None is a quarter of the
            free memory.
        folder: where finished blocks of the whole matrix are kept, so that an interrupted `dense` goes on there.
        check: `"auto"` compares layers' factors with autograd's gradient, tensor by tensor, for each batch, and entries
            with rows of J by ordinary autograd on the module itself; what fails goes on in the next exact way.
            `"off"` trusts. None is what `tauspan.computing` says.

    Raises:
        UsageError, ModelError, NonFiniteError: an impossible choice, a model that cannot be linearised, NaN in the data.

    Cost:
        The whole matrix: a forward pass and O backward passes a row, once where all rows fit `room`, and for each
        layer the cheaper of two contractions for each pair of rows. Memory: the matrix (8 bytes an entry) and one
        block: the recorded rows (at most `room`) and the products of a tile with a tile (at most a quarter of it);
        for a moment also the graph of one batch. A row that is there twice makes the kernel singular, and nothing
        else; one row (N = 1) is a kernel.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> x = torch.eye(2)
        >>> bool(torch.equal(TangentKernel(layer, x).dense(), torch.eye(2, dtype=torch.float64)))
        True
    """

    @checked
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
        room: int | None = None,
        folder: str | Path | None = None,
        check: Check | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise UsageError(f"backend={backend!r}. {nearest(str(backend), BACKENDS)}")
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: it must be at least 1.")
        if room is not None and room < 1:
            raise UsageError(f"room={room}: it is a number of bytes, at least 1.")
        self.check = way(check=check).check
        self.tangent = linearize(module, params, point, check=self.check)
        if not self.tangent.tau:
            raise UsageError(
                "a kernel of no parameters is zero: every parameter is frozen (requires_grad=False). Call "
                "`module.requires_grad_(True)`, or name those that count: `params='*'`."
            )
        self.backend = backend
        self.folder = None if folder is None else Path(folder)
        self._tiles = Tiles(free_memory() // 4 if room is None else room, backend, self.check)
        self.left = Side.of(self.tangent, x, batch_size, outputs)
        self.symmetric = x2 is None
        self.right = self.left if x2 is None else Side.of(self.tangent, x2, batch_size, outputs)
        self._matrix: Tensor | None = None
        self._compared = self.check == "off"

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

    @checked
    def block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The entries between some rows of the left side and some of the right, shape (n O, m O).

        Recorded rows are kept for the next call where the columns are all of the right side.

        Raises:
            UsageError: a row or column that is not there; they count from 0.
        """
        for which, side, count in (("row", rows, self.samples), ("column", columns, self.right.samples)):
            outside = [place for place in side if not 0 <= place < count]
            if outside:
                raise UsageError(f"{which} {outside[0]} of a kernel with {which}s 0 to {count - 1}.")
        if self._matrix is not None:
            at = (self._entries(rows), self._entries(columns))
            return self._matrix[at[0][:, None], at[1][None]]
        if self.backend == "products":
            return self._columns(columns)[self._entries(rows)]
        length = self._tiles.length(self.left)
        strips = [self._strip(rows[low : low + length], columns) for low in range(0, len(rows), length)]
        if not strips:
            return torch.zeros(0, len(columns) * self.outputs, dtype=torch.float64)
        return self._checked(torch.cat(strips), rows, columns)

    def _strip(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        left, side = self._tiles.some(self.left, rows), self.right
        length = self._tiles.length(side)
        stretches = [columns[low : low + length] for low in range(0, len(columns), length)]
        whole = columns == range(side.samples)
        tiles = self._tiles
        others = (tiles.of(side, some) if whole else tiles.some(side, some) for some in stretches)  # type: ignore[arg-type]
        found = [product(left, other, self._traced, tiles.chunk) for other in others]
        return torch.cat(found, 1) if found else torch.zeros(len(rows) * self.outputs, 0, dtype=torch.float64)

    def _checked(self, found: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The block, after some of its entries were compared with rows of J by ordinary autograd; once a kernel."""
        if not self._compared and len(rows) and len(columns):
            self._compared = True
            require_entries((self.left, self.right), found, rows, columns, self._tiles.backend)
        return found

    @property
    def _traced(self) -> bool:
        return self.left.select.traced

    def _entries(self, samples: Sequence[int]) -> Tensor:
        """The indices n O + o of some samples."""
        return (
            torch.tensor(samples, dtype=torch.int64)[:, None] * self.outputs + torch.arange(self.outputs)
        ).flatten()

    def _columns(self, columns: Sequence[int]) -> Tensor:
        """All rows of some columns, by products with unit vectors."""
        places = self._entries(columns)
        units = torch.zeros(self.shape[1], len(places), dtype=torch.float64)
        units[places, torch.arange(len(places))] = 1.0
        return self.matmat(units)

    @checked
    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows by their index n O + o, shape (len(places), M O)."""
        for place in places:
            if not 0 <= place < self.shape[0]:
                raise UsageError(f"row {place} of a kernel with rows 0 to {self.shape[0] - 1}.")
        samples = sorted({place // self.outputs for place in places})
        at = {sample: number for number, sample in enumerate(samples)}
        found = self.block(samples, range(self.right.samples))
        return found[[at[place // self.outputs] * self.outputs + place % self.outputs for place in places]]

    def diag(self) -> Tensor:
        """The diagonal of a symmetric kernel, shape (N O): the squared norms of the rows of J."""
        self._require_symmetric("a diagonal")
        if self._matrix is not None:
            return self._matrix.diagonal().clone()
        length, parts = self._tiles.length(self.left), []
        for low in range(0, self.samples, length):
            found = squares(self._tiles.of(self.left, range(low, min(low + length, self.samples))))
            parts.append(found.mean(1) if self._traced else found.flatten())
        if self.check != "off":
            require_squares(self.left, torch.cat(parts), self._tiles.backend)
        return torch.cat(parts)

    def dense(self) -> Tensor:
        """The whole matrix, computed once; of a symmetric kernel one half.

        Under a launcher (`torchrun`) every process calls it, computes its share of the blocks, and gets all of them.

        Raises:
            UsageError: the matrix does not fit into the free memory.
            StoreError: a file of `folder` is damaged.
            MismatchError: the processes hold different models or data.
        """
        if self._matrix is None:
            self._require_memory()
            with world() as processes:
                filled = self._filled(processes)
            self._tiles.clear()
            everything = range(self.samples), range(self.right.samples)
            self._matrix = self._checked(filled, *everything)
        return self._matrix

    def _require_memory(self) -> None:
        needed, free = 8 * self.shape[0] * self.shape[1], free_memory()
        if needed > free:
            raise UsageError(
                f"the whole kernel of {self.samples} x {self.right.samples} rows and {self.outputs} outputs a row needs "
                f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free. Take fewer outputs (outputs='sum' or "
                "'trace') or fewer rows, or do without the matrix: matmat, pullback, push, rows, diag."
            )

    def _filled(self, processes: World) -> Tensor:
        sizes, by_products = (self.samples, self.right.samples), self.backend == "products"
        folder = None
        if self.folder is not None or processes.size > 1:
            facts = self._facts()
            processes.require_same(facts)
            folder = None if self.folder is None else blocks.Folder(self.folder, facts)
        least = blocks.parts_wanted(folder, processes)
        if by_products:  # whole columns
            fitting, parts = (self.samples, _COLUMNS), (1, least)
        else:
            fitting, parts = (self._tiles.length(self.left), self._tiles.length(self.right)), (least, least)
        half = self.symmetric and not by_products
        wanted = blocks.layout(sizes, fitting, self.outputs, half, parts)
        plan = blocks.agreed(wanted, folder, processes)
        total = blocks.fill(plan, self._computed, folder, processes)
        if self.symmetric and by_products:  # exactly so, though sums were formed in another order
            total = (total + total.T) / 2
        return total

    def _computed(self, rows: range, columns: range) -> Tensor:
        if self.backend == "products":
            return self._columns(columns)[self._entries(rows)]
        tiles = self._tiles
        return product(tiles.of(self.left, rows), tiles.of(self.right, columns), self._traced, tiles.chunk)

    def _facts(self) -> dict[str, str]:
        """Everything that decides the numbers, up to rounding."""
        base = self.tangent.base
        head = getattr(base, "head", None)
        plain = {name: getattr(head, name, None) for name in ("scale", "normalize")}
        features = getattr(getattr(base, "encoder", base), "features", None)
        weights = {name: theta.dtype for name, theta in self.tangent.theta0().items()}
        sides = {"x": self.left} if self.symmetric else {"x": self.left, "x2": self.right}
        return {
            "the model's weights": params.fingerprint(
                {**dict(base.named_parameters()), **dict(base.named_buffers())}
            ),
            "the model": f"{base!r} {plain} {getattr(features, '__qualname__', '')} {self.tangent.point}",
            "params": repr(weights),
            "outputs": f"{self.left.select.traced} {digest([self.left.select.weights])}",
            "backend": str(self.backend),
        } | {name: side.checksum() for name, side in sides.items()}

    def _require_symmetric(self, what: str) -> None:
        if not self.symmetric:
            raise UsageError(
                f"{what} belongs to a symmetric kernel, and this one is between two sets of rows."
            )

    # -- products --------------------------------------------------------------------------------------------

    @checked
    def matvec(self, vector: Tensor) -> Tensor:
        """K v, shape (N O): J'^T v by one backward pass, J of it by one pass; no matrix."""
        return self.matmat(vector.reshape(-1, 1)).squeeze(1)

    @checked
    def matmat(self, vectors: Tensor) -> Tensor:
        """K V for V of shape (M O, k); by the matrix where it is there already."""
        if vectors.dim() != 2 or len(vectors) != self.shape[1]:
            raise UsageError(
                f"a kernel of shape {self.shape} times {tuple(vectors.shape)}: give ({self.shape[1]}, k)."
            )
        if self._matrix is not None:
            return self._matrix @ vectors.double()
        inner = self.left.select.inner
        if not self._traced:
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

    @checked
    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha for alpha of shape (N O), one backward pass over the left rows; float64.

        Raises:
            UsageError: alpha of another length, or a trace kernel, which is not J J^T of one Jacobian.
        """
        self._require_jacobian()
        if alpha.numel() != self.shape[0]:
            raise UsageError(f"J^T of {alpha.numel()} numbers: the kernel has {self.shape[0]} rows.")
        return self.left.pull(alpha)

    @checked
    def push(self, tau: Params | TaskVector) -> Tensor:
        """J tau, shape (N O), one pass over the left rows."""
        self._require_jacobian()
        deltas = self.tangent.direction(tau) if isinstance(tau, TaskVector) else tau
        return self.left.push([deltas])[0]

    def _require_jacobian(self) -> None:
        if self._traced:
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

    # -- the matrix as a whole -------------------------------------------------------------------------------

    @checked
    def eigsh(self, r: int, *, seed: int = 0) -> EigenPairs:
        """The r largest eigenvalues with their vectors and residuals; see `eigenpairs`."""
        return eigenpairs(self, r, seed=seed)

    @checked
    def solve(self, y: Tensor, ridge: float = 0.0) -> Tensor:
        """The alpha with (K + ridge I) alpha = y, shape (N O), by Cholesky; see `regression.solve_ridge`."""
        return solve_ridge(self, y, ridge).alpha

    @checked
    def logdet(self, ridge: float = 0.0, probes: int | None = None, *, seed: int = 0) -> Estimate:
        """The logarithm of det(K + ridge I): exactly, or by Lanczos quadrature from random probes; see `quadrature`."""
        return quadrature.logdet(self, ridge, probes, seed=seed)

    @checked
    def trace(self, probes: int | None = None, *, seed: int = 0) -> Estimate:
        """The trace: exactly, from the diagonal and without a matrix, or from random probes; see `estimates`."""
        return estimates.trace(self, probes, seed)
