"""YAML read strictly: a key twice, or a value that people and YAML read differently, is an error with its line."""

import datetime
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from tauspan.core.errors import RecipeError, StoreError

_MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`
_FLOAT = "tag:yaml.org,2002:float"
_NUMBERS = {"tag:yaml.org,2002:int", _FLOAT}
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+")  # YAML 1.1 wants a dot and a sign


class _Loader(yaml.SafeLoader):
    """Also takes `1e-4` and `1.0e5` for numbers, as YAML 1.2, JSON and Python do."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `_Loader` would take for numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(_FLOAT, re.compile(f"^(?:{_EXPONENT.pattern})$"), list("-+.0123456789"))


class Origin(str):
    """Where a value comes from that stands in no line of a file, such as an option of the command line."""

    __slots__ = ()


def dumped(plain: Any) -> str:
    r"""Plain values (mappings, lists, texts, numbers, truths, None) as a YAML text that `loaded` reads back as they are.

    Example:
        >>> dumped({"name": "1e-4", "rate": 1e-4})
        "name: '1e-4'\nrate: 0.0001\n"
    """
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20))


def loaded(text: str, where: str) -> tuple[Any, Any]:
    """The node of a YAML text and its value.

    Args:
        text: the YAML.
        where: the file's name, or an `Origin`, for errors.

    Raises:
        RecipeError: not YAML, a repeated key, or a value that is not what it seems.

    Example:
        >>> loaded("{rate: 1e-4, on: .5}", "x.yaml")
        Traceback (most recent call last):
        tauspan.core.errors.RecipeError: x.yaml, line 1: YAML reads the key on as true, and a key is a name: write it in \
quotes, 'on', if that is its name.
        >>> loaded("{rate: 1e-4}", "x.yaml")[1]
        {'rate': 0.0001}
    """
    try:
        loader = _Loader(text)  # which reads the first characters
        loader.name = where  # of every mark
        node: Any = loader.get_single_node()
        _refuse_twice(node, "", set())  # before `<<` is written out
        _refuse_scalars(loader, node, set())
        plain: Any = None if node is None else loader.construct_document(node)
        loader.dispose()
    except RecipeError:  # a ValueError too
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{where} is not YAML: {error}") from error
    return node, plain


def starts(text: str) -> list[int]:
    """The places of `---` in a YAML text; raises what the library raises."""
    return [
        token.start_mark.index
        for token in yaml.scan(text, Loader=_Loader)
        if isinstance(token, yaml.DocumentStartToken)
    ]


def place(mark: yaml.Mark) -> str:
    """A mark in words: the file and the line, or the `Origin`."""
    return mark.name if isinstance(mark.name, Origin) else f"{mark.name}, line {mark.line + 1}"


def text_of(path: str | Path) -> str:
    """The text of a recipe file.

    Raises:
        StoreError: there is none, or it cannot be read.
        RecipeError: it is no text in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise StoreError(f"there is no recipe {path}: look for a typing error in its path.") from error
    except OSError as error:
        raise StoreError(f"the recipe {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is no text in UTF-8: {error}.") from error


# -- values in words ---------------------------------------------------------------------------------------------


class _Short(reprlib.Repr):
    """Values as YAML spells them in one line, short even with nested aliases; texts in quotes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 200
        self.maxlist = self.maxdict = 20

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()

    def repr_NoneType(self, value: None, level: int) -> str:  # noqa: N802 - so called by the library
        return "null"

    def repr_date(self, value: datetime.date, level: int) -> str:
        return value.isoformat()

    def repr_datetime(self, value: datetime.datetime, level: int) -> str:
        return value.isoformat(" ")


_SHORT = _Short()


def spelled(value: Any) -> str:
    """A value in the words of YAML, for a message; shortened if it is long.

    Example:
        >>> spelled([True, None, "a", 1.5])
        "[true, null, 'a', 1.5]"
    """
    return _SHORT.repr(value)


def read_as(value: Any, node: Any) -> str:
    """A value as its text spells it, and what YAML makes of that text where people may mean something else.

    Example:
        >>> node, value = loaded("no", "x.yaml")
        >>> read_as(value, node)
        'no, which YAML reads as false'
    """
    if not isinstance(node, yaml.ScalarNode) or isinstance(value, str):
        return spelled(value)
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        return f"{node.value}, which YAML reads as {spelled(value)}"
    if isinstance(value, datetime.date):
        return f"{node.value}, which YAML reads as a date"
    return node.value if node.value and len(node.value) < 40 else spelled(value)


# -- what is refused ---------------------------------------------------------------------------------------------


def _refuse_twice(node: Any, path: str, seen: set[int]) -> None:
    """Raise if a mapping, at any depth, has a key twice."""
    if id(node) in seen:
        return  # an alias that was checked already, and may contain itself
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_twice(item, f"{path}[{index}]", seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{place(key.start_mark)}: a key is a name, not a list or a mapping.")
            line, name = key.start_mark.line + 1, f"{path}.{key.value}".lstrip(".")
            if key.value in first:
                both = " Write one, of a list: `<<: [*a, *b]`." if key.tag == _MERGE else ""
                raise RecipeError(
                    f"{place(key.start_mark)}: the key {name!r} stands twice, first in line {first[key.value]}.{both}"
                )
            first[key.value] = line
            _refuse_twice(inner, name, seen)


def _refuse_scalars(loader: _Loader, node: Any, seen: set[int]) -> None:
    """Raise, with its line, for a value that is not what its tag says or that people and YAML 1.1 read differently."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        _scalar(loader, node)
    for inner in node.value if isinstance(node, yaml.SequenceNode) else ():
        _refuse_scalars(loader, inner, seen)
    for key, inner in node.value if isinstance(node, yaml.MappingNode) else ():
        _key(loader, key)
        _refuse_scalars(loader, inner, seen)


def _scalar(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """The value of a scalar of YAML; its text where its tag belongs to no scalar, which the loader refuses itself."""
    kind, text, here = node.tag.rpartition(":")[2], spelled(node.value), place(node.start_mark)
    if node.tag not in loader.yaml_constructors or kind in ("seq", "map", "set", "omap", "pairs"):
        return node.value
    try:
        made = loader.construct_object(node)
        if kind == "int":
            float(made)
    except Exception as error:  # the library's constructors raise many kinds on a text that is none of theirs
        if kind == "int" and (isinstance(error, OverflowError) or "digits" in str(error)):
            raise RecipeError(
                f"{here}: {text} is beyond 1.8e308, the largest number that is computed with: write a smaller one."
            ) from None
        quoted = (
            f", or '{node.value}' in quotes and without a tag if it is a text" if len(node.value) < 40 else ""
        )
        what = {"int": "whole number", "float": "number", "bool": "truth"}.get(kind, kind)
        raise RecipeError(f"{here}: {text} is no {what} (!!{kind}): write one{quoted}.") from error
    if kind == "null" and node.value not in ("", "~", "null", "Null", "NULL"):
        raise RecipeError(f"{here}: {text} is not null (!!null): write null, or the text without !!null.")
    if node.tag in _NUMBERS and (":" in node.value or (kind == "int" and _OCTAL.fullmatch(node.value))):
        base = "in base 60" if ":" in node.value else "in base 8"
        raise RecipeError(
            f"{here}: YAML 1.1 reads {node.value} {base}, as {made}: write {made} if that is meant, else the number "
            f"without {'colons' if ':' in node.value else 'zeros before it'}, or '{node.value}' in quotes for a text."
        )
    return made


def _key(loader: _Loader, key: yaml.ScalarNode) -> None:
    """Raise unless a key is read as it is written: `yes` is a truth, and `~` nothing."""
    made = key.value if key.tag == _MERGE else _scalar(loader, key)
    if str(made) != key.value:
        raise RecipeError(
            f"{place(key.start_mark)}: YAML reads the key {key.value or 'of no characters'} as {spelled(made)}, and a "
            f"key is a name: write it in quotes, '{key.value}', if that is its name."
        )
