"""What a page holds of the rows of one task and split, in each of three forms, and what it predicts from them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tauspan.core.errors import UsageError
from tauspan.editing.desk.packing import Array, Blob, Packed, packed
from tauspan.editing.desk.pruning import contenders
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.tangent import TangentModel
from tauspan.tasks import Task

_SHORTEST = 1e-12  # of a feature that is divided by its length, as torch has it
_MOST_CLASSES = 1 << 16


@dataclass(frozen=True)
class Held(ABC):
    """Rows of one task and split.

    Args:
        labels: class indices, shape (N,).
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def kind(self) -> str:
        """As the page calls it."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of its numbers in a blob."""

    @abstractmethod
    def written(self, blob: Blob) -> dict[str, Any]:
        """Add the numbers to a blob; the offsets and numbers that say where they are."""

    @abstractmethod
    def predicted(self, coefficients: Sequence[float]) -> NDArray[np.int64]:
        """The classes that the page shows at (a_1 ... a_K), shape (N,); of equal ones the first."""

    @abstractmethod
    def unsure(self, coefficients: Sequence[float]) -> NDArray[np.bool_]:
        """The rows whose class the page's rounding could have changed, shape (N,)."""

    def pruned(self, low: float, high: float) -> "Held":
        """Without the classes that win nowhere in the box; itself where that is not known."""
        return self


@dataclass(frozen=True)
class Lengths:
    """The lengths |z| of features z = z_0 + sum_k a_k z_k, for a head s (z / |z|) W^T + b.

    Args:
        gram: <z_k, z_l> for k <= l, row after row of the upper triangle, float32 of shape (N, (K + 1)(K + 2) / 2).
        scale: s, above 0.
        bias: b, shape (C,); None for 0.
    """

    gram: NDArray[np.float32]
    scale: float
    bias: Array | None

    def at(self, terms: Array) -> tuple[Array, Array]:
        """|z| at (1, a_1 ... a_K), and by how much the rounding of the numbers may have moved it."""
        upper = np.triu_indices(len(terms))
        own = upper[0] == upper[1]
        weights = np.outer(terms, terms)[upper] * np.where(own, 1, 2)
        length = np.sqrt(np.maximum(self.gram.astype(np.float64) @ weights, _SHORTEST**2))
        error = 2.0**-22 * (np.sqrt(self.gram[:, own].astype(np.float64)) @ np.abs(terms)) ** 2
        return length, np.minimum(np.sqrt(error), error / length)

    def written(self, blob: Blob) -> dict[str, Any]:
        """Offsets of the inner products and the bias, and the scale."""
        return {
            "gram": blob.add(self.gram, "<f4"),
            "logitScale": self.scale,
            "bias": None if self.bias is None else blob.add(self.bias, "<f4"),
        }

    @property
    def nbytes(self) -> int:
        """Of the inner products and the bias."""
        return 4 * (self.gram.size + (0 if self.bias is None else len(self.bias)))


@dataclass(frozen=True)
class Contributed(Held):
    """Numbers v_0 + sum_k a_k v_k of which the largest says the class: logits, or W z for a head that divides z by |z|.

    Such a head's class is the largest of (W z)_c + b_c |z| / s.

    Args:
        values: v in float64, shape (N, K + 1, C).
        exact: kept as float32 instead of int16.
        kept: the classes of each row that a page holds, shape (N, C); None for all.
        lengths: of the features, where the head divides by them.
    """

    values: Array
    exact: bool
    kept: NDArray[np.bool_] | None = None
    lengths: Lengths | None = None

    @property
    def kind(self) -> str:
        """As the page calls it."""
        return "affine" if self.lengths is None else "gram"

    @cached_property
    def stored(self) -> Packed:
        """The numbers as they are written: int16 logits less a number for each row and term, which decides nothing."""
        if self.exact:
            return packed(self.values, exact=True)
        kept = np.ones(self.values.shape[::2], bool) if self.kept is None else self.kept
        inside = kept[:, None, :]
        mean = (self.values * inside).sum(-1, keepdims=True) / inside.sum(-1, keepdims=True)
        return packed((self.values if self.lengths else self.values - mean) * inside)

    @property
    def nbytes(self) -> int:
        """Numbers, scales, lengths and, where classes were dropped, which ones are left."""
        rows, terms, classes = self.values.shape
        left: int = rows * classes if self.kept is None else int(self.kept.sum())
        listed: int = 0 if self.kept is None else 4 * (rows + 1) + 2 * left
        numbers: int = left * terms * (4 if self.exact else 2) + (0 if self.exact else 4 * rows)
        return numbers + listed + (0 if self.lengths is None else self.lengths.nbytes)

    def written(self, blob: Blob) -> dict[str, Any]:
        """Numbers as [n][k][c], scales, what is left of the classes, lengths."""
        numbers, kept, scales = self.stored.numbers, None, self.stored.scales
        if self.kept is not None:
            counts = self.kept.sum(1)
            kept = {
                "starts": blob.add(np.concatenate([[0], np.cumsum(counts)]), "<u4"),
                "classes": blob.add(np.nonzero(self.kept)[1], "<u2"),
            }
            numbers = numbers[np.broadcast_to(self.kept[:, None, :], numbers.shape)]
        return {
            "numbers": blob.add(numbers, "<f4" if self.exact else "<i2"),
            "scales": None if scales is None else blob.add(scales, "<f4"),
            "kept": kept,
            **({} if self.lengths is None else self.lengths.written(blob)),
        }

    def pruned(self, low: float, high: float) -> "Contributed":
        """Without the classes that win nowhere in the box; with a bias the order is not affine, and all stay."""
        if self.lengths is not None and self.lengths.bias is not None:
            return self
        fewer = replace(self, kept=contenders(self.values, low, high))
        return fewer if fewer.nbytes < self.nbytes else self  # which ones are left takes room too

    def predicted(self, coefficients: Sequence[float]) -> NDArray[np.int64]:
        """The class of the largest."""
        found: NDArray[np.int64] = self._scores(coefficients).argmax(-1)
        return found

    def unsure(self, coefficients: Sequence[float]) -> NDArray[np.bool_]:
        """Rows whose largest number is ahead of another by no more than rounding can have made of it."""
        scores = self._scores(coefficients)
        first = scores.argmax(-1)[:, None]
        ahead = scores.max(-1, keepdims=True) - scores
        np.put_along_axis(ahead, first, np.inf, -1)
        terms = np.array([1.0, *coefficients])
        slack = self.stored.slack(terms[1:])
        if self.exact and bool((self.stored.numbers != self.values).any()):  # made in float64
            slack = slack + 2.0**-23 * np.abs(self.values).max(-1) @ np.abs(terms)
        slack = slack[:, None]
        if self.lengths is not None and self.lengths.bias is not None:
            bias, off = self.lengths.bias, self.lengths.at(terms)[1][:, None]
            slack = slack + np.abs(bias - bias[first]) * off / self.lengths.scale
        near: NDArray[np.bool_] = (ahead <= slack).any(-1)
        return near

    def _scores(self, coefficients: Sequence[float]) -> Array:
        terms = np.array([1.0, *coefficients])
        found: Array = np.einsum("k,nkc->nc", terms, self.stored.values())
        if self.lengths is not None and self.lengths.bias is not None:
            found = found + self.lengths.bias * self.lengths.at(terms)[0][:, None] / self.lengths.scale
        return found if self.kept is None else np.where(self.kept, found, -np.inf)


