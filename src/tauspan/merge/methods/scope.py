"""Reductions over one tensor or a whole model, block by block: what methods ask before they merge."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.histogram import (
    Found,
    Interval,
    Located,
    Sample,
    Search,
    directly,
    magnitude,
    patterns,
)
from tauspan.merge.methods.method import Block, Grain, Method, Need, Reach, Spec, added

T = TypeVar("T")

_SAMPLE = 1 << 16  # entries per row that a first guess at an order statistic reads, or more:
_RUN = 1 << 10  # so many from each piece
_GOLDEN = 0.618033988749895  # its multiples, modulo 1, spread the runs evenly over the pieces


def specs_of(
    method: Method,
    shapes: Mapping[str, torch.Size],
    options: Callable[[str, float | None], Mapping[str, Any]],
    depths: Mapping[str, float | None],
    models: tuple[str, ...],
    taking: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Spec]:
    """The tensors of a merge with their options, which are checked.

    Args:
        method: the row of the table.
        shapes: by name, in the output's order.
        options: those that hold for a tensor of a name and a depth, as `Settings.at` gives them.
        depths: by name; see `settings.depths`.
        models: labels.
        taking: places of the models that take part, of tensors where these are not all; the weights of the others go
            to them, in proportion.

    Raises:
        UsageError: options that do not fit together, or the number of models.
    """
    specs = []
    for name, shape in shapes.items():
        given, chosen = options(name, depths[name]), (taking or {}).get(name)
        own = given if chosen is None else shared_out(method, given, chosen, name)
        spec = Spec(name, shape, own, depths[name], chosen)
        if method.require is not None:
            method.require(spec, spec.of(models))
        specs.append(spec)
    return specs


def shared_out(
    method: Method, options: Mapping[str, Any], chosen: tuple[int, ...], name: str
) -> Mapping[str, Any]:
    """The options of some of the models: the same but for the weights, whose sum stays that of all.

    Raises:
        UsageError: the weights of the chosen ones sum to 0.

    Example:
        >>> from tauspan.merge.methods.sums import LINEAR
        >>> shared_out(LINEAR, {"weight": (1.0, 2.0, 3.0), "normalize": False}, (0, 1), "w")["weight"]
        (2.0, 4.0)
    """
    single = {option.name for option in method.options if option.per_model}
    own = {
        key: tuple(value[place] for place in chosen if place < len(value)) if key in single else value
        for key, value in options.items()
    }
    if "weight" not in single or len(own["weight"]) == len(options["weight"]):
        return own
    total, kept = sum(options["weight"]), sum(own["weight"])
    if not kept:
        raise UsageError(
            f"the weights of the models that have {name!r} are {own['weight']} and sum to 0, so they cannot take "
            f"over those of the models that lack it. Change a weight, or leave these models out."
        )
    return {**own, "weight": tuple(weight * total / kept for weight in own["weight"])}


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
        return flat.view((*lead, *shape))
    if grain == "row":
        return flat.view(*lead, -1, prod(shape[1:]) if len(shape) > 1 else flat.shape[-1])
    return flat


def stacked(need: Need, tensors: Sequence[Tensor], cut: Callable[[Tensor], Tensor]) -> Tensor:
    """Statistics of all models for one block: cut like the values, or whole Gram matrices."""
    if need == "gram":
        return torch.stack(
            [tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
        )
    return torch.stack([cut(tensor) for tensor in tensors])


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
        self._specs, self._read, self._grain, self._run = specs, read, grain, run
        self._pieces = [(spec, *piece) for spec in specs for piece in pieces(spec.shape, grain, size)]
        ends = list(itertools.accumulate(prod(spec.shape) for spec in specs))
        self.entries = ends[-1] if ends else 0
        self._before = {spec.name: end - prod(spec.shape) for spec, end in zip(specs, ends, strict=True)}

    @property
    def first(self) -> Block:
        """The first block, for options and labels."""
        return self._read(*self._pieces[0])

    def option(self, name: str) -> Any:
        """An option that holds for all the scope's tensors."""
        first, *rest = self._specs
        for spec in rest:
            if spec.options[name] != first.options[name]:
                raise UsageError(
                    f"option {name!r} is {first.options[name]!r} for {first.name!r} and {spec.options[name]!r} for "
                    f"{spec.name!r}, and this method takes one {name!r} for the whole model. Give it without filters "
                    "and gradients, or choose a variant that works tensor by tensor."
                )
        return first.options[name]

    def _measured(self, measure: Callable[[Block], T]) -> Iterator[T]:
        return self._run(lambda piece: measure(self._read(*piece)), self._pieces)

    def total(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """The sum over blocks of `measure(block)`, in float64 and in a fixed order."""
        results = self._measured(lambda block: measure(block).double())
        return added(results)

    def highest(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """The largest of `measure(block)` over the blocks, entry by entry."""
        results = self._measured(measure)
        highest = next(results)
        for result in results:
            highest = torch.maximum(highest, result)
        return highest

    def kth_largest(self, key: Callable[[Block], Tensor], ranks: list[int]) -> Tensor:
        """Exact order statistics of the rows of |key(block)|, in one or two passes over the blocks; see `Scope`."""
        return self.largest(key, ranks, alike=True).magnitudes

    def largest(self, key: Callable[[Block], Tensor], ranks: list[int], *, alike: bool = False) -> Reach:
        """The entries of the rows of |key(block)| up to their ranks, in one or two passes; see `Scope`."""
        inside = [row for row, rank in enumerate(ranks) if 1 <= rank <= self.entries]
        first = key(self.first)
        found: dict[int, Found] = {}
        if inside and len(self._pieces) == 1:
            bits = patterns(first)[inside]
            found = dict(zip(inside, directly(bits, [ranks[row] for row in inside], alike), strict=True))
        elif inside:
            found = self._searched(key, first.dtype, {row: ranks[row] for row in inside}, alike)
        ends = [
            found.get(row) or Found(-1, *[self.entries * (rank > 0)] * 2) for row, rank in enumerate(ranks)
        ]
        values = [
            magnitude(end.pattern, first.dtype) if end.pattern >= 0 else 0.0 if end.reached else math.inf
            for end in ends
        ]
        magnitudes = torch.tensor(values, dtype=first.dtype, device=first.device)
        return Reach(magnitudes, tuple(end.end for end in ends), tuple(end.reached for end in ends))

    def _searched(
        self, key: Callable[[Block], Tensor], dtype: torch.dtype, ranks: Mapping[int, int], alike: bool
    ) -> dict[int, Found]:
        """The entry at each row's rank."""
        whole = Interval.whole(dtype)
        samples = self._samples(key, ranks)
        searches = {
            row: Search(
                rank,
                whole if samples is None else whole.around(samples[row], rank / self.entries, alike),
                whole,
                alike,
            )
            for row, rank in ranks.items()
        }
        while left := {row: search for row, search in searches.items() if search.found is None}:
            intervals = {row: search.interval for row, search in left.items()}

            def located(
                piece: tuple[Spec, int, int], now: Mapping[int, Interval] = intervals
            ) -> list[Located]:
                bits, start = patterns(key(self._read(*piece))), self._place(piece)
                return [interval.located(bits[row], start) for row, interval in now.items()]

            for parts in self._run(located, self._pieces):
                for search, part in zip(left.values(), parts, strict=True):
                    search.add(part)
            for search in left.values():
                search.narrow()
        return {row: search.found for row, search in searches.items() if search.found is not None}

    def _place(self, piece: tuple[Spec, int, int]) -> int:
        """The place of a piece's first entry among all entries of the scope."""
        return self._before[piece[0].name] + piece[1]

    def _samples(self, key: Callable[[Block], Tensor], rows: Iterable[int]) -> dict[int, Sample] | None:
        """Keys of a short run of entries in each piece, by row; None where pieces cannot be cut."""
        if self._grain == "tensor":
            return None
        wanted = max(_RUN, _SAMPLE // len(self._pieces))
        runs = []
        for number, (spec, start, stop) in enumerate(self._pieces):
            row = prod(spec.shape[1:]) if self._grain == "row" and len(spec.shape) > 1 else 1
            if self._grain == "row" and len(spec.shape) < 2:
                row = stop - start
            length = min(-(-wanted // row) * row, stop - start)
            free = (stop - start - length) // row + 1  # places where the run can begin
            place = start + row * int(number * _GOLDEN % 1 * free)
            runs.append((spec, place, place + length))
        parts = [patterns(key(self._read(*run))) for run in runs]
        places = np.concatenate(
            [np.arange(part.shape[1]) + self._place(run) for part, run in zip(parts, runs, strict=True)]
        )
        bits = np.concatenate(parts, axis=1)
        ordered = np.sort(bits, axis=1)
        return {row: Sample(bits[row], places, ordered[row]) for row in rows}


def apart(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels that differ: they are the keys of random masks, so two models never share one."""
    taken, made = set(labels), list[str]()
    for label in labels:
        name, number = label, 1
        while name in made or (number > 1 and name in taken):
            number += 1
            name = f"{label}#{number}"
        made.append(name)
    return tuple(made)
