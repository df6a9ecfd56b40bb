"""Ways to fill the rows of tokens that the old vocabulary lacks: pure functions, one row each in `HOW`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, UsageError
from tauspan.surgery.learnt import learnt
from tauspan.surgery.options import Filling
from tauspan.surgery.rowmap import RowMap
from tauspan.surgery.vocabularies import Vocabulary, shared_tokens

Row: TypeAlias = Mapping[int, float]
Embed: TypeAlias = Callable[[Sequence[str]], Tensor]
_BLOCK = 512  # tokens that are compared with all old ones at a time


@dataclass(frozen=True, eq=False)
class Pair:
    """Two vocabularies and what a way may look at.

    Args:
        old: of the model.
        new: that it gets.
        filling: the options.
        table: the old input table, shape (rows, d).
        embed: texts as vectors, shape (texts, any); None where there is no such function.
        texts: of the kind that the model will read, for `cw2v`.
    """

    old: Vocabulary
    new: Vocabulary
    filling: Filling
    table: Tensor = field(repr=False)
    embed: Embed | None = None
    texts: Sequence[str] = ()

    @cached_property
    def copied(self) -> dict[int, int]:
        """The old id of each new one with the same meaning."""
        return shared_tokens(self.old, self.new)

    @cached_property
    def left(self) -> list[int]:
        """The new ids that the old vocabulary lacks."""
        return [number for number in sorted(self.new.ids.values()) if number not in self.copied]

    @cached_property
    def parts(self) -> dict[int, list[int]]:
        """The old tokens into which each new one is cut; none where the old tokenizer cannot read its text."""
        cuts = self.old.cut([self.new.pieces[number] for number in self.left])
        return dict(zip(self.left, cuts, strict=True))

    def vectors(self, side: Vocabulary, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Unit vectors of what tokens read like, by id; ids that read like nothing are left out."""
        if self.embed is None:
            raise UsageError(
                f"{self.filling.how!r} compares what tokens mean, and this model gives no vector of a text. Name an "
                "encoder that does (--embed minilm, `embed=` a function of texts), or take a way that needs none: mean."
            )
        texts = {number: side.text(number) for number in numbers}
        wanted = list(dict.fromkeys(text for text in texts.values() if text))
        if not wanted:
            return {}
        made = torch.nn.functional.normalize(self.embed(wanted).detach().float().cpu(), dim=-1)
        places = {text: place for place, text in enumerate(wanted)}
        return {number: made[places[text]] for number, text in texts.items() if text}


def _copy(pair: Pair) -> dict[int, Row]:
    """Nothing but the shared tokens."""
    return {}


def _mean(pair: Pair) -> dict[int, Row]:
    """The mean of the parts (ReTok and others)."""
    return {number: _weighted(parts, [1.0] * len(parts)) for number, parts in pair.parts.items() if parts}


def _local(pair: Pair) -> dict[int, Row]:
    """The parts by how like they are: softmax(((cos + length) / 2) / T), length = |part| / |token|."""
    several = {number: parts for number, parts in pair.parts.items() if parts}
    mine = pair.vectors(pair.new, list(several))
    theirs = pair.vectors(pair.old, sorted({one for parts in several.values() for one in parts}))
    rows: dict[int, Row] = {}
    for number, parts in several.items():
        length = len(pair.new.text(number) or " ")
        likeness = [
            float(mine[number] @ theirs[one]) if number in mine and one in theirs else 0.0 for one in parts
        ]
        shares = [len(pair.old.text(one) or "") / length for one in parts]
        scores = torch.tensor([(cos + share) / 2 for cos, share in zip(likeness, shares, strict=True)])
        rows[number] = _weighted(parts, _softmax(scores, pair.filling.temperature))
    return rows


def _global(pair: Pair) -> dict[int, Row]:
    """The nearest old tokens by meaning: softmax(cos / T) over those with a cosine of at least `least`."""
    mine = pair.vectors(pair.new, pair.left)
    known = [number for number in sorted(pair.old.known.values()) if number < len(pair.table)]
    theirs = pair.vectors(pair.old, known)
    if not mine or not theirs:
        return {}
    names, numbers = list(theirs), list(mine)
    against, filling = torch.stack(list(theirs.values())), pair.filling
    rows: dict[int, Row] = {}
    for start in range(0, len(numbers), _BLOCK):
        some = numbers[start : start + _BLOCK]
        cosines = torch.stack([mine[number] for number in some]) @ against.T
        best, places = cosines.topk(min(filling.nearest, len(names)))
        for number, values, at in zip(some, best, places, strict=True):
            near = values >= filling.least
            if bool(near.any()):
                ids = [names[place] for place in at[near].tolist()]
                rows[number] = _weighted(ids, _softmax(values[near], filling.temperature))
    return rows


def _hybrid(pair: Pair) -> dict[int, Row]:
    """(1 - g) local + g global; one of them alone where the other has nothing."""
    local, far, share = _local(pair), _global(pair), pair.filling.share
    rows = {**far, **local}
    for number in local.keys() & far.keys():
        ids = [*local[number], *far[number]]
        weights = [(1 - share) * weight for weight in local[number].values()]
        rows[number] = _weighted(ids, [*weights, *(share * weight for weight in far[number].values())])
    return rows


