"""Dual tensors: a value that records the ordinary autograd graph, and tangents that do not.

A `Dual` wraps the *primal*, an ordinary tensor, and carries T tangents beside it. `Dual.__torch_function__` receives
every operation on a `Dual`: its rule (`tauspan.tangent.engine.rules`) computes the primal in the ordinary way, so that
autograd records it, and returns a *push*, the linear map from input tangents to the output's tangent, which is applied
T times without a graph. Autograd saves primals and never a `Dual`, so a tangent is freed as soon as the module drops it.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tauspan.tangent.engine import rules, table
from tauspan.tangent.engine.fallback import by_forward_mode
from tauspan.tangent.engine.trace import Entry, NoRuleError, Slot, Trace

__all__ = ["Dual", "Entry", "NoRuleError", "Slot", "Trace", "custom_function", "mapped"]


class Dual(Tensor):
    """A primal tensor with T tangents of its shape.

    Attributes:
        primal: the value, with its autograd graph.
        tangents: one per direction.
        run: the pass to which it belongs.
        slot: the number of its tangent on the trace's tape.
        shared: whether another dual tensor may be a view of the same memory.
    """

    primal: Tensor
    tangents: tuple[Tensor, ...]
    run: Trace
    slot: Slot
    shared: bool

    @staticmethod
    def __new__(  # noqa: D102 - the class docstring
        cls, primal: Tensor, tangents: Sequence[Tensor], trace: Trace, shared: bool = False
    ) -> "Dual":
        made: Dual = Tensor._make_wrapper_subclass(
            cls, primal.shape, strides=primal.stride(), dtype=primal.dtype, device=primal.device
        )
        made.primal, made.tangents, made.run, made.shared = primal, tuple(tangents), trace, shared
        made.slot = trace.place()
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: None = None) -> str:  # type: ignore[override]
        return f"Dual({tuple(self.primal.shape)}, {len(self.tangents)} tangents)"

    @classmethod
    def __torch_function__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation with some dual argument."""
        return _dispatch(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Always raise: an operation that arrives here has bypassed the rules."""
        raise NoRuleError(f"{func} reached a dual tensor past its rules.")


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    name = table.name_of(func)
    _first(args, kwargs).run.met.add(name)
    if name == "requires_grad_":  # gradients are recorded already, or not needed
        return args[0]
    if name in table.READS:
        return func(*mapped(args, _detached), **mapped(kwargs, _detached))
    if name in table.WITHOUT_TANGENT or table.asks(name) or not torch.is_grad_enabled():
        return _plain(func, args, kwargs)
    if name in table.DERIVES:
        raise NoRuleError(f"{name} is called inside the forward")
    if kwargs.get("out") is not None or name in table.WRITES:
        raise NoRuleError(f"{name} writes into a tensor")
    if name.endswith("_") and not name.endswith("__"):
        return _in_place(getattr(Tensor, name[:-1], None), name, args, kwargs)
    if kwargs.get("inplace"):
        return _in_place(func, name, args, {**kwargs, "inplace": False})
    rule = table.RULES.get(name)
    if rule is None:
        if name not in table.BY_FORWARD_MODE:
            opened = _opened(func)
            if opened is not None:
                return opened(*args, **kwargs)
            _first(args, kwargs).run.require_rule(name)
        rule = by_forward_mode
    return _lifted(name, rule, func, args, kwargs)


def _plain(func: Any, args: Any, kwargs: Any) -> Any:
    """The result for the primals alone, for operations that autograd treats as constants, as under no_grad."""
    name = getattr(func, "__name__", "")
    if not torch.is_grad_enabled() and (
        (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    ):
        raise NoRuleError(f"{name} writes into a tensor under no_grad")
    out = func(*mapped(args, _primal), **mapped(kwargs, _primal))
    made = [item for item in (out if isinstance(out, tuple | list) else (out,)) if isinstance(item, Tensor)]
    if made:
        _share(made, list(_duals((args, kwargs))))
    return out


def custom_function(
    function: type[torch.autograd.Function], apply: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """Run a `torch.autograd.Function` on dual tensors; NotImplemented if no argument is dual."""
    duals = list(_duals(args))
    if not duals:
        return NotImplemented
    name, trace = function.__name__, duals[0].run
    trace.met.add(name)
    if not torch.is_grad_enabled():
        return _plain(apply, args, {})
    trace.require_rule(name)
    return _lifted(name, by_forward_mode, apply, args, {})


def _share(values: Sequence[Any], duals: Sequence[Dual]) -> bool:
    """Mark the duals that share memory with an output; returns whether there are any."""
    # storages, and not addresses, which the tensors of a compiler do not have
    memory = {value.untyped_storage()._cdata for value in values if isinstance(value, Tensor)}
    sharing = [dual for dual in duals if dual.primal.untyped_storage()._cdata in memory]
    for dual in sharing:
        dual.shared = True
    return bool(sharing)


def _lifted(name: str, rule: rules.Rule, func: Any, args: Any, kwargs: Any) -> Any:
    """The rule's output with the tangents of its push; an ordinary tensor where no tangent reaches it."""
    fitting = table.bound(rule, args, kwargs)
    if fitting is None:
        rule = by_forward_mode
    else:
        args, kwargs = fitting
    out, push = rule(func, *mapped(args, _primal), **mapped(kwargs, _primal))
    duals = list(_duals((args, kwargs)))
    same = next((dual for dual in duals if dual.primal is out), None)
    if same is not None:  # the input itself, not a view of it: `to` its own dtype, or dropout in eval mode
        return same
    trace = duals[0].run
    several = isinstance(out, tuple | list)
    values = tuple(out) if several else (out,)
    rows = []
    with torch.no_grad():
        for place in range(len(duals[0].tangents)):
            found = push(*mapped(args, _tangent(place)), **mapped(kwargs, _tangent(place)))
            rows.append(tuple(found) if several else (found,))
    how = getattr(push, "how", None)
    if how is not None and name not in table.BY_FORWARD_MODE and name not in table.RULES:
        trace.tell(name, how)
    view = _share(values, duals)
    lifted = []
    by_output = list(zip(*rows, strict=True)) if rows else [()] * len(values)
    for value, tangents in zip(values, by_output, strict=True):
        if not table.moves(value) or (tangents and tangents[0] is None):
            lifted.append(value)
        else:
            lifted.append(
                Dual(
                    value,
                    [rules.like(tangent, value.shape, value.dtype) for tangent in tangents],
                    trace,
                    view,
                )
            )
    if trace.tape is not None:
        slots = tuple(item.slot if isinstance(item, Dual) else None for item in lifted)
        inputs, named = mapped(args, _slot), mapped(kwargs, _slot)
        kinds = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else None for v in values)
        kept = mapped(tuple(args), _detached) if name in trace.keep else ()
        trace.tape.append(Entry(name, push, inputs, named, slots, kinds, values, kept))
    if not several:
        return lifted[0]
    return type(out)(lifted)  # torch's named tuples take one sequence too


