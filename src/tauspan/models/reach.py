"""What a module refers to: containers in which a forward pass could keep something, and tensors that functions hold."""

import functools
import operator
import types
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeAlias

from torch import Tensor, nn

Container: TypeAlias = dict[Any, Any] | list[Any] | set[Any] | deque[Any]
_DEPTH = 4  # the most levels of nested objects that are followed, counted from a module
_LARGE = 1000  # with more entries a container is a table (a vocabulary), which no forward pass writes to
_LEAVES = (Tensor, str, bytes, int, float, complex, bool, type, type(None))
_REGISTRIES = ("_parameters", "_buffers", "_modules")
Remembering: TypeAlias = "functools._lru_cache_wrapper[Any]"
_HOOKS = frozenset(vars(nn.Module())) - {*_REGISTRIES}
_SYSTEM = frozenset({"builtins", "torch", "logging", "threading", "weakref", "abc", "typing"})
# what an encoder keeps beside its module
_OURS = frozenset(
    {"tauspan.models.home", "tauspan.models.frozen", "tauspan.models.spaces", "tauspan.models.bases"}
)


def items_of(container: Any) -> Iterator[Any]:
    """The items of a container; of a dict, its values."""
    return iter(container.values() if isinstance(container, dict) else container)


def remembering(module: nn.Module) -> Iterator[Remembering]:
    """The methods and attributes of a module and its submodules that `functools.lru_cache` has wrapped."""
    for part in module.modules():
        for holder in (vars(part), *(vars(parent) for parent in type(part).__mro__)):
            yield from (value for value in holder.values() if isinstance(value, functools._lru_cache_wrapper))


def containers(module: nn.Module) -> Iterator[tuple[Container, str, bool]]:
    """Each dict, list, set and deque in which a forward pass could keep something; see `reached`."""
    return (found for found in reached(module) if isinstance(found[0], dict | list | set | deque))


def reached(module: nn.Module) -> Iterator[tuple[Any, str, bool]]:
    """Each container, and each tensor that a function holds; its path; whether it holds an object's attributes."""
    seen: set[int] = set()
    stack: list[tuple[Any, str, int]] = [(module, "", 0)]
    while stack:
        item, where, depth = stack.pop()
        if id(item) in seen or depth > _DEPTH:
            continue
        seen.add(id(item))
        inside: Any
        if isinstance(item, dict | list | set | deque):
            if len(item) > _LARGE:
                continue
            yield item, where, False
            inside = item.items() if isinstance(item, dict) else enumerate(item)
        elif isinstance(item, Tensor):
            yield item, where, False
            continue
        elif isinstance(item, nn.Module) or _has_attributes(item):
            yield vars(item), where, True
            inside = vars(item).items()
            depth = 0 if isinstance(item, nn.Module) else depth
        else:
            stack += [(part, where, depth + 1) for part in _behind(item)]
            continue
        for key, value in inside:
            if not isinstance(value, _LEAVES):
                if key in _REGISTRIES:
                    stack.append((value, where, depth))
                elif key not in _HOOKS:
                    stack.append((value, f"{where}.{key}".lstrip("."), depth + 1))


def _has_attributes(item: Any) -> bool:
    """Whether this is an object of somebody's own class, whose attributes a forward pass may write to."""
    callables = (types.FunctionType, types.MethodType, functools.partial, types.ModuleType)
    known = type(item).__module__ in _SYSTEM | _OURS
    return hasattr(item, "__dict__") and not isinstance(item, callables) and not known


def _behind(item: Any) -> Iterator[Any]:
    """What a function refers to beyond its arguments."""
    if isinstance(item, functools.partial):
        yield from (item.func, list(item.args), item.keywords)
    elif isinstance(item, types.MethodType):
        yield item.__self__
    elif isinstance(item, types.FunctionType):
        yield from item.__defaults__ or ()
        yield from (item.__kwdefaults__ or {}).values()
        for cell in item.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue


def differ(now: Any, before: Any) -> bool:
    """Whether two containers hold different objects, or the same in another order; objects are compared by identity."""
    if len(now) != len(before):
        return True
    if isinstance(now, dict) and not all(map(operator.is_, now.values(), before.values())):
        return True
    return bool(now != before) if isinstance(now, set) else not all(map(operator.is_, now, before))


def put_back(container: Any, before: Any) -> None:
    """Replace the contents of a container by those of another."""
    container.clear()
    if isinstance(container, list | deque):
        container.extend(before)
    else:
        container.update(before)
