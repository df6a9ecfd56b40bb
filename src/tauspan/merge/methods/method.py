"""What a merging method is: a pure function over blocks of values, and a row of the table `METHODS`."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError, nearest
from tauspan.core.schema import shown


def added(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, in their order; the first may be a view and is not written to.

    A term 1 v beside terms 0 w is v bit for bit.

    Example:
        >>> import torch
        >>> added(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([4., 6.])
    """
    rest = iter(terms)
    total = next(rest).clone()
    for term in rest:
        total += term
    return total


_KEPT = 24  # bits that float32 holds below 1


def uniform(key: tuple[object, ...], start: int, count: int) -> Tensor:
    """The numbers `start` to `start + count` of the stream named by `key`, in [0, 1), float32.

    The stream is PCG64-DXSM, seeded by the SHA-256 of the key; every 64 random bits give two numbers, and jumping to
    `start` takes a time that grows with its logarithm.

    Args:
        key: what the stream belongs to, for example (seed, tensor name, model).
        start: offset of the first number.
        count: how many.

    Example:
        >>> bool((uniform((0, "w", "a"), 5, 3) == uniform((0, "w", "a"), 0, 8)[5:]).all())
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    bits = np.random.PCG64DXSM(int.from_bytes(digest, "little"))
    pair, skip = divmod(start, 2)
    bits.advance(pair)
    words = bits.random_raw((skip + count + 1) // 2).astype("<u8", copy=False).view("<u4")
    words = words[skip : skip + count]
    words >>= 32 - _KEPT
    numbers = words.view(np.int32).astype(
        np.float32
    )  # from int32: the processor converts signed words faster
    numbers *= np.float32(2.0**-_KEPT)
    return torch.from_numpy(numbers)


T = TypeVar("T")
Value: TypeAlias = float | int | bool | str | None
Grain: TypeAlias = Literal["entry", "row", "tensor"]
Space: TypeAlias = Literal["delta", "point"]
Need: TypeAlias = Literal["base", "fisher", "gram"]


@dataclass(frozen=True)
class Option:
    """One named setting of a method, the same for all models or one number for each model.

    Args:
        name: how recipes and calls spell it.
        default: the authors' value; None where it has to be given.
        doc: one line, with its unit and range.
        per_model: one number for each model: blocks then see a tuple of T numbers.
        low: the least number; None where there is no bound.
        high: the largest number; None where there is no bound.
        choices: the allowed texts.
    """

    name: str
    default: Value
    doc: str
    per_model: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def require(self, value: Any, method: str) -> Any:
        """The value, as the option's type; a `UsageError` names option, value and range."""
        place = f"option {self.name!r} of {method!r}"
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"{place} is {value!r}. {nearest(str(value), self.choices)}")
            return value
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise UsageError(f"{place} is {value!r}, and must be true or false.")
            return value
        if value is None and self.default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{place} is {value!r}, and must be a number.")
        below = self.low is not None and not value >= self.low  # `not >=` catches NaN
        above = self.high is not None and not value <= self.high
        if not _finite(value):
            raise UsageError(f"{place} is {shown(value)}, and must be a finite number.")
        if below or above:
            low, high = ("any number" if bound is None else f"{bound:g}" for bound in (self.low, self.high))
            raise UsageError(f"{place} is {value!r}, outside its range from {low} to {high}.")
        return int(value) if type(self.default) is int and float(value).is_integer() else value


