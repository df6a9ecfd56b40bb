"""Several merges in one file, each a document of its own: carried out in order, the result of one an input of another."""

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tauspan.core.errors import RecipeError, listed
from tauspan.core.schema import Document, documents
from tauspan.merge.recipe.locations import named, renamed
from tauspan.merge.recipe.recipe import MergeRecipe

_NAME = "name"


@dataclass(frozen=True)
class Series:
    """The merges of one file, as mergekit-multi reads it.

    Args:
        merges: by name, in an order in which each comes after those it reads; the unnamed one has the name None.
        where: the file.
    """

    merges: Mapping[str | None, MergeRecipe]
    where: str

    @staticmethod
    def read(path: str | Path) -> "Series":
        """The merges in a file.

        Raises:
            RecipeError: two merges have one name, or read each other in a circle.
        """
        return Series.of(documents(path), str(path))

    @staticmethod
    def of(texts: Sequence[Document], where: str) -> "Series":
        """The merges in documents, of which each but one has the key `name`."""
        found: dict[str | None, MergeRecipe] = {}
        several = len(texts) > 1
        for document in texts:
            name = document.plain.get(_NAME)
            plain = {key: value for key, value in document.plain.items() if key != _NAME}
            called = str(name) if several and name is not None else None
            if called in found:
                what = f"the name {called!r}" if called else "no `name`"
                raise RecipeError(f"{document.place(_NAME)}: two merges have {what}. Give each one its own.")
            if called is not None and (called in ("", ".", "..") or Path(called).name != called):
                raise RecipeError(f"{document.place(_NAME)}: name: {called!r} is no name of a folder.")
            found[called] = MergeRecipe.of(
                document.with_plain(plain) if _NAME in document.plain else document
            )
        return Series(_ordered(found, where), where)

    def placed(self, out: Path) -> list[tuple[Path, MergeRecipe]]:
        """Where each merge is written, and its recipe with the others' results as inputs.

        The unnamed merge makes `out`, and the named ones lie beside it in `NAME.parts`; where all have names, they lie
        in `out`.
        """
        folder = out.with_name(f"{out.name}.parts") if None in self.merges else out
        places = {name: out if name is None else folder / name for name in self.merges}

        def place(name: str) -> str:
            model, plus, adapter = name.partition("+")
            return f"{places[model]}{plus}{adapter}" if model in places else name

        return [(places[name], renamed(recipe, place)) for name, recipe in self.merges.items()]


def _ordered(found: Mapping[str | None, MergeRecipe], where: str) -> dict[str | None, MergeRecipe]:
    needs = {
        name: {
            part
            for model in named(recipe)
            for part in [model.partition("+")[0]]
            if part in found and part != name
        }
        for name, recipe in found.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = listed(map(repr, error.args[1]), 9)
        raise RecipeError(f"{where}: the merges {circle} read each other in a circle. Break it.") from error
    return {name: found[name] for name in order}
