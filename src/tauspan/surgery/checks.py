"""What a graft keeps: shares of rows, the hull guarantee on this model, fertility, and the ids of special tokens."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tauspan import store
from tauspan.core.params import require_finite_rows
from tauspan.core.report import Cell, Table
from tauspan.models import folders
from tauspan.surgery.rowmap import ENTRIES, RowMap
from tauspan.surgery.views import Grafted
from tauspan.surgery.ways import HOW, Pair

_ROWS, _STRETCHES = 256, 8  # rows of each stretch, and the most stretches that the guarantee is checked on
_STATES = 4
_IDS = re.compile(
    r"_token_(?:ids?|index)$|^(?:begin_)?suppress_tokens$|_(?:words|decoder)_ids$|^sequence_bias$"
)
_PAIRS = {"forced_decoder_ids": 1, "sequence_bias": 0}  # where the tokens are in each pair


@dataclass(frozen=True)
class Kept:
    """What of the old vocabulary is in the new one.

    Args:
        rows: of the new tables.
        copied: old tokens whose row a new token of the same meaning has, bit for bit.
        doubled: further new rows with the row of a copied token. Their logits are equal, and greedy decoding takes the
            smaller id.
        ahead: of these rows, those with a smaller id than the copy.
        example: a doubled token and the copied one, ahead of it where there is such a pair; None without one.
        mixed: that are means of some old ones.
        mean: that are the mean of all old ones, or drawn around it.
        unread: new tokens among these that are bytes and no text.
        tokens: of the old vocabulary.
        lost: old tokens that have no row of their own any more.
        inside: whether every new row is in the convex hull of the old ones.
        checked: of how many rows the logits were looked at.
        excess: how far a logit of a new row was above the largest old one, on random states, as a share of the largest;
            None where it was not measured.
        tolerance: the largest excess that counts as none: a rounding of the tables' dtype.
        tables: the tensors whose rows are tokens.
        before, after: tokens a word on the texts, by the old and the new tokenizer; None without texts.
    """

    rows: int
    copied: int
    doubled: int
    ahead: int
    example: tuple[str, str] | None
    mixed: int
    mean: int
    unread: int
    tokens: int
    lost: int
    inside: bool
    checked: int
    excess: float | None
    tolerance: float
    tables: tuple[str, ...]
    before: float | None
    after: float | None

    @property
    def verdict(self) -> str:
        """What holds, in two or three sentences."""
        if not self.inside:
            hull = (
                "The drawn rows are outside the hull of the old ones: a new logit may exceed every old one, and greedy "
                "decoding may change."
            )
        else:
            seen = (
                ""
                if self.excess is None
                else f" (checked on {self.checked} of them and {_STATES} random states)"
            )
            if self.excess is not None and self.excess > self.tolerance:
                seen = f" but for rounding, which adds {self.excess:.1e} of it on random states"
            hull = (
                f"Every new row is a mean of old ones, so no new logit exceeds the largest old one{seen}: greedy "
                f"decoding is unchanged wherever its token was copied{self._ties}."
            )
        again = f" {self.doubled / self.rows:.1%} have a copied row again," if self.doubled else ""
        rest = "the mean of all" if self.inside else "drawn"
        shares = (
            f"Of {self.rows} rows {self.copied / self.rows:.1%} are copied,{again} {self.mixed / self.rows:.1%} mixed "
            f"and {self.mean / self.rows:.1%} {rest}."
        )
        lost = (
            f" {self.lost} of {self.tokens} old tokens have no row of their own any more."
            if self.lost
            else ""
        )
        words = ""
        if self.before is not None and self.after is not None:
            words = f" A word takes {self.after:.2f} tokens instead of {self.before:.2f}."
        return f"{hull} {shares}{lost}{words}"

    @property
    def _ties(self) -> str:
        """The exception of the guarantee."""
        if self.example is None:
            return ""
        return (
            f", but for ties: {self.doubled} other new tokens have the row of a copied one ({self.example[0]!r} that of "
            f"{self.example[1]!r}), and of equal logits the smaller id is taken, which is theirs for {self.ahead}"
        )

    def table(self) -> Table:
        """The numbers as a table."""
        told: dict[str, Cell] = {
            "rows": self.rows, "copied": self.copied, "copied again": self.doubled,
            "of these before the copy": self.ahead, "mixed": self.mixed, "mean of all": self.mean,
            "of these bytes that are no text": self.unread, "old tokens without a row": self.lost,
            "logit above the largest old one, share": self.excess, "tokens a word, before": self.before,
            "tokens a word, after": self.after, "tables": ", ".join(self.tables),
        }  # fmt: skip
        return Table(
            "vocabulary",
            [{"what": what, "value": value} for what, value in told.items() if value is not None],
        )


def kept(pair: Pair, view: Grafted, measure: bool = True) -> Kept:
    """What a graft keeps of a vocabulary; with `measure` the guarantee is checked on the tables.

    Cost: with `measure` a product of each old table, and of eight stretches of 256 new rows, with 4 states.
    """
    rows, drawn = view.rows, HOW[pair.filling.how].drawn and not view.rows.is_identity
    copy, doubled = _copies(pair, rows)
    ahead = {number: own for number, own in doubled.items() if number < own}
    example = next(iter({**ahead, **doubled}.items()), None)
    sizes = rows.sizes
    alone = (
        (rows.copies < 0)
        & (sizes == 1)
        & (rows.indices[rows.starts[:-1].clamp(max=len(rows.indices) - 1)] >= rows.columns)
    )
    unread = [
        number for number in (() if rows.is_identity else pair.left)
        if bool(alone[number]) and pair.new.pieces[number] is not None and pair.new.text(number) is None
    ]  # fmt: skip
    known = set(pair.old.ids.values())
    looked, excess = _excess(view) if measure and not drawn else (0, None)
    before, after = (_fertility(side.encode(pair.texts), pair.texts) for side in (pair.old, pair.new))
    return Kept(
        rows.rows, len(copy), len(doubled), len(ahead),
        None if example is None else (pair.new.named[example[0]], pair.new.named[example[1]]),
        rows.rows - len(copy) - len(doubled) - int(alone.sum()), int(alone.sum()), len(unread), len(known),
        len(known - set(copy)), not drawn, looked, excess,
        max((torch.finfo(view.tensors[name].dtype).eps for name in view.tables), default=0.0), view.tables, before, after,
    )  # fmt: skip


def _copies(pair: Pair, rows: RowMap) -> tuple[dict[int, int], dict[int, int]]:
    """The new id that is the copy of each old one, and for every other new id with its row that copy."""
    if rows.is_identity:
        return {number: number for number in range(rows.rows)}, {}
    copy: dict[int, int] = {}
    for number in sorted(pair.copied):  # the first, which equal logits take and configurations get
        copy.setdefault(pair.copied[number], number)
    olds = rows.copies.tolist()
    return copy, {number: copy[old] for number, old in enumerate(olds) if copy.get(old, number) != number}


def _fertility(coded: Sequence[Sequence[int]], texts: Sequence[str]) -> float | None:
    words = sum(len(text.split()) for text in texts)
    return sum(map(len, coded)) / words if words else None


def _excess(view: Grafted) -> tuple[int, float]:
    """How far logits of some new rows are above the largest old one, on random states: rounding, if P is applied rightly.

    Returns:
        How many rows were looked at, and the excess.

    Raises:
        NonFiniteError: a table holds NaN or infinity.
    """
    generator, count = torch.Generator().manual_seed(0), view.rows.rows
    firsts = list(range(0, count, _ROWS))
    if len(firsts) > _STRETCHES:
        firsts = torch.randint(count - _ROWS + 1, (_STRETCHES,), generator=generator).tolist()
    worst = 0.0
    for name in () if view.rows.is_identity else view.tables:
        old, new = view.inner.tensors[name].shape, view.tensors[name].shape
        if len(old) < 2 or old[0] == 1:
            continue
        width = new[1:].numel()
        states = torch.randn(width, _STATES, generator=generator, dtype=torch.float64)
        highest = torch.full((_STATES,), -torch.inf, dtype=torch.float64)
        step = max(ENTRIES // width, 1)
        for start in range(0, view.rows.columns, step):
            stop = min(start + step, view.rows.columns)
            block = view.inner.read(name, start * width, stop * width).view(-1, width).double()
            require_finite_rows(block, f"{name!r} of {view.path}")
            highest = torch.maximum(highest, (block @ states).amax(0))
        for first in dict.fromkeys(firsts):
            last = min(first + _ROWS, count)
            rows = view.read(name, first * width, last * width).view(-1, width).double()
            above = ((rows @ states).amax(0) - highest) / highest.abs().clamp(min=1e-30)
            worst = max(worst, float(above.max()))
    looked = {row for first in firsts for row in range(first, min(first + _ROWS, count))}
    return len(looked), worst


def renumber(folder: Path, copied: Mapping[int, int]) -> list[str]:
    """Write the new ids of special tokens into a model's configurations; ids without a new one become null.

    Args:
        folder: of the new model.
        copied: the old id of each new one.

    Returns:
        A sentence for each file in which an id has no new one.
    """
    new: dict[int, int] = {}
    for number, old in sorted(copied.items()):
        new.setdefault(old, number)
    notes = []
    for file in (folders.main_folder(folder) / "config.json", folder / "generation_config.json"):
        if file.is_file():
            content = store.read_json(file)
            lost: list[str] = []
            changed = renumbered(content, new, lost)
            if changed != content:
                store.write_json(file, changed)
            if lost:
                notes.append(
                    f"{file.name}: {', '.join(lost)} named tokens that the new tokenizer lacks, and are null now: set "
                    "them where your model needs them."
                )
    return notes


def renumbered(content: Any, new: Mapping[int, int], lost: list[str]) -> Any:
    """A configuration with the new numbers of its tokens; the keys of those that have none are added to `lost`."""
    if not isinstance(content, Mapping):
        return content
    made: dict[str, Any] = {}
    for key, value in content.items():
        if not _IDS.search(str(key)) or value is None:
            made[key] = renumbered(value, new, lost)
            continue
        made[key] = _ids(value, new) if key not in _PAIRS else _pairs(value, new, _PAIRS[key])
        lost += [key] if _size(made[key]) < _size(value) else []
    return made


def _ids(value: Any, new: Mapping[int, int]) -> Any:
    """The new number of a token, None for one that is lost; a list leaves it out, a list of lists that whole list."""
    if isinstance(value, list):
        made = [_ids(one, new) for one in value]
        if _nested(value):  # a list of numbers in it is a sequence, which needs all of them
            each = zip(made, value, strict=True)
            return [one for one, was in each if one and (_nested(was) or len(one) == len(was))]
        return [one for one in made if one is not None]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    return new.get(value)


def _nested(value: list[Any]) -> bool:
    return any(isinstance(one, list) for one in value)


def _pairs(value: Any, new: Mapping[int, int], place: int) -> Any:
    """Pairs of tokens and something else; those whose tokens are lost are left out."""
    made = []
    for pair in value if isinstance(value, list) else ():
        moved, asked = [*pair], pair[place]
        moved[place] = _ids(asked, new)
        if _size(moved[place]) == _size(asked):
            made.append(moved)
    return made


def _size(value: Any) -> int:
    """How many numbers there are."""
    return sum(map(_size, value)) if isinstance(value, list) else int(value is not None)
