"""Safetensors files: their dtypes, their headers, and writing tensors that are all in memory."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tauspan.core.params import Params
from tauspan.store.places import atomic

INDEX_SUFFIX = ".safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes; safetensors refuses more
_ALIGNED = 8  # the header is padded to this, as safetensors does
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


def write_tensors(
    path: str | Path, tensors: Params, metadata: Mapping[str, str] | None = None, *, overwrite: bool = True
) -> None:
    """Write one safetensors file atomically; tensors are stored in their own dtype, bit for bit."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    storages: dict[int, str] = {}
    for name, tensor in ready.items():
        other = storages.setdefault(tensor.untyped_storage().data_ptr(), name)
        if other != name and tensor.numel():
            ready[name] = tensor.clone(memory_format=torch.contiguous_format)
    with atomic(path, overwrite=overwrite) as temporary:
        # without tensors, empty metadata would make safetensors write a file that it cannot read
        save_file(ready, temporary, metadata=dict(metadata) if metadata else None)


def tensor_header(
    kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file, with the header's length, and where in the file each tensor starts."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, end = {}, 0
    # wide types first, as safetensors does, so that every tensor starts at a multiple of its own width
    for name, (dtype, shape) in sorted(kinds.items(), key=lambda item: -item[1][0].itemsize):
        starts[name], end = end, end + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": codes[dtype], "shape": list(shape), "data_offsets": [starts[name], end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    first = len(text).to_bytes(8, "little") + text
    return first, {name: len(first) + start for name, start in starts.items()}
