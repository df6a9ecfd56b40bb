"""Rows that are pairs: a preferred text beside another, two inputs that belong together, or two with their similarity."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import DataError, UsageError, listed, nearest
from tauspan.core.notices import tell
from tauspan.objectives import Objective, Preference, Similarity
from tauspan.objectives.passages import Group
from tauspan.tasks.assembly import Gathered, told
from tauspan.tasks.numbers import narrow, number_of
from tauspan.tasks.rows import UNLABELLED, Rows, fault_of, incomplete
from tauspan.tasks.split import Split

Read = Callable[[str, str], Mapping[str, Sequence[Rows]]]  # with a column as inputs and one as labels
_EQUAL = "whose chosen and rejected texts are the same, so that nothing is preferred"
_OPTIONAL: Mapping[str, str | None] = {
    "prompt": "prompt",
    "group": None,
}  # what may lack, with the usual column


def columns_of(kind: Objective, given: Mapping[str, str | None] | None, what: str) -> dict[str, str | None]:
    """The columns that an objective of pairs reads, by what they hold; None for what the table lacks.

    Args:
        kind: the objective.
        given: columns of other names, or None (or an empty name) for what may lack.
        what: the task's name.

    Raises:
        UsageError: something that the objective does not read, or no column for what it needs.
    """
    found: dict[str, str | None] = {name: _OPTIONAL.get(name, name) for name in kind.columns}
    for name, column in (given or {}).items():
        if name not in found:
            raise UsageError(
                f"task {what!r}: columns= names {name!r}, and {kind.word} reads {listed(found)}. {nearest(name, found)}"
            )
        if not column and name not in _OPTIONAL:
            raise UsageError(f"task {what!r}: columns= has no column for {name!r}, which {kind.word} needs.")
        found[name] = column or None
    return found


def paired(
    read: Read, kind: Objective, columns: Mapping[str, str | None], clean: bool, what: str
) -> Gathered:
    """The splits of a task of pairs; of those that belong together, each row is one pair until they are grouped.

    Args:
        read: reads the rows of each split with one column as inputs and another as labels.
        kind: the objective.
        columns: by what they hold; see `columns_of`.
        clean: drop incomplete rows, instead of raising.
        what: the task's name.

    Raises:
        DataError: a row that lacks a text or a number; it names file and row.
    """
    *both, third = sorted(columns, key=lambda name: name in (*_OPTIONAL, "score"))
    first, second = (str(columns[name]) for name in both)
    pairs = read(first, second)
    beside = None if columns[third] is None else read(first, str(columns[third]))
    splits, left_out = {}, {}
    for split, parts in pairs.items():
        made = _Made(kind)
        for place, rows in enumerate(parts):
            thirds = None if beside is None else beside[split][place]
            for row in range(len(rows.inputs)):
                fault = made.add(rows, thirds, row)
                if fault is not None and not clean:
                    raise incomplete(rows, row, fault)
        splits[split] = made.split()
        if made.left_out:
            left_out[split] = dict(made.left_out)
    if left_out:
        tell(f"task {what!r} leaves out {told(left_out)}.")
    return Gathered([], splits, left_out)


class _Made:
    """The rows of a split so far."""

    def __init__(self, kind: Objective) -> None:
        self.kind = kind
        self.items: list[Group] = []
        self.labels: list[float] = []
        self.names: dict[Any, int] = {}  # of groups
        self.left_out: Counter[str] = Counter()

    def add(self, rows: Rows, thirds: Rows | None, row: int) -> str | None:
        """Add one row of a table, or count it as left out and say what it lacks."""
        pair = (rows.inputs[row], rows.labels[row])
        fault = next(filter(None, map(self._fault, pair)), None)
        third = None if thirds is None else thirds.labels[row]
        label: float | None = None
        if isinstance(self.kind, Preference):
            prompt = third or ""
            if not isinstance(prompt, str):
                raise DataError(f"{rows.place(row)}: the prompt {prompt!r} is no text.")
            label = len(prompt)
            fault = fault or (_EQUAL if pair[0] == pair[1] else None)
            pair = pair if fault else (prompt + pair[0], prompt + pair[1])
        elif isinstance(self.kind, Similarity):
            label = None if thirds is None else number_of(thirds, row)
        else:  # the number of the pair's group, -1 where none is told
            known = third is not None and bool(str(third).strip())
            label = self.names.setdefault(third, len(self.names)) if known else -1 if thirds is None else None
        fault = fault or (UNLABELLED if label is None else None)
        if fault is None and label is not None:
            self.items.append(Group(pair))
            self.labels.append(label)
        else:
            self.left_out[str(fault)] += 1
        return fault

    def _fault(self, item: Any) -> str | None:
        texts = isinstance(self.kind, Preference)
        return fault_of(item) or ("that is no text" if texts and not isinstance(item, str) else None)

    def split(self) -> Split:
        """The rows."""
        if isinstance(self.kind, Similarity):
            return Split(self.items, narrow(torch.tensor(self.labels, dtype=torch.float64)[:, None]))
        return Split(self.items, torch.tensor(self.labels, dtype=torch.long))


def given_pairs(name: str, given: Mapping[str, Any], kind: Objective, clean: bool) -> Gathered:
    """The splits of a task of pairs from lists: of each split a tuple with a list for each of the objective's columns.

    Raises:
        DataError: not such a tuple, lists of several lengths, or a row that lacks something.
    """
    tables = {split: _table(f"{split} of {name!r}", one, kind) for split, one in given.items()}
    lacking = {key for table in tables.values() for key in kind.columns if key not in table}

    def read(first: str, second: str) -> dict[str, list[Rows]]:
        return {
            split: [Rows(table[first], table[second], f"{split} of {name!r}")]
            for split, table in tables.items()
        }

    return paired(read, kind, {key: None if key in lacking else key for key in kind.columns}, clean, name)


def _table(where: str, given: Any, kind: Objective) -> dict[str, list[Any]]:
    """The lists of one split by what they hold; without what was given as None or left out at the end."""
    needed = [key for key in kind.columns if key != "group"]
    wanted = f"a tuple of {', '.join(needed)}{' and perhaps group' if 'group' in kind.columns else ''}, a list each"
    if not isinstance(given, tuple | list) or not len(needed) <= len(given) <= len(kind.columns):
        told = f"{len(given)} things" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise DataError(f"{where}: {kind.word} takes {wanted}, not {told}.")
    found = {}
    for key, column in zip(kind.columns, given, strict=False):
        if column is None and key in _OPTIONAL:
            continue
        if isinstance(column, str) or not hasattr(column, "__len__"):
            raise DataError(f"{where}: {key} is a {type(column).__name__}, and {kind.word} takes {wanted}.")
        numbers = isinstance(column, Tensor) and column.ndim == 1
        found[key] = column.tolist() if numbers else list(column)
    sizes = {key: len(column) for key, column in found.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{where}: the lists have several lengths, {sizes}.")
    return found


def written(kind: Objective, rows: Split) -> list[list[str]]:
    """The rows of a split as cells of a table whose columns are the objective's."""
    table: list[list[str]] = []
    for number, (item, label) in enumerate(zip(rows.inputs, rows.labels.tolist(), strict=True)):
        if isinstance(kind, Preference):
            table.append([item[0][:label], item[0][label:], item[1][label:]])
        elif isinstance(kind, Similarity):
            table.append([*item, repr(label[0])])
        else:
            table += [[item[2 * k], item[2 * k + 1], str(number)] for k in range(label)]
    return table
