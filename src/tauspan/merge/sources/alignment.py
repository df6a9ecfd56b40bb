"""Models with different vocabularies: rows of embeddings brought into one order by their tokens, as mergekit does.

A model's row for a token that it lacks is the base's, if the base has the token; that of the only model that has it; or
the mean over the models that have it. A displacement has no row for a token that its base lacks: it is 0 there.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import RecipeError
from tauspan.merge.sources.inputs import Source
from tauspan.merge.sources.ties import EMBEDDINGS
from tauspan.merge.sources.view import View
from tauspan.store.headers import Stored

Tokens: TypeAlias = Mapping[str, int]
_INPUT = (
    *EMBEDDINGS,
    "embed_in.weight",
    "tok_embeddings.weight",
    "backbone.embeddings.weight",
    "wte",
    "embd.wte.weight",
)
_NAMES = (
    "embed_tokens", "wte", "word_embedding", "embed_in", "embed_out", "tok_embed", "lm_head", "shared.weight",
    "vocab_projector", "cls.predictions", "logits_bias", "output.weight", "output_embed", "backbone.embeddings",
)  # fmt: skip
_NUMBERED = re.compile(r"\.\d+\.")
_ROWS = 4096  # averaged together


@dataclass(frozen=True)
class Donor:
    """Where a token's row comes from in models that lack it, or in all of them.

    Args:
        source: the place of the model among all; None for zeros.
        row: of that model's own embeddings; None where the token's own is meant.
        force: whether models that have the token take this row too.
    """

    source: int | None
    row: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Alignment:
    """One vocabulary for all models of a merge.

    Args:
        tokens: of the output, ids by token.
        rows: of the output's embeddings: more than there are ids where they are padded.
        own: ids by token, of the source at a place and one of its tensors.
        sources: the base first, if there is one.
        based: whether the first is the base, whose row is everyone's default.
        donors: rows that a recipe chose, by token.
    """

    tokens: Tokens
    rows: int
    own: Callable[[int, str], Tokens]
    sources: Sequence[Source]
    based: bool
    donors: Mapping[str, Donor] = field(default_factory=dict)

    def wrapped(self) -> tuple["Aligned", ...]:
        """The sources with their embeddings in the output's order."""
        return tuple(Aligned(self, place, source) for place, source in enumerate(self.sources))


Row: TypeAlias = tuple[tuple[int, int], ...]
"""Rows of sources, whose mean is meant: (source, row) each; none for zeros."""


@dataclass(frozen=True)
class _Order:
    """Where the rows of one tensor of one source come from: its own row, or -1 and then `others`."""

    own: Sequence[int]
    others: Mapping[int, Row]
    dtype: torch.dtype


