"""`Split`: the rows of one split, and the one rule by which rows are shuffled and held out."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.tasks.images import Images

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Raw inputs (texts, arrays) and labels of shape (N,), class indices from 0."""

    inputs: Sequence[Any]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> "Split":
        """The rows at the given places, in that order; encoded images stay encoded."""
        rows = self.inputs
        taken = rows.take(indices) if isinstance(rows, Images) else [rows[i] for i in indices]
        return Split(taken, self.labels[torch.as_tensor(indices, dtype=torch.long)])

    def contents(self) -> Iterator[bytes]:
        """Each input as bytes: a text in UTF-8, an image as it is encoded, an array after its dtype and shape."""
        if isinstance(self.inputs, Images):
            return self.inputs.contents()
        return (
            item.encode() if isinstance(item, str) else array_bytes(np.asarray(item)) for item in self.inputs
        )

    @cached_property
    def digest(self) -> str:
        """A hash of inputs and labels, made once: rows do not change."""
        found = hashlib.sha256()
        for content in self.contents():
            found.update(hashlib.sha256(content).digest())
        found.update(self.labels.numpy().tobytes())
        return found.hexdigest()


def array_bytes(array: Any) -> bytes:
    """An array as bytes that tell arrays of other dtypes and shapes apart."""
    return f"{array.dtype}|{array.shape}|".encode() + bytes(array.tobytes())


def held_out(rows: Split, seed: int = 0) -> dict[str, Split]:
    """Train and validation from the rows of train: min(10 %, 5000) of them, by a permutation keyed by the seed."""
    order = permutation(len(rows), f"{seed}/validation")
    held = min(max(len(rows) // 10, 1), 5000)
    return {"train": rows.take(order[held:]), "validation": rows.take(order[:held])}


def permutation(size: int, key: str) -> list[int]:
    """An order of `range(size)` that depends on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    order: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
