"""Files: reading named tensors lazily, writing atomically, refusing what could harm.

Only safetensors is read. A file appears under its final name complete or not at all: everything is written
to a temporary neighbour, flushed to the disk and renamed.
"""

import fcntl
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tauspan.errors import ModelError, PickleRefusedError, StoreError, listed
from tauspan.params import Params

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mar")
_TEMPORARY = ".part"
_REPLACED = ".old"
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
    # a safetensors file starts with the length of its header, and 640 is spelt like a pickle's first bytes
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


class Checkpoint:
    """Named tensors in one safetensors file, or in the shards of a directory, read one by one.

    Args:
        path: a `.safetensors` file, an `.index.json`, or a directory that holds one of them.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_tensors(file, {"w": torch.ones(2)})
        >>> Checkpoint(file)["w"]
        tensor([1., 1.])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._file_of = located(self.path, self._names)

    def _names(self, file: Path) -> list[str]:
        with _opened(file) as handle:
            self.metadata.update(handle.metadata() or {})
            return list(handle.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file_of:
            raise StoreError(f"{self.path} has no tensor {name!r}; it has {listed(self._file_of)}.")
        with _opened(self._file_of[name]) as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    def read(self) -> dict[str, Tensor]:
        """All tensors at once, each file opened once."""
        tensors: dict[str, Tensor] = {}
        for file in dict.fromkeys(self._file_of.values()):
            with _opened(file) as handle:
                tensors.update({name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
        return {name: tensors[name] for name in self._file_of}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except StoreError:
        raise
    except SafetensorError as error:
        raise damaged(file, str(error)) from error
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error}.") from error


def damaged(file: Path, reason: str) -> StoreError:
    """The error for a file that is not what safetensors writes."""
    return StoreError(
        f"{file} is not a whole safetensors file ({reason}; {file.stat().st_size} bytes on disk). "
        "It was cut short or damaged: copy or create it again."
    )


def located(path: Path, names: Callable[[Path], Iterable[str]]) -> dict[str, Path]:
    """Where each tensor lies: one file, or the shards of a directory or an index.

    Args:
        path: a `.safetensors` file, an `.index.json`, or a directory that holds one of them.
        names: opens one file and gives the names of its tensors; called once a file.

    Raises:
        StoreError: nothing there, several sets of weights, an index that does not fit its shards, or a tensor in
            two of them.
        PickleRefusedError: the weights are there only as a pickle.
        ModelError: the weights are there only as GGUF.
    """
    file_of: dict[str, Path] = {}
    for file, promised in _weight_files(path).items():
        found = list(names(file))
        missing = sorted(set(promised) - set(found))
        if missing:
            raise StoreError(
                f"the index of {path} says that {file.name!r} holds {listed(missing)}, and it does not: the shards "
                "come from another save. Download or copy all of them again."
            )
        for name in found:
            if name in file_of:
                raise StoreError(f"tensor {name!r} stands in {file_of[name]} and again in {file}.")
            file_of[name] = file
    return file_of


def _weight_files(path: Path) -> dict[Path, list[str]]:
    """The files with weights, each with the tensors that an index promises there."""
    if path.is_dir():
        indexes = sorted(path.glob("*" + INDEX_SUFFIX))
        singles = sorted(file for file in path.glob("*.safetensors") if file.name != "vector.safetensors")
        if len(indexes or singles) > 1:
            names = listed(file.name for file in indexes or singles)
            kind = "indexes" if indexes else "weight files and no index"
            raise StoreError(f"{path} holds several {kind} ({names}): name one of them.")
        if indexes:
            return _shards(indexes[0])
        if singles:
            return {singles[0]: []}
        for file in sorted(path.iterdir()):
            if file.suffix in PICKLE_SUFFIXES:
                refuse_pickle(file)
            refuse_gguf(file)
        found = listed(sorted(file.name for file in path.iterdir())) or "nothing"
        raise StoreError(f"{path} holds no .safetensors weights; found {found}.")
    if not path.exists():
        raise StoreError(f"{path} does not exist.")
    if path.name.endswith(INDEX_SUFFIX):
        return _shards(path)
    refuse_pickle(path)
    refuse_gguf(path)
    return {path: []}


def _shards(index: Path) -> dict[Path, list[str]]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise StoreError(f"{index} has no `weight_map` from tensor names to files.")
    root = index.parent.resolve()
    promised: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        promised.setdefault(str(shard), []).append(tensor)
    for name in promised:
        if Path(name).name != name:
            raise StoreError(f"{index} points to {name!r}; shards must lie in the index's own directory.")
        if not (root / name).is_file():
            raise StoreError(
                f"{index} names the shard {name!r}, which is not there: download or copy it again."
            )
    return {root / name: tensors for name, tensors in promised.items()}


def read_json(path: Path) -> Any:
    """The content of a JSON file, or a `StoreError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist.") from error
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # bytes that are no UTF-8, too deep, too many digits
        raise StoreError(f"{path} cannot be read as JSON: {error}.") from error


def require_free(path: Path, overwrite: bool) -> None:
    """Raise `StoreError` if something lies at `path` and `overwrite` is false."""
    if path.exists() and not overwrite:
        raise StoreError(f"{path} is already there. Choose another output, or say `overwrite` (--overwrite).")


@contextmanager
def atomic(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary neighbour of `path`; when the block ends well it becomes `path`, else it is removed.

    The block may make the temporary path a file or a directory. A directory replaces an older one whole. What a
    killed process left while it wrote the same path is removed.

    Raises:
        StoreError: something is already there and `overwrite` is false, or writing failed (a full disk, a
            read-only directory); nothing is left behind then.
    """
    path = Path(path)
    require_free(path, overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent))
        with locked(temporary):
            inner = temporary / path.name
            yield inner
            publish(inner, path, overwrite=overwrite)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} could not be written: {error}. Nothing was left behind.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def publish(inner: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished file or directory its final name; its folder must be on the same disk and has room beside it.

    Raises:
        StoreError: something is already there and `overwrite` is false: another process may have been faster.
    """
    require_free(path, overwrite)
    _settle(inner, inner.with_name(f"{path.name}.mode"))
    _move(inner, path, inner.with_name(f"{path.name}{_REPLACED}"))
    _flush_directory(path.parent)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder or file, which the system frees when the process dies.

    Yields whether it was had: at once, or with `wait` after any others that held it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except OSError:  # held by a living process, or the file system knows no locks
            free = False
        yield free
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left while they wrote this very path.

    A folder is theirs if it has the name that `atomic` gives, holds something and is not locked: a living writer
    locks its folder before it writes there. One that still holds both the new and the replaced output is kept,
    since the process ended between two renames and nothing else may hold the old one.
    """
    ours = re.compile(rf"\.{re.escape(path.name)}\.\w+{re.escape(_TEMPORARY)}")
    for folder in path.parent.iterdir():
        if not ours.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError), locked(folder) as free:
            held = {entry.name for entry in folder.iterdir()}
            if free and held and not {path.name, f"{path.name}{_REPLACED}"} <= held:
                shutil.rmtree(folder)


def _settle(path: Path, probe: Path) -> None:
    """Flush every file, with the permissions a plain new file gets: safetensors lets only the owner read."""
    probe.touch()
    mode = probe.stat().st_mode
    inside = [path] if path.is_file() else path.rglob("*")
    for file in (entry for entry in inside if entry.is_file() and not entry.is_symlink()):
        file.chmod(mode)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _move(inner: Path, path: Path, old: Path) -> None:
    """Rename; an older directory makes way first, and comes back if nothing could take its place."""
    if not path.is_dir():
        inner.replace(path)
        return
    path.rename(old)
    try:
        inner.replace(path)
    finally:
        if not path.exists():
            old.rename(path)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        # an empty mapping of both would make safetensors write a file that it cannot read
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


def stream_tensors(
    path: str | Path,
    kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """`write_tensors` of tensors that come one by one, in the order of `kinds`; one at a time is held.

    Args:
        path: the file; an older one is replaced.
        kinds: dtype and shape of each tensor by name.
        tensors: their values, on any device.
        metadata: text by text.
    """
    header, starts = tensor_header(kinds, metadata)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(header)
        for start, tensor in zip((starts[name] for name in kinds), tensors, strict=True):
            file.seek(start)
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def write_text(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file atomically."""
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, *, overwrite: bool = True) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(
        path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", overwrite=overwrite
    )
