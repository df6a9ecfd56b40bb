"""Safetensors headers: where each tensor's bytes are, parsed here because merging needs the offsets.

A file is the number N in eight bytes (little-endian), N bytes of JSON, then the tensors' bytes without gaps. A header may
be malicious, so every number in it is compared with the file.
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

from tauspan.core.errors import ModelError, PickleRefusedError, StoreError, nearest
from tauspan.store.remote import remote
from tauspan.store.tensors import DTYPES, LONGEST_HEADER

_PREFIX = 8  # bytes that hold the header's length
_MOST = 1 << 63  # torch counts entries in signed 64 bits
_AXES = 64  # the most axes of a tensor in torch
_METADATA = "__metadata__"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mar")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor is stored: `nbytes` bytes from `offset` of `file`, in row-major order."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file, parsed and checked.

    Args:
        tensors: by name, in the order of their bytes.
        metadata: texts by name.
        nbytes: the file's size.
        sha256: of the header's bytes, the length included; names, shapes, dtypes and offsets, not values.
    """

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    nbytes: int
    sha256: str


def read_header(file: Path) -> Header:
    """The header of one safetensors file; no other byte is read.

    Raises:
        StoreError: not there, cut short, or a header that does not fit the file: the message says what.
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
        refuse_pickle(file)  # a clearer error, if it is a pickle
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
            elsewhere = remote(file)
            size = elsewhere.nbytes if elsewhere else os.fstat(handle.fileno()).st_size
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
    """Whether this is a list of whole numbers from 0 to 2^63 - 1; True and False do not count as numbers."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < _MOST for value in values)


def _require_cover(found: list[Stored], file: Path, start: int, size: int) -> None:
    """Raise unless the tensors follow one another without gaps or overlaps up to the end of the file."""
    end = start
    for stored in found:
        if stored.offset != end:
            fault = "overlaps the tensor before it" if stored.offset < end else "leaves a gap before it"
            raise damaged(file, f"tensor {stored.name!r} begins at byte {stored.offset:,} and {fault}")
        end += stored.nbytes
    if end != size:
        raise damaged(file, f"its tensors end at byte {end:,}")


def damaged(file: Path, reason: str) -> StoreError:
    """The error for a file that is not what safetensors writes."""
    return StoreError(
        f"{file} is not a whole safetensors file ({reason}; {file.stat().st_size} bytes on disk). "
        "It was cut short or damaged: copy or create it again."
    )


def refuse_pickle(path: Path) -> None:
    """Raise `PickleRefusedError` if the file's name or first bytes say that it is a pickle."""
    looks = path.suffix.lower() in PICKLE_SUFFIXES
    if not looks and path.is_file():
        with path.open("rb") as file:
            looks = _starts_like_pickle(file.read(9))
    if looks:
        raise PickleRefusedError(
            f"{path} is a pickle, and opening a pickle can run any code its author put there. Convert it where "
            "you trust it: `model.save_pretrained(dir)` in transformers writes safetensors, or "
            "`safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')`."
        )


def _starts_like_pickle(head: bytes) -> bool:
    # a safetensors file starts with the length of its header, and a length of 640 has the first bytes of a pickle
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
        return False
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"))


def refuse_gguf(path: Path) -> None:
    """Raise `ModelError` if the file's name or first bytes say that it is GGUF, the format of llama.cpp."""
    looks = path.suffix.lower() == ".gguf"
    if not looks and path.is_file():
        with path.open("rb") as file:
            looks = file.read(4) == b"GGUF"
    if looks:
        raise ModelError(
            f"{path} is a GGUF file: its weights are quantised and laid out for llama.cpp. Take the model's original "
            "safetensors weights, or dequantise: `AutoModelForCausalLM.from_pretrained(dir, gguf_file=name)` in "
            "transformers, then `save_pretrained(out)`."
        )
