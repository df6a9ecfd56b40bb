"""Recipes in files: which dialect one is in, several merges in one file, and the JSON schema for editors."""

import graphlib
import json
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, replace
from pathlib import Path
from typing import Any

from tauspan.core.errors import RecipeError, UsageError, listed
from tauspan.core.json_schema import DRAFT, schema_of
from tauspan.core.schema import Document, documents
from tauspan.core.strict_yaml import dumped
from tauspan.merge.engine.plugins import names as every_name
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Method, Option
from tauspan.merge.recipe.mergekit import translated
from tauspan.merge.recipe.mergekit_methods import spelled_here
from tauspan.merge.recipe.parts import require_option
from tauspan.merge.recipe.recipe import MergeRecipe, named, renamed
from tauspan.merge.sources.problems import LENIENT


def read_recipe(path: str | Path) -> MergeRecipe:
    """The recipe in a YAML file: tauspan's own keys, or mergekit's where it says `merge_method`.

    Raises:
        RecipeError: a key or value is wrong; the message names file, line and key.
    """
    return recipe_in(Document.read(path))


def parse_recipe(text: str, where: str = "recipe") -> MergeRecipe:
    r"""The recipe in a YAML text; errors name `where`, the line and the key.

    Example:
        >>> recipe = parse_recipe("method: task_arithmetic\nbase_model: b\nmodels: [{model: a}]\n")
        >>> recipe.models[0].model
        'a'
    """
    return recipe_in(Document(text, where))


def recipe_in(document: Document) -> MergeRecipe:
    """The recipe in a document; its keys say in which of the two dialects it is."""
    if {"merge_method", "experts", "genome"} & set(document.plain):
        recipe = translated(document)
    else:
        recipe = document.build(MergeRecipe)
        if ":" not in recipe.method:
            _check_options(document, recipe)
    return replace(recipe, places={str(key): document.place(key) for key in document.plain})


def recipe_of(given: MergeRecipe | Mapping[str, Any] | str | Path) -> MergeRecipe:
    """A recipe from a `MergeRecipe`, from a mapping of what its file would hold, or from the file."""
    if isinstance(given, MergeRecipe):
        return given
    if isinstance(given, str | Path):
        return read_recipe(given)
    if not isinstance(given, Mapping):
        raise UsageError(
            f"a recipe is a MergeRecipe, a mapping such as {{'method': ..., 'models': [...]}}, or a YAML file, not "
            f"{type(given).__name__}. For vectors in memory call `merge`."
        )
    try:  # JSON first, which writes paths as texts and tuples as lists
        text = dumped(json.loads(json.dumps(dict(given), default=os.fspath)))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"the recipe holds what no YAML file can: {error}.") from error
    return parse_recipe(text, "the mapping, as YAML")


def _check_options(document: Document, recipe: MergeRecipe) -> None:
    """Raise, with its line, for an option that the method does not have or a value outside its range."""
    method = recipe.row()
    for path, parameters in recipe.scopes():
        single = path[0] == "models" or "sources" in path
        for name, value in parameters.items():
            place = document.place(*path, name)
            known = [option.name for option in method.options]
            if name not in known and (ours := spelled_here(name)) in known:
                raise RecipeError(f"{place}: mergekit's `{name}` is `{ours}` here.")
            require_option(method, name, value, single, place)


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
            found[called] = recipe_in(document.with_plain(plain) if _NAME in document.plain else document)
        return Series(_ordered(found, where), where)

    def placed(self, out: Path) -> list[tuple[Path, MergeRecipe]]:
        """Where each merge is written, and its recipe with the others' results as inputs.

        The unnamed merge makes `out`, and the named ones are beside it in `NAME.parts`; where all have names, they are
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


_LISTS = [
    {"type": "array", "items": {"type": kind}, "minItems": 1} for kind in ("number", "boolean", "string")
]
_VALUE = {"anyOf": [{"type": ["number", "boolean", "string"]}, *_LISTS]}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe's file, draft 2020-12, with the names of methods that installed packages give.

    Example:
        >>> sorted(json_schema()["required"])
        ['method']
    """
    made = schema_of(MergeRecipe, _options_of)
    names = sorted(METHODS)
    made["properties"]["method"]["anyOf"] = [
        {"type": "string", "enum": sorted(every_name())},
        {"type": "string", "pattern": "^[A-Za-z_][\\w.]*:[A-Za-z_]\\w*$"},
    ]
    del made["properties"]["method"]["type"]
    made["properties"]["allow"]["items"] = {"type": "string", "enum": sorted(LENIENT)}
    made["allOf"] = [_only(METHODS[name]) for name in names]
    made["oneOf"] = [{"required": ["models"]}, {"required": ["slices"]}]
    return {
        "$schema": DRAFT,
        "title": "tauspan merge recipe",
        **made,
        "$defs": {"setting": _setting(), "options": {name: _option(name) for name in _options()}},
    }


def _options() -> dict[str, list[tuple[str, Option]]]:
    """Every option's name, with the methods that have it."""
    found: dict[str, list[tuple[str, Option]]] = {}
    for method in METHODS.values():
        for option in method.options:
            found.setdefault(option.name, []).append((method.name, option))
    return dict(sorted(found.items()))


def _option(name: str) -> dict[str, Any]:
    lines = dict.fromkeys(option.doc for _, option in _options()[name])
    return {"description": "; ".join(lines), "$ref": "#/$defs/setting"}


def _setting() -> dict[str, Any]:
    entry = {
        "type": "object",
        "properties": {"filter": {"type": ["string", "null"]}, "value": _VALUE},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"anyOf": [*_VALUE["anyOf"], entry, {"type": "array", "items": entry, "minItems": 1}]}


def _only(method: Method) -> dict[str, Any]:
    """What a recipe of this method may have under `parameters`."""
    names = [option.name for option in method.options]
    return {
        "if": {"properties": {"method": {"const": method.name}}},
        "then": {"properties": {"parameters": {"propertyNames": {"enum": names}}}},
    }


def _options_of(field: "Field[Any]", hint: Any) -> dict[str, Any] | None:
    """The schema of a mapping of methods' options."""
    if not field.metadata.get("parse") or typing.get_origin(hint) is not Mapping:
        return None
    return {
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/options/{name}"} for name in _options()},
    }
