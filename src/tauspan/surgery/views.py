"""Checkpoints seen through a map: with the rows of another vocabulary (`Grafted`), or with other layers (`Deepened`)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError
from tauspan.merge.recipe.towers import number
from tauspan.merge.sources.source import Source, SourceView, found
from tauspan.merge.sources.vocabulary import is_vocabulary, named_for_tokens
from tauspan.models.bases import drawn
from tauspan.store import Stored
from tauspan.surgery.depth import LayerMap, mixed
from tauspan.surgery.rowmap import ENTRIES, RowMap


def whole(source: Source, name: str) -> Tensor:
    """One tensor of a source; with mapped files a view of its pages."""
    shape = found(source, name).shape
    return source.read(name, 0, shape.numel()).view(shape)


def by_rows(tensor: Tensor, rows: int) -> Tensor:
    """A table or a bias with its tokens along the first axis: a bias that is stored as one row is turned."""
    return tensor[0] if tensor.shape == (1, rows) and rows != 1 else tensor


class Grafted(SourceView):
    """A model whose tables and biases have the rows of P E and P b; all other tensors are its own.

    Args:
        inner: the model.
        rows: P.
        facts: of the graft, for its identity.
        spread: rows that are not copied are drawn from N(mean, spread Cov) instead; None takes P's.
        seed: of what is drawn.

    Raises:
        MismatchError: a table has too few rows for P, or a head or bias over tokens has others than the table.
    """

    def __init__(
        self,
        inner: Source,
        rows: RowMap,
        facts: Mapping[str, Any],
        spread: float | None = None,
        seed: int = 0,
    ) -> None:
        self.inner, self.rows, self.facts, self.spread, self.seed = inner, rows, dict(facts), spread, seed
        self._known: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
        self.tensors: Mapping[str, Stored] = {name: self._shown(one) for name, one in inner.tensors.items()}
        if not rows.is_identity:
            self._require_one_height()

    def _require_one_height(self) -> None:
        """Raise where a tensor looks like a head or bias over tokens, and has more or fewer rows than the tables."""
        widths = {one.shape[1] for name in self.tables if len((one := self.inner.tensors[name]).shape) == 2}
        for name, one in self.inner.tensors.items():
            fits = len(one.shape) == 1 or (len(one.shape) == 2 and one.shape[1] in widths)
            near = fits and self.rows.columns < 2 * one.shape[0] < 4 * self.rows.columns
            if near and named_for_tokens(name) and not self.moves(one) and one.dtype.is_floating_point:
                raise MismatchError(
                    f"{name!r} of {self.path} has {one.shape[0]} rows and the table of tokens {self.rows.columns}: as it "
                    "is no library reads the two together. Give both as many rows (transformers: "
                    f"`model.resize_token_embeddings({max(one.shape[0], self.rows.columns)})`), and save the model anew."
                )

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tensors whose rows are tokens."""
        return tuple(name for name, one in self.inner.tensors.items() if self.moves(one))

    @property
    def aliases(self) -> Mapping[str, str]:
        """The aliases of the inner source."""
        return self.inner.aliases

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's identity, and how it was grafted."""
        return {**self.inner.identity, "made by": self.facts}

    def moves(self, stored: Stored) -> bool:
        """Whether the rows of a tensor are tokens."""
        return stored.dtype.is_floating_point and is_vocabulary(stored, self.rows.columns)

    def _shown(self, stored: Stored) -> Stored:
        if not self.moves(stored) or self.rows.is_identity:
            return stored
        lead = 1 if stored.shape == (1, self.rows.columns) and self.rows.columns != 1 else 0
        self.rows.require_fitting(stored.shape[lead:], f"{stored.name!r} of {self.path}")
        shape = torch.Size((*stored.shape[:lead], self.rows.rows, *stored.shape[lead + 1 :]))
        return replace(stored, shape=shape, nbytes=shape.numel() * stored.dtype.itemsize)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor."""
        stored = self.inner.tensors.get(self.inner.aliases.get(name, name))
        if stored is None or not self.moves(stored) or self.rows.is_identity:
            return self.inner.read(name, start, stop)
        width = max(self.tensors[stored.name].shape.numel() // self.rows.rows, 1)
        first, last = start // width, -(-stop // width)
        table, means, root = self._opened(stored.name)
        made = self.rows.apply(table, first, last, means)
        if root is not None:
            left = (self.rows.copies[first:last] < 0).nonzero().flatten().tolist()
            for row in left:
                noise = drawn((len(root),), self.seed, stored.name, first + row)
                made[row] = (means[0].reshape(-1) + root @ noise).to(table.dtype).view(made.shape[1:])
        return made.reshape(-1)[start - first * width : stop - first * width]

    def _opened(self, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """A table, the means that rows share, and the root of the covariance that rows are drawn by."""
        if name not in self._known:
            table = by_rows(whole(self.inner, name), self.rows.columns)
            root = None if self.spread is None else self.spread**0.5 * _root(table, self.rows)
            self._known[name] = (table, self.rows.shared_rows(table), root)
        return self._known[name]


def _root(table: Tensor, rows: RowMap) -> Tensor:
    """The symmetric root of the covariance of the tokens' rows, float64 (d, d)."""
    used, width = (rows.shared[0] > 0).nonzero().flatten(), max(table[0].numel(), 1)
    mean, square = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for some in torch.split(used, max(ENTRIES // width, 1)):
        values = table[some].reshape(len(some), width).double()
        mean, square = mean + values.sum(0), square + values.T @ values
    mean /= len(used)
    sizes, axes = torch.linalg.eigh(square / len(used) - torch.outer(mean, mean))
    root: Tensor = (axes * sizes.clamp(min=0).sqrt()) @ axes.T
    return root


class Deepened(SourceView):
    """A model or a displacement with other layers: tensor by tensor, layer l is sum_m D[l, m] of the layers m.

    Args:
        inner: the model, or a displacement.
        layers: D.
        stack: the prefix of the layers' names.
        facts: for its identity.

    Raises:
        MismatchError: layers that are mixed hold other tensors, or tensors of other shapes.
    """

    def __init__(self, inner: Source, layers: LayerMap, stack: str, facts: Mapping[str, Any]) -> None:
        self.inner, self.layers, self.stack, self.facts = inner, layers, stack, dict(facts)
        self.parts: dict[str, tuple[tuple[str, float], ...]] = {}
        shown: dict[str, Stored] = {}
        outside = [name for name in inner.tensors if number(name, stack) is None]
        names = [name for name in inner.tensors if number(name, stack) is not None]
        places = {name: place for place, name in enumerate(inner.tensors)}
        for name in outside:
            if places[name] < places[names[0]]:
                shown[name] = inner.tensors[name]
        for layer, row in enumerate(layers.rows):
            for rest in dict.fromkeys(
                layers.rest(name, stack) for name in names if number(name, stack) == row[0][0]
            ):
                made = f"{stack}{layer}{rest}"
                self.parts[made] = tuple((f"{stack}{one}{rest}", weight) for one, weight in row)
                shown[made] = self._checked(made, self.parts[made])
        for name in outside:
            shown[name] = inner.tensors[name]
        self.tensors: Mapping[str, Stored] = shown

    def _checked(self, made: str, parts: tuple[tuple[str, float], ...]) -> Stored:
        held = [self.inner.tensors.get(name) for name, _ in parts]
        first = held[0]
        for (name, _), one in zip(parts, held, strict=True):
            if first is None or one is None or one.shape != first.shape:
                raise MismatchError(
                    f"{name!r} of {self.path} is {'missing' if one is None else tuple(one.shape)}, and {parts[0][0]!r} "
                    f"{tuple(first.shape) if first else 'missing'}: layers of different kinds cannot be mixed. Take a "
                    "map that only copies: first:L, or stages."
                )
        assert first is not None  # noqa: S101 - the loop has looked
        return replace(first, name=made)

    @property
    def aliases(self) -> Mapping[str, str]:
        """The aliases of the inner source, without those of its layers."""
        return {
            name: kept for name, kept in self.inner.aliases.items()
            if number(name, self.stack) is None and kept in self.tensors
        }  # fmt: skip

    @property
    def identity(self) -> Mapping[str, Any]:
        """The inner source's identity, and its layers."""
        return {**self.inner.identity, "made by": self.facts}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor."""
        parts = self.parts.get(self.aliases.get(name, name))
        if parts is None:
            return self.inner.read(name, start, stop)
        if len(parts) == 1 and parts[0][1] == 1:
            return self.inner.read(parts[0][0], start, stop)
        return mixed([(self.inner.read(one, start, stop), weight) for one, weight in parts])
