"""Models and displacements in files, opened by their headers and read entry by entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.errors import ModelError, StoreError, UsageError
from tauspan.merge.lora.adapter_config import CONFIG
from tauspan.merge.lora.adapters import WEIGHTS as ADAPTER
from tauspan.merge.lora.adapters import AdapterSource
from tauspan.merge.lora.lora_files import LoraFile, is_lora
from tauspan.merge.sources.adapted import adapted
from tauspan.merge.sources.source import Kind, Source, aliases_of, config_of, found, model_folder
from tauspan.models import folders
from tauspan.models.sources import model_directory
from tauspan.store import Access, Header, Stored, Values, read_header
from tauspan.vector import FILE, parse_header

_QUANTISED = (
    ".qweight",
    ".qzeros",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_packed",
    ".input_scale",
)


_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)


@dataclass(frozen=True, eq=False)
class FileSource:
    """A source whose tensors are in safetensors files: a model's weights, or a task vector."""

    label: str
    path: Path
    kind: Kind
    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str]
    identity: Mapping[str, Any]
    values: Values = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor, in its stored dtype, bit for bit."""
        return self.values.read(found(self, name), start, stop)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self.values.close()


def open_source(path: str | Path, *, access: Access = "pread", label: str | None = None) -> Source:
    """Open a model or a displacement by its headers; no values are read.

    Args:
        path: a safetensors file; a directory with one, or with shards and their index, of several sets the one that its
            library loads; a task vector's file or directory; a PEFT adapter's directory, or its `adapter_config.json`
            where whole weights are beside it; `"minilm"`; an id `org/name@revision` on the hub, or one file or folder of
            it, `org/name@revision:PATH`; a URL that fsspec knows (`s3://bucket/model`), of which values are read by
            ranges, as they are needed; or `"MODEL+ADAPTER"`, the model with the adapter's displacement added.
        access: `mmap` shares the file's pages, `pread` copies; see `Values`.
        label: a short name; the vector's own, else the last part of the path, when None.

    Raises:
        StoreError: not there, cut short, damaged, or an index that does not fit its shards.
        PickleRefusedError: a pickle.
        ModelError: GGUF or quantised weights, or an id that cannot be fetched.

    Cost: one open and one JSON parse per file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tuned.safetensors"
        >>> store.write_tensors(file, {"w": torch.arange(6.0).view(2, 3)})
        >>> source = open_source(file)
        >>> source.label, source.kind, source.read("w", 2, 4)
        ('tuned', 'point', tensor([2., 3.]))
    """
    place, text = Path(path), str(path)
    model, adapter = halves(text)
    if adapter is not None:
        return _sum(model, adapter, access, label)
    if not place.exists():
        place = _fetched(text)
        label = label or (
            place.name if store.is_url(text) else text.partition(":")[0].partition("@")[0].rpartition("/")[2]
        )
    factors = adapter_folder(place)
    if factors is not None:
        return AdapterSource(factors, access=access, label=label)
    if (place / FILE).is_file() and not _has_weights(place):
        place = place / FILE
    return _files(place, text, access, label)


def halves(name: str) -> tuple[str, str | None]:
    """The model and the adapter of `MODEL+ADAPTER`; None where the name is one model, whose path or URL may have a plus.

    Behind the plus of a URL an adapter is another URL, or a path that is there.
    """
    model, plus, adapter = name.rpartition("+")
    if not plus or Path(name).exists():
        return name, None
    if store.is_url(model) and not (store.is_url(adapter) or Path(adapter).exists()):
        return name, None
    return model, adapter


def _fetched(text: str) -> Path:
    """The local place of a name that is no path: packaged or on the hub, where `id:PATH` names one file or folder.

    Raises:
        ModelError: it cannot be fetched, or has no such file.
    """
    if store.is_url(text):
        return store.fetched(text, False)
    name, colon, inner = text.partition(":")
    if not colon and text.endswith((".safetensors", ".json")):
        return Path(text)  # a file that does not exist: opening it raises the error
    folder = model_directory(name, only=inner.strip("/")) if colon else model_directory(name)
    place = folder / inner.strip("/")
    if ".." in Path(inner).parts or not place.exists():
        raise ModelError(
            f"{name!r} has no {inner!r}. It is a path inside the repository, such as {name}:unet."
        )
    return place


def adapter_folder(place: Path) -> Path | None:
    """The directory of the PEFT adapter that a path means; None if it means something else.

    A directory that also holds a whole model means the model; its `adapter_config.json` then means the adapter.
    """
    if place.name in (CONFIG, ADAPTER) and (place.parent / CONFIG).is_file():
        return place.parent
    return place if (place / CONFIG).is_file() and not _has_weights(place) else None


def _has_weights(directory: Path) -> bool:
    """Whether the directory holds a whole model besides the files of an adapter or a vector."""
    others = {FILE, ADAPTER}
    if folders.modules(directory):
        return True
    names = {file.name for file in directory.iterdir()}
    return any(name.endswith((".safetensors", store.INDEX_SUFFIX)) for name in names - others)


def _sum(model: str, change: str, access: Access, label: str | None) -> Source:
    factors = adapter_folder(Path(change))
    point = open_source(model, access=access)
    moved: Source
    if factors is not None:
        moved = AdapterSource(factors, access=access, whole=True)
    else:
        moved = open_source(change, access=access)
    if point.kind != "point" or moved.kind != "delta":
        raise UsageError(
            f"'{model}+{change}' is a {point.kind} + a {moved.kind} (a point is a model, a delta a displacement), and "
            "must be MODEL+ADAPTER: name the model first and its adapter second."
        )
    return adapted(point, moved, label or f"{point.label}+{moved.label}")


def _files(place: Path, given: str, access: Access, label: str | None) -> Source:
    headers: dict[Path, Header] = {}

    def names(file: Path) -> Sequence[str]:
        headers[file] = read_header(file)
        return list(headers[file].tensors)

    main = folders.main_folder(place) if place.is_dir() else place
    tensors = {}
    whole = {"" if main == place else f"{main.relative_to(place)}": main}
    for folder, weights in {**whole, **(folders.parts(place) if place.is_dir() else {})}.items():
        for name, file in store.located(weights, names).items():
            inner = f"{folder}/{name}" if folder else name
            stored = headers[file].tensors[name]
            tensors[inner] = replace(stored, name=inner) if folder else stored
    if any(name.startswith("base_model.") and ".lora_" in name for name in tensors):
        return _peft_file(place, access, label)
    if is_lora(tensors):
        ((file, one),) = headers.items()
        return LoraFile(file, one, access, label)
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
    identity = described(given, headers)
    commit = next((one.name for one in (place, *place.parents) if one.parent.name == "snapshots"), None)
    if commit is not None:  # in the hub's cache the folder has the commit's name
        identity["commit"] = commit
    if "tauspan" in metadata:
        vector = parse_header(metadata["tauspan"], place)
        identity |= {"base": vector["base"], "regime": vector["regime"]}
        if vector["regime"] == "linear" and isinstance(vector["info"].get("point"), str):
            identity["point"] = vector["info"]["point"]
        return FileSource(label or vector["label"], place, "delta", tensors, {}, identity, Values(access))
    config = config_of(place)
    refuse_quantised(place, tensors, config)
    name = label or (model_folder(place) or place.with_suffix("")).absolute().name
    aliases = aliases_of(tensors, metadata, config)
    return FileSource(name, place, "point", tensors, aliases, identity, Values(access), metadata)


def _peft_file(place: Path, access: Access, label: str | None) -> Source:
    """The adapter whose factors are in a file that is opened by its own name."""
    folder = place if place.is_dir() else place.parent
    if not (folder / CONFIG).is_file():
        raise StoreError(
            f"{place} holds the factors of a PEFT adapter, and {CONFIG}, which scales them, is not beside it: copy it "
            "too."
        )
    return AdapterSource(folder, access=access, label=label)


def described(given: str, headers: Mapping[Path, Header]) -> dict[str, Any]:
    """The identity of files: the path as given, and of each file size and hash of the header."""
    files = [
        {"name": file.name, "bytes": header.nbytes, "header_sha256": header.sha256}
        for file, header in headers.items()
    ]
    return {"path": given, "files": files}


def refuse_quantised(place: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> None:
    """Raise `ModelError` if weights are stored as codes, whose sums mean nothing."""
    repair = (
        "Merging needs real weights: take the original checkpoint, or dequantise it: "
        "`from_pretrained(dir).dequantize()` in transformers, then `save_pretrained(out)`."
    )
    real = all(stored.dtype.itemsize > 1 for stored in tensors.values() if stored.dtype.is_floating_point)
    codes = [name for name, stored in tensors.items() if _holds_codes(name, stored)]
    quantised = config.get("quantization_config") if codes or not real else None
    if quantised:
        how = quantised.get("quant_method", "unnamed") if isinstance(quantised, dict) else quantised
        raise ModelError(f"{place} is quantised: config.json has `quantization_config` ({how}). {repair}")
    for name in codes:
        stored = tensors[name]
        dtype = str(stored.dtype).removeprefix("torch.")
        raise ModelError(f"{stored.file} is quantised: it holds {name!r} ({dtype}). {repair}")


def _holds_codes(name: str, stored: Stored) -> bool:
    """Whether a tensor holds codes, or what turns codes into weights."""
    codes = name.endswith("weight") and len(stored.shape) > 1 and stored.dtype in _INTEGERS
    return codes or name.endswith(_QUANTISED) or ".quant_state." in name
