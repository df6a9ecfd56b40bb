"""Merges by slices: layers of several models stacked into one, seen as ordinary sources with the output's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tauspan.errors import MismatchError, ModelError, listed
from tauspan.merge.headers import Stored
from tauspan.merge.inputs import Kind, Source
from tauspan.merge.method import Method
from tauspan.merge.recipe import Layers, Slice
from tauspan.merge.settings import Setting, Settings, outermost, stacks
from tauspan.merge.spelling import within

_FIRST = ("emb", "wte", "wpe", "tok")  # in names of what stands before the layers; all else stands after them


@dataclass(frozen=True, eq=False)
class View:
    """Layers of several sources as one source: a point whose tensors have the output's names."""

    label: str
    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str]
    parts: Mapping[str, tuple[Source, str]]
    sources: tuple[Source, ...]
    kind: Kind = "point"

    @property
    def path(self) -> Path:
        """The first source's."""
        return self.sources[0].path

    @property
    def identity(self) -> Mapping[str, Any]:
        """All sources', in order."""
        return {"slices": [source.identity for source in self.sources]}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor."""
        source, inner = self.parts[name]
        return source.read(inner, start, stop)

    def close(self) -> None:
        """Let go of the files of all sources."""
        for source in self.sources:
            source.close()


@dataclass(frozen=True)
class Sliced:
    """Options tensor by tensor where each slice has its own; the same call as `Settings.at`.

    A gradient runs over the layers of its slice. What stands before the layers has the first slice's options, what
    stands after them the last one's.
    """

    stack: str
    counts: tuple[int, ...]
    each: tuple[Settings, ...]

    def at(self, name: str, depth: float | None) -> dict[str, Any]:
        """The options as they hold for one tensor of the output."""
        layer = _layer(name, self.stack)
        if layer is None:
            return (self.each[0] if _before(name) else self.each[-1]).at(name, None)
        for count, settings in zip(self.counts, self.each, strict=True):
            if layer < count:
                return settings.at(name, layer / (count - 1) if count > 1 else 1.0)
            layer -= count
        raise MismatchError(f"{name!r} lies beyond the {sum(self.counts)} layers of the slices.")


def sliced(method: Method, parts: Sequence[Slice], common: Mapping[str, Setting], stack: str) -> Sliced:
    """The options of a merge by slices: a source's before its slice's, those before the common ones."""
    each = tuple(
        Settings(
            method,
            len(part.sources),
            within(part.parameters, common),
            [source.parameters for source in part.sources],
        )
        for part in parts
    )
    return Sliced(stack, tuple(part.count for part in parts), each)


def the_stack(source: Source) -> str:
    """The prefix of the model's one stack of numbered layers, for example `model.layers.`.

    Raises:
        ModelError: none, or several side by side, as in models of images and text.
    """
    found = outermost(stacks(source.tensors))
    if len(found) != 1:
        raise ModelError(
            f"slices need a model with one stack of numbered layers, and {source.path} has "
            f"{listed(sorted(found)) or 'none'}. Merge it with `models` instead."
        )
    return found[0]


def view(layers: Sequence[Layers], opened: Mapping[str, Source], label: str) -> View:
    """One source made of layers of several.

    Args:
        layers: slice by slice.
        opened: the sources by the name that `layers` uses.
        label: of the view.

    Raises:
        MismatchError: the models' stacks have different names, or lack a layer that is asked for.
    """
    sources = [opened[one.model] for one in layers]
    stack = the_stack(sources[0])
    parts: dict[str, tuple[Source, str]] = {}
    for name in sources[0].tensors:
        if _layer(name, stack) is None and _before(name):
            parts[name] = (sources[0], name)
    offset = 0
    for one, source in zip(layers, sources, strict=True):
        parts |= _renamed(one, source, stack, offset)
        offset += one.layer_range[1] - one.layer_range[0]
    for name in sources[-1].tensors:
        if _layer(name, stack) is None and not _before(name):
            parts[name] = (sources[-1], name)
    tensors = {name: replace(source.tensors[inner], name=name) for name, (source, inner) in parts.items()}
    aliases = {
        name: kept
        for name, kept in sources[-1].aliases.items()
        if name not in tensors and kept in tensors and _layer(name, stack) is None
    }
    return View(label, tensors, aliases, parts, tuple(dict.fromkeys(sources)))


def _renamed(one: Layers, source: Source, stack: str, offset: int) -> dict[str, tuple[Source, str]]:
    """The tensors of some layers under their numbers in the output."""
    first, end = one.layer_range
    there = stacks(source.tensors).get(stack, set())
    lacking = set(range(first, end)) - there
    if lacking:
        had = f"layers 0 to {max(there)}" if there else "no such stack"
        raise MismatchError(
            f"the slice takes layers {first} to {end - 1} of {source.path}, which has {had} under {stack!r}. Change "
            "`layer_range`."
        )
    found: dict[str, tuple[Source, str]] = {}
    for name in source.tensors:
        layer = _layer(name, stack)
        if layer is not None and first <= layer < end:
            rest = name[len(stack) + len(str(layer)) :]
            found[f"{stack}{layer - first + offset}{rest}"] = (source, name)
    return found


def _layer(name: str, stack: str) -> int | None:
    number = name[len(stack) :].partition(".")[0]
    return int(number) if name.startswith(stack) and number.isdecimal() else None


def _before(name: str) -> bool:
    return any(part in name.lower() for part in _FIRST)