def _cw2v(pair: Pair) -> dict[int, Row]:
    """Learnt inside the hull of the parts and of frequent tokens, by skip-gram on texts."""
    if not pair.texts:
        raise UsageError(
            "'cw2v' learns rows from texts, and there are none. Give some of the kind that the model will read: --text "
            "FILE (`texts=`), or take a way that needs none: mean."
        )
    coded, before = pair.new.encode(pair.texts), pair.old.encode(pair.texts)
    if pair.new.ids and max((len(one) for one in coded), default=0) < 2:
        raise UsageError(
            "'cw2v' learns from neighbouring tokens, and no text has two. Give longer texts: --text FILE."
        )
    found = learnt(
        pair.table, _mean(pair), pair.copied, coded, before, anchors=pair.filling.anchors,
        epochs=pair.filling.epochs, lr=pair.filling.lr, seed=pair.filling.seed,
    )  # fmt: skip
    return {**found}


@dataclass(frozen=True)
class Way:
    """One way to fill rows.

    Args:
        title: in words.
        formula: of a new token's row.
        paper: where it comes from.
        fill: the rows of tokens that are not copied; a token without one gets the mean of all.
        drawn: whether rows are drawn around that mean, so that they leave the hull and there is no P.
        needs: `embed` or `texts`, which not every model has.
    """

    title: str
    formula: str
    paper: str
    fill: Callable[[Pair], dict[int, Row]]
    drawn: bool = False
    needs: tuple[str, ...] = ()


_TOKENADAPT = "TokenAdapt, Sharthak et al. 2025, arXiv:2505.09738"
_CW2V = "Mundra et al., CoNLL 2024, arXiv:2407.05841"
HOW: Mapping[str, Way] = MappingProxyType({
    "copy": Way("shared tokens alone", "the mean of all", "none", _copy),
    "mean": Way("mean of the parts", "1/k sum_i e(s_i), s_i the parts", "ReTok, Gu et al. 2024, arXiv:2410.04335", _mean),
    "local": Way(
        "parts by likeness", "sum_i softmax((cos_i + length_i) / 2T) e(s_i)", _TOKENADAPT, _local, needs=("embed",)
    ),
    "global": Way("nearest by meaning", "sum_k softmax(cos_k / T) e(n_k)", _TOKENADAPT, _global, needs=("embed",)),
    "hybrid": Way("parts and nearest", "(1 - g) local + g global", _TOKENADAPT, _hybrid, needs=("embed",)),
    "cw2v": Way(
        "learnt in the hull", "sum_i softmax(a)_i e(s_i), a by skip-gram", f"after CW2V, {_CW2V}", _cw2v,
        needs=("texts",),
    ),
    "normal": Way("drawn around the mean", "N(mean, spread Cov)", f"the baseline of {_CW2V}", _copy, drawn=True),
})  # fmt: skip
"""The ways by name; a new one is a function and a row here."""


def row_map(pair: Pair) -> RowMap:
    """P for two vocabularies; the identity, bit for bit, where they are the same.

    Args:
        pair: the vocabularies, and what the way may look at.

    Raises:
        UsageError: the way needs an embedding or texts that are not there.
        MismatchError: the old tokenizer has ids beyond the table.

    Cost: an encoding of every new token by the old tokenizer; `local`, `global` and `hybrid` also embed tokens, and
    `global` compares each new one with all old ones.

    Example:
        >>> from tauspan.surgery import open_vocabulary
        >>> words = open_vocabulary("minilm")
        >>> row_map(Pair(words, words, Filling(how="mean"), torch.zeros(30522, 2))).is_identity
        True
    """
    rows, known = len(pair.table), sorted(set(pair.old.ids.values()))
    if known[-1] >= rows:
        raise MismatchError(
            f"the tokenizer in {pair.old.folder} has the id {known[-1]}, and the model's table {rows} rows: the "
            "tokenizer is not the model's. Copy the tokenizer that was saved with the model beside it."
        )
    if pair.old.ids == pair.new.ids and rows % pair.filling.pad_to_multiple_of == 0:
        return RowMap.identity(rows)
    filled = {number: {old: 1.0} for number, old in pair.copied.items()} | HOW[pair.filling.how].fill(pair)
    count = -(-len(pair.new.pieces) // pair.filling.pad_to_multiple_of) * pair.filling.pad_to_multiple_of
    mean = torch.zeros(1, rows, dtype=torch.float64)
    mean[0, known] = 1 / len(known)  # rows that pad the table count for nothing
    return RowMap.of([filled.get(number, {rows: 1.0}) for number in range(count)], rows, mean)


def _softmax(scores: Tensor, temperature: float) -> list[float]:
    weights: list[float] = torch.softmax(scores.double() / temperature, 0).tolist()
    return weights


def _weighted(ids: Sequence[int], weights: Sequence[float]) -> Row:
    """The row with these weights over their sum; those of one token are added."""
    total, row = sum(weights), dict[int, float]()
    for number, weight in zip(ids, weights, strict=True):
        row[number] = row.get(number, 0.0) + weight / total
    return {number: 1.0} if len(row) == 1 else row