@dataclass(frozen=True)
class Sampled(Held):
    """The classes at some points, where nothing is known between them.

    Args:
        grid: coefficients, shape (G, K).
        classes: shape (G, N).
    """

    grid: Array
    classes: NDArray[np.int64]

    @property
    def kind(self) -> str:
        """As the page calls it."""
        return "sampled"

    @property
    def nbytes(self) -> int:
        """Two a row and point."""
        return 2 * self.classes.size

    def written(self, blob: Blob) -> dict[str, Any]:
        """Classes as [g][n]."""
        return {
            "numbers": blob.add(self.classes, "<u2"),
            "scales": None,
            "kept": None,
            "grid": self.grid.tolist(),
        }

    def predicted(self, coefficients: Sequence[float]) -> NDArray[np.int64]:
        """Those of the nearest point."""
        nearest = np.square(self.grid - np.array(coefficients)).sum(1).argmin()
        found: NDArray[np.int64] = self.classes[nearest]
        return found

    def unsure(self, coefficients: Sequence[float]) -> NDArray[np.bool_]:
        """None: the classes are the model's own."""
        return np.zeros(len(self), bool)


def held(
    model: EditedModel,
    task: Task,
    split: str,
    places: Sequence[int],
    grid: Sequence[Sequence[float]],
    exact: bool,
) -> Held:
    """What a page holds of some rows, from what the model has read of them.

    Args:
        model: whose directions are the page's vectors, read on this split in the tangent regimes.
        task: whose rows.
        split: of which split.
        places: which rows.
        grid: the points where a model that is not affine is evaluated.
        exact: float32 instead of int16.

    Raises:
        UsageError: more classes than 16 bits can number, or a task without classes.
    """
    if not task.classes:
        raise UsageError(
            f"a page counts right classes, and the task {task.name!r} is {task.objective.word}: leave the task out; "
            "`Editor.evaluate` gives its metric at any coefficients."
        )
    if len(task.label_names) > _MOST_CLASSES:
        raise UsageError(
            f"the task {task.name!r} has {len(task.label_names):,} classes, and a page numbers at most "
            f"{_MOST_CLASSES:,}: leave the task out."
        )
    rows = task.split(split)
    labels = rows.labels.numpy()[list(places)].astype(np.int64)
    names = model.directions.names
    if not isinstance(model, TangentModel):
        classes = [model.classes(task, split, dict(zip(names, point, strict=True))) for point in grid]
        return Sampled(labels, np.array(grid), np.stack([one.numpy()[list(places)] for one in classes]))
    passed = model.passed(task, split)
    order = [passed.names.index(name) for name in names]
    wide = passed.rows(rows.labels.new_tensor(places)).double().folded()
    moved = np.stack([wide.value.numpy(), *(wide.tangents[place].numpy() for place in order)], 1)
    head = wide.head
    if head is None:
        return Contributed(labels, moved, exact)
    numbers = moved @ (float(np.sign(head.scale)) * head.weight.numpy()).T
    upper = np.triu_indices(moved.shape[1])
    gram = np.einsum("nkd,nld->nkl", moved, moved)[:, upper[0], upper[1]].astype(np.float32)
    bias = None if head.bias is None else head.bias.numpy()
    return Contributed(labels, numbers, exact, None, Lengths(gram, abs(head.scale) or 1.0, bias))
