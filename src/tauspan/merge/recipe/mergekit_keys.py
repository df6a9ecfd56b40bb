"""The keys of a mergekit 0.1.5 file, and what happens to other keys."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from tauspan.core.errors import RecipeError
from tauspan.core.schema import Document
from tauspan.core.strict_yaml import spelled

KeyPath = tuple[str | int, ...]
_OTHERS = {
    "experts": "mergekit-moe, which makes a mixture of experts of dense models. That is no merge of weights: it needs "
    "prompts and forward passes, and tauspan does not do it",
    "gate_mode": "mergekit-moe, which makes a mixture of experts of dense models. That is no merge of weights: it needs "
    "prompts and forward passes, and tauspan does not do it",
    "genome": "mergekit-evolve, which searches options by evaluating merges. Search with `tauspan.coefficients` instead",
    "layer_slices": "mergekit's bakllama, an older form. Write its slices as `slices` with `sources` of `model` and "
    "`layer_range`",
}
"""Keys that belong to other programs of mergekit, each with what that program is."""
_SIMILAR = 0.8  # similarity from which an unknown key counts as a known one misspelt


def _raw(value: Any, _: str) -> Any:
    return value


def reference(value: Any, place: str) -> str | None:
    """A model as text, of the mapping that mergekit writes too: `{model: {path: P, revision: R}, lora: ...}`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Mapping):
        path = value.get("path", value.get("model"))
        if isinstance(path, Mapping | str):
            revision = value.get("revision") if "path" in value else None
            text = f"{reference(path, place)}@{revision}" if revision else str(reference(path, place))
            lora = value.get("lora")
            return text if lora is None else f"{text}+{reference(lora, place)}"
    raise RecipeError(
        f"{place} is {spelled(value)}, and must be a model: a text, or a mapping with `model` or `path`."
    )


def _source(value: Any, place: str) -> str:
    found = reference(value, place)
    if not found:
        raise RecipeError(f"{place} is {spelled(value)}, and must be a model.")
    return found


def _layers(value: Any, place: str) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else []
    whole = [int(one) for one in numbers if isinstance(one, int | float) and float(one).is_integer()]
    if len(whole) != len(numbers) or len(numbers) != 2:
        raise RecipeError(f"{place} is {spelled(value)}, and must be [FIRST, END].")
    return tuple(whole)


@dataclass(frozen=True)
class MergekitModel:
    """A model with its parameters."""

    model: str = field(metadata={"parse": _source})
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})


@dataclass(frozen=True)
class MergekitSource(MergekitModel):
    """A source of a slice."""

    layer_range: tuple[int, ...] = field(default=(), metadata={"parse": _layers})


@dataclass(frozen=True)
class MergekitSlice:
    """A slice of the output."""

    sources: tuple[MergekitSource, ...]
    base_model: str | None = field(default=None, metadata={"parse": reference})
    residual_weight: Any = field(default=None, metadata={"parse": _raw})
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})


@dataclass(frozen=True)
class MergekitModule:
    """One module of a model of several."""

    slices: tuple[MergekitSlice, ...] | None = None
    models: tuple[MergekitModel, ...] | None = None
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})


@dataclass(frozen=True)
class MergekitTokenizer:
    """The tokenizer."""

    source: str | None = field(default="union", metadata={"parse": reference})
    tokens: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class MergekitFile:
    """The whole file."""

    merge_method: str
    models: tuple[MergekitModel, ...] | None = None
    slices: tuple[MergekitSlice, ...] | None = None
    modules: Mapping[str, MergekitModule] = field(default_factory=dict)
    base_model: str | None = field(default=None, metadata={"parse": reference})
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = field(default=None, metadata={"parse": reference})
    tokenizer: MergekitTokenizer | None = None
    chat_template: str | None = None
    parameters: Mapping[str, Any] | None = field(default=None, metadata={"parse": _raw})
    allow: tuple[str, ...] = ()


_INSIDE: Mapping[str, type] = {
    "models": MergekitModel,
    "slices": MergekitSlice,
    "sources": MergekitSource,
    "modules": MergekitModule,
    "tokenizer": MergekitTokenizer,
}


def read_file(document: Document) -> tuple[MergekitFile, tuple[str, ...]]:
    """The file in a document, and notes about keys that mergekit does not read.

    mergekit ignores any key that it does not know; a key that looks misspelt is an error here.

    Raises:
        RecipeError: the file is of another of mergekit's programs, or a key or value is wrong; with the line.
    """
    for key, program in _OTHERS.items():
        if key in document.plain:
            raise RecipeError(f"{document.place(key)}: {key!r} is a key of {program}.")
    notes: list[str] = []
    plain = _kept_keys(document.plain, MergekitFile, (), document, notes)
    return document.with_plain(plain).build(MergekitFile), tuple(notes)


def _kept_keys(value: Any, kind: type, path: KeyPath, document: Document, notes: list[str]) -> Any:
    """A mapping without the keys that its dataclass lacks, in the mappings and lists inside it too."""
    if not isinstance(value, Mapping):
        return value
    names = {one.name for one in fields(kind)} if is_dataclass(kind) else set()
    kept = {}
    for key, inner in value.items():
        if inner is None:
            continue
        if key not in names:
            notes += _unknown(str(key), sorted(names), path, document)
            continue
        below = _INSIDE.get(str(key))
        kept[key] = inner if below is None else _below(inner, below, (*path, str(key)), document, notes)
    return kept


def _below(value: Any, kind: type, path: KeyPath, document: Document, notes: list[str]) -> Any:
    if isinstance(value, list):
        return [_kept_keys(one, kind, (*path, at), document, notes) for at, one in enumerate(value)]
    if kind is MergekitModule and isinstance(value, Mapping):
        return {
            name: _kept_keys(one, kind, (*path, str(name)), document, notes) for name, one in value.items()
        }
    return _kept_keys(value, kind, path, document, notes)


def slip(key: str, names: Iterable[str]) -> str | None:
    """The known name that a key is probably meant to be; None if it resembles none of them.

    Example:
        >>> slip("dtpye", ["dtype"]), slip("name", ["dtype"])
        ('dtype', None)
    """
    return next(iter(difflib.get_close_matches(key, list(names), 1, _SIMILAR)), None)


def _unknown(key: str, names: Sequence[str], path: KeyPath, document: Document) -> list[str]:
    """A note about a key that mergekit does not read; an error if it looks misspelt."""
    place = document.place(*path, key)
    near = slip(key, names)
    full = ".".join([*map(str, path), key])
    if near:
        raise RecipeError(f"{place}: unknown key {full!r}. Did you mean {near!r}?")
    more = " To take a revision, write MODEL@REVISION." if key == "revision" else ""
    more = " Seeds are given by `--seed`." if key in ("random_seed", "seed") else more
    return [f"{place}: mergekit 0.1.5 does not read {full!r}, and neither does this merge.{more}"]
