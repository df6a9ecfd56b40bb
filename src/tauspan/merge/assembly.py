"""From a recipe to opened sources: what a merge reads, under the output's names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tauspan.errors import RecipeError
from tauspan.merge.adapted import adapted
from tauspan.merge.adapters import AdapterSource, holds_whole
from tauspan.merge.inputs import Source, open_source
from tauspan.merge.method import Method, Need
from tauspan.merge.problems import lenient, require_none
from tauspan.merge.recipe import UNION, Layers, MergeRecipe
from tauspan.merge.respelt import respelt
from tauspan.merge.slices import sliced, the_stack, view
from tauspan.merge.statistics_source import open_statistics, unfit
from tauspan.merge.values import Access
from tauspan.merge.vocabulary import tokenizers


class Options(Protocol):
    """The options of a merge: `Settings`, or `slices.Sliced`."""

    def at(self, name: str, depth: float | None) -> dict[str, Any]:
        """The options as they hold for one tensor."""


@dataclass(frozen=True)
class Assembly:
    """What a merge reads.

    Args:
        method: the row of the table, or the user's own.
        settings: the options, tensor by tensor.
        base: theta0; None where there is none.
        models: what is merged, in the recipe's order, with labels that differ.
        statistics: by need, one source a model.
        home: the source whose configuration the result takes.
        tokenizer: the source whose tokenizer it takes.
    """

    method: Method
    settings: Options
    base: Source | None
    models: tuple[Source, ...]
    statistics: Mapping[Need, tuple[Source, ...]]
    home: Source
    tokenizer: Source

    @property
    def sources(self) -> set[Source]:
        """All that is opened."""
        base = () if self.base is None else (self.base,)
        return {*base, self.home, self.tokenizer, *self.models, *sum(self.statistics.values(), ())}

    def close(self) -> None:
        """Let go of all files."""
        for source in self.sources:
            source.close()


def assemble(recipe: MergeRecipe, access: Access = "pread") -> Assembly:
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
    recipe.require_fitting(_names(base, *models))
    statistics = _statistics(recipe, method, models, base, access)
    tokenizer = _tokenizer(recipe, home, points, access)
    return Assembly(method, recipe.settings(), base, models, statistics, home, tokenizer)


def _tokenizer(recipe: MergeRecipe, home: Source, points: Sequence[Source], access: Access) -> Source:
    """The source of the tokenizer: rows of the embeddings have to mean the same tokens in it."""
    if recipe.tokenizer_source is None:
        return home
    union = recipe.tokenizer_source == UNION
    source = home if union else open_source(recipe.tokenizer_source, access=access)
    for other in points if union else [source]:
        problem = next(tokenizers(home, other), None)
        if problem is not None and (union or problem.severity == "error"):
            raise RecipeError(
                f"{recipe.place('tokenizer_source', 'tokenizer')}tokenizer_source: {recipe.tokenizer_source}: "
                f"vocabularies differ, and a merge keeps the rows of its embeddings: {problem.message}"
            )
    return source


def _names(*sources: Source | None) -> list[str]:
    """The names of all tensors, tied ones too, each once."""
    every = (name for one in sources if one is not None for name in (*one.tensors, *one.aliases))
    return list(dict.fromkeys(every))


def _apart(models: list[Source], recipe: MergeRecipe, access: Access) -> tuple[Source, ...]:
    """The models with labels that differ: they are the keys of random masks, so two never share one."""
    seen: Counter[str] = Counter()
    for index, one in enumerate(recipe.models):
        label = models[index].label
        seen[label] += 1
        if seen[label] > 1:
            models[index].close()
            models[index] = _opened(one.model, recipe, access, f"{label}#{seen[label]}")
    return tuple(models)


def _tied_in(model: Source, base: Source | None) -> Source:
    """An adapter that changes a tied name as the sum of the base and it: the tensor that both names are moves."""
    if base is None or not isinstance(model, AdapterSource) or not set(model.tensors) & set(base.aliases):
        return model
    return adapted(base, model, model.label)


def _opened(model: str, recipe: MergeRecipe, access: Access, label: str | None = None) -> Source:
    """A model of the recipe; an adapter with whole tensors as the sum of the base and it, since those are points."""
    if recipe.base_model is not None and holds_whole(Path(model)):
        adapter = AdapterSource(model, access=access, label=label, whole=True)
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


def _of_slices(recipe: MergeRecipe, method: Method, base: Source | None, access: Access) -> Assembly:
    named: dict[str, Source] = {}

    def opened(layers: Layers) -> Layers:
        if layers.model not in named:
            named[layers.model] = open_source(layers.model, access=access)
        return layers

    columns = zip(*(part.sources for part in recipe.slices), strict=True)
    rows = [[opened(layers) for layers in column] for column in columns]
    models = tuple(view(row, named, f"slices-{index}") for index, row in enumerate(rows))
    origins = [opened(part.base) for part in recipe.slices if part.base is not None]
    point = view(origins, named, "base") if origins else None
    recipe.require_fitting(_names(point, *models))
    settings = sliced(method, recipe.slices, recipe.parameters, the_stack(models[0].sources[0]))
    home = base or models[0].sources[0]
    points = list(named.values())
    return Assembly(method, settings, point, models, {}, home, _tokenizer(recipe, home, points, access))
