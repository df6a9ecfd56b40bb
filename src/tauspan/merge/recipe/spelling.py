"""Options as recipes spell them, and scopes of options inside each other."""

import itertools
from collections.abc import Mapping
from typing import Any

from tauspan.core.errors import RecipeError, UsageError, nearest
from tauspan.core.schema import shown
from tauspan.merge.engine.settings import Filtered, Gradient, Setting, Settings, Steps
from tauspan.merge.methods.method import Method, Value


def setting(value: Any, place: str) -> Setting:
    """A number, text or truth; a list of them, which runs over the layers; or a list of `filter` and `value`."""
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        entries = tuple(_filtered(entry, f"{place}[{index}]") for index, entry in enumerate(value))
        return _reachable(entries)
    if isinstance(value, Mapping):
        return (_filtered(value, place),)
    result: Value | Gradient | Steps = _plain(value, place)
    return result


def _reachable(entries: tuple[Filtered, ...]) -> tuple[Filtered, ...]:
    """The entries, of which the first that fits holds; an error if one stands after one that fits everything."""
    for entry, later in itertools.pairwise(entries):
        if entry.pattern is None:
            raise RecipeError(
                f"{later.place} is never reached: the entry before it fits every tensor. Put it first, or give that "
                "entry a `filter`."
            )
    return entries


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, list):
        if value and all(isinstance(entry, int | float) and type(entry) is not bool for entry in value):
            return Gradient(tuple(float(entry) for entry in value))
        if value and any(all(type(entry) is kind for entry in value) for kind in (bool, str)):
            return Steps(tuple(value))
        raise RecipeError(
            f"{place} is {shown(value)}: a list holds numbers, or truths, from the first layer to the last, or entries "
            "with `filter` and `value`."
        )
    if value is None or isinstance(value, Mapping):
        raise RecipeError(f"{place} is {shown(value)}, and needs a value; leave the key out for the default.")
    return value


def _filtered(entry: Mapping[str, Any], place: str) -> Filtered:
    known = ("filter", "value")
    for key in entry:
        if key not in known:
            raise RecipeError(f"{place}: unknown key {str(key)!r}. {nearest(str(key), known)}")
    if "value" not in entry:
        raise RecipeError(f"{place}: `value` is missing.")
    pattern = entry.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise RecipeError(f"{place}.filter is {shown(pattern)}, and must be a part of tensor names.")
    return Filtered(None if pattern == "*" else pattern, _plain(entry["value"], f"{place}.value"), place)


def written(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    """Settings as a recipe's file spells them."""
    return {name: _written(value) for name, value in parameters.items()}


def _written(value: Setting) -> Any:
    if isinstance(value, tuple):
        return [{"filter": entry.pattern, "value": _written(entry.value)} for entry in value]
    return list(value.points) if isinstance(value, Gradient | Steps) else value


def completed(given: Mapping[str, Setting], defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings that hold for every tensor: where none is given, or no filter fits, the default."""
    done = dict(given)
    for name, default in defaults.items():
        before = done.get(name)
        if isinstance(before, tuple) and all(entry.pattern is not None for entry in before):
            done[name] = (*before, *chained(default))
        elif before is None:
            done[name] = default
    return done


def within(inner: Mapping[str, Setting], outer: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings of two scopes as one: where the inner one has none, or no filter of it fits, the outer one holds."""
    return {**outer, **completed(inner, {name: outer[name] for name in inner if name in outer})}


def chained(setting: Setting) -> tuple[Filtered, ...]:
    """A setting as a list of filters."""
    return setting if isinstance(setting, tuple) else (Filtered(None, setting),)


def require_option(method: Method, name: str, value: Setting, single: bool, place: str) -> None:
    """Raise, with its place, for an option that the method lacks or that is not one model's, or for a bad value."""
    one = {name: value}
    try:
        Settings(method, 1, {} if single else one, [one] if single else ())
    except UsageError as error:
        raise RecipeError(f"{place}: {error}") from error
