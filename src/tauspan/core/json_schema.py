"""JSON schemas of recipes, made of the dataclasses that read them: editors check and complete files with these."""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, is_dataclass
from typing import Any, Literal, TypeAlias

from tauspan.core.docstrings import documented
from tauspan.core.schema import alternatives, visible

Plain: TypeAlias = dict[str, Any]
Special: TypeAlias = Callable[["Field[Any]", Any], Plain | None]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema_of(kind: Any, special: Special | None = None) -> Plain:
    """The schema of a dataclass's mapping, draft 2020-12: its fields with types, defaults and descriptions.

    Args:
        kind: the dataclass. The descriptions are those of `Args:` in its docstring, and in those of its bases.
        special: called with each field and its type, it gives the schema of a field that its type does not describe,
            and None for any other.

    Example:
        >>> from tauspan.core.reading import Reading
        >>> schema_of(Reading)["properties"]["batch_size"]
        {'type': 'integer', 'description': 'rows per forward pass.', 'default': 64}
    """
    hints, docs = typing.get_type_hints(kind), documented(kind)
    properties = {}
    for field in visible(kind):
        hint = hints[field.name]
        made = (special(field, hint) if special else None) or type_of(hint, special)
        if field.name in docs:
            made["description"] = docs[field.name]
        if isinstance(field.default, str | int | float | bool):
            made["default"] = field.default
        properties[field.name] = made
    needed = [field.name for field in visible(kind) if field.default is field.default_factory is MISSING]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def type_of(hint: Any, special: Special | None = None) -> Plain:
    """The schema of a value of an annotated type.

    Example:
        >>> type_of(tuple[int, ...] | None)
        {'anyOf': [{'type': 'array', 'items': {'type': 'integer'}}, {'type': 'null'}]}
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    several = alternatives(hint)
    if len(several) > 1:
        return {"anyOf": [type_of(one, special) for one in several]}
    if is_dataclass(hint):
        alone = any(field.metadata.get("alone") for field in visible(hint))
        made = schema_of(hint, special)
        return {"anyOf": [{"type": "string"}, made]} if alone else made
    if origin is Literal:
        return {"type": "string", "enum": list(args)}
    if origin in (tuple, Sequence):
        return {"type": "array", "items": type_of(args[0], special)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": type_of(args[1], special)}
    return {"type": _PLAIN[hint]}
