"""Strict YAML: a frozen dataclass from a text. Every error names the file, the line, the key and the repair."""

import copy
import dataclasses
import itertools
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import yaml

from tauspan.core.arguments import in_words
from tauspan.core.errors import RecipeError, listed, nearest
from tauspan.core.strict_yaml import Origin, loaded, place, read_as, spelled, starts, text_of

T = TypeVar("T")
Parse: TypeAlias = Callable[[Any, str], Any]

_PROLOGUE = re.compile(r"(\s*([%#][^\n]*)?\n)*\s*")  # what may come before `---`: directives and comments
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxdict = 20


class Document:
    r"""A YAML mapping that knows the line of each of its keys.

    Args:
        text: the YAML.
        where: the file's name, for errors.

    Raises:
        RecipeError: not YAML, not a mapping, or a repeated key.

    Example:
        >>> Document("a: 1\nb: {c: 2}\n", "x.yaml").place("b", "c")
        'x.yaml, line 2'
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.changes: tuple[str, ...] = ()
        self.node, self.plain = loaded(text, where)
        if not isinstance(self.plain, Mapping):
            raise RecipeError(
                f"{where} holds {_held(self.plain, self.node)}, not a mapping of keys to values."
            )

    @staticmethod
    def read(path: str | Path) -> "Document":
        """The document in a file."""
        return Document(text_of(path), str(path))

    def with_plain(self, plain: Mapping[str, Any]) -> "Document":
        """The same document with other values, which may lack keys but add none; line numbers stay."""
        changed = copy.copy(self)
        changed.plain = plain
        return changed

    def with_value(self, path: str, text: str, origin: str) -> "Document":
        r"""The same document with the value of one key from elsewhere, such as the command line.

        Args:
            path: the key, after the keys above it and dots: `rows.train`. What is not there yet is added.
            text: the value, as a document spells it.
            origin: where it comes from. Errors name it in place of a file and a line.

        Raises:
            RecipeError: no YAML, or a part of the path holds no keys.

        Example:
            >>> document = Document("rows: {train: 640}\n", "x.yaml").with_value("rows.test", "20", "--set rows.test=20")
            >>> document.plain, document.place("rows", "train"), document.place("rows", "test")
            ({'rows': {'train': 640, 'test': 20}}, 'x.yaml, line 1', '--set rows.test=20')
        """
        node, plain = loaded(text, Origin(origin))
        if node is None:  # no text at all
            node, plain = loaded("null", Origin(origin))
        changed = copy.copy(self)
        steps = path.split(".")
        changed.node, changed.plain = _changed(self.node, self.plain, steps, (node, plain), ())
        changed.changes = (*self.changes, origin)
        return changed

    def place(self, *path: str | int) -> str:
        """The file and the line of a key or an item, or of the closest level above it that has one."""
        node, found = self.node, place(self.node.start_mark)
        for step in path:
            below = _below(node, step)
            if below is None:
                break
            found, node = below
        return found

    def build(self, kind: type[T]) -> T:
        """The dataclass of this document; keys and values are checked against its annotations.

        A field's metadata may hold `parse(value, place)`, which makes the field's value, or each value of a mapping;
        `hidden`, for a field that no file can set; and `alone`, for the field that a text in place of a mapping sets.
        """
        try:
            return _build(kind, self.plain, self.node, self.where, "")
        except RecipeError as error:
            raise RecipeError(self.told(error)) from error

    def told(self, error: RecipeError) -> str:
        """A message about this document that names its file, and what was changed unless it begins with that."""
        text = str(error)
        if text.startswith(self.changes):
            return text
        text = text if self.where in text else f"{self.where}: {text}"
        return f"{text} Changed by {', '.join(self.changes)}." if self.changes else text


def documents(path: str | Path) -> list[Document]:
    """The documents of a file, which are separated by `---`, with their line numbers in the file; at least one."""
    text = text_of(path)
    try:
        found = starts(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return [Document(text, str(path))]  # raises an error that says what is wrong
    cuts = [0, *(start for start in found if not _PROLOGUE.fullmatch(text[:start])), len(text)]
    made = []
    for start, stop in itertools.pairwise(cuts):
        part = text[start:stop].removesuffix("...\n")
        if part.strip().removeprefix("---").strip():
            # empty lines replace the documents before it, so that line numbers are those of the file
            made.append(Document("\n" * text.count("\n", 0, start) + part, str(path)))
    return made or [Document(text, str(path))]


def value_of(text: str, where: str) -> Any:
    """One value, such as a word of the command line gives, as strictly as those of documents are read."""
    return loaded(text, Origin(where))[1]


def _held(plain: Any, node: Any) -> str:
    """What a document holds that is no mapping, in words."""
    if isinstance(plain, list):
        return "a list"
    return (
        f"the text {spelled(plain)}"
        if isinstance(plain, str)
        else read_as(plain, node)
        if node
        else "nothing"
    )


def _below(node: Any, step: str | int) -> tuple[str, Any] | None:
    """The place and the node of a key of a mapping or of an item of a list."""
    if isinstance(node, yaml.MappingNode):
        found = [(place(key.start_mark), inner) for key, inner in node.value if key.value == step]
        return found[-1] if found else None  # the keys that `<<` adds come before those that override them
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return place(node.value[step].start_mark), node.value[step]
    return None


def _changed(
    node: Any, plain: Any, steps: Sequence[str], value: tuple[Any, Any], above: Sequence[str]
) -> tuple[Any, Any]:
    """A node and its value with another one at a path; nothing is written to, since aliases may share nodes."""
    if not steps:
        return value
    new, (step, *rest) = value[0], steps
    if plain is None:
        node, plain = yaml.MappingNode("tag:yaml.org,2002:map", [], new.start_mark, new.end_mark), {}
    if not isinstance(plain, Mapping):
        raise RecipeError(
            f"{place(new.start_mark)}: {'.'.join(above)} is {read_as(plain, node)}, which has no keys below it: set it "
            "as a whole."
        )
    _, inner = _below(node, step) or ("", None)
    lower, below = _changed(inner, plain.get(step), rest, value, (*above, step))
    key = yaml.ScalarNode("tag:yaml.org,2002:str", step, new.start_mark, new.end_mark)
    pairs = [pair for pair in node.value if pair[0].value != step]
    kept = next((pair[0] for pair in node.value if pair[0].value == step and rest), key)
    mapping = yaml.MappingNode(node.tag, [*pairs, (kept, lower)], node.start_mark, node.end_mark)
    return mapping, {name: one for name, one in plain.items() if str(name) != step} | {step: below}


def shown(value: Any) -> str:
    """A value as Python spells it, for a message; shortened if it is long."""
    return _SHORT.repr(value)


def _build(kind: type[T], plain: Mapping[str, Any], node: Any, where: str, path: str) -> T:
    """A frozen dataclass from a mapping."""
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in visible(kind)}
    values: dict[str, Any] = {}
    for key, value in plain.items():
        here, inner = _below(node, str(key)) or (place(node.start_mark), None)
        if key not in known:
            raise RecipeError(f"{here}: unknown key {path + str(key)!r}. {nearest(str(key), known)}")
        spot = _Spot(inner, where, here, path + str(key), known[key].metadata.get("parse"))
        values[key] = _value(hints[key], value, spot)
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{place(node.start_mark) if path else where}: {path}{name} is missing.")
    try:
        return kind(**values)
    except RecipeError as error:
        if not path or where in str(error):
            raise
        raise RecipeError(f"{place(node.start_mark)}: {error}") from error


def _alone(kind: Any) -> str | None:
    """The field that is set by a text in place of the dataclass's mapping; None if there is none."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return next((field.name for field in fields if field.metadata.get("alone")), None)


