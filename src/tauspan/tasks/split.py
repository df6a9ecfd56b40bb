"""`Split`: the rows of one split, and the rule by which rows are shuffled and held out."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.core.arguments import no_rows
from tauspan.core.errors import DataError, listed
from tauspan.objectives.passages import Group
from tauspan.tasks.images import Images
from tauspan.tasks.rows import plain

SPLITS = ("train", "validation", "test")
_TEST_SHARE = 0.2  # of the training rows, where no test split is given


@dataclass(frozen=True, eq=False)
class Split:
    """Raw inputs (texts, arrays, `Images`) and labels: class indices from 0, shape (N,), or what the objective reads.

    Example:
        >>> Split(["a", "b", "c"], torch.tensor([0, 1, 1]))
        Split(3 rows; rows of each class: 0: 1, 1: 2)
    """

    inputs: Sequence[Any]
    labels: Tensor

    def __post_init__(self) -> None:
        wrong = no_rows(self.inputs)
        if wrong is not None:
            raise DataError(f"the inputs of a Split are {wrong}; each row needs the position of its label.")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        kind = "images" if isinstance(self.inputs, Images) else "rows"
        if not isinstance(self.labels, Tensor) or self.labels.is_floating_point() or self.labels.ndim != 1:
            return f"Split({len(self)} {kind})"
        labels, counts = torch.unique(self.labels, return_counts=True)
        found = [f"{label}: {count}" for label, count in zip(labels.tolist(), counts.tolist(), strict=True)]
        return f"Split({len(self)} {kind}; rows of each class: {listed(found, 8) or 'none'})"

    def take(self, indices: Sequence[int]) -> "Split":
        """The rows with the given indices, in that order; encoded images stay encoded."""
        rows = self.inputs
        taken = rows.take(indices) if isinstance(rows, Images) else [rows[i] for i in indices]
        return Split(taken, self.labels[torch.as_tensor(indices, dtype=torch.long)])

    def contents(self) -> Iterator[bytes]:
        """Each input as bytes: a text in UTF-8, an image as it is encoded, an array after its dtype and shape."""
        return self.inputs.contents() if isinstance(self.inputs, Images) else map(content, self.inputs)

    @cached_property
    def digest(self) -> str:
        """A hash of inputs and labels, made once: rows do not change."""
        found = hashlib.sha256()
        for content in self.contents():
            found.update(hashlib.sha256(content).digest())
        found.update(self.labels.numpy().tobytes())
        return found.hexdigest()


def content(item: Any) -> bytes:
    """A text in UTF-8, an array after its dtype and shape, a group as its inputs one after the other."""
    if isinstance(item, Group):
        return b"\1".join(map(content, item))
    return item.encode() if isinstance(item, str) else array_bytes(np.asarray(plain(item)))


def array_bytes(array: Any) -> bytes:
    """An array as bytes that begin with dtype and shape, so that arrays which differ in these give different bytes."""
    return f"{array.dtype}|{array.shape}|".encode() + bytes(array.tobytes())


def held_out(
    rows: Split, seed: int = 0, split: str = "validation", share: float = 0.1, most: int = 5000
) -> dict[str, Split]:
    """Split the rows of train in two, by a permutation that depends on the seed and the new split's name.

    The new split gets `share` of the rows, at least 1 and at most `most`; the defaults are the paper's for validation.
    """
    order = permutation(len(rows), f"{seed}/{split}")
    held = min(max(int(len(rows) * share), 1), most)
    return {"train": rows.take(order[held:]), split: rows.take(order[:held])}


def completed(splits: Mapping[str, Split], seed: int, test: bool) -> tuple[dict[str, Split], dict[str, Any]]:
    """The splits, with missing ones held out from train, and the origin of each split.

    Args:
        splits: `train` and perhaps others.
        seed: of the permutations.
        test: whether a missing test split is held out too, before validation: 20 % of the rows.
    """
    made, about = dict(splits), {"seed": seed, "validation": "own"}
    rows = made.get("train", ())
    if test and "test" not in made and len(rows) > 2:
        made |= held_out(made["train"], seed, "test", _TEST_SHARE, len(rows))
        about["test"] = "held out of train"
    if "validation" not in made and len(made.get("train", ())) > 1:
        made |= held_out(made["train"], seed)
        about["validation"] = "held out of train"
    return made, about


def permutation(size: int, key: str) -> list[int]:
    """A pseudo-random permutation of `range(size)` that depends on `size` and the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    order: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
