"""Sources under the names of the files that they are merged with, by transformers' own rules of renaming."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from torch import Size, Tensor

from tauspan.core.errors import MissingExtraError, ModelError
from tauspan.merge.lora.adapters import AdapterSource, Products
from tauspan.merge.lora.lora_files import LoraFile
from tauspan.merge.sources.source import Source, SourceView, config_of, model_folder
from tauspan.models import Names, directory_names, has_config
from tauspan.models.skeleton import TASKS
from tauspan.store import Stored


def respelt(source: Source, reference: Source) -> Source:
    """The source under the names of the reference's files.

    Names differ if the two directories were saved from different classes or by different versions, or if an adapter or
    an old vector has the names that the module has in memory. transformers' own rules translate them exactly. A source
    whose names match, or that no rule brings closer, is returned as it is.
    """
    if isinstance(source, LoraFile):
        return source.on(reference.tensors, reference.path) if reference.kind == "point" else source
    known = {*reference.tensors, *reference.aliases}
    if source is reference or set(_names(source)) <= known:
        return source
    folder = model_folder(reference.path)
    if folder is None or not has_config(folder):
        return source
    found = _between(source, reference, folder)
    if found is None:
        return source
    theirs, ours = found
    if isinstance(source, AdapterSource):
        return source.renamed(_renamings(source, theirs, ours))
    made = Spelt.of(source, theirs, ours)
    misfits = [sum(name not in known for name in one.tensors) for one in (source, made)]
    return made if misfits[1] < misfits[0] else source


def _between(source: Source, reference: Source, folder: Path) -> tuple[Names, Names] | None:
    """The names from source to memory and from memory to reference, of the class that explains most of them."""
    shapes = {name: stored.shape for name, stored in reference.tensors.items()}
    own = model_folder(source.path) if source.kind == "point" else None
    if own is not None and has_config(own):
        mine = {name: stored.shape for name, stored in source.tensors.items()}
        alike = config_of(own).get("architectures") == config_of(folder).get("architectures")
        part = "architecture" if alike else "backbone"
        try:
            return directory_names(own, mine, part), directory_names(folder, shapes, part)
        except (ModelError, MissingExtraError):
            return None
    names = best_names(_names(source), shapes, folder, reference.aliases)
    return None if names is None else (Names(), names)


def best_names(
    inside: Sequence[str], shapes: Mapping[str, Size], folder: Path, aliases: Iterable[str] = ()
) -> Names | None:
    """The names between a directory's files and memory, for the class that explains most of `inside`.

    The classes that are tried are those that the directory's configuration allows; None if none of them can be used.

    Args:
        inside: names in memory.
        shapes: of the stored tensors.
        folder: the directory.
        aliases: names that are stored as another.
    """
    best: tuple[int, Names] | None = None
    for part in ("architecture", "backbone", *TASKS):
        try:
            names = directory_names(folder, shapes, part)
        except (ModelError, MissingExtraError):
            continue
        known = {*names.in_memory, *shapes, *aliases}
        misfits = sum(name not in known for name in inside)
        if best is None or misfits < best[0]:
            best = misfits, names
        if not misfits:
            break
    return None if best is None else best[1]


def _names(source: Source) -> list[str]:
    return [*source.tensors, *(source.wholes if isinstance(source, Products) else ())]


def _renamings(source: Source, theirs: Names, ours: Names) -> dict[str, str]:
    """The reference's name of each tensor that the reference stores as one tensor too; others keep their names."""
    inside = {name: theirs.renamed.get(name, name) for name in _names(source)}
    stored: dict[str, str] = {}
    for own, name in ours.renamed.items():
        stored.setdefault(name, own)
    return {name: stored.get(memory, name) for name, memory in inside.items()}


