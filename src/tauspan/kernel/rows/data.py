"""The rows of a kernel's side: a batch, several, a data set or a loader, as batches of at most so many rows."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.models.calling import as_tensors, is_batch

# One batch, as the module is called with it.
AnyBatch: TypeAlias = Tensor | np.ndarray[Any, Any] | Mapping[str, Any] | Sequence[Any]
Data: TypeAlias = AnyBatch | Sequence[AnyBatch] | DataLoader[Any] | Dataset[Any]


def batches_of(module: nn.Module, x: Data, size: int) -> tuple[list[AnyBatch], bool]:
    """The data as batches, and whether they were cut here: from one tensor or data set, to at most `size` rows.

    A list or a loader holds batches, which are kept as they are. A tuple of tensors of one length is a batch of several
    inputs if the module takes that many.

    Raises:
        UsageError: no rows, or something that holds none.
        NonFiniteError: NaN or infinity in a batch.
    """
    x = as_tensors(x)
    if isinstance(x, IterableDataset | DataLoader):
        batches, cut = list(x), False
    elif isinstance(x, Dataset):
        batches = list(DataLoader(x, batch_size=size))
        cut = len(batches) > 1
    elif isinstance(x, Tensor | Mapping) or is_batch(module, x):
        batches = [taken(x, slice(start, start + size)) for start in range(0, rows_of(x), size)]
        cut = len(batches) > 1
    elif isinstance(x, Sequence) and not isinstance(x, str):
        batches, cut = list(x), False
    else:
        raise UsageError(
            f"a kernel is of rows, and {type(x).__name__} holds none: give a tensor, a dict or tuple of tensors, a "
            "list of such batches, a Dataset or a DataLoader."
        )
    batches = [as_tensors(batch) for batch in batches]
    if not batches or not all(rows_of(batch) for batch in batches):
        raise UsageError("a kernel needs rows: a side is empty, or one of its batches is.")
    for number, batch in enumerate(batches):
        for value in tensors_of(batch):
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NonFiniteError(
                    f"batch {number} of the data holds NaN or infinity: clean the rows first."
                )
    return batches, cut


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [tensor for value in batch.values() for tensor in tensors_of(value)]
    if isinstance(batch, tuple | list):
        return [tensor for value in batch for tensor in tensors_of(value)]
    return []


def rows_of(batch: AnyBatch) -> int:
    """How many rows a batch has: the length of its first tensor.

    Raises:
        UsageError: there is no tensor in it.
    """
    first = next((tensor for tensor in tensors_of(batch) if tensor.ndim), None)
    if first is None:
        way = "torch.stack(rows)" if isinstance(batch, Tensor) else "torch.tensor(rows)"
        raise UsageError(
            f"a batch of type {type(batch).__name__} holds no tensor with rows: a list is a list of batches; give "
            f"`{way}` for a list of single rows."
        )
    return len(first)


def size_of(batch: AnyBatch) -> int:
    """How many numbers a batch has."""
    return sum(tensor.numel() for tensor in tensors_of(batch))


def taken(batch: AnyBatch, rows: slice | list[int]) -> Any:
    """Some rows of a batch; tensors of another length belong to all rows, and are kept whole."""
    count = rows_of(batch)

    def some(item: Any) -> Any:
        if isinstance(item, Tensor):
            return item[rows] if item.ndim and len(item) == count else item
        if isinstance(item, Mapping):
            return {key: some(value) for key, value in item.items()}
        return type(item)(some(part) for part in item) if isinstance(item, tuple | list) else item

    return some(batch)


def together(first: AnyBatch, second: AnyBatch) -> Any:
    """The rows of two batches as one batch; tensors of another length belong to all rows, and are the first batch's."""
    count = rows_of(first)

    def both(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return torch.cat([one, other]) if one.ndim and len(one) == count else one
        if isinstance(one, Mapping):
            return {key: both(value, other[key]) for key, value in one.items()}
        if isinstance(one, tuple | list):
            return type(one)(both(*pair) for pair in zip(one, other, strict=True))
        return one

    return both(first, second)


def named(batch: AnyBatch) -> dict[str, Tensor]:
    """The tensors of a batch by name or position."""
    items: Any = {"": batch}
    if isinstance(batch, Mapping):
        items = batch
    elif isinstance(batch, tuple | list):
        items = {str(place): item for place, item in enumerate(batch)}
    return {name: value for name, value in items.items() if isinstance(value, Tensor)}


def checksum(batches: Sequence[AnyBatch]) -> str:
    """A hash of the rows, the same for batches of any size that are cut from one tensor."""
    mappings = [named(batch) for batch in batches]
    keys = sorted({key for batch in mappings for key in batch})
    return "|".join(f"{key}={digest(batch[key] for batch in mappings if key in batch)}" for key in keys)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the rows of several tensors, with their dtype and the shape of a row."""
    found, kind = hashlib.sha256(), ""
    for tensor in tensors:
        now = f"{tuple(tensor.shape[1:])}|{tensor.dtype}|"
        found.update(b"" if now == kind else now.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        kind = now
    return found.hexdigest()


def described(batch: AnyBatch) -> str:
    """Names, shapes and dtypes of a batch."""
    return ", ".join(
        f"{name} {tuple(value.shape)} {value.dtype}".strip() for name, value in named(batch).items()
    )