def _in_place(out_of_place: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Run an in-place operation out of place and store the result in the same dual tensor."""
    target = args[0] if args else None
    if not isinstance(target, Dual) or target.shared:
        raise NoRuleError(f"{name} writes into a tensor that others may see")
    if not callable(out_of_place):
        raise NoRuleError(f"{name} changes a tensor")
    made = out_of_place(*args, **kwargs)
    if not isinstance(made, Dual) or made.primal.shape != target.primal.shape or made.dtype != target.dtype:
        raise NoRuleError(f"{name} changes the kind of a tensor")
    target.primal, target.tangents, target.slot = made.primal, made.tangents, made.slot
    target.shared = False
    return target


# -- arguments ---------------------------------------------------------------------------------------------------


def mapped(item: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting of tuples, lists and dicts with `change` applied to each leaf."""
    kind = type(item)
    if kind is list:
        return [mapped(part, change) for part in item]
    if isinstance(item, tuple) and kind is not torch.Size:
        return tuple(mapped(part, change) for part in item)
    if kind is dict:
        return {key: mapped(part, change) for key, part in item.items()}
    return change(item)


def _primal(item: Any) -> Any:
    return item.primal if isinstance(item, Dual) else item


def _detached(item: Any) -> Any:
    return _primal(item).detach() if isinstance(item, Tensor) else item


def _slot(item: Any) -> Any:
    return item.slot if isinstance(item, Dual) else None


def _tangent(place: int) -> Callable[[Any], Any]:
    def one(item: Any) -> Any:
        if not isinstance(item, Dual):
            return None
        if place >= len(item.tangents):
            raise NoRuleError("the module keeps a tensor from one pass to the next")
        return item.tangents[place]

    return one


def _duals(item: Any) -> Iterator[Dual]:
    if isinstance(item, Dual):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from _duals(part)
    elif isinstance(item, dict):
        yield from _duals(tuple(item.values()))


def _first(args: Any, kwargs: Any) -> Dual:
    found = next(_duals((args, kwargs)), None)
    if found is None:
        raise NoRuleError("an operation takes a tensor inside an object that is no tuple, list or dict")
    return found


@lru_cache(maxsize=256)
def _opened(func: Any) -> Any:
    """A copy of a torch function written in Python, in which each operation inside uses its own rule.

    Such a function first checks whether an argument overrides it; in the copy this check is always false.
    """
    if not isinstance(func, types.FunctionType) or not (func.__module__ or "").startswith("torch"):
        return None
    no = {name: _never for name in func.__code__.co_names if name.startswith("has_torch_function")}
    if not no:
        return None
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **no}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _never(*_: Any) -> bool:
    return False
