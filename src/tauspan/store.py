"""Files: reading named tensors lazily, writing atomically, refusing what could harm.

Only safetensors is read. A file appears under its final name complete or not at all: everything is written
to a temporary neighbour, flushed to the disk and renamed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tauspan.errors import PickleRefusedError, StoreError, listed
from tauspan.params import Params

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mar")


def refuse_pickle(path: Path) -> None:
    """Raise `PickleRefusedError` if the file's name or first bytes say that it is a pickle."""
    looks = path.suffix.lower() in PICKLE_SUFFIXES
    if not looks and path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
        looks = head[:2] == b"\x80\x02" or head == b"PK\x03\x04"
    if looks:
        raise PickleRefusedError(
            f"{path} is a pickle, and opening a pickle can run any code its author put there. Convert it where "
            "you trust it: `model.save_pretrained(dir)` in transformers writes safetensors, or "
            "`safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')`."
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
        files = _weight_files(self.path)
        self._file_of: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            with _opened(file) as handle:
                self.metadata.update(handle.metadata() or {})
                for name in handle.keys():  # noqa: SIM118 - the handle is not a mapping
                    if name in self._file_of:
                        raise StoreError(f"tensor {name!r} stands in {self._file_of[name]} and again in {file}.")
                    self._file_of[name] = file

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
    except SafetensorError as error:
        raise StoreError(
            f"{file} is not a whole safetensors file ({error}; {file.stat().st_size} bytes on disk). "
            "It was cut short or damaged: copy or create it again."
        ) from error


def _weight_files(path: Path) -> list[Path]:
    if path.is_dir():
        indexes = sorted(path.glob("*" + INDEX_SUFFIX))
        singles = sorted(file for file in path.glob("*.safetensors") if file.name != "vector.safetensors")
        if indexes:
            return _shards(indexes[0])
        if len(singles) == 1:
            return singles
        if len(singles) > 1:
            names = listed(file.name for file in singles)
            raise StoreError(f"{path} holds several weight files and no index ({names}): name one of them.")
        for file in sorted(path.iterdir()):
            if file.suffix in PICKLE_SUFFIXES:
                refuse_pickle(file)
        raise StoreError(f"{path} holds no .safetensors weights; found {listed(p.name for p in path.iterdir())}.")
    if not path.exists():
        raise StoreError(f"{path} does not exist.")
    if path.name.endswith(INDEX_SUFFIX):
        return _shards(path)
    refuse_pickle(path)
    return [path]


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise StoreError(f"{index} has no `weight_map` from tensor names to files.")
    root = index.parent.resolve()
    files = []
    for name in dict.fromkeys(str(value) for value in weight_map.values()):
        file = root / name
        if Path(name).name != name:
            raise StoreError(f"{index} points to {name!r}; shards must lie in the index's own directory.")
        if not file.is_file():
            raise StoreError(f"{index} names the shard {name!r}, which is not there: download or copy it again.")
        files.append(file)
    return files


def read_json(path: Path) -> Any:
    """The content of a JSON file, or a `StoreError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{path} cannot be read as JSON: {error}.") from error


def require_free(path: Path, overwrite: bool) -> None:
    """Raise `StoreError` if something lies at `path` and `overwrite` is false."""
    if path.exists() and not overwrite:
        raise StoreError(f"{path} is already there. Choose another output, or say `overwrite` (--overwrite).")


@contextmanager
def atomic(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary neighbour of `path`; when the block ends well it becomes `path`, else it is removed.

    The block may make the temporary path a file or a directory. A directory replaces an older one whole.

    Raises:
        StoreError: something is already there and `overwrite` is false, or writing failed (a full disk, a
            read-only directory); nothing is left behind then.
    """
    path = Path(path)
    require_free(path, overwrite)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        inner = temporary / path.name
        yield inner
        _flush(inner)
        if path.is_dir():
            path.rename(temporary / "old")
        inner.replace(path)
        _flush_directory(path.parent)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} could not be written: {error}. Nothing was left behind.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


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
        save_file(ready, temporary, metadata=dict(metadata or {}))


def write_text(path: str | Path, text: str, *, overwrite: bool = True) -> None:
    """Write a text file atomically."""
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, *, overwrite: bool = True) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", overwrite=overwrite)
