"""Reductions over one tensor or a whole model, block by block: what methods ask before they merge."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tauspan.merge.histogram import digits, histogram, joined, place
from tauspan.merge.method import Block, Grain

T = TypeVar("T")


@dataclass(frozen=True)
class Spec:
    """One tensor to merge: what is known before its values are read."""

    name: str
    shape: torch.Size
    options: Mapping[str, Any]
    depth: float | None = None


class Read(Protocol):
    """Reads the entries `start` to `stop` of one tensor, of all models."""

    def __call__(self, spec: Spec, start: int, stop: int) -> Block:
        """A block in the shape that the method's grain asks for."""


class OrderedMap(Protocol):
    """`map`, perhaps on several threads; results come in the order of the items."""

    def __call__(self, function: Callable[[Any], T], items: Iterable[Any], /) -> Iterator[T]:
        """The function's results."""


def pieces(shape: torch.Size, grain: Grain, size: int) -> list[tuple[int, int]]:
    """The flat ranges a tensor is cut into: at most `size` entries each, unless a row or the tensor is longer.

    Example:
        >>> pieces(torch.Size([3, 4]), "row", 8)
        [(0, 8), (8, 12)]
    """
    count = prod(shape)
    if grain == "tensor":
        return [(0, count)] if count else []
    row = prod(shape[1:]) if grain == "row" and len(shape) > 1 else count if grain == "row" else 1
    step = max(size // row, 1) * row if row else 1
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def shaped(flat: Tensor, shape: torch.Size, grain: Grain) -> Tensor:
    """Flat values, shape (..., n), as a method of that grain takes them."""
    lead = flat.shape[:-1]
    if grain == "tensor":
        return flat.view(*lead, *shape)
    if grain == "row":
        return flat.view(*lead, -1, prod(shape[1:]) if len(shape) > 1 else flat.shape[-1])
    return flat


class Blocks:
    """The scope of some tensors, read by `read` in blocks of `size` entries.

    Args:
        specs: the tensors, in the order of the sums.
        read: gives a block.
        grain: of the method.
        size: entries of a block.
        run: an ordered `map`; several threads may run the measures.
    """

    def __init__(
        self, specs: Sequence[Spec], read: Read, grain: Grain, size: int, run: OrderedMap = map
    ) -> None:
        self._read, self._run = read, run
        self._pieces = [(spec, *piece) for spec in specs for piece in pieces(spec.shape, grain, size)]
        self.entries = sum(prod(spec.shape) for spec in specs)

    @property
    def first(self) -> Block:
        """The first block, for options and labels."""
        return self._read(*self._pieces[0])

    def _measured(self, measure: Callable[[Block], Tensor]) -> Iterator[Tensor]:
        return self._run(lambda piece: measure(self._read(*piece)), self._pieces)

    def total(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """The sum over blocks of `measure(block)`, in float64 and in a fixed order."""
        results = self._measured(lambda block: measure(block).double())
        return _added(results)

    def highest(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """The largest of `measure(block)` over the blocks, entry by entry."""
        results = self._measured(measure)
        highest = next(results)
        for result in results:
            highest = torch.maximum(highest, result)
        return highest

    def kth_largest(self, key: Callable[[Block], Tensor], ranks: list[int]) -> Tensor:
        """Exact order statistics of the rows of `key(block)`, by one pass a digit of 16 bits; see `Scope`."""
        kind = key(self.first).dtype
        found: list[list[int]] = [[] for _ in ranks]
        left = list(ranks)
        for digit in range(digits(kind)):
            counts = _added(self._measured(lambda block, at=digit: histogram(key(block), at, found)))  # type: ignore[misc]
            for row, rank in enumerate(left):
                chosen, left[row] = place(counts[row], rank)
                found[row].append(chosen)
        return joined(found, ranks, self.entries, kind)


def _added(results: Iterator[Tensor]) -> Tensor:
    total = next(results).clone()
    for result in results:
        total += result
    return total