def visible(kind: Any) -> list["dataclasses.Field[Any]"]:
    """The fields of a dataclass that a file can set."""
    return [field for field in dataclasses.fields(kind) if not field.metadata.get("hidden")]


@dataclasses.dataclass(frozen=True)
class _Spot:
    """The position of a value, and how to parse it where the annotation is not enough."""

    node: Any
    where: str
    place: str
    path: str
    parse: Parse | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.path}"

    def inside(self, step: Any, path: str) -> "_Spot":
        here, node = _below(self.node, step) or (self.place, None)
        return dataclasses.replace(self, node=node, place=here, path=self.path + path)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _value(hint: Any, value: Any, spot: _Spot) -> Any:
    """A YAML value converted to its annotation, or a `RecipeError`."""
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is Mapping:
        short = _alone(hint) if isinstance(value, str) else None
        if short is not None:
            return _build(typing.cast(type, hint), {short: value}, spot.node, spot.where, f"{spot.path}.")
        if not isinstance(value, Mapping):
            raise RecipeError(f"{spot} needs keys below it, not {read_as(value, spot.node)}.")
        if dataclasses.is_dataclass(hint):
            return _build(typing.cast(type, hint), value, spot.node, spot.where, f"{spot.path}.")
        below = typing.get_args(hint)[1]
        return {
            str(key): _value(below, item, spot.inside(str(key), f".{key}")) for key, item in value.items()
        }
    if spot.parse is not None:
        return spot.parse(value, str(spot))
    for option in alternatives(hint):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if (dataclasses.is_dataclass(option) or origin is Mapping) and value is not None:
            return _value(option, value, spot)
        if origin is Literal and value in args and not isinstance(value, list):
            return value
        if origin in (tuple, Sequence) and isinstance(value, list):
            return tuple(
                _value(args[0], item, spot.inside(index, f"[{index}]")) for index, item in enumerate(value)
            )
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and option is not float and type(value) is option:
            return value
    raise RecipeError(
        f"{spot} is {read_as(value, spot.node)}, and must be {_in_words(hint)}.{_quoted(hint, value, spot)}"
    )


def _quoted(hint: Any, value: Any, spot: _Spot) -> str:
    """How to write a text that YAML takes for something else; empty where no text is wanted, or this one is not."""
    text = spot.node.value if isinstance(spot.node, yaml.ScalarNode) else ""
    wanted = any(
        one is str or (typing.get_origin(one) is Literal and text in typing.get_args(one))
        for one in alternatives(hint)
    )
    return (
        f" If it is a text, write it in quotes: '{text}'."
        if text and wanted and not isinstance(value, str)
        else ""
    )


def _in_words(hint: Any) -> str:
    """A type in the words of a message, which are YAML's; a list of mappings is described by the keys of these."""
    items = next(iter(typing.get_args(hint)), None)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(items):
        short = "texts or " if _alone(items) else ""
        return f"a list of {short}mappings with {listed([field.name for field in visible(typing.cast(type, items))])}"
    return in_words(hint).replace("True or False", "true or false").replace("None", "null")