def spelt_in_memory(names: Iterable[str], models: Sequence[Source], base: Source | None) -> dict[str, str]:
    """What adapters call the tensors of the files: as adapters among the models do, else as the base's class does."""
    adapters = (model for model in models if isinstance(model, Products))
    known = {name: own for adapter in adapters for name, own in adapter.spelt.items()}
    rest = [name for name in names if name not in known]
    folder = None if base is None or not rest else model_folder(base.path)
    if base is None or folder is None or not has_config(folder):
        return known
    try:
        shapes = {name: stored.shape for name, stored in base.tensors.items()}
        return directory_names(folder, shapes).memory_of(rest) | known
    except (ModelError, MissingExtraError):
        return known


@dataclass(frozen=True, eq=False)
class Spelt(SourceView):
    """A source under other names; tensors that are split or joined in these names are rearranged as they are read.

    Args:
        inner: the source.
        tensors: as they are called here.
        behind: by name here, the names there whose values it is made of.
        theirs: from the source's names to memory.
        ours: from memory to the names here.
    """

    inner: Source
    tensors: Mapping[str, Stored]
    aliases: Mapping[str, str]
    behind: Mapping[str, tuple[str, ...]]
    theirs: Names
    ours: Names
    _made: dict[tuple[str, ...], Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @staticmethod
    def of(inner: Source, theirs: Names, ours: Names) -> "Spelt":
        """The source under other names, which are worked out with tensors that have no values."""
        single = _renamings(inner, theirs, ours)
        groups = {name: group for group in ours.moved for name in group.made}
        moved = {name for group in theirs.moved for name in group.shapes}
        inside = theirs.memory_of(inner.tensors)
        apart = [name for name in inner.tensors if name in moved or inside[name] in groups]
        tensors: dict[str, Stored] = {}
        behind: dict[str, tuple[str, ...]] = {}
        for name in inner.tensors:
            if name not in apart:
                stored = inner.tensors[name]
                tensors[single[name]] = _renamed(stored, single[name], stored.shape)
                behind[single[name]] = (name,)
        for names in _together(apart, theirs, ours):
            first = inner.tensors[names[0]]
            empty = {name: torch.empty(inner.tensors[name].shape, device="meta") for name in names}
            for name, tensor in ours.to_files_shapes(theirs.to_memory(empty)).items():
                tensors[name], behind[name] = _renamed(first, name, tensor), names
        aliases = {single.get(a, a): single.get(k, k) for a, k in inner.aliases.items()}
        return Spelt(inner, tensors, aliases, behind, theirs, ours)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor; a rearranged group is kept until another is read."""
        name = self.aliases.get(name, name)
        names = self.behind[name]
        if len(names) == 1 and self.inner.tensors[names[0]].shape == self.tensors[name].shape:
            return self.inner.read(names[0], start, stop)
        with self._lock:
            if names not in self._made:
                self._made.clear()
                whole = {one: self._whole(one) for one in names}
                self._made[names] = self.ours.to_files(self.theirs.to_memory(whole))
            return self._made[names][name].flatten()[start:stop]

    def _whole(self, name: str) -> Tensor:
        shape = self.inner.tensors[name].shape
        return self.inner.read(name, 0, shape.numel()).view(shape)

    def close(self) -> None:
        """Close the files of the source."""
        self._made.clear()
        super().close()


def _together(apart: Sequence[str], theirs: Names, ours: Names) -> Iterator[tuple[str, ...]]:
    """The groups of the source's tensors that have to be rearranged together."""
    left = dict.fromkeys(apart)
    groups = {name: group for group in ours.moved for name in group.made}
    there = {name: group for group in theirs.moved for name in group.shapes}
    while left:
        found, seen = [next(iter(left))], set[str]()
        while set(found) != seen:
            seen = set(found)
            memory = [
                one for n in found for one in (there[n].made if n in there else [theirs.memory_of([n])[n]])
            ]
            memory = [one for m in memory for one in (groups[m].made if m in groups else [m])]
            found = list(dict.fromkeys([*found, *(n for n in theirs.files_of(memory) if n in left)]))
        for name in found:
            del left[name]
        yield tuple(found)


def _renamed(stored: Stored, name: str, shape: Size) -> Stored:
    size = shape.numel() * stored.dtype.itemsize
    return Stored(name, stored.dtype, shape, stored.file, stored.offset, size)
