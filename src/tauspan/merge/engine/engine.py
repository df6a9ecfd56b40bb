"""How a method runs over tensors, block by block and on threads, and what rounding keeps of the result."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite, sqrt
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.core.report import Cell
from tauspan.merge.methods.method import Block, Method, Spec, uniform
from tauspan.merge.methods.scope import Blocks, OrderedMap, Read, pieces

T = TypeVar("T")


@contextmanager
def ordered_pool(workers: int) -> Iterator[OrderedMap]:
    """An ordered `map` on `workers` threads; while it is open, torch uses one thread for each operation.

    At most three items per worker are begun before their results are taken, so memory stays bounded. Leaving the
    context waits for running items and cancels those that are waiting.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # before the threads start: each copies the setting
    pool = ThreadPoolExecutor(workers, "merge")

    def run(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


Rounding: TypeAlias = Literal["nearest", "stochastic"]
Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Account:
    """What rounding to the output's dtype left of a merged displacement d, over some entries.

    s is the stored value minus the base's. Accounts of parts add up to that of the whole.

    Args:
        entries: how many.
        changed: entries with d != 0.
        swallowed: of these, entries stored as the base's own value: rounding took all of d.
        moved: sum of d^2.
        lost: sum of (s - d)^2.
        kept: of a sparse method, the entries of each model that were merged; empty where all are.

    Example:
        >>> Account(4, 2, 1, moved=4.0, lost=1.0).loss
        0.5
    """

    entries: int = 0
    changed: int = 0
    swallowed: int = 0
    moved: float = 0.0
    lost: float = 0.0
    kept: tuple[int, ...] = ()

    def __add__(self, other: "Account") -> "Account":
        kept = tuple(map(sum, itertools.zip_longest(self.kept, other.kept, fillvalue=0)))
        return Account(
            self.entries + other.entries, self.changed + other.changed, self.swallowed + other.swallowed,
            self.moved + other.moved, self.lost + other.lost, kept,
        )  # fmt: skip

    @property
    def norm(self) -> float:
        """|d|."""
        return sqrt(self.moved)

    @property
    def loss(self) -> float:
        """|s - d| / |d|; 0 where nothing moves."""
        return sqrt(self.lost / self.moved) if self.moved else 0.0

    @property
    def swallowed_share(self) -> float:
        """The share of changed entries that were swallowed; 0 where none changes."""
        return self.swallowed / self.changed if self.changed else 0.0

    def row(self, displaced: bool = True) -> dict[str, Cell]:
        """The numbers as a row of a table.

        Where models are merged without a base, d are their weights, and nothing changes or is swallowed.
        """
        norm: dict[str, Cell] = {"norm": self.norm, "loss": self.loss}
        if not displaced:
            return {"entries": self.entries, **norm}
        return {"entries": self.entries, "changed": self.changed, **norm, "swallowed": self.swallowed_share}


def meaning(displaced: bool) -> str:
    """What the numbers of `Account.row` say, for people."""
    if not displaced:
        return (
            "norm: of the exact merged weights; loss: the share of it that rounding to the stored dtype took."
        )
    return (
        "norm: of the exact merged displacement; loss: its share that rounding to the stored dtype took; swallowed: "
        "the share of changed entries that are stored as the base's own value."
    )


def account(stored: Tensor, displacement: Tensor, base: Tensor | None, anchor: Tensor | None) -> Account:
    """The account of one block.

    Args:
        stored: the output, shape (n,).
        displacement: d in the arithmetic's dtype, shape (n,).
        base: theta0 in the arithmetic's dtype; None where the output is itself a displacement.
        anchor: theta0 as it is stored; given with `base`.
    """
    lost = stored.to(displacement.dtype, copy=stored.dtype == displacement.dtype)
    still = _count(np.equal(displacement.numpy(), 0))
    swallowed = 0
    if base is not None and anchor is not None:
        # where d is 0 the base's value is stored, so the rest of the entries that hold it were swallowed
        swallowed = _count(np.equal(_bits(stored), _bits(anchor.to(stored.dtype)))) - still
        lost -= base
    lost -= displacement
    return Account(len(stored), len(stored) - still, swallowed, _squares(displacement), _squares(lost))


def _squares(values: Tensor) -> float:
    fast = float(values.dot(values))
    return fast if isfinite(fast) else float(values.double().square().sum())


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def rounded(
    exact: Tensor, dtype: torch.dtype, rounding: Rounding, key: tuple[Any, ...], start: int
) -> Tensor:
    """Values in another floating-point type.

    `nearest` is IEEE's rounding. `stochastic` takes one of the two neighbours of x in `dtype`, the upper one with
    probability (x - lower) / (upper - lower), so that the expectation is x: small displacements that nearest rounding
    swallows survive in the mean.

    Args:
        exact: shape (n,).
        dtype: of the result.
        rounding: `nearest` or `stochastic`.
        key: names the stream of random numbers, for example (seed, tensor name).
        start: offset of the first entry in its tensor; an entry's number does not depend on the cut into blocks.

    Example:
        >>> rounded(torch.tensor([1.001]), torch.bfloat16, "nearest", (0, "w"), 0)
        tensor([1.], dtype=torch.bfloat16)
    """
    near = exact.to(dtype)
    if rounding == "nearest" or dtype == exact.dtype:
        return near
    error = exact - near.to(exact.dtype)
    other = _neighbour(near, error)
    gap = (other.to(exact.dtype) - near.to(exact.dtype)).abs()
    away = uniform((*key, "rounding"), start, len(exact)).to(exact.dtype) * gap < error.abs()
    return torch.where(away, other, near)


def _neighbour(near: Tensor, direction: Tensor) -> Tensor:
    """The next number of the same type towards the sign of `direction`; the number itself where that is 0."""
    bits = near.view(_INTEGERS[near.element_size()])
    # floats are sign and magnitude: their bits grow away from zero; from a zero the way may begin at the other sign
    outward = torch.where(direction > 0, near >= 0, near <= 0)
    step = torch.where(outward, 1, -1).to(bits.dtype) * (direction != 0)
    negative = torch.where(direction < 0, torch.iinfo(bits.dtype).min, 0).to(bits.dtype)
    start = torch.where((near == 0) & (direction != 0), negative, bits)
    return (start + step).view(near.dtype)


def restore(stored: Tensor, value: Tensor, where: Mask) -> None:
    """Set some entries of `stored` to `value`, in its dtype and in place; cheap if they have this value already."""
    if not where.any():
        return
    into, own = _bits(stored), _bits(value.to(stored.dtype))
    wrong = where & np.not_equal(into, own)
    if wrong.any():
        np.copyto(into, own, where=wrong)


def _bits(values: Tensor) -> "np.ndarray[Any, Any]":
    return values.view(_INTEGERS[values.element_size()]).numpy()


BLOCK = 1 << 17  # entries: the blocks of a few models stay in a core's caches


@dataclass
class Engine:
    """Runs a method over some tensors.

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
        """Measure what the method needs to know about the whole model; most methods need nothing."""
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

    def piece(self, spec: Spec, start: int, stop: int, ready: Any) -> "MergedBlock":
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
        return MergedBlock(block, result.reshape(-1), kept)


class MergedBlock(NamedTuple):
    """What was read for one block, its merged values, flat, and of a sparse method the entries kept of each model."""

    block: Block
    result: Tensor
    kept: tuple[int, ...]
