"""Files: named tensors are read lazily, files are written atomically, and pickles are refused.

Only safetensors is read. A file appears under its final name complete or not at all: everything is written
to a temporary neighbour, flushed to the disk and renamed.
"""

from tauspan.store.places import (
    atomic,
    locked,
    publish,
    require_apart,
    require_folder,
    require_free,
    write_json,
    write_text,
)
from tauspan.store.reading import (
    PICKLE_SUFFIXES,
    STEMS,
    Checkpoint,
    damaged,
    located,
    read_json,
    refuse_gguf,
    refuse_pickle,
)
from tauspan.store.tensors import (
    DTYPES,
    INDEX_SUFFIX,
    LONGEST_HEADER,
    stream_shards,
    stream_tensors,
    tensor_header,
    write_tensors,
)

__all__ = [
    "DTYPES", "INDEX_SUFFIX", "LONGEST_HEADER", "PICKLE_SUFFIXES", "STEMS", "Checkpoint", "atomic", "damaged", "located",
    "locked", "publish", "read_json", "refuse_gguf", "refuse_pickle", "require_apart", "require_folder", "require_free",
    "stream_shards", "stream_tensors", "tensor_header", "write_json", "write_tensors", "write_text",
]  # fmt: skip
