"""The kernel over the rows of several tasks at once: models that share parameters, each under its own head."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tauspan.core import params
from tauspan.core.errors import MismatchError, UsageError, listed
from tauspan.core.params import Params
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.rows.contract import product
from tauspan.kernel.rows.side import Rows
from tauspan.kernel.rows.tiles import Backend, Tiles
from tauspan.kernel.solvers.protocol import DenseKernel
from tauspan.tangent.cache.room import free_memory


class UnionKernel:
    """K = J J^T with the Jacobians of all tasks one above the other; a `Kernel` for every solver.

    Tasks may have different numbers of outputs, so each pair of row and output counts as a row of one output.

    Args:
        kernels: symmetric kernels by task, at one point and over the same parameters.

    Raises:
        UsageError: no kernel, one between two sets of rows, or a trace kernel, which has no Jacobian.
        MismatchError: two kernels stand at different points or are about different parameters.

    Cost:
        Memory of `dense`: 8 (sum_t N_t O_t)^2 bytes, and each task's own matrix beside it.

    Example:
        >>> from torch import nn
        >>> net, eye = nn.Linear(2, 1, bias=False), torch.eye(2)
        >>> union = UnionKernel({"a": TangentKernel(net, eye[:1]), "b": TangentKernel(net, eye)})
        >>> union.block("b", "a").tolist()
        [[1.0], [0.0]]
    """

    outputs = 1

    def __init__(self, kernels: Mapping[str, TangentKernel]) -> None:
        if not kernels:
            raise UsageError("a kernel over several tasks needs at least one task.")
        self.kernels = dict(kernels)
        self._matrix: Tensor | None = None
        first, start = next(iter(self.kernels.items()))
        for name, kernel in self.kernels.items():
            if not kernel.symmetric or kernel.left.select.traced:
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
                    f"the kernels of {first!r} and {name!r} stand at different points ({listed(differing)} differ): "
                    "build both from one pre-trained model."
                )

    @property
    def spans(self) -> dict[str, slice]:
        """Where each task's rows stand."""
        found, begin = {}, 0
        for name, kernel in self.kernels.items():
            found[name] = slice(begin, begin + kernel.shape[0])
            begin += kernel.shape[0]
        return found

    @property
    def samples(self) -> int:
        """All pairs of row and output."""
        return sum(kernel.shape[0] for kernel in self.kernels.values())

    @property
    def shape(self) -> tuple[int, int]:
        """Square."""
        return self.samples, self.samples

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector's parts by task."""
        return {name: vector[span] for name, span in self.spans.items()}

    def own(self, task: str) -> DenseKernel:
        """The matrix of one task's rows, with its outputs."""
        return DenseKernel(self.kernels[task].dense(), self.kernels[task].outputs)

    def block(self, on: str, by: str) -> Tensor:
        """K between the rows of two tasks, shape (N_on O_on, N_by O_by)."""
        return self.dense()[self.spans[on], self.spans[by]]

    def dense(self) -> Tensor:
        """The whole matrix, computed once; blocks of two tasks on one side only."""
        if self._matrix is None:
            needed, free = 8 * self.samples**2, free_memory()
            if needed > free:
                raise UsageError(
                    f"the kernel of {self.samples} rows x outputs needs {needed / 2**30:.1f} GiB, and "
                    f"{free / 2**30:.1f} GiB are free. Take fewer rows, or outputs='sum'."
                )
            self._matrix = self._filled()
        return self._matrix

    def _filled(self) -> Tensor:
        total = torch.zeros(self.shape, dtype=torch.float64)
        spans, names = self.spans, list(self.kernels)
        for place, on in enumerate(names):
            total[spans[on], spans[on]] = self.kernels[on].dense()
            for by in names[place + 1 :]:
                block = _between(self.kernels[on], self.kernels[by])
                total[spans[on], spans[by]] = block
                total[spans[by], spans[on]] = block.T
        return total

    def diag(self) -> Tensor:
        """The diagonal."""
        return torch.cat([kernel.diag() for kernel in self.kernels.values()])

    def rows(self, places: Sequence[int]) -> Tensor:
        """Some rows; they come from the whole matrix."""
        return self.dense()[list(places)]

    def matvec(self, vector: Tensor) -> Tensor:
        """K v."""
        return self.matmat(vector.reshape(-1, 1)).squeeze(1)

    def matmat(self, vectors: Tensor) -> Tensor:
        """K V: by the matrix where it is there already, else J (J^T V)."""
        if self._matrix is not None:
            return self._matrix @ vectors.double()
        pulled = [self.pullback(column) for column in vectors.T]
        return torch.cat([kernel.left.push(pulled) for kernel in self.kernels.values()], 1).T

    def pullback(self, alpha: Tensor) -> dict[str, Tensor]:
        """J^T alpha: the sum of the tasks' vectors."""
        total: Rows = {}
        for name, part in self.split(alpha).items():
            for of, found in self.kernels[name].pullback(part).items():
                total[of] = total[of] + found if of in total else found
        return total

    def push(self, tau: Params) -> Tensor:
        """J tau on the rows of all tasks."""
        return torch.cat([kernel.push(tau) for kernel in self.kernels.values()])


def _between(first: TangentKernel, second: TangentKernel) -> Tensor:
    """K between the rows of two kernels, tile by tile."""
    backend: Backend = "contraction" if "contraction" in (first.backend, second.backend) else "auto"
    tiles = Tiles(free_memory() // 4, backend)
    lines = []
    for rows in _stretches(first.samples, tiles.length(first.left)):
        mine = tiles.of(first.left, rows)
        others = _stretches(second.samples, tiles.length(second.left))
        found = [product(mine, tiles.of(second.left, one), False, tiles.chunk) for one in others]
        lines.append(torch.cat(found, 1))
    return torch.cat(lines)


def _stretches(count: int, length: int) -> list[range]:
    return [range(low, min(low + length, count)) for low in range(0, count, length)]
