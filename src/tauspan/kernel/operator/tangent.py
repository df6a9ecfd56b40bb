"""`TangentKernel`: the kernel of the tangent model as one operator."""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.computing import Check, way
from tauspan.core.errors import MismatchError, ModelError, UsageError, nearest
from tauspan.core.params import Params, require_same
from tauspan.core.processes import World
from tauspan.kernel.rows import blocks
from tauspan.kernel.rows.compare import require_entries, require_squares
from tauspan.kernel.rows.contract import UnlikeError, bytes_of, product, squares
from tauspan.kernel.rows.data import Data
from tauspan.kernel.rows.jacobian import Jacobian, identity
from tauspan.kernel.rows.selector import Outputs
from tauspan.kernel.rows.tiles import BACKENDS, Backend, Tiles
from tauspan.kernel.solvers.base import Kernel, require_places
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.cache.room import free_memory
from tauspan.tangent.linearized import Point
from tauspan.vector import TaskVector

log = logging.getLogger(__name__)
_COLUMNS = 32  # rows of data whose columns are formed at a time from products
_TOGETHER = 8  # vectors per pass over the data


@dataclass(frozen=True)
class Pace:
    """What the entries of a kernel cost on this machine.

    Args:
        row: seconds for which a row is recorded.
        pair: seconds for which two rows are multiplied, with all their outputs.
        held: bytes of a recorded row.
        timed: rows that these come from.
    """

    row: float
    pair: float
    held: int
    timed: int


