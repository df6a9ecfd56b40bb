"""Safetensors headers: the offset of each tensor's bytes, parsed here because merging needs it.

A file is eight bytes N (little-endian), N bytes of JSON, then the tensors' bytes without gaps. A header is not trusted
until every number in it was compared with the file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from tauspan.core.errors import StoreError, nearest
from tauspan.store import DTYPES, LONGEST_HEADER, damaged, refuse_gguf, refuse_pickle

_PREFIX = 8  # bytes that hold the header's length
_MOST = 1 << 63  # torch counts entries in signed 64 bits
_AXES = 64  # torch has no more
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: `nbytes` bytes from `offset` of `file`, in row-major order."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        tensors: by name, in the order of their bytes.
        metadata: texts by their keys.
        nbytes: the file's size.
        sha256: hash of the header with its length; it covers names, shapes, dtypes and offsets, not values.
    """

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    nbytes: int
    sha256: str


def read_header(file: Path) -> Header:
    """The header of one safetensors file; no other byte is read.

    Raises:
        StoreError: a missing or truncated file, or a header that does not fit the file.
        PickleRefusedError, ModelError: a pickle, or a GGUF file.

    Example:
        >>> import tempfile
        >>> from tauspan.store import write_tensors
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_tensors(file, {"w": torch.ones(2, 3)})
        >>> read_header(file).tensors["w"].shape
        torch.Size([2, 3])
    """
    try:
        head, text, size = _first_bytes(file)
        entries = _parsed(text, file)
    except StoreError:
        refuse_pickle(file)  # raises an error that says what it is
        refuse_gguf(file)
        raise
    metadata = _metadata(entries.pop(_METADATA, {}), file)
    start = _PREFIX + len(text)
    found = [_stored(name, entry, file, start) for name, entry in entries.items()]
    found.sort(key=lambda stored: (stored.offset, stored.nbytes))
    _require_cover(found, file, start, size)
    digest = hashlib.sha256(head + text).hexdigest()
    return Header({stored.name: stored for stored in found}, metadata, size, digest)


def _first_bytes(file: Path) -> tuple[bytes, bytes, int]:
    """The eight bytes of the header's length, the header, and the file's size."""
    try:
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            head = handle.read(_PREFIX)
            length = int.from_bytes(head, "little")
            if len(head) < _PREFIX:
                raise damaged(file, "shorter than the eight bytes that give the header's length")
            if length > min(LONGEST_HEADER, size - _PREFIX):
                raise damaged(file, f"its header should have {length:,} bytes")
            return head, handle.read(length), size
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error}.") from error


def _parsed(text: bytes, file: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise damaged(file, f"its header holds {twice!r} twice")
        return entries

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except StoreError:
        raise
    except (
        ValueError,
        RecursionError,
    ) as error:  # bytes that are not UTF-8 and numbers too long are ValueErrors
        raise damaged(file, f"its header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise damaged(file, "its header is not a JSON object")
    return entries


def _metadata(entry: Any, file: Path) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise damaged(file, f"{_METADATA} of its header maps text to something that is not text")
    return entry


def _stored(name: str, entry: Any, file: Path, start: int) -> Stored:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(file, f"tensor {name!r} has no dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise StoreError(
            f"tensor {name!r} of {file} has the dtype {code!r}, which this version does not read. "
            f"{nearest(str(code), DTYPES)} Save it in one of them."
        )
    dtype = DTYPES[code]
    if not _counts(shape) or not _counts(offsets) or len(shape) > _AXES or len(offsets) != 2:
        raise damaged(file, f"tensor {name!r} has shape {shape!r:.80} and data_offsets {offsets!r:.80}")
    first, last = offsets
    if prod(filter(None, shape)) >= _MOST or last - first != prod(shape) * dtype.itemsize:
        raise damaged(
            file, f"tensor {name!r} of shape {shape!r:.80} and dtype {code} has {last - first:,} bytes"
        )
    return Stored(name, dtype, torch.Size(shape), file, start + first, last - first)


def _counts(values: Any) -> bool:
    """Whether this is a list of whole numbers in torch's range; True is not a number."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _MOST for value in values)


def _require_cover(found: list[Stored], file: Path, start: int, size: int) -> None:
    """The tensors must follow each other without gaps or overlaps up to the end of the file."""
    end = start
    for stored in found:
        if stored.offset != end:
            fault = "overlaps the tensor before it" if stored.offset < end else "leaves a gap before it"
            raise damaged(file, f"tensor {stored.name!r} begins at byte {stored.offset:,} and {fault}")
        end += stored.nbytes
    if end != size:
        raise damaged(file, f"its tensors end at byte {end:,}")
