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

from tauspan.core.arguments import described, in_words
from tauspan.core.errors import RecipeError, StoreError, listed, nearest

T = TypeVar("T")
Parse: TypeAlias = Callable[[Any, str], Any]

_MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`
_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_PROLOGUE = re.compile(r"(\s*([%#][^\n]*)?\n)*\s*")  # what may come before `---`: directives and comments
_SHORT = reprlib.Repr()  # keeps values in messages short, even with nested aliases
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
        self.node, self.plain = _loaded(text, where)
        if not isinstance(self.plain, Mapping):
            raise RecipeError(f"{where} holds {described(self.plain)}, not a mapping of keys to values.")

    @staticmethod
    def read(path: str | Path) -> "Document":
        """The document in a file."""
        return Document(_text(path), str(path))

    def with_plain(self, plain: Mapping[str, Any]) -> "Document":
        """The same document with other values, which may lack keys but add none; line numbers stay."""
        changed = copy.copy(self)
        changed.plain = plain
        return changed

    def place(self, *path: str | int) -> str:
        """The file and the line of a key or an item, or of the closest level above it that has one."""
        node, line = self.node, self.node.start_mark.line + 1
        for step in path:
            found = _below(node, step)
            if found is None:
                break
            line, node = found
        return f"{self.where}, line {line}"

    def build(self, kind: type[T]) -> T:
        """The dataclass of this document; keys and values are checked against its annotations.

        A field's metadata may hold `parse(value, place)`, which makes the field's value, or each value of a mapping;
        `hidden`, for a field that no file can set; and `alone`, for the field that a text in place of a mapping sets.
        """
        try:
            return _build(kind, self.plain, self.node, self.where, "")
        except RecipeError as error:
            raise error if self.where in str(error) else RecipeError(f"{self.where}: {error}") from error


def documents(path: str | Path) -> list[Document]:
    """The documents of a file, which are separated by `---`, with their line numbers in the file; at least one."""
    text = _text(path)
    try:
        starts = [
            token.start_mark.index
            for token in yaml.scan(text, Loader=yaml.SafeLoader)
            if isinstance(token, yaml.DocumentStartToken)
        ]
    except (yaml.YAMLError, RecursionError, ValueError):
        return [Document(text, str(path))]  # raises an error that says what is wrong
    cuts = [0, *(start for start in starts if not _PROLOGUE.fullmatch(text[:start])), len(text)]
    found = []
    for start, stop in itertools.pairwise(cuts):
        part = text[start:stop].removesuffix("...\n")
        if part.strip().removeprefix("---").strip():
            # empty lines replace the documents before it, so that line numbers are those of the file
            found.append(Document("\n" * text.count("\n", 0, start) + part, str(path)))
    return found or [Document(text, str(path))]


def value_of(text: str, where: str) -> Any:
    """One value, such as a word of the command line gives, as strictly as those of documents are read."""
    return _loaded(text, where)[1]


def _loaded(text: str, where: str) -> tuple[Any, Any]:
    """The node of a YAML text and its value."""
    try:
        loader = yaml.SafeLoader(text)  # which reads the first characters
        node: Any = loader.get_single_node()
        _refuse_twice(node, where, "", set())  # before `<<` is written out
        _refuse_scalars(loader, node, where, set())
        plain: Any = None if node is None else loader.construct_document(node)
        loader.dispose()
    except RecipeError:  # a ValueError too
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{where} is not YAML: {error}") from error
    return node, plain


def _text(path: str | Path) -> str:
    """The text of a recipe file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"there is no recipe {path}: look for a typing error in its path.") from error
    except OSError as error:
        raise StoreError(f"the recipe {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is no text in UTF-8: {error}.") from error


def _below(node: Any, step: str | int) -> tuple[int, Any] | None:
    """The line and the node of a key of a mapping or of an item of a list."""
    if isinstance(node, yaml.MappingNode):
        found = [(key.start_mark.line + 1, inner) for key, inner in node.value if key.value == step]
        return found[-1] if found else None  # the keys that `<<` adds come before those that override them
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line + 1, node.value[step]
    return None


def shown(value: Any) -> str:
    """A value as text for a message, shortened if it is long."""
    return _SHORT.repr(value)


def _refuse_twice(node: Any, where: str, path: str, seen: set[int]) -> None:
    """Raise if a mapping, at any depth, has a key twice."""
    if id(node) in seen:
        return  # an alias that was checked already, and may contain itself
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_twice(item, where, f"{path}[{index}]", seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(
                    f"{where}, line {key.start_mark.line + 1}: a key is a name, not a list or a mapping."
                )
            line, name = key.start_mark.line + 1, f"{path}.{key.value}".lstrip(".")
            if key.value in first:
                both = " Write one, of a list: `<<: [*a, *b]`." if key.tag == _MERGE else ""
                raise RecipeError(
                    f"{where}, line {line}: the key {name!r} stands twice, first in line {first[key.value]}.{both}"
                )
            first[key.value] = line
            _refuse_twice(inner, where, name, seen)


def _refuse_scalars(loader: yaml.SafeLoader, node: Any, where: str, seen: set[int]) -> None:
    """Raise, with its line, for a value that is not what its tag says or that people and YAML 1.1 read differently."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        _scalar(loader, node, f"{where}, line {node.start_mark.line + 1}")
    for inner in node.value if isinstance(node, yaml.SequenceNode) else ():
        _refuse_scalars(loader, inner, where, seen)
    for key, inner in node.value if isinstance(node, yaml.MappingNode) else ():
        _key(loader, key, f"{where}, line {key.start_mark.line + 1}")
        _refuse_scalars(loader, inner, where, seen)


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode, place: str) -> Any:
    """The value of a scalar of YAML; its text where its tag belongs to no scalar, which the loader refuses itself."""
    kind, text = node.tag.rpartition(":")[2], shown(node.value)
    if node.tag not in loader.yaml_constructors or kind in ("seq", "map", "set", "omap", "pairs"):
        return node.value
    try:
        made = loader.construct_object(node)
        if kind == "int":
            float(made)
    except Exception as error:  # the library's constructors raise many kinds on a text that is none of theirs
        if kind == "int" and (isinstance(error, OverflowError) or "digits" in str(error)):
            raise RecipeError(
                f"{place}: {text} is beyond 1.8e308, the largest number that is computed with: write a smaller one."
            ) from None
        quoted = (
            f", or '{node.value}' in quotes and without a tag if it is a text" if len(node.value) < 40 else ""
        )
        what = {"int": "whole number", "float": "number", "bool": "truth"}.get(kind, kind)
        raise RecipeError(f"{place}: {text} is no {what} (!!{kind}): write one{quoted}.") from error
    if kind == "null" and node.value not in ("", "~", "null", "Null", "NULL"):
        raise RecipeError(f"{place}: {text} is not null (!!null): write null, or the text without !!null.")
    if node.tag in _NUMBERS and (":" in node.value or (kind == "int" and _OCTAL.fullmatch(node.value))):
        base = "in base 60" if ":" in node.value else "in base 8"
        raise RecipeError(
            f"{place}: YAML 1.1 reads {node.value} {base}, as {made}: write {made} if that is meant, else the number "
            f"without {'colons' if ':' in node.value else 'zeros before it'}, or '{node.value}' in quotes for a text."
        )
    return made


def _key(loader: yaml.SafeLoader, key: yaml.ScalarNode, place: str) -> None:
    """Raise unless a key is read as it is written: `yes` is a truth, and `~` nothing."""
    made = key.value if key.tag == _MERGE else _scalar(loader, key, place)
    if str(made) != key.value:
        raise RecipeError(
            f"{place}: YAML reads the key {key.value or 'of no characters'} as {made!r}, and a key is a name: write "
            f"it in quotes, '{key.value}', if that is its name."
        )


def _build(kind: type[T], plain: Mapping[str, Any], node: Any, where: str, path: str) -> T:
    """A frozen dataclass from a mapping."""
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in visible(kind)}
    values: dict[str, Any] = {}
    for key, value in plain.items():
        line, inner = _below(node, str(key)) or (node.start_mark.line + 1, None)
        place = f"{where}, line {line}"
        if key not in known:
            raise RecipeError(f"{place}: unknown key {path + str(key)!r}. {nearest(str(key), known)}")
        spot = _Spot(inner, where, line, path + str(key), known[key].metadata.get("parse"))
        values[key] = _value(hints[key], value, spot)
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            line = f", line {node.start_mark.line + 1}" if path else ""
            raise RecipeError(f"{where}{line}: {path}{name} is missing.")
    try:
        return kind(**values)
    except RecipeError as error:
        if not path or where in str(error):
            raise
        raise RecipeError(f"{where}, line {node.start_mark.line + 1}: {error}") from error


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
    line: int
    path: str
    parse: Parse | None = None

    def __str__(self) -> str:
        return f"{self.where}, line {self.line}: {self.path}"

    def inside(self, step: Any, path: str) -> "_Spot":
        line, node = _below(self.node, step) or (self.line, None)
        return dataclasses.replace(self, node=node, line=line, path=self.path + path)


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
            raise RecipeError(f"{spot} needs keys below it, not {shown(value)}.")
        if dataclasses.is_dataclass(hint):
            return _build(typing.cast(type, hint), value, spot.node, spot.where, f"{spot.path}.")
        below = typing.get_args(hint)[1]
        return {
            str(key): _value(below, item, spot.inside(str(key), f".{key}")) for key, item in value.items()
        }
    if spot.parse is not None:
        return spot.parse(value, str(spot))
    for option in alternatives(hint):
        if dataclasses.is_dataclass(option) and value is not None:
            return _value(option, value, spot)
        origin, args = typing.get_origin(option), typing.get_args(option)
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
    hint_text = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) and "e" in value else ""
    raise RecipeError(f"{spot} is {shown(value)}, and must be {_in_words(hint)}{hint_text}.")


def _in_words(hint: Any) -> str:
    """A type, in the words of a message; a list of dataclasses is described by the keys that a file may set."""
    items = next(iter(typing.get_args(hint)), None)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(items):
        short = "texts or " if _alone(items) else ""
        return f"a list of {short}mappings with {listed([field.name for field in visible(typing.cast(type, items))])}"
    return in_words(hint)
