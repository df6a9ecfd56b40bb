"""The kernel over the rows of several tasks at once: models that share parameters, each under its own head."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from tauspan.core import params
from tauspan.core.computing import Check
from tauspan.core.errors import MismatchError, UsageError, listed
from tauspan.core.params import Params
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.rows.blocks import stretches
from tauspan.kernel.rows.contract import product
from tauspan.kernel.rows.tiles import Backend, Tiles
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.kernels import DenseKernel
from tauspan.tangent import Linearized
from tauspan.tangent.cache.room import free_memory
from tauspan.vector import TaskVector


class UnionKernel(Kernel):
    """K = J J^T with the Jacobians of all tasks stacked; a `Kernel` for every solver.

    Tasks may have different numbers of outputs, so each pair of row and output counts as a row of one output.

    Args:
        kernels: symmetric kernels by task, at one point and over the same parameters.

    Raises:
        UsageError: no kernel, one between two sets of rows, or a trace kernel, which has no Jacobian.
        MismatchError: two kernels at different points or over different parameters.

    Cost:
        Memory of `dense`: 8 (sum_t N_t O_t)^2 bytes, and each task's own matrix besides.

    Example:
        >>> from torch import nn
        >>> net, eye = nn.Linear(2, 1, bias=False), torch.eye(2)
        >>> union = UnionKernel({"a": TangentKernel(net, eye[:1]), "b": TangentKernel(net, eye)})
        >>> union.between("b", "a").tolist()
        [[1.0], [0.0]]
    """

    def __init__(self, kernels: Mapping[str, TangentKernel]) -> None:
        if not kernels:
            raise UsageError("a kernel over several tasks needs at least one task.")
        self.kernels = dict(kernels)
        first, start = next(iter(self.kernels.items()))
        for name, kernel in self.kernels.items():
            if not kernel.symmetric or kernel.traced:
                raise UsageError(
                    f"the kernel of {name!r} must be J J^T of one set of rows: build it without x2, and not with "
                    "outputs='trace'."
                )
            pairs = params.zip_strict(
                start.tangent.theta0(),
                kernel.tangent.theta0(),
                f"the kernel of {first!r}",
                f"that of {name!r}",
            )
            differing = [of for of, mine, theirs in pairs if not torch.equal(mine, theirs)]
            if differing:
                raise MismatchError(
                    f"the kernels of {first!r} and {name!r} are at different points ({listed(differing)} differ): "
                    "build both from one pre-trained model."
                )

    @property
    def tangent(self) -> Linearized:
        """The tangent model of the first task; all are at one point and share their parameters."""
        return next(iter(self.kernels.values())).tangent

    @property
    def check(self) -> Check:
        """Whether the kernels are checked."""
        return next(iter(self.kernels.values())).check

    @property
    def formed(self) -> bool:
        """Whether the matrix has been computed, so that products are computed with it."""
        return self._matrix is not None

    @property
    def spans(self) -> dict[str, slice]:
        """The rows of the matrix that belong to each task."""
        ends, begin = {}, 0
        for name, kernel in self.kernels.items():
            ends[name] = slice(begin, begin + kernel.shape[0])
            begin += kernel.shape[0]
        return ends

    @property
    def parts(self) -> Sequence[tuple[slice, int]]:
        """The entries of each task's rows, and the task's number of outputs."""
        return [(span, self.kernels[name].outputs) for name, span in self.spans.items()]

    def joined(self, name: str, kernel: TangentKernel) -> "UnionKernel":
        """The union with one more task; what is computed already is not computed again."""
        other = UnionKernel({**self.kernels, name: kernel})
        if self._matrix is not None:
            other._matrix = other._filled(self._matrix)
        return other

    def without(self, names: Collection[str]) -> "UnionKernel":
        """The union without some tasks; nothing is computed again."""
        other = UnionKernel({name: one for name, one in self.kernels.items() if name not in names})
        if self._matrix is not None:
            kept = torch.cat(
                [torch.arange(*self.spans[name].indices(len(self._matrix))) for name in other.kernels]
            )
            other._matrix = self._matrix[kept[:, None], kept[None]]
        return other

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n) for n = sum_t N_t O_t."""
        size = sum(kernel.shape[0] for kernel in self.kernels.values())
        return size, size

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector of shape (n), or of the columns of a matrix, by task."""
        return {name: vector[span] for name, span in self.spans.items()}

    def own(self, task: str) -> DenseKernel:
        """The matrix of one task's rows, with its outputs."""
        return DenseKernel(self.kernels[task].dense(), self.kernels[task].outputs)

    def between(self, on: str, by: str) -> Tensor:
        """K between the rows of two tasks, shape (N_on O_on, N_by O_by)."""
        return self.dense()[self.spans[on], self.spans[by]]

    def _whole(self) -> Tensor:
        return self._filled(torch.zeros(0, 0, dtype=torch.float64))

    def _filled(self, known: Tensor) -> Tensor:
        """The matrix, of which the first rows and columns are known.

        A block between two tasks is computed once, and transposed for the other side.
        """
        total = torch.zeros(self.shape, dtype=torch.float64)
        total[: len(known), : len(known)] = known
        spans, names = self.spans, list(self.kernels)
        new = [name for name in names if spans[name].start >= len(known)]
        kept: dict[
            Backend, Tiles
        ] = {}  # one for all pairs, so that each task's rows are recorded once where they fit
        for place, on in enumerate(names):
            if on in new:
                total[spans[on], spans[on]] = self.kernels[on].dense()
            for by in (name for name in names[place + 1 :] if name in new):
                block = _between(self.kernels[on], self.kernels[by], kept)
                total[spans[on], spans[by]] = block
                total[spans[by], spans[on]] = block.T
        return total

    def diag(self) -> Tensor:
        """The diagonals of all tasks."""
        return torch.cat([kernel.diag() for kernel in self.kernels.values()])

    def matmat(self, vectors: Tensor) -> Tensor:
        """K V: J (J^T V), or by the matrix where it is already computed."""
        vectors = self._taken(vectors)
        if self._matrix is not None:
            return self._matrix @ vectors
        return self.pushed(self.pulled(vectors)).T

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha for alpha of shape (n): the sum of the vectors of all tasks."""
        return self.pulled(alpha.reshape(-1, 1))[0]

    def pulled(self, alphas: Tensor) -> list[dict[str, Tensor]]:
        """J^T alpha for each column of alphas, shape (n, k), from one pass over the rows of all tasks."""
        totals: list[dict[str, Tensor]] = [{} for _ in range(alphas.shape[1])]
        for name, parts in self.split(alphas).items():
            for total, found in zip(totals, self.kernels[name].pulled(parts), strict=True):
                for of, delta in found.items():
                    total[of] = total[of] + delta if of in total else delta
        return totals

    def push(self, tau: Params | TaskVector) -> Tensor:
        """J tau on the rows of all tasks, shape (n)."""
        return self.pushed([tau])[0]

    def pushed(self, taus: Sequence[Params | TaskVector]) -> Tensor:
        """J tau of several on the rows of all tasks, shape (T, n)."""
        return torch.cat([kernel.pushed(taus) for kernel in self.kernels.values()], 1)


def _between(first: TangentKernel, second: TangentKernel, kept: dict[Backend, Tiles]) -> Tensor:
    """K between the rows of two kernels, tile by tile; the tiles of earlier pairs are taken, and new ones kept."""
    backend: Backend = "contraction" if "contraction" in (first.backend, second.backend) else "auto"
    tiles = kept.setdefault(backend, Tiles(free_memory() // 4, backend))
    lines = []
    for rows in stretches(range(first.samples), tiles.length(first.left)):
        mine = tiles.tile(first.left, rows)
        others = stretches(range(second.samples), tiles.length(second.left))
        parts = [product(mine, tiles.tile(second.left, one), False, tiles.chunk) for one in others]
        lines.append(torch.cat(parts, 1))
    return torch.cat(lines)
