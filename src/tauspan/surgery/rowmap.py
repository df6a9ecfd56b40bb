"""`RowMap`: a row-stochastic map P from the rows of one vocabulary to those of another, E' = P E."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.errors import MismatchError, NonFiniteError, StoreError, UsageError

FORMAT = "tauspan-rows/1"
_SUM = 1e-9  # how far the sum of a row may be from one
ENTRIES = 1 << 20  # float64 numbers that are gathered at a time: more leave the cache


@dataclass(frozen=True, eq=False)
class RowMap:
    """P, shape (rows, columns), with non-negative entries whose rows sum to one; every new row is a mean of old ones.

    P = W [I; C]: W is sparse (indices and weights, row after row), and C holds the few dense rows that many rows of W
    use, such as the mean of all tokens. So z' = P z for logits z, and no new logit exceeds the largest old one.

    Args:
        starts: where each row's entries begin, and where the last one's end, int64 (rows + 1,).
        indices: of old rows, from 0 on; from `columns` on, of rows of C, int64.
        weights: float64, as many.
        columns: how many old rows there are.
        shared: C, float64 (any, columns).
        base: fingerprint of the model whose rows are the old ones; empty where it is not known.

    Raises:
        UsageError: no row, an entry that is negative or outside, or a row that does not sum to one.
        NonFiniteError: a weight that is NaN or infinite.

    Example:
        >>> halves = RowMap.of([{0: 1.0}, {0: 0.5, 1: 0.5}], 2)
        >>> halves.apply(torch.tensor([[2.0], [4.0]])).flatten()
        tensor([2., 3.])
    """

    starts: Tensor
    indices: Tensor
    weights: Tensor
    columns: int
    shared: Tensor
    base: str = ""

    def __post_init__(self) -> None:
        inside = bool(((self.indices >= 0) & (self.indices < self.columns + len(self.shared))).all())
        ordered = len(self.starts) and int(self.starts[0]) == 0 and bool((self.starts.diff() >= 0).all())
        if (
            not ordered
            or not inside
            or len(self.indices) != len(self.weights)
            or int(self.starts[-1]) != len(self.indices)
        ):
            raise UsageError(f"a map of {self.columns} old rows has an entry outside of them.")
        if not self.rows:
            raise UsageError(
                f"a map of {self.columns} old rows makes no new one: give the weights of at least one row."
            )
        for name, weights, sums in (
            ("row", self.weights, self._summed(self.weights)),
            ("shared row", self.shared, self.shared.sum(1)),
        ):
            if not bool(torch.isfinite(weights).all()):
                row = int((~torch.isfinite(sums)).nonzero()[0])
                raise NonFiniteError(
                    f"{name} {row} of the map has a weight that is NaN or infinite, and the weights of every row are at "
                    "least 0 and sum to 1. Look at what they were computed from."
                )
            wrong = (sums - 1).abs() > _SUM
            if bool((weights < 0).any()) or bool(wrong.any()):
                row = int(wrong.nonzero()[0]) if bool(wrong.any()) else int((weights < 0).nonzero()[0][0])
                raise UsageError(
                    f"{name} {row} of the map sums to {float(sums[min(row, len(sums) - 1)]):g}, and the weights of every "
                    "row are at least 0 and sum to 1. Divide them by their sum."
                )

    def __repr__(self) -> str:
        copied = int((self.copies >= 0).sum())
        return f"RowMap({self.rows} x {self.columns}, {copied} rows copied)"

    # -- making ----------------------------------------------------------------------------------------------

    @staticmethod
    def of(rows: Sequence[Mapping[int, float]], columns: int, shared: Tensor | None = None) -> "RowMap":
        """The map with these rows: weights by the old row, or by `columns` and more for rows of C."""
        counts = torch.tensor([0, *map(len, rows)], dtype=torch.int64)
        indices = torch.tensor([index for row in rows for index in row], dtype=torch.int64)
        weights = torch.tensor([weight for row in rows for weight in row.values()], dtype=torch.float64)
        none = torch.zeros(0, columns, dtype=torch.float64)
        return RowMap(counts.cumsum(0), indices, weights, columns, none if shared is None else shared)

    @staticmethod
    def identity(rows: int) -> "RowMap":
        """The map that changes nothing."""
        return RowMap.of([{row: 1.0} for row in range(rows)], rows)

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """How many new rows there are."""
        return len(self.starts) - 1

    @cached_property
    def copies(self) -> Tensor:
        """Of each new row, the old row that it equals bit for bit, or -1; int64 (rows,)."""
        single = (self.sizes == 1).nonzero().flatten()
        places = self.starts[single]
        own = (self.weights[places] == 1) & (self.indices[places] < self.columns)
        found = torch.full((self.rows,), -1, dtype=torch.int64)
        found[single[own]] = self.indices[places[own]]
        return found

    @cached_property
    def sizes(self) -> Tensor:
        """How many entries each row has, int64 (rows,)."""
        return self.starts.diff()

    @cached_property
    def _need(self) -> int:
        """How many rows of a table are read."""
        known = self.indices[self.indices < self.columns]
        return max(int(known.max()) + 1 if len(known) else 0, self.columns if len(self.shared) else 0)

    @cached_property
    def is_identity(self) -> bool:
        """Whether every new row is the old one of its number."""
        return self.rows == self.columns and torch.equal(self.copies, torch.arange(self.rows))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over indices and weights."""
        whole = hashlib.sha256(f"{self.rows} {self.columns}".encode())
        for tensor in (self.starts, self.indices, self.weights, self.shared):
            whole.update(tensor.contiguous().numpy().tobytes())
        return whole.hexdigest()

    def dense(self) -> Tensor:
        """P as a float64 matrix, shape (rows, columns); for small maps."""
        return self.apply(torch.eye(self.columns, dtype=torch.float64))

    # -- applying --------------------------------------------------------------------------------------------

    def apply(
        self, table: Tensor, first: int = 0, last: int | None = None, means: Tensor | None = None
    ) -> Tensor:
        """Rows `first` to `last` of P E, in the dtype of the table.

        A row with one weight of 1 is copied, any other summed in float64 in the order of its entries and rounded once;
        which rows are asked for together changes no bit.

        Args:
            table: E, shape (columns or more, ...); rows beyond are padding, which is not read.
            first: the first new row.
            last: the row after the last one; None takes all.
            means: `shared_rows(table)`, where they are known already.

        Raises:
            MismatchError: the table has fewer rows than the map reads.

        Cost: one addition of a row for each entry; beside the result at most 8 MB for the rows it gathers.
        """
        last = self.rows if last is None else last
        self.require_fitting(table.shape, "the table")
        own = self.copies[first:last]
        made = table.index_select(0, own.clamp(min=0))  # one pass; what is not copied is replaced
        left = (own < 0).nonzero().flatten()
        if len(left):
            means = self.shared_rows(table) if means is None else means
            width = max(table[0].numel(), 1)
            flat = table.reshape(len(table), width)
            sizes = self.sizes[first:last][left]
            for piece in _pieces(left, sizes, max(ENTRIES // width, 1)):
                made[piece] = (
                    self._mixed(flat, piece + first, means).to(table.dtype).view(-1, *table.shape[1:])
                )
        return made

    def _mixed(self, flat: Tensor, rows: Tensor, means: Tensor) -> Tensor:
        """Some rows, float64 (len(rows), width)."""
        sizes = self.sizes[rows]
        place = torch.repeat_interleave(self.starts[rows] - (sizes.cumsum(0) - sizes), sizes)
        place = place + torch.arange(len(place))
        into = torch.repeat_interleave(torch.arange(len(rows)), sizes)
        index, weight = self.indices[place], self.weights[place]
        dense = index >= self.columns
        values = flat[torch.where(dense, 0, index)].double()
        if bool(dense.any()):
            values[dense] = means.view(len(self.shared), flat.shape[1])[index[dense] - self.columns]
        summed = torch.zeros(len(rows), flat.shape[1], dtype=torch.float64)
        return summed.index_add_(0, into, values.mul_(weight[:, None]))

    def shared_rows(self, table: Tensor) -> Tensor:
        """C E, float64 (shared rows, ...): what `apply` adds for entries of C; reads the table once."""
        width = max(table[0].numel(), 1) if len(table) else 1
        total = torch.zeros(len(self.shared), width, dtype=torch.float64)
        step = max(ENTRIES // width, 1)
        for start in range(0, self.columns if len(self.shared) else 0, step):
            stop = min(start + step, self.columns)
            total += self.shared[:, start:stop] @ table[start:stop].reshape(stop - start, width).double()
        return total.view(-1, *table.shape[1:])

    def require_fitting(self, shape: Sequence[int], what: str) -> None:
        """Raise `MismatchError` unless a table has all rows that are read; more of them are padding."""
        if not shape or shape[0] < self._need:
            raise MismatchError(
                f"{what} has {shape[0] if shape else 0} rows, and the map reads {self._need}: it is a map of another "
                "vocabulary. Make the map from the tokenizer that belongs to this table."
            )

    def __matmul__(self, other: object) -> "RowMap":
        """P2 @ P1: first P1, then P2, as one map; its base is that of P1."""
        if not isinstance(other, RowMap):
            return NotImplemented
        if self.columns != other.rows:
            raise MismatchError(
                f"a map of {self.columns} old rows does not follow one that makes {other.rows}: put the maps in the "
                "order in which they were made, the last one first."
            )
        mine = self.indices < self.columns
        sizes = torch.where(mine, other.sizes[self.indices.clamp(max=self.columns - 1)], 1)
        place = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        inner = torch.arange(int(sizes.sum())) - place
        outer = torch.repeat_interleave(torch.arange(len(self.indices)), sizes)
        through = mine[outer]
        at = torch.where(through, other.starts[self.indices.clamp(max=self.columns - 1)][outer] + inner, 0)
        index = self.indices[outer] + len(other.shared) + other.columns - self.columns
        index[through] = other.indices[at[through]]
        weight = self.weights[outer]
        weight[through] *= other.weights[at[through]]
        rows = torch.repeat_interleave(torch.arange(self.rows), self.sizes)[outer]
        shared = torch.cat([other.shared, other.spread(self.shared)])
        made = _coalesced(rows, index, weight, (self.rows, other.columns), shared)
        return replace(made, base=other.base)

    def spread(self, rows: Tensor) -> Tensor:
        """`rows` P, float64 (any, columns), of dense `rows`, float64 (any, rows)."""
        owner = torch.repeat_interleave(torch.arange(self.rows), self.sizes)
        wide = torch.zeros(len(rows), self.columns + len(self.shared), dtype=torch.float64)
        wide.index_add_(1, self.indices, rows[:, owner] * self.weights)
        return wide[:, : self.columns] + wide[:, self.columns :] @ self.shared

    def squares(self) -> tuple["RowMap", Tensor]:
        """Q and s with P_ni^2 = s_n Q_ni and s_n = sum_i P_ni^2, float64 (rows,): the squared weights as a map.

        Raises:
            UsageError: rows that mix entries of C with others, as products of maps may have.
        """
        dense = self.indices >= self.columns
        if bool((dense & (self.weights != 1)).any()):
            raise UsageError(
                "the map is a product with rows that mix shared rows and others, and knows no squares of single weights. "
                "Apply the maps that it was made of one after the other."
            )
        shared, weights = self.shared.square(), self.weights.square()
        weights[dense] = shared.sum(1)[self.indices[dense] - self.columns]
        sums = self._summed(weights)
        weights = weights / torch.repeat_interleave(sums, self.sizes)
        return replace(self, weights=weights, shared=shared / shared.sum(1, keepdim=True)), sums

    def _summed(self, weights: Tensor) -> Tensor:
        owner = torch.repeat_interleave(torch.arange(self.rows), self.sizes)
        return torch.zeros(self.rows, dtype=torch.float64).index_add_(0, owner, weights)

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write one safetensors file."""
        tensors = {name: getattr(self, name) for name in ("starts", "indices", "weights", "shared")}
        facts = {"format": FORMAT, "columns": self.columns, "base": self.base}
        store.write_tensors(path, tensors, {"tauspan": json.dumps(facts)}, overwrite=overwrite)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> "RowMap":
        """Read what `save` wrote.

        Raises:
            StoreError: not such a file, or damaged.
        """
        file = store.Checkpoint(path)
        try:
            facts = json.loads(file.metadata["tauspan"])
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, and must be {FORMAT!r}")
            tensors = file.read(["starts", "indices", "weights", "shared"])
            return RowMap(**tensors, columns=int(facts["columns"]), base=str(facts.get("base", "")))
        except (ValueError, KeyError, TypeError, IndexError, NonFiniteError) as error:
            raise StoreError(f"{path} holds no map of rows ({error}): graft the model again.") from error


def _pieces(rows: Tensor, sizes: Tensor, most: int) -> list[Tensor]:
    """The rows cut into pieces of about `most` entries."""
    group = (sizes.cumsum(0) - sizes) // most
    return list(torch.split(rows, torch.unique_consecutive(group, return_counts=True)[1].tolist()))


def _coalesced(
    rows: Tensor, indices: Tensor, weights: Tensor, shape: tuple[int, int], shared: Tensor
) -> RowMap:
    """The map of these entries, those of one place added."""
    wide = shape[1] + len(shared)
    keys, inverse = torch.unique(rows * wide + indices, return_inverse=True)
    summed = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, inverse, weights)
    counts = torch.bincount(keys // wide, minlength=shape[0])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return RowMap(starts, keys % wide, summed, shape[1], shared)