class Aligned(View):
    """A source whose embeddings have the rows of another vocabulary.

    `path`, `identity` and all other tensors are the source's own.
    """

    def __init__(self, alignment: Alignment, place: int, inner: Source) -> None:
        self.inner, self._alignment, self._place = inner, alignment, place
        self._orders: dict[str, _Order] = {}
        self._pads: dict[str, Tensor] = {}
        self._rows = rows_of(inner) or (rows_of(alignment.sources[0]) if inner.kind == "delta" else None)
        self.tensors: Mapping[str, Stored] = {name: self._shown(one) for name, one in inner.tensors.items()}

    @property
    def aliases(self) -> Mapping[str, str]:
        """The source's."""
        return self.inner.aliases

    def _shown(self, stored: Stored) -> Stored:
        if not is_vocabulary(stored, self._rows):
            return stored
        lead = (1,) if _across(stored.shape, self._rows) else ()
        shape = torch.Size((*lead, self._alignment.rows, *stored.shape[len(lead) + 1 :]))
        return replace(stored, shape=shape, nbytes=shape.numel() * stored.dtype.itemsize)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor."""
        stored = self.inner.tensors.get(self.inner.aliases.get(name, name))
        if stored is None or not is_vocabulary(stored, self._rows):
            return self.inner.read(name, start, stop)
        width = self.tensors[stored.name].shape.numel() // self._alignment.rows
        first, last = start // width, -(-stop // width)
        rows = self._read_rows(stored.name, first, last, width)
        return rows.view(-1)[start - first * width : stop - first * width]

    def _read_rows(self, name: str, first: int, last: int, width: int) -> Tensor:
        """Rows of the output, shape (last - first, width)."""
        order = self._order(name)
        made = torch.zeros(last - first, width, dtype=order.dtype)
        known = min(last, len(order.own))
        at = first
        while at < known:
            row, end = order.own[at], at + 1
            while row >= 0 and end < known and order.own[end] == row + end - at:
                end += 1
            if row >= 0:
                made[at - first : end - first] = self.inner.read(
                    name, row * width, (row + end - at) * width
                ).view(-1, width)
            else:
                made[at - first] = self._other(name, order.others.get(at, ()), width, order.dtype)
            at = end
        if last > known:
            made[max(known - first, 0) :] = self._pad(name, width)
        return made

    def _other(self, name: str, rows: Row, width: int, dtype: torch.dtype) -> Tensor:
        """The mean of some rows of other sources."""
        total = torch.zeros(width, dtype=dtype)
        for place, row in rows:
            source = self._alignment.sources[place]
            total += source.read(name, row * width, (row + 1) * width).to(dtype)
        return total / len(rows) if len(rows) > 1 else total

    def _pad(self, name: str, width: int) -> Tensor:
        """The mean over all tokens, for rows beyond the vocabulary."""
        if name not in self._pads:
            count = len(self._order(name).own)
            total = torch.zeros(width, dtype=torch.float64)
            for start in range(0, count, _ROWS):
                total += self._read_rows(name, start, min(start + _ROWS, count), width).double().sum(0)
            self._pads[name] = (total / count).to(self._order(name).dtype)
        return self._pads[name]

    def _order(self, name: str) -> _Order:
        if name not in self._orders:
            self._orders[name] = self._ordered(name)
        return self._orders[name]

    def _ordered(self, name: str) -> _Order:
        """Where each row comes from, among the sources that hold this tensor."""
        alignment = self._alignment
        holding = [
            place
            for place, source in enumerate(alignment.sources)
            if source.kind == "point" and source.tensors.get(source.aliases.get(name, name)) is not None
        ]
        counts = {
            place: _count(alignment.sources[place], name, rows_of(alignment.sources[place]))
            for place in holding
        }
        mine, tokens = _count(self.inner, name, self._rows), alignment.own(self._place, name)
        own = [-1] * (max(alignment.tokens.values(), default=-1) + 1)
        others: dict[int, Row] = {}
        for token, number in alignment.tokens.items():
            chosen = alignment.donors.get(token)
            row = tokens.get(token, -1)
            if 0 <= row < mine and not (chosen is not None and chosen.force):
                own[number] = row
            elif self.inner.kind == "point":
                others[number] = self._default(name, token, chosen, holding, counts)
        kinds = [
            alignment.sources[place].tensors[_stored_name(alignment.sources[place], name)].dtype
            for place in holding
        ]
        dtype = self.inner.tensors[name].dtype
        if others:
            for kind in kinds:
                dtype = torch.promote_types(dtype, kind)
            if any(len(rows) > 1 for rows in others.values()):
                dtype = torch.promote_types(dtype, torch.float32)
        return _Order(own, others, dtype)

    def _default(
        self, name: str, token: str, chosen: Donor | None, holding: Sequence[int], counts: Mapping[int, int]
    ) -> Row:
        """The row of a token that this source lacks."""
        alignment = self._alignment
        found = {place: alignment.own(place, name).get(token, -1) for place in holding}
        rows = {place: row for place, row in found.items() if 0 <= row < counts[place]}
        if chosen is not None:
            if chosen.source is None:
                return ()
            row = rows.get(chosen.source) if chosen.row is None else chosen.row
            if row is None or not 0 <= row < counts.get(chosen.source, 0):
                raise RecipeError(
                    f"tokens: {token!r} shall have the row of {alignment.sources[chosen.source].path}, which has none "
                    "for it. Choose a model that has the token, `token` or `token_id` of another one, or `zero`."
                )
            return ((chosen.source, row),)
        if alignment.based and len(rows) > 1 and 0 in rows:
            return ((0, rows[0]),)
        return tuple(rows.items())


def _stored_name(source: Source, name: str) -> str:
    return source.aliases.get(name, name)


def _count(source: Source, name: str, rows: int | None) -> int:
    """How many rows a source has of a tensor."""
    shape = source.tensors[_stored_name(source, name)].shape
    return shape[1] if _across(shape, rows) else shape[0]


def _across(shape: torch.Size, rows: int | None) -> bool:
    """Whether tokens are the second axis, as of a bias that is stored as one row."""
    return shape == (1, rows) and rows != 1


def rows_of(source: Source) -> int | None:
    """How many rows the input embeddings have; None where none is known by its name."""
    for end in _INPUT:
        for name, stored in source.tensors.items():
            if name.endswith(end) and stored.shape and "position" not in name:
                return stored.shape[0]
    return None


def is_vocabulary(stored: Stored, rows: int | None) -> bool:
    """Whether the rows of a tensor are tokens: embeddings, heads over tokens and their biases."""
    named = any(part in stored.name for part in _NAMES) and not _NUMBERED.search(stored.name)
    if rows is None or not named or "position" in stored.name or not stored.shape:
        return False
    head = "lm_head" in stored.name or "embed_out" in stored.name
    return stored.shape[0] == rows or stored.shape == (1, rows) or (head and stored.shape[0] > 1)
