"""Read named tensors lazily, and JSON files; formats that could run code are refused without being read."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import StoreError, listed
from tauspan.store.headers import PICKLE_SUFFIXES, Stored, read_header, refuse_gguf, refuse_pickle
from tauspan.store.tensors import INDEX_SUFFIX
from tauspan.store.values import Access, Values

STEMS = ("model", "diffusion_pytorch_model", "open_clip_model")
"""What transformers, diffusers and open_clip call a model's weights, in the order in which a folder is looked at."""
_BESIDE = (
    "vector.safetensors",
    "adapter_model.safetensors",
)  # what an edit or an adapter keeps beside a model
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


class Checkpoint:
    """Named tensors in one safetensors file, or in the shards of a directory, read one by one.

    Args:
        path: a `.safetensors` file, an `.index.json`, or a directory that holds one of them.
        access: `pread` copies what is read, `mmap` shares the file's pages; see `Values`.

    Example:
        >>> import tempfile, torch
        >>> from tauspan.store import write_tensors
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_tensors(file, {"w": torch.ones(2)})
        >>> Checkpoint(file)["w"]
        tensor([1., 1.])
    """

    def __init__(self, path: str | Path, access: Access = "pread") -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.stored: dict[str, Stored] = {}
        self._values = Values(access)
        located(self.path, self._names)

    def _names(self, file: Path) -> list[str]:
        header = read_header(file)
        self.metadata.update(header.metadata)
        names = sorted(header.tensors)
        self.stored.update((name, header.tensors[name]) for name in names)
        return names

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __getitem__(self, name: str) -> Tensor:
        return self.read([name])[name]

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The named tensors at once, by name; None reads all of them."""
        wanted = [self._found(name) for name in (self.stored if names is None else names)]
        try:
            return {one.name: self._values.read(one, 0, one.shape.numel()).view(one.shape) for one in wanted}
        finally:
            self._values.close()

    def first(self, name: str) -> Tensor:
        """The first row of a tensor, or all of a scalar; nothing else of it is read."""
        one = self._found(name)
        shape = torch.Size([min(1, one.shape[0]), *one.shape[1:]]) if one.shape else one.shape
        try:
            return self._values.read(one, 0, shape.numel()).view(shape)
        finally:
            self._values.close()

    def kinds(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        """Dtype and shape of every tensor; no value is read."""
        return {name: (one.dtype, one.shape) for name, one in self.stored.items()}

    def _found(self, name: str) -> Stored:
        if name not in self.stored:
            raise StoreError(f"{self.path} has no tensor {name!r}; it has {listed(self.stored)}.")
        return self.stored[name]


def located(path: Path, names: Callable[[Path], Iterable[str]]) -> dict[str, Path]:
    """The file of each tensor, by name: a single file, or the shards of a directory or an index.

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
    """The files with weights, each with the names of the tensors that an index lists for it."""
    if path.is_dir():
        for stem in STEMS:  # as the libraries decide: the single file first, then the index
            if (path / f"{stem}.safetensors").is_file():
                return {path / f"{stem}.safetensors": []}
            if (path / (stem + INDEX_SUFFIX)).is_file():
                return _shards(path / (stem + INDEX_SUFFIX))
        indexes = sorted(path.glob("*" + INDEX_SUFFIX))
        singles = sorted(file for file in path.glob("*.safetensors") if file.name not in _BESIDE)
        shards = _complete(path, singles)
        if not indexes and shards:
            return {file: [] for file in shards}
        if len(indexes or singles) > 1:
            names = listed(file.name for file in indexes or singles)
            kind = "indexes" if indexes else "weight files and no index"
            example = (indexes or singles)[0]
            raise StoreError(
                f"{path} holds several {kind} ({names}): name one of them, for example {str(example)!r}."
            )
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


def _complete(path: Path, files: list[Path]) -> list[Path]:
    """All files, if they are the shards of one save whose index is missing; none if they are no such shards.

    Raises:
        StoreError: some are missing.
    """
    found = [_SHARD.fullmatch(file.name) for file in files]
    matches = [match for match in found if match is not None]
    if len(matches) < len(files) or not files:
        return []
    stems, counts = ({match[part] for match in matches} for part in (1, 3))
    if len(stems) > 1 or len(counts) > 1:
        return []
    total = int(next(iter(counts)))
    there = {int(match[2]) for match in matches}
    lacking = sorted(set(range(1, total + 1)) - there)
    if lacking:
        raise StoreError(
            f"{path} holds {len(files)} of {total} shards and no index; number {listed(map(str, lacking))} is missing. "
            "Download or copy it again."
        )
    return files


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
        raise StoreError(
            f"{path} cannot be read as JSON: {error}. Repair the file, or write or download it anew."
        ) from error
