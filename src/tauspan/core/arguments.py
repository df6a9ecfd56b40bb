"""Arguments of public functions: an argument of a wrong type is refused with a message that says how to repair it.

`checked` reads the types from a function's annotations. Types are compared by name here, so that checking imports
nothing.
"""

import collections.abc
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from tauspan.core.errors import ArgumentError, nearest
from tauspan.core.repairs import repair

P = ParamSpec("P")
R = TypeVar("R")
_GENERAL = (
    "builtins",
    "collections.abc",
)  # lists and the like; other containers are compared by their class alone
_LOOKED_AT = 1000  # the number of items of a list or mapping that are checked


C = TypeVar("C", bound=type)


@typing.overload
def checked(function: C) -> C: ...


@typing.overload
def checked(function: Callable[P, R]) -> Callable[P, R]: ...


def checked(function: Any) -> Any:
    """Decorate a function so that it refuses arguments of wrong types before it does anything.

    On a class, the arguments of its constructor are checked.

    Raises, when the function is called:
        ArgumentError: an argument of a wrong type, or a name that the function does not take.

    Example:
        >>> @checked
        ... def twice(number: float, times: int = 2) -> float:
        ...     return number * times
        >>> twice("3")
        Traceback (most recent call last):
        tauspan.core.errors.ArgumentError: twice: `number` is the text '3', and a number is wanted: write float('3').
        >>> twice(3.0, time=4)
        Traceback (most recent call last):
        tauspan.core.errors.ArgumentError: twice takes no argument `time`. Did you mean 'times'?
    """
    if inspect.isclass(function):
        function.__init__ = _checked(function.__init__)  # type: ignore[method-assign]
        return function
    return _checked(function)


def _checked(function: Callable[P, R]) -> Callable[P, R]:
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        _require_names(function, signature, kwargs)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # too few or too many: Python's own words say which
            return function(*args, **kwargs)
        if not hints:
            hints.update(typing.get_type_hints(function))
        for name, value in given.items():
            if name in hints and signature.parameters[name].kind.name not in (
                "VAR_POSITIONAL",
                "VAR_KEYWORD",
            ):
                _require(function, name, value, hints[name])
        return function(*args, **kwargs)

    return checking


def _require_names(function: Callable[..., Any], signature: inspect.Signature, given: Iterable[str]) -> None:
    known = signature.parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in given:
        if name not in known:
            raise ArgumentError(f"{_named(function)} takes no argument `{name}`. {nearest(name, known)}")


def _require(function: Callable[..., Any], name: str, value: Any, hint: Any) -> None:
    wrong = misfit(value, hint, name)
    if wrong is None:
        return
    where, found, wanted = wrong
    choices = [choice for choice in get_args(wanted) if isinstance(choice, str)] if is_literal(wanted) else []
    if choices and isinstance(found, str):
        raise ArgumentError(f"{name}={found!r}. {nearest(found, choices)}")
    how = repair(value, hint, found, wanted) or f"the call is {_call(function)}"
    raise ArgumentError(
        f"{_named(function)}: {_quoted(where)} is {described(found)}, and {in_words(wanted)} is wanted: {how}."
    )


def _quoted(where: str) -> str:
    prefix = "a key of "
    return f"{prefix}`{where.removeprefix(prefix)}`" if where.startswith(prefix) else f"`{where}`"