class TangentKernel(Kernel):
    """K = J(x) J(x2)^T, J = df/dtheta at theta0: the neural tangent kernel of a module between rows of data.

    Entry (n, o) of a side has the index n O + o. Numbers are float64, whatever the dtype of the model. Products, sums and
    solvers are those of every `Kernel`.

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
        right: a module of the right side, with the same parameters by name and shape, so that K = J(x) J_right(x2)^T: a
            net that is trained by a surrogate derivative, or another checkpoint. The kernel is then not symmetric.
        batch_size: rows per batch, where x is one tensor.
        room: the most bytes of recorded rows that are kept, in tiles of at most half of it; None is a quarter of the
            free memory.
        folder: where finished blocks of the whole matrix are kept, so that an interrupted `dense` goes on there.
        check: `"auto"` compares layers' factors with autograd's gradient, tensor by tensor, for each batch, and entries
            with rows of J by ordinary autograd on the module itself; what fails goes on in the next exact way.
            `"off"` trusts. None is what `tauspan.computing` says.

    Raises:
        UsageError, ModelError, NonFiniteError: an impossible choice, a model that cannot be linearised, NaN in the data.
        MismatchError: the module of the right side has other parameters, or another number of outputs.

    Cost:
        The whole matrix: a forward pass and O backward passes per row, once where all rows fit `room`, and for each
        layer the cheaper of two contractions for each pair of rows. Memory: the matrix (8 bytes per entry) and one
        block: the recorded rows (at most `room`) and the products of a tile with a tile (at most a quarter of it);
        for a moment also the graph of one batch. Equal rows make the kernel singular; one row (N = 1)
        is a kernel too.

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
        right: nn.Module | None = None,
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
        self.left = Jacobian.of(self.tangent, x, batch_size, outputs)
        self.right = self.left
        if x2 is not None or right is not None:
            other = self.tangent if right is None else self._other(right, params, point)
            self.right = Jacobian.of(other, x if x2 is None else x2, batch_size, outputs)
        if self.right.select.outputs != self.left.select.outputs:
            raise MismatchError(
                f"{self.right.select.outputs} outputs per row on the right and {self.left.select.outputs} on the left: a "
                "kernel is between the same outputs of both modules."
            )
        self._compared = self.check == "off"

    def _other(self, module: nn.Module, params: str | Sequence[str], point: Point | None) -> Linearized:
        """The linearised module of the right side, with the left one's parameters."""
        found = linearize(module, params, point, check=self.check)
        require_same(self.tangent.theta0(), found.theta0(), "the left module", "the right module")
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """(N O, M O)."""
        return self.left.samples * self.outputs, self.right.samples * self.outputs

    @property
    def outputs(self) -> int:
        """O, the outputs of each row of data."""
        return self.left.select.outputs

    @property
    def symmetric(self) -> bool:
        """Whether both sides are the same rows of the same module."""
        return self.left is self.right

    @property
    def traced(self) -> bool:
        """Whether this is the mean over the diagonal blocks of the outputs, which has no Jacobian of its own."""
        return self.left.select.traced

    def __repr__(self) -> str:
        module = type(models.core(self.tangent.base)[0]).__name__
        return f"TangentKernel({module}, {self.shape[0]} x {self.shape[1]}, {self.outputs} outputs per row)"

    @property
    def T(self) -> "TangentKernel":  # noqa: N802 - as of tensors and arrays
        """K^T: the sides exchanged. Recorded rows and the matrix are shared, not computed again."""
        if self.symmetric:
            return self
        other = copy.copy(self)
        other.left, other.right, other.tangent = self.right, self.left, self.right.tangent
        other._matrix = None if self._matrix is None else self._matrix.T
        return other

    def of_outputs(self, outputs: Outputs) -> "TangentKernel":
        """The kernel of other outputs of the same model and rows; nothing is computed yet."""
        other = copy.copy(self)
        other._matrix, other.folder = None, None
        other._tiles = Tiles(self._tiles.room, self.backend, self.check)
        other.left = self.left.of_outputs(outputs)
        other.right = other.left if self.symmetric else self.right.of_outputs(outputs)
        return other

    def recorded(self) -> "TangentKernel":
        """The same kernel, whose products go through passes that are recorded once; itself where that is impossible.

        A product is then a backward pass and one of tangents, without the forward pass at theta0 of either. Passes are
        not recorded where they do not fit half of the free memory, or the module has no recorded pass; the log says
        which; nor where the matrix is computed already, since products are then computed with it.

        Cost: a forward pass for each batch, and the memory of a primal cache (`Linearized.cache`) while this lives.
        """
        if self.formed:
            return self
        try:
            left = self.left.recorded()
            right = left if self.symmetric else self.right.recorded()
        except (ModelError, UsageError) as error:
            log.info("products run the module anew: %s", error)
            return self
        other = copy.copy(self)
        other.left, other.right = left, right
        return other

    @property
    def formed(self) -> bool:
        """Whether the matrix has been computed, so that products are computed with it."""
        return self._matrix is not None

    # -- entries ---------------------------------------------------------------------------------------------

    def _block(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The block from recorded rows of J.

        The recorded rows are kept for the next call if `columns` are all columns of the right side.
        """
        if self._matrix is not None or self.backend == "products":
            return super()._block(rows, columns)
        length = self._tiles.length(self.left)
        strips = [
            self._alike(lambda low=low: self._strip(rows[low : low + length], columns))  # type: ignore[misc]
            for low in range(0, len(rows), length)
        ]
        if not strips:
            return torch.zeros(0, len(columns) * self.outputs, dtype=torch.float64)
        return self._checked(torch.cat(strips), rows, columns)

    def _alike(self, multiplied: Callable[[], Tensor]) -> Tensor:
        """A product of recorded rows of J.

        If batches were recorded with different views of their parameters, everything is recorded again without views.
        """
        try:
            return multiplied()
        except UnlikeError:
            self._tiles.without_views()
            return multiplied()

    def pace(self, rows: int = 16) -> Pace:
        """What the entries of this kernel cost on this machine, from some rows that are recorded and multiplied.

        Args:
            rows: how many; they are read twice.

        Raises:
            UsageError: a kernel by products, which records nothing.
        """
        if self.backend == "products":
            raise UsageError("backend='products' records no rows: there is nothing to time. Take 'auto'.")
        tiles, some = self._tiles, range(min(rows, self.samples))
        begun = time.perf_counter()
        tile = tiles.some(self.left, some)
        recorded = time.perf_counter()
        product(tile, tile, self.traced, tiles.chunk)
        ended = time.perf_counter()
        pairs = len(some) * (len(some) + 1) / 2  # of a tile with itself one half is computed
        return Pace(
            (recorded - begun) / len(some), (ended - recorded) / pairs, bytes_of(tile) // len(some), len(some)
        )

    def _strip(self, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        left, tiles, right = self._tiles.some(self.left, rows), self._tiles, self.right
        stretches = blocks.stretches(columns, tiles.length(right))
        whole = columns == range(right.samples)
        others = (tiles.tile(right, some) if whole else tiles.some(right, some) for some in stretches)  # type: ignore[arg-type]
        parts = [product(left, other, self.traced, tiles.chunk) for other in others]
        return torch.cat(parts, 1) if parts else torch.zeros(len(rows) * self.outputs, 0, dtype=torch.float64)

    def _checked(self, block: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The block; the first time, some of its entries are compared with rows of J by ordinary autograd."""
        if not self._compared and len(rows) and len(columns):
            self._compared = True
            require_entries((self.left, self.right), block, rows, columns, self._tiles.backend)
        return block

    @checked
    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows by their index n O + o, shape (len(places), M O)."""
        require_places("row", places, self.shape[0])
        samples = sorted({place // self.outputs for place in places})
        at = {sample: number for number, sample in enumerate(samples)}
        block = self.block(samples, range(self.right.samples))
        return block[[at[place // self.outputs] * self.outputs + place % self.outputs for place in places]]

    def diag(self) -> Tensor:
        """The diagonal of a symmetric kernel, shape (N O): the squared norms of the rows of J."""
        if not self.symmetric:
            raise UsageError(
                "a diagonal belongs to a symmetric kernel, and this one is between two sets of rows or two modules."
            )
        if self._matrix is not None:
            return self._matrix.diagonal().clone()
        tiles, parts = self._tiles, []
        for rows in blocks.stretches(range(self.samples), tiles.length(self.left)):
            norms = squares(tiles.tile(self.left, rows))
            parts.append(norms.mean(1) if self.traced else norms.flatten())
        if self.check != "off":
            require_squares(self.left, torch.cat(parts), tiles.backend)
        return torch.cat(parts)

    def dense(self, processes: World | None = None) -> Tensor:
        """The whole matrix, computed once; one half of it where the kernel is symmetric.

        Args:
            processes: the group that shares the work, as `with tauspan.core.processes.world() as processes:` gives it
                under a launcher (`torchrun`): each process calls this, computes its share of the blocks and gets all of
                them. None computes everything in this process.

        Raises:
            UsageError: the matrix does not fit into the free memory.
            StoreError: a file of `folder` is damaged.
            MismatchError: the processes hold different models or data.
        """
        if self._matrix is None:
            self._require_memory()
            filled = self._filled(processes or World())
            self._tiles.clear()
            self._matrix = self._checked(filled, range(self.samples), range(self.right.samples))
        return self._matrix

    def _filled(self, processes: World) -> Tensor:
        sizes, by_products = (self.samples, self.right.samples), self.backend == "products"
        folder = None
        if self.folder is not None or processes.size > 1:
            sides = {"x": self.left} if self.symmetric else {"x": self.left, "x2": self.right}
            facts = identity(sides, self.backend)
            processes.require_same(facts)
            folder = None if self.folder is None else blocks.Folder(self.folder, facts)
        least = blocks.parts_wanted(folder, processes)
        if by_products:  # whole columns
            fitting, parts = (self.samples, _COLUMNS), (1, least)
        else:
            fitting, parts = (self._tiles.length(self.left), self._tiles.length(self.right)), (least, least)
        half = self.symmetric and not by_products
        wanted = blocks.partition(sizes, fitting, self.outputs, half, parts)
        total = blocks.fill(blocks.agreed(wanted, folder, processes), self._computed, folder, processes)
        if self.symmetric and by_products:  # exactly symmetric, whatever the order of sums
            total = (total + total.T) / 2
        return total

    def _computed(self, rows: range, columns: range) -> Tensor:
        if self.backend == "products":
            return super()._block(rows, columns)
        tiles = self._tiles
        return self._alike(
            lambda: product(
                tiles.tile(self.left, rows), tiles.tile(self.right, columns), self.traced, tiles.chunk
            )
        )

    # -- products --------------------------------------------------------------------------------------------

    @checked
    def matmat(self, vectors: Tensor) -> Tensor:
        """K V for V of shape (M O, k): J (J'^T V), or by the matrix where it is already computed."""
        vectors = self._taken(vectors)
        if self._matrix is not None:
            return self._matrix @ vectors
        if not self.traced:
            return self._multiplied(vectors)
        # the mean over the diagonal blocks: each output alone, times its own copy of the vectors
        inner = self.left.select.inner
        total = torch.zeros(self.samples, vectors.shape[1], dtype=torch.float64)
        for o in range(inner):
            spread = torch.zeros(self.right.samples, inner, vectors.shape[1], dtype=torch.float64)
            spread[:, o] = vectors
            total += self._multiplied(spread.flatten(0, 1)).view(self.samples, inner, -1)[:, o] / inner
        return total

    def _multiplied(self, vectors: Tensor) -> Tensor:
        parts = []
        for some in torch.split(vectors, _TOGETHER, 1) if vectors.shape[1] else ():
            parts.append(self.left.push(self.right.pull(some)).T)
        return (
            torch.cat(parts, 1) if parts else vectors.new_zeros(self.left.samples * self.left.select.inner, 0)
        )

    def rmatmat(self, vectors: Tensor) -> Tensor:
        """K^T V for V of shape (N O, k)."""
        return self.T.matmat(vectors)

    @checked
    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha for alpha of shape (N O), one backward pass over the left rows; float64.

        Raises:
            UsageError: alpha of another length, or a trace kernel, which is not J J^T of one Jacobian.
        """
        return self.pulled(alpha.reshape(-1, 1))[0]

    def pulled(self, alphas: Tensor) -> list[dict[str, Tensor]]:
        """J^T alpha for each column of alphas, shape (N O, k), from one pass; see `pullback`."""
        self.require_jacobian()
        if len(alphas) != self.shape[0]:
            raise UsageError(f"J^T of {len(alphas)} numbers: the kernel has {self.shape[0]} rows.")
        return self.left.pull(alphas)

    @checked
    def push(self, tau: Params | TaskVector) -> Tensor:
        """J tau, shape (N O), one pass over the left rows."""
        return self.pushed([tau])[0]

    def pushed(self, taus: Sequence[Params | TaskVector]) -> Tensor:
        """J tau of several, shape (T, N O), a few for each pass over the left rows."""
        self.require_jacobian()
        deltas = [self.tangent.direction(tau) if isinstance(tau, TaskVector) else tau for tau in taus]
        starts = range(0, len(deltas), _TOGETHER)
        return torch.cat([self.left.push(deltas[start : start + _TOGETHER]) for start in starts])

    def require_jacobian(self) -> None:
        """Raises `UsageError` for a trace kernel."""
        if self.traced:
            raise UsageError(
                "a trace kernel is a mean over outputs and has no Jacobian of its own: use outputs='all' or 'sum'."
            )
