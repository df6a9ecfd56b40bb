"""Files: named tensors are read lazily, files are written atomically, and pickles are refused.

Only safetensors is read. A file appears under its final name complete or not at all: it is written under a temporary
name in the same folder, flushed to the disk and renamed.
"""

from tauspan.store.headers import (
    PICKLE_SUFFIXES,
    Header,
    Stored,
    damaged,
    read_header,
    refuse_gguf,
    refuse_pickle,
)
from tauspan.store.places import (
    LOCK,
    atomic,
    locked,
    publish,
    require_apart,
    require_folder,
    require_free,
    write_json,
    write_text,
)
from tauspan.store.reading import STEMS, Checkpoint, located, read_json
from tauspan.store.remote import fetched, is_url
from tauspan.store.tensors import DTYPES, INDEX_SUFFIX, LONGEST_HEADER, tensor_header, write_tensors
from tauspan.store.uploading import CARD, files_in, is_hub_id, upload
from tauspan.store.values import ACCESS, Access, Values
from tauspan.store.writer import (
    MODEL,
    Entry,
    Layout,
    Writer,
    full,
    is_full,
    layout,
    stream_shards,
    stream_tensors,
)

__all__ = [
    "ACCESS", "CARD", "DTYPES", "INDEX_SUFFIX", "LOCK", "LONGEST_HEADER", "MODEL", "PICKLE_SUFFIXES", "STEMS",
    "Access", "Checkpoint", "Entry", "Header", "Layout", "Stored", "Values", "Writer", "atomic", "damaged",
    "fetched", "files_in", "full", "is_full", "is_hub_id", "is_url", "layout", "located", "locked", "publish",
    "read_header", "read_json", "refuse_gguf", "refuse_pickle", "require_apart", "require_folder", "require_free",
    "stream_shards", "stream_tensors", "tensor_header", "upload", "write_json", "write_tensors", "write_text",
]  # fmt: skip
