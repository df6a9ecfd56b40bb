"""Merges by slices: layers of several models stacked into one, seen as ordinary sources with the output's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tauspan.core.errors import MismatchError
from tauspan.merge.engine.settings import Setting, Settings, stacks
from tauspan.merge.methods.method import Method
from tauspan.merge.recipe.parts import Layers, Slice, within
from tauspan.merge.recipe.towers import Towers, common, number
from tauspan.merge.sources.source import Kind, Source
from tauspan.store import Stored

_FIRST = ("emb", "wte", "wpe", "tok")  # in names of tensors before the layers; all others come after them


@dataclass(frozen=True, eq=False)
class LayerView:
    """Layers of several sources as one source: a point whose tensors have the output's names.

    `beyond` are tensors of the output that belong to slices with fewer sources, so that this one has no part in them.
    """

    label: str
    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str]
    parts: Mapping[str, tuple[Source, str]]
    sources: tuple[Source, ...]
    beyond: frozenset[str] = frozenset()
    kind: Kind = "point"

    @property
    def path(self) -> Path:
        """The path of the first source."""
        return self.sources[0].path

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identities of all sources, in order."""
        return {"slices": [source.identity for source in self.sources]}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor."""
        source, inner = self.parts[name]
        return source.read(inner, start, stop)

    def close(self) -> None:
        """Close the files of all sources."""
        for source in self.sources:
            source.close()


@dataclass(frozen=True)
class Group:
    """The slices of one stack of layers, with all their layers named.

    Args:
        stack: the prefix of the stack, for example `model.layers.`; or of a part of the model without layers.
        parts: its slices, in order.
        layered: whether it is a stack.
    """

    stack: str
    parts: tuple[Slice, ...]
    layered: bool = True

    @property
    def count(self) -> int:
        """How many layers the output has here."""
        return sum(part.count for part in self.parts)

    def part(self, name: str) -> tuple[int, int] | None:
        """The slice that a tensor of the output belongs to and its layer there; None outside this stack."""
        layer = number(name, self.stack) if self.layered else None
        if layer is None:
            return None
        for place, part in enumerate(self.parts):
            if layer < part.count:
                return place, layer
            layer -= part.count
        raise MismatchError(f"{name!r} lies beyond the {self.count} layers of the slices.")


@dataclass(frozen=True)
class Stacked:
    """All slices of a merge, by stack: which slice each tensor of the output belongs to.

    Tensors before the layers belong to the first slice, tensors after them to the last one. Other stacks of the
    model, such as the tower of images where layers of text are stacked, belong whole to the first slice.

    Args:
        groups: the stacks that slices were given for.
        towers: all stacks of the models.
    """

    groups: tuple[Group, ...]
    towers: Towers

    def part(self, name: str) -> tuple[int, int, int | None]:
        """The group, the slice in it, and the layer in the slice; no layer outside the stacks."""
        for index, group in enumerate(self.groups):
            found = group.part(name)
            if found is not None:
                return index, *found
        near = self._nearest(name)
        if near is None:
            return 0, 0, None
        return near, 0 if _before(name) else len(self.groups[near].parts) - 1, None

    def leads(self, name: str) -> bool:
        """Whether a tensor outside the layers is stored before them."""
        return _before(name) or self._nearest(name) is None

    def _nearest(self, name: str) -> int | None:
        """The group that a tensor outside the layers belongs to; None for what belongs to another stack."""
        for index, group in enumerate(self.groups):
            if not group.layered and name.startswith(group.stack):
                return index
        if len(self.towers.stacks) == 1:
            return 0
        shared = {stack: common(name, stack) for stack in self.towers.stacks}
        most = max(shared.values())
        if most:
            near = [stack for stack, length in shared.items() if length == most]
            own = (index for index, group in enumerate(self.groups) if group.stack in near)
            return next(own, None)
        return 0 if name.count(".") < 2 else None  # a head beside the stacks, or a tensor between two of them


def stacked(slices: Sequence[Slice], opened: Mapping[str, Source]) -> Stacked:
    """The slices by stack, with the layers that they name or, where they name none, all that the model has.

    Raises:
        ModelError: no stack of numbered layers, or several and none is named.
        MismatchError: a slice whose models have unequally many layers.
    """
    first = opened[slices[0].sources[0].model]
    towers = Towers.of(first)
    groups: dict[str, list[Slice]] = {}
    for part in slices:
        stack = towers.named(part.stack)
        groups.setdefault(stack, []).append(_filled(part, stack, opened))
    made = (Group(stack, tuple(parts), stack in towers.stacks) for stack, parts in groups.items())
    return Stacked(tuple(sorted(made, key=lambda group: not group.layered)), towers)


def _filled(part: Slice, stack: str, opened: Mapping[str, Source]) -> Slice:
    def whole(layers: Layers) -> Layers:
        there = stacks(opened[layers.model].tensors).get(stack)
        if layers.layer_range is not None or not there:
            return layers
        return replace(layers, layer_range=(0, max(there) + 1))

    made = replace(
        part, sources=tuple(map(whole, part.sources)), base=None if part.base is None else whole(part.base)
    )
    made.require_equal()
    return made


@dataclass(frozen=True)
class Sliced:
    """Options tensor by tensor where each slice has its own; the same calls as `Settings`.

    A gradient runs over the layers of its slice.
    """

    stacked: Stacked
    each: tuple[tuple[Settings, ...], ...]

    def at(self, name: str, depth: float | None) -> dict[str, Any]:
        """The options as they hold for one tensor of the output."""
        group, place, layer = self.stacked.part(name)
        settings, count = self.each[group][place], self.stacked.groups[group].parts[place].count
        if layer is None:
            return settings.at(name, None)
        return settings.at(name, layer / (count - 1) if count > 1 else 1.0)

    def count(self, name: str) -> int:
        """How many models take part in the slice of a tensor."""
        group, place, _ = self.stacked.part(name)
        return len(self.stacked.groups[group].parts[place].sources)


def sliced(method: Method, stacked: Stacked, parameters: Mapping[str, Setting]) -> Sliced:
    """The options of a merge by slices: a source's take precedence over its slice's, and those over the common ones."""
    each = tuple(
        tuple(
            Settings(
                method,
                len(part.sources),
                within(part.parameters, parameters),
                [source.parameters for source in part.sources],
            )
            for part in group.parts
        )
        for group in stacked.groups
    )
    return Sliced(stacked, each)


def views(stacked: Stacked, opened: Mapping[str, Source]) -> tuple[tuple[LayerView, ...], LayerView | None]:
    """The models of a merge by slices, and what their displacements start from.

    The n-th model consists of the n-th source of every slice that has at least n sources. It lacks the layers of slices
    with fewer.
    """
    parts = [part for group in stacked.groups for part in group.parts]
    most = max(len(part.sources) for part in parts)
    first, *rest = (_view(stacked, opened, place, f"slices-{place}") for place in range(most))
    models = (
        first,
        *(replace(one, beyond=_beyond(stacked, first, place)) for place, one in enumerate(rest, 1)),
    )
    base = None if parts[0].base is None else _view(stacked, opened, None, "base")
    return models, base


def _beyond(stacked: Stacked, first: LayerView, place: int) -> frozenset[str]:
    """The tensors whose slice has no source at that place."""

    def has(name: str) -> bool:
        group, at, _ = stacked.part(name)
        return place < len(stacked.groups[group].parts[at].sources)

    return frozenset(name for name in first.tensors if not has(name))


def _view(stacked: Stacked, opened: Mapping[str, Source], place: int | None, label: str) -> LayerView:
    """One source made of layers of several: the sources at one place of all slices, or at None their bases."""

    def chosen(part: Slice) -> Layers | None:
        if place is None:
            return part.base
        return part.sources[place] if place < len(part.sources) else None

    rows = [[chosen(part) for part in group.parts] for group in stacked.groups]
    inside: dict[str, tuple[Source, str]] = {}
    for group, row in zip(stacked.groups, rows, strict=True):
        offset = 0
        for part, layers in zip(group.parts, row, strict=True):
            if layers is not None and group.layered:
                inside |= _renamed(layers, opened[layers.model], group.stack, offset)
            offset += part.count
    sources = list(
        dict.fromkeys(opened[layers.model] for row in rows for layers in row if layers is not None)
    )
    outside = {}
    for source in sources:
        for name in source.tensors:
            if not _numbered(name, stacked):
                index, at, _ = stacked.part(name)
                owner = rows[index][at]
                if owner is not None and opened[owner.model] is source:
                    outside[name] = (source, name)
    front = {name: part for name, part in outside.items() if stacked.leads(name)}
    return _made(label, {**front, **inside, **outside}, sources, stacked)


def _made(
    label: str, parts: Mapping[str, tuple[Source, str]], sources: Sequence[Source], stacked: Stacked
) -> LayerView:
    tensors = {name: replace(source.tensors[inner], name=name) for name, (source, inner) in parts.items()}
    aliases = {
        name: kept
        for name, kept in sources[-1].aliases.items()
        if name not in tensors and kept in tensors and not _numbered(name, stacked)
    }
    return LayerView(label, tensors, aliases, parts, tuple(sources))


def _numbered(name: str, stacked: Stacked) -> bool:
    """Whether the tensor belongs to a layer of one of the sliced stacks."""
    return any(group.layered and number(name, group.stack) is not None for group in stacked.groups)


def _renamed(one: Layers, source: Source, stack: str, offset: int) -> dict[str, tuple[Source, str]]:
    """The tensors of some layers under their numbers in the output."""
    first, end = one.layer_range or (0, 0)
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
        layer = number(name, stack)
        if layer is not None and first <= layer < end:
            rest = name[len(stack) + len(str(layer)) :]
            found[f"{stack}{layer - first + offset}{rest}"] = (source, name)
    return found


def _before(name: str) -> bool:
    return any(part in name.lower() for part in _FIRST)
