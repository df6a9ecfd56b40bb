"""Reading JSON, and named tensors lazily; files that could run code are refused without being read."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tauspan.core.errors import ModelError, PickleRefusedError, StoreError, listed
from tauspan.store.tensors import DTYPES, INDEX_SUFFIX, LONGEST_HEADER

STEMS = ("model", "diffusion_pytorch_model", "open_clip_model")
"""What transformers, diffusers and open_clip call a model's weights, in the order in which a folder is looked at."""
_BESIDE = (
    "vector.safetensors",
    "adapter_model.safetensors",
)  # files that an edit or an adapter adds to a model's folder
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".mar")


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
    # a safetensors file starts with its header's length, and a length of 640 has the same bytes as a pickle's start
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
        >>> from tauspan.store import write_tensors
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

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """All tensors, or those with the given names; each file is opened once."""
        wanted = list(self._file_of) if names is None else list(names)
        tensors: dict[str, Tensor] = {}
        for file, inside in self._by_file(wanted).items():
            with _opened(file) as handle:
                tensors.update({name: handle.get_tensor(name) for name in inside})
        return {name: tensors[name] for name in wanted}

    def first(self, name: str) -> Tensor:
        """The first row of a tensor, or a scalar; only that row is read."""
        with _opened(self._file_of[name]) as handle:
            part = handle.get_slice(name)
            tensor: Tensor = part[:1] if part.get_shape() else handle.get_tensor(name)
        return tensor

    def kinds(self) -> dict[str, tuple[torch.dtype, torch.Size]]:
        """Dtype and shape of every tensor; only headers are read."""
        found: dict[str, tuple[torch.dtype, torch.Size]] = {}
        for file, inside in self._by_file(self._file_of).items():
            with _opened(file) as handle:
                for name in inside:
                    part = handle.get_slice(name)
                    dtype, shape = part.get_dtype(), torch.Size(part.get_shape())
                    if dtype not in DTYPES:
                        raise StoreError(
                            f"tensor {name!r} of {file} has the dtype {dtype!r}, which this version does not read."
                        )
                    found[name] = DTYPES[dtype], shape
        return {name: found[name] for name in self._file_of}

    def _by_file(self, names: Iterable[str]) -> dict[Path, list[str]]:
        inside: dict[Path, list[str]] = {}
        for name in names:
            if name not in self._file_of:
                raise StoreError(f"{self.path} has no tensor {name!r}; it has {listed(self._file_of)}.")
            inside.setdefault(self._file_of[name], []).append(name)
        return inside


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
    """The error of a damaged safetensors file, to be raised."""
    return StoreError(
        f"{file} is not a whole safetensors file ({reason}; {file.stat().st_size} bytes on disk). "
        "It was cut short or damaged: copy or create it again."
    )


def located(path: Path, names: Callable[[Path], Iterable[str]]) -> dict[str, Path]:
    """The file of each tensor: one file, or the shards of a directory or an index.

    Args:
        path: a `.safetensors` file, an `.index.json`, or a directory that holds one of them.
        names: returns the names of the tensors in a file; called once per file.

    Raises:
        StoreError: no weights, several sets of weights, an index that does not fit its shards, or a tensor in two shards.
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
    """The files with weights, each with the tensors that an index lists for it."""
    if path.is_dir():
        for stem in STEMS:  # in the order of the libraries: the single file first, then the index
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
    """All shards of a model that was saved without an index; empty if the files are not shards.

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
    ) as error:  # not UTF-8, nested too deeply, or a number with too many digits
        raise StoreError(f"{path} cannot be read as JSON: {error}.") from error
