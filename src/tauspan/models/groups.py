"""Rows that are several inputs each, such as the two texts of a pair: how they become a batch and features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from tauspan.core.errors import DataError, listed
from tauspan.models.inputs import Batch
from tauspan.objectives.passages import Group

_NAME = "each of a group: "  # before the names of a batch's tensors, which then have the shape (N, K, ...)


def grouped(raw: Sequence[Any]) -> int | None:
    """How many inputs each row has; None where rows are inputs themselves.

    Raises:
        DataError: rows of several sizes.
    """
    sizes = {len(item) if isinstance(item, Group) else None for item in raw}
    if len(sizes) > 1 or 0 in sizes:
        told = listed(sorted("one input" if size is None else f"{size} inputs" for size in sizes))
        raise DataError(
            f"rows of one batch have {told}: give each row a `Group` of the same number of inputs."
        )
    return sizes.pop() if sizes else None


def together(batch: Batch, size: int) -> Batch:
    """The batch of N K inputs as one of N rows of K inputs."""
    tensors = batch if isinstance(batch, Mapping) else {"": batch}
    return {_NAME + name: tensor.view(-1, size, *tensor.shape[1:]) for name, tensor in tensors.items()}


def is_grouped(batch: Batch) -> bool:
    """Whether a batch is what `together` made."""
    return isinstance(batch, Mapping) and bool(batch) and all(name.startswith(_NAME) for name in batch)


def each(batch: Batch, run: Callable[[Batch], Tensor]) -> Tensor:
    """What `run` gives of each input, (N K, d), as features of the rows, (N, K d)."""
    tensors = {name.removeprefix(_NAME): tensor for name, tensor in cast(Mapping[str, Tensor], batch).items()}
    rows = len(next(iter(tensors.values())))
    apart: dict[str, Tensor] = {name: tensor.flatten(0, 1) for name, tensor in tensors.items()}
    return run(apart[""] if set(apart) == {""} else apart).reshape(rows, -1)
