"""Write safetensors files at known offsets: headers are written first, so blocks may come in any order."""

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import StoreError
from tauspan.store.places import atomic, write_json
from tauspan.store.tensors import INDEX_SUFFIX, tensor_header

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MODEL = "model"


@dataclass(frozen=True)
class Entry:
    """One tensor of the output: its bytes begin at `offset` of the file `file`."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    file: str = ""
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One output file: its name, its header (with its length), and its size."""

    file: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """All files of the output, and the position of each tensor."""

    shards: tuple[Shard, ...]
    entries: Mapping[str, Entry]

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes, with headers."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def index(self) -> dict[str, Any] | None:
        """The content of the index file of the shards; None for a single file."""
        own = {name: entry for name, entry in self.entries.items() if "/" not in entry.file}
        if len({entry.file for entry in own.values()}) < 2:
            return None
        sizes = {
            "total_parameters": sum(prod(entry.shape) for entry in own.values()),
            "total_size": sum(entry.nbytes for entry in own.values()),
        }
        return {"metadata": sizes, "weight_map": {name: entry.file for name, entry in own.items()}}

    def renamed(self, file: str) -> "Layout":
        """The same layout with another name for its single file."""
        (shard,) = self.shards
        entries = {name: replace(entry, file=file) for name, entry in self.entries.items()}
        return Layout((replace(shard, file=file),), entries)


def layout(
    entries: Sequence[Entry],
    limit: int,
    metadata: Mapping[str, str],
    file: str | None = None,
    stem: str = MODEL,
    parts: Sequence[str] = (),
) -> Layout:
    """The layout of tensors, in their order, in files of at most `limit` bytes with the names that libraries expect.

    Args:
        entries: name, dtype and shape of each tensor.
        limit: the most bytes of tensors in a file; a larger tensor gets its own file.
        metadata: texts by their keys, written into every header.
        file: the name of a single file for everything, whatever its size.
        stem: the beginning of the files' names.
        parts: folders with their own files: `2_Dense/linear.weight` is `linear.weight` of `2_Dense/model.safetensors`.

    Example:
        >>> pair = [Entry(name, torch.float32, torch.Size([2])) for name in "ab"]
        >>> [shard.file for shard in layout(pair, 8, {}).shards]
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    inner: dict[str, list[Entry]] = {}
    for entry in entries if file is None else ():
        part = next((part for part in parts if entry.name.startswith(f"{part}/")), None)
        if part is not None:
            inner.setdefault(part, []).append(entry)
    apart = {entry.name for group in inner.values() for entry in group}
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if entry.name in apart:
            continue
        if groups[-1] and file is None and filled + entry.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    shards, placed = [], {}
    for number, group in enumerate(groups, 1):
        part = "" if len(groups) == 1 else f"-{number:05d}-of-{len(groups):05d}"
        if group or not inner:
            shard, own = _shard(file or f"{stem}{part}.safetensors", group, metadata)
            shards.append(shard)
            placed.update(own)
    for folder, group in inner.items():
        shard, own = _shard(f"{folder}/{MODEL}.safetensors", group, metadata)
        shards.append(shard)
        placed.update(own)
    return Layout(tuple(shards), {entry.name: placed[entry.name] for entry in entries})


def _shard(file: str, group: Sequence[Entry], metadata: Mapping[str, str]) -> tuple[Shard, dict[str, Entry]]:
    cut = file.rpartition("/")[0]
    names = {entry.name: entry.name.removeprefix(f"{cut}/") if cut else entry.name for entry in group}
    header, starts = tensor_header(
        {names[entry.name]: (entry.dtype, entry.shape) for entry in group}, metadata
    )
    placed = {
        entry.name: Entry(entry.name, entry.dtype, entry.shape, file, starts[names[entry.name]])
        for entry in group
    }
    return Shard(file, header, len(header) + sum(entry.nbytes for entry in group)), placed


class Writer:
    """The open files of the output; several threads may write blocks at their offsets.

    Args:
        folder: the folder of the files.
        layout: the files and the positions of the tensors.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._descriptors: dict[str, int] = {}

    def create(self) -> None:
        """Create the files: reserve their size on the disk and write their headers.

        Raises:
            OSError: the disk is full, as `is_full` tells, or not writable.
        """
        self.folder.mkdir(exist_ok=True)
        for shard in self.layout.shards:
            (self.folder / shard.file).parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / shard.file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            self._descriptors[shard.file] = descriptor
            _take(descriptor, shard.nbytes)
            _put(descriptor, memoryview(shard.header), 0)

    def reopen(self) -> None:
        """Open the files of an earlier run.

        Raises:
            StoreError: a file has changed since that run.
        """
        for shard in self.layout.shards:
            file = self.folder / shard.file
            try:
                self._descriptors[shard.file] = descriptor = os.open(file, os.O_RDWR)
            except OSError as error:
                raise StoreError(f"{file} of the unfinished merge cannot be opened: {error}.") from error
            found = os.fstat(descriptor).st_size, os.pread(descriptor, len(shard.header), 0)
            if found != (shard.nbytes, shard.header):
                raise StoreError(
                    f"{file} of the unfinished merge has {found[0]:,} bytes or another header; the plan says "
                    f"{shard.nbytes:,} bytes. Something else wrote there."
                )

    def write(self, name: str, start: int, values: Tensor) -> memoryview:
        """Write a flat block from entry `start` of a tensor on, and return what was written."""
        entry = self.layout.entries[name]
        data = values.view(torch.uint8).numpy().data
        _put(self._descriptors[entry.file], data, entry.offset + start * entry.dtype.itemsize)
        return data

    def flush(self) -> None:
        """Wait until everything written so far is on the disk."""
        for descriptor in self._descriptors.values():
            _sync(descriptor)

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


