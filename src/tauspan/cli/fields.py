"""Options from a dataclass: one per field, with the help text from its docstring."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from tauspan.core.docstrings import documented
from tauspan.core.errors import UsageError

T = TypeVar("T")
_SIMPLE = (int, float, str)


def add_fields(
    parser: argparse.ArgumentParser,
    options: type[Any],
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add `--name-of-field` for each field of a dataclass but mappings, with its type, choices, default and help.

    The help is the field's entry under `Args:` in the docstring, up to the first end of a sentence.

    Args:
        parser: of the verb.
        options: the dataclass.
        skip: fields that the verb takes in another way.
        defaults: other defaults than the dataclass has.
    """
    helps, types_of = described(options), typing.get_type_hints(options)
    for one in dataclasses.fields(options):
        if one.name in skip or any(get_origin(part) is Mapping for part in get_args(types_of[one.name])):
            continue
        kinds, choices = _kinds(types_of[one.name])
        default = (defaults or {}).get(one.name, one.default)
        plain = [kind for kind in _SIMPLE if kind in kinds]
        more: dict[str, Any] = (
            {"choices": choices} if choices else {"metavar": one.name.rpartition("_")[2].upper()}
        )
        if not choices and plain and plain[0] is not str:
            more["type"] = plain[0] if float not in kinds else float
        help_text, _, otherwise = helps.get(one.name, "").partition("; None takes ")
        shown = default if default is not None else otherwise or "none"
        if kinds == {bool}:
            parser.add_argument(f"--{one.name.replace('_', '-')}", action="store_true", help=help_text)
            continue
        text = f"{help_text} (default: {shown})".replace("%", "%%")
        parser.add_argument(f"--{one.name.replace('_', '-')}", default=default, help=text, **more)


def read_fields(options: argparse.Namespace, into: type[T], **given: Any) -> T:
    """The dataclass from the options that `add_fields` made.

    Args:
        options: of the command line.
        into: the dataclass.
        given: fields that the verb took in another way.

    Raises:
        UsageError: what the dataclass refuses.
    """
    names = [one.name for one in dataclasses.fields(typing.cast(Any, into))]
    values = {name: getattr(options, name) for name in names if hasattr(options, name)}
    return into(**{**values, **given})


def described(options: type[Any]) -> dict[str, str]:
    """The description of each field in a dataclass's docstring: its first sentence, without code marks."""
    entries = documented(options)
    if not entries:
        raise UsageError(f"{options.__name__} describes no fields under `Args:`.")
    sentences = {name: re.split(r"\.(?: |$)", text)[0] for name, text in entries.items()}
    return {name: re.sub(r"[`\"]", "", text) for name, text in sentences.items()}


def _kinds(annotation: Any) -> tuple[set[type], list[str]]:
    """The plain types that an annotation allows, and the strings of its `Literal`."""
    origin = get_origin(annotation)
    if origin is Literal:
        return set(), [str(word) for word in get_args(annotation)]
    if origin in (Union, types.UnionType):
        parts = [_kinds(part) for part in get_args(annotation)]
        return set().union(*(kinds for kinds, _ in parts)), [word for _, words in parts for word in words]
    return ({annotation} if isinstance(annotation, type) else set()), []
