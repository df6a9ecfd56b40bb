"""Reading ranges of stored tensors: from memory-mapped files, by positional reads, or from behind a URL."""

import mmap
import os
import sys
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import StoreError, UsageError, nearest
from tauspan.store.headers import Stored, damaged
from tauspan.store.remote import remote

Access: TypeAlias = Literal["mmap", "pread"]
ACCESS: tuple[Access, ...] = ("mmap", "pread")
_OPEN = 16  # how many files of one model stay open
# the mapping is private and never written, so the system need not set memory aside for a copy of a whole model
_FLAGS = mmap.MAP_PRIVATE | (
    0x4000 if sys.platform == "linux" else 0
)  # MAP_NORESERVE, which mmap does not name


class _Opened:
    """An open file; it is closed when nothing refers to it any more, so no thread loses it while reading.

    Of a model behind a URL only the header is a file; its values are read from there.
    """

    def __init__(self, file: Path, access: Access) -> None:
        self.remote = remote(file)
        self.map: mmap.mmap | None = None
        if self.remote is not None:
            return
        self.descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        if access == "mmap":
            # writable, with private pages, since torch warns about buffers that are read-only
            self.map = mmap.mmap(self.descriptor, 0, flags=_FLAGS, prot=mmap.PROT_READ | mmap.PROT_WRITE)


class Values:
    """Entries of stored tensors, in their own dtype, bit for bit. Several threads may read at once.

    Args:
        access: `mmap`: tensors share the file's pages without a copy; a write to one goes to a private copy. If another
            process truncates the file, this process is killed, as with every mapping. `pread`: tensors are copied to new
            memory; better on network disks, and a truncated file is an error.
    """

    def __init__(self, access: Access = "pread") -> None:
        if access not in ACCESS:
            raise UsageError(f"access is {access!r}. {nearest(str(access), ACCESS)}")
        self.access = access
        self._open: OrderedDict[Path, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, stored: Stored, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor, shape (stop - start,)."""
        count, width = stored.shape.numel(), stored.dtype.itemsize
        if not 0 <= start <= stop <= count:
            raise UsageError(f"entries {start} to {stop} of {stored.name!r}, which has {count}.")
        if start == stop:
            return torch.empty(0, dtype=stored.dtype)
        opened, offset = self._opened(stored.file), stored.offset + start * width
        # a mapping begins at a page, so the place in the file says whether entries are aligned in memory
        if opened.map is None or offset % width:
            return _copied(opened, stored, offset, stop - start)
        if stored.offset + stored.nbytes > len(opened.map):
            raise damaged(stored.file, f"{stored.name!r} should end at {stored.offset + stored.nbytes:,}")
        return torch.frombuffer(opened.map, dtype=stored.dtype, count=stop - start, offset=offset)

    def _opened(self, file: Path) -> _Opened:
        with self._lock:
            opened = self._open.get(file)
            if opened is None:
                try:
                    opened = _Opened(file, self.access)
                except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                    raise StoreError(f"{file} cannot be read: {error}.") from error
                self._open[file] = opened
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(file)
            return opened

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._open.clear()


def _copied(opened: _Opened, stored: Stored, offset: int, count: int) -> Tensor:
    tensor = torch.empty(count, dtype=stored.dtype)
    into = tensor.view(torch.uint8).numpy().data
    if opened.remote is not None:
        into[:] = opened.remote.read(offset, offset + len(into))
        return tensor
    done = 0
    while done < len(into):
        try:
            got = os.preadv(opened.descriptor, [into[done:]], offset + done)
        except OSError as error:
            raise StoreError(f"{stored.file} cannot be read: {error}.") from error
        if not got:
            raise damaged(stored.file, f"it ends inside {stored.name!r}")
        done += got
    return tensor
