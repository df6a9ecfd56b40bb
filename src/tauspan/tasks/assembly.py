"""From rows to the splits of a task: nothing is repaired unless asked for, and repairs are reported."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tauspan.core.errors import DataError, listed
from tauspan.tasks.images import Images
from tauspan.tasks.labels import (
    NO_LABEL,
    Meaning,
    UnknownLabelError,
    class_names,
    numbers_alike,
    places,
    require_meaning,
    trimmed,
    written,
)
from tauspan.tasks.rows import UNLABELLED, Rows, fault_of
from tauspan.tasks.split import SPLITS, Split

_DISTINCT = 20  # if more rows than this all have different labels, the column holds identifiers or texts


@dataclass(frozen=True)
class Gathered:
    """Classes and splits of a task, and what was left out of each split."""

    names: list[str]
    splits: dict[str, Split]
    left_out: dict[str, dict[str, int]]


def gathered(
    found: Mapping[str, Sequence[Rows]],
    names: Sequence[Any] | None,
    meaning: Meaning = "auto",
    clean: bool = False,
    what: str = "",
) -> Gathered:
    """The splits of a task from the rows of its files.

    Args:
        found: the rows of each split, one item per file or table, in order; `train` is required.
        names: the classes; None takes those of the source, else the labels of the training rows.
        meaning: how labels are read, see `tauspan.tasks.labels.places`.
        clean: drop rows without text or label, and white space around labels, instead of raising.
        what: the task's name, for the warning about dropped rows.

    Raises:
        DataError: a row without text or label, or a label that is not a class; it names the file and the row.
    """
    require_meaning(meaning)
    given = _names(names)
    parts = [_Part(split, rows, _texts(rows)) for split in found for rows in found[split]]
    _spell(parts, given)
    _strip(parts, clean)
    whole = [_complete(part, clean, (given or ()), len(found[part.split])) for part in parts]
    wanted = _implied(whole) if given is None else given
    index = _places(whole, wanted, meaning)
    left_out = {split: counts for split in found if (counts := _counted(whole, split))}
    if left_out:
        warnings.warn(f"task {what!r} leaves out {told(left_out)}.", stacklevel=3)
    return Gathered(wanted, {split: _split(whole, split, index) for split in found}, left_out)


@dataclass
class _Part:
    """The rows of one file or table of a split, and their labels as texts (None for a row without a label)."""

    split: str
    rows: Rows
    labels: list[str | None]
    left_out: Counter[str] = field(default_factory=Counter)

    def known(self) -> Iterator[str]:
        return (label for label in self.labels if label is not None)


def _names(names: Sequence[Any] | None) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise DataError(f"label_names is the text {names!r}: give a list of names.")
    return [name if isinstance(name, str) else str(written(name)) for name in names]


def _texts(rows: Rows) -> list[str | None]:
    """The labels as texts; an index into the source's own names becomes that name."""
    known: dict[tuple[type, Any], str | None] = {}
    found = []
    for row, value in enumerate(rows.labels):
        try:
            key = (type(value), value)
            if key not in known:
                known[key] = _own(written(value), rows.names)
            found.append(known[key])
        except TypeError:  # not hashable: a list, a mapping, an array
            found.append(_said(rows, row, value))
        except DataError as error:
            raise DataError(f"{rows.place(row)}: {error}") from None
    return found


def _said(rows: Rows, row: int, value: Any) -> str | None:
    try:
        return _own(written(value), rows.names)
    except DataError as error:
        raise DataError(f"{rows.place(row)}: {error}") from None


def _own(text: str | None, names: Sequence[str] | None) -> str | None:
    if text is None or names is None:
        return text
    if text == NO_LABEL:
        return None
    if not text.isdecimal() or int(text) >= len(names):
        raise DataError(f"the label {text} lies outside 0..{len(names) - 1}, the data's own class names.")
    return names[int(text)]


def _spell(parts: Sequence[_Part], names: Sequence[str] | None) -> None:
    """Write labels that are whole numbers in one form (1.0 as 1), unless all labels are among the given class names."""
    distinct = {text for part in parts if part.rows.names is None for text in part.known()}
    if names is not None and distinct <= set(names):
        return
    alike = numbers_alike(distinct)
    for part in parts:
        if alike and part.rows.names is None:
            part.labels = [text if text is None else alike[text] for text in part.labels]


def _strip(parts: Sequence[_Part], clean: bool) -> None:
    """With `clean`, remove and count white space and invisible characters around labels."""
    count = sum(text != trimmed(text) for part in parts for text in part.known())
    if count and not clean:
        part, row = next(
            (part, row)
            for part in parts
            for row, text in enumerate(part.labels)
            if text is not None and text != trimmed(text)
        )
        raise DataError(
            f"{part.rows.place(row)}: the label {part.labels[row]!r} has white space around it, or characters that are "
            f"not seen ({count} in all), so it is another class than the same word without. Take it off, or pass "
            "clean=True (--clean), which does that and says how often."
        )
    if count:
        for part in parts:
            part.left_out["spaces around a label"] = sum(text != trimmed(text) for text in part.known())
            part.labels = [text if text is None else trimmed(text) for text in part.labels]


