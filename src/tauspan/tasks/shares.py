"""One table as the three splits of a task: in given shares, alike in each class, and equal texts never in two of them."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tauspan.core.errors import DataError, UsageError, listed
from tauspan.core.notices import tell
from tauspan.objectives.passages import Group
from tauspan.tasks.split import SPLITS, Split, content, permutation

LEAST = "give three numbers above 0 that add up to 1, for train, validation and test, such as 0.7 0.1 0.2"


def require_shares(shares: Sequence[float]) -> None:
    """Raise `UsageError` unless these are three shares above 0 that add up to 1."""
    fits = len(shares) == len(SPLITS) and all(0 < share < 1 for share in shares)
    if not fits or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise UsageError(f"shares={list(shares)}: {LEAST} (--shares).")


def normalised(text: str) -> str:
    """A case-folded text, with punctuation and white space reduced to single spaces; the stripped text if that is empty.

    Example:
        >>> normalised("It's  HERE!")
        'it s here'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.split(r"[\W_]+", folded)).strip() or text.strip()


def shared_out(
    rows: Split,
    shares: Sequence[float],
    seed: int,
    names: Sequence[str] | None,
    what: str,
    like: Sequence[Mapping[str, Split]] = (),
) -> tuple[dict[str, Split], dict[str, Any]]:
    """The rows in three splits, and what a card says of them.

    Rows that are equal (texts apart from case, punctuation and white space) go to one split together. Class after class,
    in an order drawn with the seed, each such group goes to the split that is furthest below its share of the rows dealt
    so far; the first of each class goes to train. So every class has about the shares that the whole has.

    Args:
        rows: all of them.
        shares: of train, validation and test.
        seed: of the order within each class.
        names: the classes; None where rows have none, and all are divided alike.
        what: the task's name, for messages.
        like: the splits of other tasks; a row that another task has too goes to the same split as there.

    Raises:
        UsageError: shares that are none.
        DataError: too few different rows for three splits.

    Example:
        >>> import torch
        >>> rows = Split(["a", "b", "A!", "c", "d"], torch.tensor([0, 1, 0, 1, 0]))
        >>> made, _ = shared_out(rows, (0.5, 0.25, 0.25), 0, ["x", "y"], "t")
        >>> sum("a" in split.inputs and "A!" in split.inputs for split in made.values())
        1
    """
    require_shares(shares)
    groups = grouped(rows)
    placed: dict[str, list[int]] = {split: [] for split in SPLITS}
    seen: set[int] = set()
    dealt = 0
    known = {key: split for splits in reversed(like) for split in SPLITS for key in grouped(splits[split])}
    there = {group[0]: known[key] for key, group in groups.items() if key in known}
    # those that are told come first, so that the others fill up what lacks
    labels = torch.zeros(len(rows), dtype=torch.long) if names is None else rows.labels
    ordered = _in_order(list(groups.values()), labels.tolist(), seed)
    for group in sorted(ordered, key=lambda group: group[0] not in there):
        dealt += len(group)
        lack = {
            split: share * dealt - len(placed[split]) for split, share in zip(SPLITS, shares, strict=True)
        }
        label = int(labels[group[0]])
        chosen = there.get(group[0]) or (max(SPLITS, key=lack.__getitem__) if label in seen else "train")
        seen.add(label)
        placed[chosen] += group
    empty = [split for split in SPLITS if not placed[split]]
    if empty:
        raise DataError(
            f"task {what!r}: {len(rows)} rows with {len(groups)} different inputs in {len(seen)} classes are too few for "
            f"shares={list(shares)}: nothing is left for {listed(empty)}. Give more rows, or larger shares of those."
        )
    made = {split: rows.take(sorted(places)) for split, places in placed.items()}
    if names is not None:
        _tell_lacking(made, names, what)
    about: dict[str, Any] = {"seed": seed, "together": len(rows) - len(groups)}
    for split, share in zip(SPLITS[1:], shares[1:], strict=True):
        alike = "" if names is None else "alike in each class, "
        about[split] = f"{share:g} of the rows, {alike}equal ones together"
    return made, about


def grouped(rows: Split) -> dict[bytes, list[int]]:
    """The rows with equal inputs (of pairs, equal first ones) by what is equal, in the order of the first of each."""
    found: dict[bytes, list[int]] = {}
    for row, (item, encoded) in enumerate(zip(rows.inputs, rows.contents(), strict=True)):
        first = item[0] if isinstance(item, Group) else item
        found.setdefault(alike(first) if item is not first or isinstance(item, str) else encoded, []).append(
            row
        )
    return found


def alike(item: Any) -> bytes:
    """What is the same of equal inputs: a normalised text, or the content of anything else."""
    if isinstance(item, Group):
        return b"\1".join(map(alike, item))
    return normalised(item).encode() if isinstance(item, str) else content(item)


def _in_order(groups: Sequence[list[int]], labels: Sequence[int], seed: int) -> list[list[int]]:
    """The groups, class after class, each class in an order of its own; a group is of the class of its first row."""
    of_class: dict[int, list[list[int]]] = {}
    for group in groups:
        of_class.setdefault(labels[group[0]], []).append(group)
    ordered = []
    for label in sorted(of_class):
        own = of_class[label]
        ordered += [own[place] for place in permutation(len(own), f"{seed}/{label}/shares")]
    return ordered


def _tell_lacking(made: dict[str, Split], names: Sequence[str], what: str) -> None:
    """Warn of classes that a split lacks, because they have too few rows."""
    for split, rows in made.items():
        found = Counter(rows.labels.tolist())
        lacking = [name for label, name in enumerate(names) if not found[label]]
        if lacking:
            tell(f"task {what!r}: {split} has no row of {listed(lacking)}, of which there are too few.")
