"""`Split`: the rows of one split, and the one rule by which rows are shuffled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Raw inputs (texts, arrays) and labels of shape (N,), class indices from 0."""

    inputs: Sequence[Any]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int]) -> "Split":
        """The rows at the given places, in that order."""
        return Split(
            [self.inputs[i] for i in indices], self.labels[torch.as_tensor(indices, dtype=torch.long)]
        )


def permutation(size: int, key: str) -> list[int]:
    """An order of `range(size)` that depends on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    order: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order
