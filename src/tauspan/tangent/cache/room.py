"""The storage of caches: memory, or memory-mapped files that vanish with the process."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import StoreError, UsageError

_ALIGN = 64
_MEMORY = Path("/proc/meminfo")


@dataclass
class Held:
    """A tensor of a cache; it moves from memory to a mapped file when its batch is complete."""

    tensor: Tensor


class Room:
    """Stores the tensors of one batch; shared memory is stored once.

    Args:
        anyway: tensors that exist without the cache (parameters, buffers) and are not stored.
        folder: the folder for mapped files; None keeps everything in memory.
    """

    def __init__(self, anyway: Iterable[Tensor], folder: Path | None = None) -> None:
        self._anyway = {tensor.untyped_storage().data_ptr() for tensor in anyway}
        self._folder = folder
        self._held: list[Held] = []

    def hold(self, tensor: Tensor) -> Held:
        """Store a tensor."""
        held = Held(tensor.detach())
        self._held.append(held)
        return held

    def bytes(self) -> int:
        """The size of the stored tensors in bytes; shared memory counts once."""
        return sum(self._storages().values())

    def _storages(self) -> dict[int, int]:
        sizes = {}
        for held in self._held:
            storage = held.tensor.untyped_storage()
            if storage.data_ptr() not in self._anyway:
                sizes[storage.data_ptr()] = storage.nbytes()
        return sizes

    def settle(self) -> int:
        """Move all stored tensors to a mapped file, if there is a folder; return their size in bytes.

        The file is unlinked at once: it disappears with the process, however that ends, and cannot be mistaken for a
        complete cache.
        """
        sizes = self._storages()
        total = sum(-(-size // _ALIGN) * _ALIGN for size in sizes.values())
        if self._folder is None or not total:
            self._held = []
            return sum(sizes.values())
        mapped = _mapped_file(self._folder, total)
        begin, starts, seen = 0, {}, {}
        for held in self._held:
            storage = held.tensor.untyped_storage()
            address = storage.data_ptr()
            if address in self._anyway:
                continue
            if address not in starts:
                starts[address], seen[address] = (
                    begin,
                    storage,
                )  # `seen` keeps the storage alive, so that its address is not used again
                whole = torch.empty(0, dtype=torch.uint8).set_(mapped, begin, (storage.nbytes(),), (1,))
                whole.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
                begin += -(-storage.nbytes() // _ALIGN) * _ALIGN
            held.tensor = _moved(held.tensor, mapped, starts[address])
        self._held = []
        return sum(sizes.values())


def _moved(tensor: Tensor, storage: Any, begin: int) -> Tensor:
    """The same view of a storage into which the tensor's own storage was copied at an offset."""
    offset = begin // tensor.element_size() + tensor.storage_offset()
    found: Tensor = torch.empty(0, dtype=tensor.dtype).set_(storage, offset, tensor.shape, tensor.stride())
    return found


def _mapped_file(folder: Path, size: int) -> Any:
    descriptor, name = tempfile.mkstemp(prefix=".cache-", suffix=".part", dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, size)  # a full disk must fail here, not later as a bus error
        return torch.UntypedStorage.from_file(name, shared=True, nbytes=size)
    except OSError as error:
        raise StoreError(
            f"{folder} has no room for {size / 2**20:.0f} MiB of cache: {error.strerror}."
        ) from error
    finally:
        os.close(descriptor)
        Path(name).unlink()


def free_memory() -> int:
    """The free memory in bytes, with the system's file caches; the total memory if the free part is unknown."""
    if _MEMORY.exists():
        for line in _MEMORY.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def require_room(needed: int, room: int | None, folder: Path | None, what: str) -> None:
    """Raise before any work if a cache would not fit.

    Raises:
        UsageError: it needs more than the bound.
        StoreError: it needs more than the folder's disk has free.
    """
    if room is not None and needed > room:
        raise UsageError(
            f"{what} needs {needed / 2**20:.0f} MiB and room={room / 2**20:.0f} MiB is allowed. Allow more, "
            "put it on disk with folder=..., or choose another kind."
        )
    if folder is not None:
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise StoreError(
                f"{what} needs {needed / 2**20:.0f} MiB and {folder} has {free / 2**20:.0f} MiB free."
            )