Kinds: TypeAlias = Mapping[str, tuple[torch.dtype, Sequence[int]]]


def _entries(kinds: Kinds) -> list[Entry]:
    return [Entry(name, dtype, torch.Size(shape)) for name, (dtype, shape) in kinds.items()]


def _stream(folder: Path, layout: Layout, tensors: Iterable[Tensor]) -> None:
    writer = Writer(folder, layout)
    try:
        writer.create()
        for name, tensor in zip(layout.entries, tensors, strict=True):
            writer.write(name, 0, tensor.detach().cpu().contiguous().flatten())
    finally:
        writer.close()


def stream_tensors(
    path: str | Path, kinds: Kinds, tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """As `write_tensors`, for tensors that come one by one in the order of `kinds`; only one is in memory at a time.

    Args:
        path: the file; an older one is replaced.
        kinds: dtype and shape of each tensor by name.
        tensors: their values, on any device.
        metadata: texts by name.
    """
    with atomic(path) as temporary:
        _stream(temporary.parent, layout(_entries(kinds), 0, metadata or {}, temporary.name), tensors)


def stream_shards(directory: Path, kinds: Kinds, tensors: Iterable[Tensor], largest: int = 5 * 10**9) -> None:
    """Write a model's weights as transformers names them: `model.safetensors`, or shards of limited size with an index.

    Args:
        directory: an existing folder, which is renamed when it is complete.
        kinds: dtype and shape of each tensor by name.
        tensors: their values in that order; one at a time is held.
        largest: bytes of a shard; a single tensor may be larger.
    """
    made = layout(_entries(kinds), largest, {"format": "pt"})
    _stream(directory, made, tensors)
    if made.index is not None:
        total = {"total_size": made.index["metadata"]["total_size"]}
        write_json(directory / f"{MODEL}{INDEX_SUFFIX}", {**made.index, "metadata": total})


_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only fsync


def _take(descriptor: int, nbytes: int) -> None:
    """Reserve space on the disk, so that a full disk is noticed before the work begins."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(descriptor, nbytes)


def _put(descriptor: int, data: memoryview, offset: int) -> None:
    while data:  # one call writes at most 2 GiB
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, means that a disk, a quota or a file-size limit is exhausted."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__
    return False


def full(folder: Path, needed: int, error: Exception) -> StoreError:
    """The error for a result that is too large for the disk; the caller raises it."""
    free = shutil.disk_usage(folder).free
    return StoreError(
        f"{folder} has no room for the result: it takes {needed:,} bytes and {free:,} are free ({error}). Free some "
        "or choose an output on another disk. What was written so far has been removed."
    )
