"""What a recipe reads, by name: to find its inputs again, wherever the recipe is read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tauspan.core.errors import StoreError
from tauspan.merge.recipe.parts import Layers, Token
from tauspan.merge.recipe.recipe import BASE, UNION, MergeRecipe


def named(recipe: MergeRecipe) -> list[str]:
    """The models that a recipe names, each once: the base first."""
    layers = [one for part in recipe.slices for one in (*part.sources, part.base) if one is not None]
    names = [recipe.base_model, *(one.model for one in recipe.models), *(one.model for one in layers)]
    return list(dict.fromkeys(name for name in names if name is not None))


def renamed(recipe: MergeRecipe, name: Callable[[str], str]) -> MergeRecipe:
    """The same recipe with every model, tokenizer and file of statistics under another name."""

    def layers(one: Layers) -> Layers:
        return replace(one, model=name(one.model))

    models = tuple(
        replace(one, model=name(one.model), statistics={n: name(file) for n, file in one.statistics.items()})
        for one in recipe.models
    )
    slices = tuple(
        replace(
            part,
            sources=tuple(map(layers, part.sources)),
            base=None if part.base is None else layers(part.base),
        )
        for part in recipe.slices
    )
    words, base = recipe.tokenizer_source, recipe.base_model
    return replace(
        recipe,
        models=models,
        slices=slices,
        base_model=None if base is None else name(base),
        tokenizer_source=words if words in (None, UNION, BASE) else name(str(words)),
        tokens={token: replace(how, source=_token(how, name)) for token, how in recipe.tokens.items()},
    )


def _token(how: Token, name: Callable[[str], str]) -> str | None:
    return how.source if how.source in (None, "zero") else name(str(how.source))


def places(recipe: MergeRecipe) -> dict[str, str]:
    """By the path as the recipe gives it, the absolute path of each input that lies in local files."""
    found: dict[str, str] = {}

    def noted(name: str) -> str:
        found.update((part, str(Path(part).absolute())) for part in _parts(name) if Path(part).exists())
        return name

    renamed(recipe, noted)
    return found


def relocated(recipe: MergeRecipe, places: Mapping[str, str], card: Path) -> MergeRecipe:
    """The same recipe with each local input where it lies: at its absolute path, else at the path as given.

    Args:
        recipe: a card's.
        places: as `places` gave them when the card was written.
        card: named by errors.

    Raises:
        StoreError: an input is at neither; the hub is not asked for what was a local file.
    """

    def found(part: str) -> str:
        if part not in places:
            return part
        for place in (places[part], part):
            if Path(place).exists():
                return place
        raise StoreError(
            f"the input {part!r} of {card} is neither at {places[part]} nor at {Path(part).absolute()}. Put it back at "
            "one of them, or change its path in the card's recipe."
        )

    return renamed(recipe, lambda name: "+".join(map(found, _parts(name))))


def _parts(name: str) -> Iterator[str]:
    """The name itself, or the model and the adapter of `MODEL+ADAPTER`, as `open_source` splits it."""
    model, plus, adapter = name.rpartition("+")
    if plus and not Path(name).exists():
        yield from _parts(model)
        yield adapter
    else:
        yield name
