"""How a method runs over tensors: measures first, then every block. The same in memory and over files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.method import Block, Method
from tauspan.merge.methods.scope import Blocks, OrderedMap, Read, Spec, pieces

BLOCK = 1 << 17  # entries: the blocks of a few models stay in a core's caches


@dataclass
class Engine:
    """A method over some tensors.

    Args:
        method: the row of the table.
        specs: all tensors, in the order of sums over the model.
        read: gives a block of all models.
        size: entries of a block.
        run: an ordered `map` for measures over the whole model, perhaps on several threads.
    """

    method: Method
    specs: Sequence[Spec]
    read: Read
    size: int = BLOCK
    run: OrderedMap = map
    _shared: Any = field(default=None, init=False)

    def measure(self) -> None:
        """Ask what the method wants to know about the whole model; nothing for most methods."""
        filled = [spec for spec in self.specs if spec.shape.numel()]
        if self.method.prepare is not None and self.method.over == "model" and filled:
            scope = Blocks(filled, self.read, self.method.grain, self.size, self.run)
            self._shared = self.method.prepare(scope)

    def ready(self, spec: Spec) -> Any:
        """What `combine` needs for the blocks of one tensor."""
        if self.method.prepare is None or self.method.over == "model" or not spec.shape.numel():
            return self._shared
        return self.method.prepare(Blocks([spec], self.read, self.method.grain, self.size))

    def combined(self, spec: Spec, ready: Any) -> Iterator[tuple[int, int, Block, Tensor]]:
        """The merged blocks of one tensor: their range, what was read, and the result, flat."""
        for start, stop in pieces(spec.shape, self.method.grain, self.size):
            done = self.piece(spec, start, stop, ready)
            yield start, stop, done.block, done.result

    def piece(self, spec: Spec, start: int, stop: int, ready: Any) -> "Merged":
        """One merged block."""
        block = self.read(spec, start, stop)
        chosen = block
        if self.method.select is not None:
            chosen = replace(block, values=self.method.select(block, ready))
        result = self.method.combine(chosen, ready)
        if result.shape != block.values.shape[1:]:
            raise UsageError(
                f"the method {self.method.name!r} made shape {tuple(result.shape)} of {spec.name!r}, and must make "
                f"{tuple(block.values.shape[1:])}: `combine` returns one merged tensor without the models' axis."
            )
        kept = () if self.method.count is None else self.method.count(chosen, ready)
        return Merged(block, result.reshape(-1), kept)


class Merged(NamedTuple):
    """What was read for one block, its merged values, flat, and of a sparse method the entries kept of each model."""

    block: Block
    result: Tensor
    kept: tuple[int, ...]
