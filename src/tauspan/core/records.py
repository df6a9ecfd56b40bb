"""Results as plain values for JSON, and back again by the annotations of their fields."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


LIVE: Mapping[str, Any] = {"live": True}  # metadata of a field that no file holds, such as a model


def record(value: Any) -> Any:
    """A dataclass, and what it holds, in values that JSON has.

    Example:
        >>> from dataclasses import dataclass, field
        >>> @dataclass(frozen=True)
        ... class Curve:
        ...     at: Mapping[float, float]
        ...     model: Any = field(default=None, metadata=LIVE)
        >>> record(Curve({0.5: 1.0}, model=print))
        {'at': {'0.5': 1.0}}
    """
    if is_dataclass(value):
        return {one.name: record(getattr(value, one.name)) for one in fields(value) if not _is_live(one)}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): record(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [record(item) for item in value]
    return value


def restored(kind: type[D], plain: Mapping[str, Any], **given: Any) -> D:
    """The dataclass that `record` was made of.

    Args:
        kind: its class; nested dataclasses, mappings and sequences are built as the annotations say.
        plain: what `record` gave, whether or not it went through JSON.
        **given: the fields of `LIVE`.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Curve:
        ...     at: Mapping[float, float]
        >>> restored(Curve, {"at": {"0.5": 1.0}})
        Curve(at={0.5: 1.0})
    """
    hints = typing.get_type_hints(kind)
    kept = {one.name: _built(hints[one.name], plain[one.name]) for one in fields(kind) if not _is_live(one)}
    return kind(**kept, **given)


def layout(kind: type["DataclassInstance"]) -> dict[str, Any]:
    """The names of the fields that `record` writes of a dataclass, those of dataclasses inside too.

    A record of another layout was made by other code and cannot be restored.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Point:
        ...     x: float
        >>> @dataclass(frozen=True)
        ... class Line:
        ...     ends: tuple[Point, ...]
        >>> layout(Line)
        {'ends': {'x': {}}}
    """
    hints = typing.get_type_hints(kind)
    return {one.name: _inside(hints[one.name]) for one in fields(kind) if not _is_live(one)}


def _inside(hint: Any) -> dict[str, Any]:
    """The layouts of the dataclasses that an annotation names."""
    if is_dataclass(hint):
        return layout(typing.cast("type[DataclassInstance]", hint))
    found: dict[str, Any] = {}
    for one in typing.get_args(hint):
        found |= _inside(one)
    return found


def _is_live(one: Any) -> bool:
    return bool(one.metadata.get("live"))


def _built(hint: Any, value: Any) -> Any:
    """A value of JSON as an annotation wants it."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fitting = [one for one in inside if _fits(one, value)]
        return _built(fitting[0], value) if fitting else value
    if is_dataclass(hint):
        return restored(typing.cast("type[DataclassInstance]", hint), value)
    if origin is tuple:
        each = inside[:1] * len(value) if inside[1:] == (...,) else inside
        return tuple(_built(one, item) for one, item in zip(each, value, strict=True))
    if origin is not None and isinstance(value, Mapping):
        key = inside[0] if inside[0] in (int, float) else str
        return {key(name): _built(inside[1], item) for name, item in value.items()}
    if origin is not None and isinstance(value, list):
        return [_built(inside[0], item) for item in value]
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a member of a union is the one that holds such a value: mappings, lists, and anything else."""
    origin = typing.get_origin(hint) or hint
    if isinstance(value, Mapping):
        return is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping))
    if isinstance(value, list):
        return isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str
    return False
