"""Find rows that are in two splits of a task: equal rows and near-duplicates."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, Literal, TypeAlias

import numpy as np

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError
from tauspan.core.measure import progress
from tauspan.models.extras import require_extra
from tauspan.objectives.passages import Group
from tauspan.tasks import SPLITS, Split, Task
from tauspan.tasks.data.hamming import Hashes, distances, within
from tauspan.tasks.shares import alike, grouped
from tauspan.tasks.split import array_bytes

Kind: TypeAlias = Literal["equal", "near"]
_EXAMPLES = 5  # of each kind and pair of splits


@dataclass(frozen=True)
class Leak:
    """Two rows that are equal, or whose perceptual hashes differ in `bits` bits."""

    kind: Kind
    splits: tuple[str, str]
    rows: tuple[int, int]
    bits: int = 0

    def __str__(self) -> str:
        apart = f", {self.bits} bits apart" if self.kind == "near" else ""
        (first, second), (i, j) = self.splits, self.rows
        return f"{first} row {i} = {second} row {j}{apart}"


@dataclass(frozen=True)
class Leaks:
    """The result of `find_leaks`: for each pair of splits, how many rows of the second are also in the first.

    Args:
        task: its name.
        near: up to how many bits counted as near-duplicate; None where only equal rows were looked for.
        counts: (kind, first split, second split) to the number of rows of the second.
        examples: the first of each.
    """

    task: str
    near: int | None
    counts: Mapping[tuple[Kind, str, str], int]
    examples: Sequence[Leak]

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def require_none(self) -> None:
        """Raise if there are any leaks.

        Raises:
            DataError: with the counts and the first examples, both row numbers each.
        """
        if self:
            found = [
                f"{count} of {second} {'nearly ' if kind == 'near' else ''}in {first}"
                for (kind, first, second), count in self.counts.items()
                if count
            ]
            shown = "; ".join(map(str, self.examples[: 2 * _EXAMPLES]))
            raise DataError(
                f"rows of task {self.task!r} stand in two splits: {', '.join(found)}. First: {shown}. Remove them from "
                "one of the two, or pass --allow-leaks to go on with figures that they inflate."
            )


@dataclass(frozen=True)
class _Prints:
    """What identifies each row: a hash of its content, and for images two perceptual hashes of shape (N, 2)."""

    equal: list[bytes]
    near: Hashes | None


def seen_elsewhere(tasks: Sequence[Task]) -> list[tuple[Task, Task, int]]:
    """The pairs of tasks of which the second trains on test rows of the first, and on how many.

    Texts are equal apart from case, punctuation and white space, images if their files are.
    """
    compared = tasks if len(tasks) > 1 else ()
    test = {task: grouped(task.split("test")) for task in compared}
    train = {task: grouped(task.split("train")) for task in compared}
    found = [
        (tested, trained, sum(len(rows) for key, rows in test[tested].items() if key in train[trained]))
        for tested, trained in permutations(compared, 2)
    ]
    return [entry for entry in found if entry[2]]


@checked
def find_leaks(
    task: Task,
    near: int | None = None,
) -> Leaks:
    """Find rows that are in two splits of a task.

    Two rows are equal if they have the same decoded pixels, or the same text apart from case, punctuation and white
    space. Two images are near-duplicates if each of two perceptual hashes (64 bits of the lowest frequencies, 64 bits of
    horizontal gradients; `imagehash`) differs in at most `near` bits. Re-encoding and scaling change few bits, and so
    may a crop, but distinct images that look alike can be that close too.

    Args:
        task: its images are decoded once.
        near: 0 to 8 bits; None looks for equal rows only.

    Raises:
        DataError: an image cannot be decoded.
        MissingExtraError: `near` is given and `imagehash` is not installed.

    Example:
        >>> import torch
        >>> rows = Split(["It is.", "no"], torch.tensor([0, 1]))
        >>> other = Split(["it is", "yes"], torch.tensor([0, 1]))
        >>> found = find_leaks(Task("t", ["a", "b"], {"train": rows, "validation": other, "test": other}))
        >>> found.counts["equal", "train", "test"]
        1
    """
    total = sum(len(task.splits[split]) for split in SPLITS)
    with progress(f"leaks {task.name}", total) as advance:
        prints = {split: _prints(task.splits[split], near is not None, advance) for split in SPLITS}
    counts: dict[tuple[Kind, str, str], int] = {}
    examples: list[Leak] = []
    for first, second in combinations(SPLITS, 2):
        equal = _equal(prints[first].equal, prints[second].equal)
        counts["equal", first, second] = len(equal)
        examples += [Leak("equal", (first, second), pair) for pair in equal[:_EXAMPLES]]
        left, right = prints[first].near, prints[second].near
        if near is not None and left is not None and right is not None:
            known = {j for _, j in equal}
            close = [found for found in _near(left, right, near) if found[1] not in known]
            counts["near", first, second] = len(close)
            examples += [Leak("near", (first, second), (i, j), bits) for i, j, bits in close[:_EXAMPLES]]
    return Leaks(task.name, near, counts, examples)


def _prints(rows: Split, near: bool, advance: Callable[[int, str], None]) -> _Prints:
    equal, hashes = [], []
    for item in rows.inputs:
        advance(1, "")
        if isinstance(item, str | Group):
            equal.append(alike(item))
            continue
        pixels = np.asarray(item)
        equal.append(hashlib.sha256(array_bytes(pixels)).digest())
        if near and _is_image(pixels):
            hashes.append(_perceptual(pixels))
    complete = len(hashes) == len(rows) and near
    return _Prints(equal, np.array(hashes, dtype=np.uint64) if complete else None)


def _is_image(pixels: Any) -> bool:
    return pixels.dtype == np.uint8 and (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3))
    )


def _perceptual(pixels: Any) -> tuple[int, int]:
    imagehash = require_extra("imagehash", "data", "looking for near-duplicates of images")
    image = require_extra("PIL.Image", "data", "looking for near-duplicates of images")
    grey = image.fromarray(
        pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    ).convert("L")
    return _bits(imagehash.phash(grey)), _bits(imagehash.dhash(grey))


def _bits(hashed: Any) -> int:
    return int.from_bytes(np.packbits(hashed.hash.flatten()).tobytes(), "big")


def _equal(left: Sequence[bytes], right: Sequence[bytes]) -> list[tuple[int, int]]:
    """For each row on the right whose content is on the left too: the first such row on the left, and the row itself."""
    first: dict[bytes, int] = {}
    for row, content in enumerate(left):
        first.setdefault(content, row)
    return [(first[content], row) for row, content in enumerate(right) if content in first]


def _near(left: Hashes, right: Hashes, distance: int) -> list[tuple[int, int, int]]:
    """For each row on the right that has near-duplicates on the left: the nearest of them, itself, and the bits."""
    here, first = np.unique(left, axis=0, return_index=True)
    there, inverse = np.unique(right, axis=0, return_inverse=True)
    i, j, bits = within(here[:, 0], there[:, 0], distance)
    bits = np.maximum(bits, distances(here[i, 1], there[j, 1]))
    close = bits <= distance
    i, j, bits = i[close], j[close], bits[close]
    order = np.lexsort((first[i], bits, j))
    nearest = order[np.unique(j[order], return_index=True)[1]]
    best = {int(j[place]): (int(first[i[place]]), int(bits[place])) for place in nearest}
    pairs = ((best.get(int(kind)), row) for row, kind in enumerate(inverse.reshape(-1)))
    return [(found[0], row, found[1]) for found, row in pairs if found is not None]
