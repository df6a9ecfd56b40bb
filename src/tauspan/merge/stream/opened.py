"""`Opened`: a recipe with its inputs opened, under the names of the output; no values are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from tauspan.core.errors import RecipeError
from tauspan.merge.data.statistics_file import open_statistics, unfit
from tauspan.merge.lora.adapters import AdapterSource, holds_whole
from tauspan.merge.methods.method import Method, Need
from tauspan.merge.methods.scope import apart
from tauspan.merge.recipe.recipe import BASE, UNION, MergeRecipe
from tauspan.merge.recipe.slices import LayerView, Stacked, sliced, stacked, views
from tauspan.merge.sources.adapted import SumSource, adapted
from tauspan.merge.sources.opening import FileSource, adapter_folder, open_source
from tauspan.merge.sources.problems import lenient, require_none
from tauspan.merge.sources.respelt import Spelt, respelt
from tauspan.merge.sources.source import Source, computed, counts, model_folder
from tauspan.merge.sources.vocabulary import Aligned, has_tokenizer
from tauspan.merge.stream.words import Words, chosen
from tauspan.store import Access, Stored, Values


class Options(Protocol):
    """The options of a merge: `Settings`, or `slices.Sliced`."""

    def at(self, name: str, depth: float | None) -> dict[str, Any]:
        """The options as they hold for one tensor."""

    def count(self, name: str) -> int:
        """How many models take part in the merge of a tensor."""


@dataclass(frozen=True)
class Opened:
    """A recipe with its inputs opened, and which of their tensors belong together.

    Args:
        recipe: what is asked for.
        method: the row of the table, or the user's own.
        settings: the options for each tensor.
        base: theta0; None where there is none.
        models: what is merged, in the recipe's order, with labels that differ.
        statistics: for each need, one source per model.
        home: the source whose configuration the result takes.
        tokenizer: the source whose tokenizer it takes.
        words: the tokenizer, and how rows were aligned with it.
        stacked: the stacks of a merge by slices.
        notes: sentences to warn of.
    """

    recipe: MergeRecipe
    method: Method
    settings: Options
    base: Source | None
    models: tuple[Source, ...]
    statistics: Mapping[Need, tuple[Source, ...]]
    home: Source
    tokenizer: Source
    words: Words
    stacked: Stacked | None = None
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[Source, ...]:
        """The base, if there is one, and the models."""
        return self.models if self.base is None else (self.base, *self.models)

    @property
    def read(self) -> tuple[Source, ...]:
        """All sources whose values are read: base, models and statistics."""
        return (*self.points, *(one for given in self.statistics.values() for one in given))

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources that are opened, each once."""
        return tuple(dict.fromkeys((*self.read, self.home, self.tokenizer)))

    @property
    def reference(self) -> Source:
        """The source whose names, shapes, dtypes and order the output has: the base, or else the first model."""
        return self.points[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """The models' labels."""
        return tuple(model.label for model in self.models)

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        chosen: torch.dtype = getattr(torch, self.recipe.dtype)
        return chosen

    @property
    def folder(self) -> Path | None:
        """The folder of the model whose configuration the result takes; None for a bare file."""
        return model_folder(self.home.path)

    def identities(self) -> list[dict[str, Any]]:
        """What was read and how to recognise it: the base first, if there is one."""
        return [dict(source.identity) for source in self.points]

    def known_base(self) -> str | None:
        """The fingerprint of the base that a displacement names; None where none does."""
        return next((model.identity["base"] for model in self.models if "base" in model.identity), None)

    def taking(self) -> dict[str, tuple[int, ...]]:
        """For each tensor that not all models take part in, the places of those that do.

        A slice may have fewer models than another. Where there is a base, a model that lacks a tensor counts as unchanged
        there; without one, the tensor is merged from the models that have it.
        """
        found = {}
        for name in self.reference.tensors:
            scope = range(self.settings.count(name))
            own = tuple(place for place in scope if self.base is not None or self._has(place, name))
            if len(own) < len(self.models):
                found[name] = own
        return found

    def _has(self, place: int, name: str) -> bool:
        model = self.models[place]
        return model.kind == "delta" or self.stored(model, name) is not None

    def held(self, name: str) -> bool:
        """Whether a model stores a tensor of the output."""
        return any(self.stored(model, name) is not None for model in self.models)

    def stored(self, source: Source, name: str) -> Stored | None:
        """Where a source keeps a tensor of the output; None if it lacks it, or has it in another shape.

        The checks let another shape pass only where it is allowed.
        """
        own, wanted = stored_of(source, name, self.reference), self.reference.tensors.get(name)
        return own if own is None or wanted is None or own.shape == wanted.shape else None

    def taken(self, name: str) -> bool:
        """Whether the output has the reference's own tensor, whatever the models store: a counter or a constant."""
        stored = self.reference.tensors[name]
        return computed(stored) or counts(stored) or ("buffers" in self.recipe.allow and not merges(stored))

    def close(self) -> None:
        """Close all files."""
        for source in self.sources:
            source.close()


def open_recipe(recipe: MergeRecipe, access: Access = "pread") -> Opened:
    """Open everything that a recipe names; headers only.

    Raises:
        RecipeError: statistics that the method needs are not given, or a filter fits no tensor.
        BaseMismatchError, MismatchError: statistics of another base, regime, kind or model.
        StoreError, ModelError, MismatchError: see `open_source` and `slices.view`.
    """
    method = recipe.row()
    base = None if recipe.base_model is None else open_source(recipe.base_model, access=access)
    if recipe.slices:
        return _of_slices(recipe, method, base, access)
    models = _apart([_opened(one.model, recipe, access) for one in recipe.models], recipe, access)
    points = [source for source in (base, *models) if source is not None and source.kind == "point"]
    home = (points or list(models))[0]
    models = tuple(_tied_in(respelt(model, home), base) for model in models)
    notes: tuple[str, ...] = tuple(recipe.require_fitting(_names(base, *models)))
    statistics = _statistics(recipe, method, models, base, access)
    tokenizer = _tokenizer(recipe, home, access)
    words = chosen(recipe, home, tokenizer, base, models)
    base, models = _aligned(words, base, models)
    notes = (*notes, *words.notes)
    settings = recipe.settings()
    return Opened(recipe, method, settings, base, models, statistics, home, tokenizer, words, None, notes)


def leaves(source: Source) -> list[Source]:
    """The sources in files that a source is made of; a source in files is its own only leaf."""
    inner: Sequence[Source] = ()
    if isinstance(source, LayerView):
        inner = source.sources
    elif isinstance(source, SumSource):
        inner = (source.model, source.adapter)
    elif isinstance(source, Aligned | Spelt):
        inner = (source.inner,)
    return [leaf for one in inner for leaf in leaves(one)] or [source]


def _aligned(
    words: Words, base: Source | None, models: tuple[Source, ...]
) -> tuple[Source | None, tuple[Source, ...]]:
    """Base and models with their embeddings in the order of the result's vocabulary."""
    if words.alignment is None:
        return base, models
    every = words.alignment.wrapped()
    return (None, every) if base is None else (every[0], every[1:])


def _tokenizer(recipe: MergeRecipe, home: Source, access: Access) -> Source:
    """The source of the tokenizer's files: a model, an adapter, or a folder that has no weights."""
    if recipe.tokenizer_source in (None, UNION, BASE):
        return home
    place = Path(str(recipe.tokenizer_source))
    if (
        place.is_dir()
        and has_tokenizer(place)
        and (adapter_folder(place) or not any(place.glob("*.safetensors")))
    ):
        return FileSource(place.name, place, "point", {}, {}, {"path": str(place)}, Values())
    return open_source(str(recipe.tokenizer_source), access=access)


def _names(*sources: Source | None) -> list[str]:
    """The names of all tensors, tied ones too, each once."""
    every = (name for one in sources if one is not None for name in (*one.tensors, *one.aliases))
    return list(dict.fromkeys(every))


def _apart(models: list[Source], recipe: MergeRecipe, access: Access) -> tuple[Source, ...]:
    """The models with labels that differ."""
    for index, label in enumerate(apart([one.label for one in models])):
        if models[index].label != label:
            models[index].close()
            models[index] = _opened(recipe.models[index].model, recipe, access, label)
    return tuple(models)


def _tied_in(model: Source, base: Source | None) -> Source:
    """An adapter that changes a tied name becomes the sum of the base and it, since both names are one tensor."""
    if base is None or not isinstance(model, AdapterSource) or not set(model.tensors) & set(base.aliases):
        return model
    return adapted(base, model, model.label)


def _opened(model: str, recipe: MergeRecipe, access: Access, label: str | None = None) -> Source:
    """A model of the recipe; an adapter that holds whole tensors becomes the sum of the base and it.

    Whole tensors are points, which have a displacement only with respect to the base.
    """
    factors = None if recipe.base_model is None else adapter_folder(Path(model))
    if recipe.base_model is not None and factors is not None and holds_whole(factors):
        adapter = AdapterSource(factors, access=access, label=label, whole=True)
        return adapted(open_source(recipe.base_model, access=access), adapter, adapter.label)
    return open_source(model, access=access, label=label)


def _statistics(
    recipe: MergeRecipe, method: Method, models: Sequence[Source], base: Source | None, access: Access
) -> dict[Need, tuple[Source, ...]]:
    found: dict[Need, tuple[Source, ...]] = {}
    for need in method.needs:
        if need == "base":
            if recipe.base_model is None:
                raise RecipeError(f"the method {method.name!r} needs `base_model`, the pre-trained model.")
            continue
        for one in recipe.models:
            if need not in one.statistics:
                raise RecipeError(
                    f"the method {method.name!r} needs {need!r} statistics of every model, and {one.model!r} has none. "
                    f"Give it `statistics: {{{need}: FILE.safetensors}}`."
                )
        found[need] = tuple(
            open_statistics(one.statistics[need], need, access=access) for one in recipe.models
        )
        require_none(lenient(unfit(need, found[need], models, base), recipe.allow))
    return found


def _of_slices(recipe: MergeRecipe, method: Method, base: Source | None, access: Access) -> Opened:
    layers = [one for part in recipe.slices for one in (*part.sources, part.base) if one is not None]
    named = {one.model: open_source(one.model, access=access) for one in layers}
    made = stacked(recipe.slices, named)
    for part in recipe.slices:
        method.require_count(len(part.sources))
    models, point = views(made, named)
    notes: tuple[str, ...] = tuple(recipe.require_fitting(_names(point, *models)))
    home = base or models[0].sources[0]
    tokenizer = _tokenizer(recipe, home, access)
    words = chosen(recipe, home, tokenizer, point, models)
    start, merged = _aligned(words, point, models)
    settings = sliced(method, made, recipe.parameters)
    notes = (*notes, *words.notes)
    return Opened(recipe, method, settings, start, merged, {}, home, tokenizer, words, made, notes)


def merges(stored: Stored) -> bool:
    """Whether a tensor is merged: weights are; integers, and tensors that a model computes again, are copied."""
    return stored.dtype.is_floating_point and not computed(stored)


def stored_of(source: Source, name: str, reference: Source) -> Stored | None:
    """Where a source keeps a tensor of the output: under its name, or another that it or the reference has for it."""
    own = source.tensors.get(source.aliases.get(name, name))
    if own is not None:
        return own
    others = (alias for alias, kept in reference.aliases.items() if kept == name)
    return next((source.tensors[alias] for alias in others if alias in source.tensors), None)