def _complete(part: _Part, clean: bool, names: Sequence[str], files: int) -> _Part:
    """The rows with a text and a label; other rows are an error, or with `clean` are counted and dropped."""
    faults: dict[int, str] = {}
    unlabelled = {NO_LABEL} - set(names) if names else set()
    for row, label in enumerate(part.labels):
        if label is None or label in unlabelled:
            faults[row] = UNLABELLED
    if not isinstance(part.rows.inputs, Images):
        for row, item in enumerate(part.rows.inputs):
            fault = fault_of(item)
            if fault:
                faults.setdefault(row, fault)
    if not faults:
        return part
    counts = Counter(faults.values())
    if counts[UNLABELLED] == len(part.labels) and files == 1:
        raise _bare(part)
    if not clean:
        raise _incomplete(part, faults, counts)
    kept = [row for row in range(len(part.labels)) if row not in faults]
    return _Part(part.split, part.rows.take(kept), [part.labels[row] for row in kept], part.left_out + counts)


def _bare(part: _Part) -> DataError:
    shown = part.labels[0] or "nothing"
    other = '; with from_hub, test="validation" takes that split, and validation rows are held out of train'
    return DataError(
        f"{part.rows.where}: the {part.split} split has no labels ({shown} in all {len(part.labels)} rows), as hidden "
        f"test splits are published. Take labelled rows for it{other if part.split == 'test' else ''}."
    )


def _incomplete(part: _Part, faults: Mapping[int, str], counts: Counter[str]) -> DataError:
    row = min(faults)
    told = ", ".join(f"{count} {'row' if count == 1 else 'rows'} {what}" for what, count in counts.items())
    label = part.labels[row]
    seen = f" (label {label})" if faults[row] == UNLABELLED and label is not None else ""
    return DataError(
        f"{part.rows.place(row)} is a row {faults[row]}{seen}; the {part.split} split has {told}. Complete them or take "
        "them out, or pass clean=True (--clean), which leaves them out and says how many."
    )


def _implied(parts: Sequence[_Part]) -> list[str]:
    """The class names that the source gives, else those that the labels of the training rows imply."""
    train = [part for part in parts if part.split == "train"]
    own = next((part.rows.names for part in train if part.rows.names is not None), None)
    if own is not None:
        return list(own)
    where = listed([part.rows.where for part in train])
    names = class_names({text for part in train for text in part.known()}, where)
    rows = sum(len(part.labels) for part in train)
    if rows > 1 and (len(names) == 1 or len(names) == rows > _DISTINCT):
        seen = (
            f"the label {names[0]!r} in all {rows} rows"
            if len(names) == 1
            else f"another label in each of {rows} rows"
        )
        raise DataError(
            f"{where} has {seen}: is that the column of the classes? If it is, name all classes with "
            "`label_names` (--label-names)."
        )
    return names


def _places(parts: Sequence[_Part], names: Sequence[str], meaning: Meaning) -> dict[str, int]:
    """The class index of each label; an unknown label is an error with its row."""
    index: dict[str, int] = {}
    for own in {tuple(part.rows.names) for part in parts if part.rows.names is not None}:
        index |= _renamed(own, names, parts)
    distinct = dict.fromkeys(text for part in parts if part.rows.names is None for text in part.known())
    try:
        return index | places(list(distinct), names, meaning)
    except UnknownLabelError as error:
        part = next(part for part in parts if part.rows.names is None and error.text in part.labels)
        raise DataError(f"{part.rows.place(part.labels.index(error.text))}: {error}") from None


def _renamed(own: Sequence[str], names: Sequence[str], parts: Sequence[_Part]) -> dict[str, int]:
    """The class indices of a source's own names: by name, or in order if other names were given for them."""
    where = next(
        part.rows.where for part in parts if part.rows.names is not None and tuple(part.rows.names) == own
    )
    if set(own) <= set(names):
        return {name: names.index(name) for name in own}
    if len(own) == len(names) and not set(own) & set(names):
        return {name: place for place, name in enumerate(own)}
    raise DataError(
        f"{where} has the classes {listed(own)}, and the task has {listed(names)}. Give the same names, or a new one "
        "for each class, in its order."
    )


def _counted(parts: Sequence[_Part], split: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for part in parts:
        if part.split == split:
            found.update(part.rows.left_out)
            found.update(part.left_out)
    return dict(found)


def told(left_out: Mapping[str, Mapping[str, int]]) -> str:
    """What was left out, in words."""
    return "; ".join(
        f"{split}: " + ", ".join(f"{count} {what}" for what, count in left_out[split].items())
        for split in sorted(left_out, key=lambda name: SPLITS.index(name) if name in SPLITS else len(SPLITS))
    )


def _split(parts: Sequence[_Part], split: str, index: Mapping[str, int]) -> Split:
    mine = [part for part in parts if part.split == split]
    labels = torch.tensor([index[text] for part in mine for text in part.known()], dtype=torch.long)
    if len(mine) == 1:
        return Split(mine[0].rows.inputs, labels)
    return Split([item for part in mine for item in part.rows.inputs], labels)