def _named(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def _call(function: Callable[..., Any]) -> str:
    """A call of the function with its first arguments, as text."""
    named = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    return f"{_named(function)}({', '.join(named[:4])}{', ...' if len(named) > 4 else ''})"


# -- whether a value is of a type --------------------------------------------------------------------------------


def misfit(value: Any, hint: Any, where: str) -> tuple[str, Any, Any] | None:
    """The first part of a value that has a wrong type: where it is, the part, and the type expected; None if all fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _misfit_of_all(value, hint, inner, where)
    if is_literal(hint):
        return (
            None
            if any(value == choice and type(value) is type(choice) for choice in inner)
            else (where, value, hint)
        )
    if origin is not None and isinstance(origin, type):
        if issubclass(origin, tuple):
            return None if isinstance(value, tuple | list) else (where, value, hint)
        if issubclass(origin, Mapping):
            return _misfit_in_mapping(value, hint, where)
        if issubclass(origin, Sequence | collections.abc.Iterable) and origin.__module__ in _GENERAL:
            return _misfit_in_list(value, hint, where)
        return None if not inspect.isclass(origin) or _is(value, origin) else (where, value, hint)
    return None if _is(value, hint) else (where, value, hint)


def _misfit_of_all(value: Any, hint: Any, choices: Sequence[Any], where: str) -> tuple[str, Any, Any] | None:
    """The misfit with a union: None if one of its types fits, else the misfit with the closest type."""
    wrong = [misfit(value, choice, where) for choice in choices]
    if any(one is None for one in wrong):
        return None
    if isinstance(value, str) and any(is_literal(choice) for choice in choices) and len(choices) > 1:
        literals = [choice for choice in choices if choice is not type(None)]
        return (
            (where, value, literals[0]) if len(literals) == 1 else None
        )  # a text: the function itself checks it
    deeper = [one for one in wrong if one is not None and one[0] != where]
    return deeper[0] if deeper else (where, value, hint)


def _misfit_in_list(value: Any, hint: Any, where: str) -> tuple[str, Any, Any] | None:
    origin, inner = get_origin(hint), get_args(hint)
    listlike = not isinstance(value, str | bytes | Mapping) and hasattr(value, "__iter__")
    if origin is not collections.abc.Iterable and origin is not collections.abc.Iterator:
        listlike = listlike and hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not listlike:
        return where, value, hint
    if isinstance(value, list | tuple) and inner:  # other sequences may compute their items on access
        for place, item in enumerate(value[:_LOOKED_AT]):
            wrong = misfit(item, inner[0], f"{where}[{place}]")
            if wrong is not None:
                return wrong
    return None


def _misfit_in_mapping(value: Any, hint: Any, where: str) -> tuple[str, Any, Any] | None:
    if not isinstance(value, Mapping):
        return where, value, hint
    keys, values = get_args(hint) or (Any, Any)
    for place, (key, item) in enumerate(value.items() if type(value) is dict else ()):
        if place == _LOOKED_AT:
            break
        wrong = misfit(key, keys, f"a key of {where}") or misfit(item, values, f"{where}[{key!r}]")
        if wrong is not None:
            return wrong
    return None


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of a plain type; a hint that is not a class fits every value."""
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if inspect.isclass(hint) and issubclass(hint, PurePath):
        return isinstance(value, os.PathLike)
    if not inspect.isclass(hint) or getattr(hint, "_is_protocol", False):
        return callable(value) if hint in (Callable, collections.abc.Callable) else True
    return isinstance(value, hint)


def no_rows(value: Any) -> str | None:
    """What a value is that holds no rows in an order of their own, and what to write instead; None if it does.

    Example:
        >>> no_rows({"b": 1})
        'a dict, whose order is that of its keys: write list(rows.values())'
        >>> no_rows(["b", "a"])
    """
    if isinstance(value, str | bytes | bytearray):
        return f"{described(value)}, which is one row: write [row]"
    if isinstance(value, Mapping):
        return f"{described(value)}, whose order is that of its keys: write list(rows.values())"
    if isinstance(value, collections.abc.Set):
        return f"{described(value)}, which has no order: put the rows into a list, in the order that is meant"
    if isinstance(value, memoryview):
        return f"{described(value)}: write numpy.asarray(rows)"
    if hasattr(value, "columns") and hasattr(value, "iloc"):  # its list is the names of its columns
        return f"{described(value)}, whose items are columns: write rows.to_numpy()"
    if not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return (
            f"{described(value)}: write {'list(rows)' if isinstance(value, Iterable) else 'a list of rows'}"
        )
    if getattr(value, "ndim", 1) == 0:
        return f"{described(value)}, which is one number: write rows[None]"
    return None


def is_literal(hint: Any) -> bool:
    """Whether a type is a choice of values, `Literal`."""
    return get_origin(hint) is Literal


# -- in words ----------------------------------------------------------------------------------------------------


def described(value: Any) -> str:
    """A value, in the words of a message."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"the text {value if len(value) < 60 else value[:57] + '...'!r}"
    if isinstance(value, numbers.Number):
        return f"the number {value}"
    kind = type(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = kind.__name__ if kind.__module__ != "numpy" else f"numpy {kind.__name__}"
    shape = getattr(value, "shape", None)
    shaped = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return f"{_article(name)} {name}{shaped}"


def in_words(hint: Any) -> str:
    """A type, in the words of a message.

    Example:
        >>> in_words(Sequence[int] | None), in_words(Literal["a", "b"]), in_words(Mapping[str, float])
        ('a list (each item a whole number) or None', "'a' or 'b'", 'a mapping from a text to a number')
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(map(in_words, inner))
        if "a path" in words:
            words.pop("a text", None)  # a path may be given as a text
        return " or ".join(words)
    if is_literal(hint):
        return " or ".join(map(repr, inner))
    if origin is not None and isinstance(origin, type):
        if issubclass(origin, Mapping):
            return f"a mapping from {in_words(inner[0])} to {in_words(inner[1])}" if inner else "a mapping"
        if issubclass(origin, collections.abc.Callable):  # type: ignore[arg-type]
            return "a function"
        item = "" if not inner or inner[0] is Any else f" (each item {in_words(inner[0])})"
        return f"a list{item}"
    if hint is None or hint in _PLAIN:
        return _PLAIN.get(hint, "None")
    name = getattr(hint, "__name__", str(hint))
    if name in _CLASSES:
        return _CLASSES[name]
    return f"{_article(name)} {name}"


_PLAIN: dict[Any, str] = {
    type(None): "None", int: "a whole number", float: "a number", str: "a text", bool: "True or False",
}  # fmt: skip


_CLASSES = {
    "Any": "anything",
    "Path": "a path",
    "PurePath": "a path",
    "Module": "a torch module",
    "Tensor": "a torch tensor",
}


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"