def _finite(value: float) -> bool:
    """Whether a number is finite as a float; a whole number may be too large to be one."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class Block:
    """Some entries of one tensor, of T models at once: what a method's functions see.

    Args:
        values: shape (T, n) for the grain `entry`, (T, rows, columns) for `row`, (T, *shape) for `tensor`; float32
            or float64. Displacements from the base for methods in the space `delta`, weights for `point`
            (displacements where vectors are merged without a base).
        base: theta0 over the same entries, shape `values.shape[1:]`; None where there is none.
        name: the tensor's name.
        start: offset of the first entry in the flattened tensor.
        shape: of the whole tensor.
        options: the method's options as they hold for this tensor; one tuple of T numbers where they are per model.
        models: labels of the models, the keys of random masks.
        seed: the run's seed.
        depth: place of the tensor's layer in the stack, 0 the first and 1 the last; None outside layers.
        statistics: by need, for example `{"fisher": (T, n)}` or `{"gram": (T, columns, columns)}`.
    """

    values: Tensor
    base: Tensor | None
    name: str
    start: int
    shape: torch.Size
    options: Mapping[str, Any]
    models: tuple[str, ...]
    seed: int = 0
    depth: float | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)

    def weights(self, option: str = "weight") -> Tensor:
        """A per-model option as a column that multiplies `values`: shape (T, 1, ...)."""
        column = torch.tensor(self.options[option], dtype=self.values.dtype, device=self.values.device)
        return column.view(-1, *[1] * (self.values.dim() - 1))

    def weighted(self) -> Tensor:
        """w_t times the values of model t; the values themselves, which must not be written to, if all w_t are 1."""
        weights = self.options["weight"]
        return self.values if all(one == 1 for one in weights) else self.values * self.weights()

    def uniform(self) -> Tensor:
        """Numbers in [0, 1), shape of `values`, that depend on (seed, tensor, model, entry) and on nothing else."""
        count = self.values[0].numel()
        drawn = [uniform((self.seed, self.name, model), self.start, count) for model in self.models]
        return torch.stack(drawn).view(self.values.shape).to(self.values)


@dataclass(frozen=True)
class Spec:
    """One tensor to merge: what is known before its values are read.

    Args:
        name: the tensor's.
        shape: its shape.
        options: the method's, as they hold for it; one number for each model that takes part, where they are per model.
        depth: place of its layer; see `Block`.
        models: places of the models that take part; None for all.
    """

    name: str
    shape: torch.Size
    options: Mapping[str, Any]
    depth: float | None = None
    models: tuple[int, ...] | None = None

    def of(self, every: Sequence[T]) -> tuple[T, ...]:
        """The entries that belong to the models that take part, out of one entry for every model."""
        return tuple(every if self.models is None else (every[place] for place in self.models))


@dataclass(frozen=True)
class Reach:
    """The boundary of a selection by magnitude in R rows; of equal magnitudes, lower places are selected first.

    Args:
        magnitudes: of the last entry that is in, shape (R,); infinity for none, 0 for all.
        places: of the entries with that very magnitude, those at lower places than this are in.
        counts: how many entries are in.
    """

    magnitudes: Tensor
    places: tuple[int, ...]
    counts: tuple[int, ...]

    def split(self, parts: int) -> "list[Reach]":
        """The rows cut into so many equal parts."""
        size = len(self.counts) // parts
        cuts = [slice(start, start + size) for start in range(0, parts * size, size)]
        return [Reach(self.magnitudes[cut], self.places[cut], self.counts[cut]) for cut in cuts]


class Scope(Protocol):
    """One tensor, or all tensors, of T models: what `prepare` may ask before any block is merged.

    Every answer is the same for any split into blocks and any number of threads.
    """

    @property
    def entries(self) -> int:
        """How many entries a model has here."""

    @property
    def first(self) -> Block:
        """The first block, for options and labels."""

    def option(self, name: str) -> Any:
        """An option that holds for all the scope's tensors; a `UsageError` if it differs between them."""

    def total(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """The sum over blocks of `measure(block)`, in float64 and in a fixed order."""

    def highest(self, measure: Callable[[Block], Tensor]) -> Tensor:
        """The largest of `measure(block)` over the blocks, entry by entry."""

    def kth_largest(self, key: Callable[[Block], Tensor], ranks: list[int]) -> Tensor:
        """Exact order statistics of the magnitudes of R rows of keys, shape (R, n): shape (R,).

        The `ranks[r]`-th largest value of |key(block)[r]| over the scope; infinity for rank 0, 0 for a rank above the
        number of entries.
        """

    def largest(self, key: Callable[[Block], Tensor], ranks: list[int], *, alike: bool = False) -> Reach:
        """Exactly the `ranks[r]` entries of largest magnitude of R rows of keys, shape (R, n).

        Of equal magnitudes the lower place in the tensor comes first, whatever the blocks; with `alike` all that equal
        the last magnitude are in.
        """


Combine: TypeAlias = Callable[[Block, Any], Tensor]
Select: TypeAlias = Callable[[Block, Any], Tensor]
Count: TypeAlias = Callable[[Block, Any], tuple[int, ...]]
Prepare: TypeAlias = Callable[[Scope], Any]
Require: TypeAlias = Callable[[Spec, tuple[str, ...]], None]


@dataclass(frozen=True)
class Method:
    """One row of `METHODS`.

    Args:
        name: as recipes spell it.
        title: in words.
        paper: authors, year and arXiv id.
        formula: the rule in one line; tau_t displacements, theta_t models, w_t weights.
        combine: `combine(block, ready)`: the merged values, shape `block.values.shape[1:]`. Pure.
        prepare: `prepare(scope)`: what `combine` gets as `ready`; None where a block is enough.
        select: `select(block, ready)`: of a sparse method, the values with 0 where they are left out; `combine` then gets
            them as the block's. Pure.
        count: `count(block, ready)`: of a sparse method, how many entries of each model are kept; the counts of a
            tensor's blocks, or of all blocks, add up to the whole. It is given what `select` made, if there is one.
        require: `require(spec, models)`: raises `UsageError` where the options of a tensor do not fit together or the
            models' labels; called for every tensor before any value is read.
        over: whether `prepare` sees one tensor at a time or all of them.
        grain: the smallest piece `combine` can take: single entries, whole rows of a matrix, or whole tensors.
        space: whether values are displacements from the base or the models' own weights.
        needs: what must be there besides the models.
        options: settings with the authors' defaults.
        fewest: how many models it takes at least.
        most: how many it takes at most; None for any number.
        temporaries: block-sized tensors alive at once inside `combine` or `prepare`, besides the T + 2 of the
            driver; for the grain `tensor` in units of the tensor. The plan's memory bound uses it.
    """

    name: str
    title: str
    paper: str
    formula: str
    combine: Combine
    prepare: Prepare | None = None
    require: Require | None = None
    select: Select | None = None
    count: Count | None = None
    over: Literal["tensor", "model"] = "tensor"
    grain: Grain = "entry"
    space: Space = "delta"
    needs: tuple[Need, ...] = ()
    options: tuple[Option, ...] = ()
    fewest: int = 1
    most: int | None = None
    temporaries: int = 2

    def require_count(self, models: int) -> None:
        """Raise `UsageError` unless the method takes so many models."""
        if models < self.fewest or (self.most is not None and models > self.most):
            wanted = f"exactly {self.most}" if self.fewest == self.most else f"at least {self.fewest}"
            raise UsageError(f"the method {self.name!r} merges {wanted} models, and {models} were given.")

    def __str__(self) -> str:
        return f"Method({self.name}: {self.formula})"
