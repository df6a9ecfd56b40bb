"""Tokenizers beside models, and rows of embeddings brought into one order by their tokens, as mergekit does.

A model's row for a token that it lacks is the base's, if the base has the token; that of the only model that has it; or
the mean over the models that have it. A displacement has no row for a token that its base lacks: it is 0 there.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import ModelError, RecipeError, listed
from tauspan.merge.sources.problems import Problem, Severity
from tauspan.merge.sources.source import EMBEDDINGS, Source, SourceView, model_folder
from tauspan.store import Stored, read_json

# the first that both models have is compared; a sentencepiece model is not parsed, only compared byte by byte
_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def tokenizers(reference: Source, other: Source) -> Iterator[Problem]:
    """Whether ids mean the same tokens in both; nothing if either has no tokenizer beside it."""
    folders = [model_folder(source.path) for source in (reference, other)]
    for name in _FILES:
        files = [folder / name for folder in folders if folder is not None and (folder / name).is_file()]
        if len(files) == 2:
            yield from _compared(other, *files)
            return


def has_tokenizer(folder: Path | None) -> bool:
    """Whether a folder holds a vocabulary of any kind."""
    return folder is not None and any((folder / name).is_file() for name in _FILES)


def _compared(other: Source, theirs: Path, mine: Path) -> Iterator[Problem]:
    if _digest(theirs) == _digest(mine):
        return

    def problem(severity: Severity, message: str) -> Problem:
        return Problem(severity, "tokenizer", None, other.label, mine, message)

    first, second = _vocabulary(theirs), _vocabulary(mine)
    if first is None or second is None:
        yield problem(
            "warning",
            f"{mine} and {theirs} have different bytes: their tokens may differ. Merge models with one tokenizer.",
        )
        return
    tokens = {number: token for token, number in first.items()}
    alone = sorted(set(first) ^ set(second))
    lost = set(second) - set(first)
    grafted = (
        f"`tauspan vocabulary graft {mine.parent} {theirs.parent} -o OUT`: {len(set(first) & set(second))} of its "
        f"tokens keep their rows, {len(set(first) - set(second))} are made of its own, and {len(lost)} are lost"
        + (f" ({listed(map(repr, sorted(lost)), 3)})." if lost else ".")
    )
    clashes = [(number, token) for token, number in second.items() if tokens.get(number, token) != token]
    if clashes:
        number, token = min(clashes)
        yield problem(
            "error",
            f"id {number} is {token!r} in {mine} and {tokens[number]!r} in {theirs} ({len(clashes)} such ids): the rows "
            "of the embeddings mean other tokens. Align them by token with `tokenizer_source`: base, union or a model. "
            f"Or, where few tokens are shared, give {other.label} the other vocabulary first: {grafted}",
        )
    if alone and not clashes:
        yield problem(
            "warning",
            f"{mine} has {len(second)} tokens and {theirs} {len(first)}; one alone has {listed(map(repr, alone), 3)}. "
            f"Choose the one that the merged model should have: `tokenizer_source`; or {grafted}",
        )


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def vocabulary(folder: Path) -> dict[str, int] | None:
    """The ids by token of the tokenizer in a folder, including added tokens; None if no file gives them."""
    for name in _FILES[:3]:
        if (folder / name).is_file():
            found = _vocabulary(folder / name)
            return None if found is None else {**found, **_added(folder)}
    return None


def _added(folder: Path) -> dict[str, int]:
    """Tokens that were added in other files than the vocabulary's."""
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        content = read_json(folder / "added_tokens.json")
        if not isinstance(content, Mapping):
            raise ModelError(
                f"{folder / 'added_tokens.json'} holds a {type(content).__name__}, and ids by token are wanted: save the "
                "tokenizer again, or take the file away if tokenizer.json has its tokens."
            )
        found |= {str(token): number for token, number in content.items() if isinstance(number, int)}
    if (folder / "tokenizer_config.json").is_file():
        content = read_json(folder / "tokenizer_config.json")
        added = content.get("added_tokens_decoder") if isinstance(content, Mapping) else None
        for number, token in (added if isinstance(added, Mapping) else {}).items():
            if isinstance(token, Mapping) and str(number).isdecimal() and "content" in token:
                found[str(token["content"])] = int(number)
    return found


def _vocabulary(file: Path) -> dict[str, int] | None:
    """Ids by token; None where the file's format is not known here."""
    if file.suffix == ".txt":
        with file.open(encoding="utf-8", errors="replace") as lines:
            return {line.removesuffix("\n"): number for number, line in enumerate(lines)}
    if file.suffix != ".json":
        return None
    content = read_json(file)
    if file.name == "tokenizer.json":
        content = _tokenizer(content)
    fits = isinstance(content, dict) and all(isinstance(number, int) for number in content.values())
    return content if fits else None


def _tokenizer(content: Any) -> Mapping[str, Any] | None:
    """The vocabulary of the tokenizers library's file: a mapping, or for Unigram a list of pairs (token, score)."""
    try:
        vocabulary, added = content["model"]["vocab"], content.get("added_tokens") or []
        if isinstance(vocabulary, list):
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        return {**vocabulary, **{token["content"]: token["id"] for token in added}}
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


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
    "vocab_projector", "predictions.bias", "predictions.decoder", "pred_layer.proj", "decoder.weight", "decoder.bias",
    "output_projection.weight", "proj_out.weight", "logits_bias", "output.weight", "output_embed", "backbone.embeddings",
)  # fmt: skip
_NUMBERED = re.compile(r"\.\d+\.")
# heads over tokens that may have other rows than the embeddings, for example without their padding
_HEADS = tuple(
    f"{head}.{kind}" for head in ("lm_head", "lm_head.decoder", "embed_out") for kind in ("weight", "bias")
)
# layers of a head before the one over tokens
_WITHIN = re.compile(r"lm_head\.(dense|layer_norm|LayerNorm)\.")
_ROWS = 4096  # rows that are averaged at a time


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
    """Where the rows of one tensor of one source come from: the index of its own row, or -1 and then `others`."""

    own: Sequence[int]
    others: Mapping[int, Row]
    dtype: torch.dtype


class Aligned(SourceView):
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
        """The aliases of the inner source."""
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
        """The rows of other sources whose mean becomes the row of a token that this source lacks."""
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


def named_for_tokens(name: str) -> bool:
    """Whether a tensor is called as embeddings, heads over tokens and their biases are."""
    among = any(part in name for part in _NAMES) and not (_NUMBERED.search(name) or _WITHIN.search(name))
    return among and "position" not in name


def is_vocabulary(stored: Stored, rows: int | None) -> bool:
    """Whether the rows of a tensor are tokens: embeddings, heads over tokens and their biases."""
    if rows is None or not named_for_tokens(stored.name) or not stored.shape:
        return False
    return (
        stored.shape[0] == rows
        or stored.shape == (1, rows)
        or (stored.name.endswith(_HEADS) and stored.shape[0] > 1)
    )
