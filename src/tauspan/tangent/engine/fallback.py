"""The tangent rule of operations without one of their own: torch's forward mode, or a derivative of their backward."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tauspan.tangent.engine.maps import ramp, turned
from tauspan.tangent.engine.reference import forward_mode
from tauspan.tangent.engine.rules import Push


def by_forward_mode(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, Push]:
    """The rule of any operation, by torch's forward mode or by a derivative of its backward.

    After its first use the push has an attribute `how`: the way that worked.

    Raises:
        NotImplementedError: from the push, if torch can derive the operation in neither way.

    Cost:
        Each push computes the value again.
    """
    value = func(*args, **kwargs)

    def push(*tangents: Any, **named: Any) -> Any:
        primals, deltas = zip(*_pairs((args, kwargs), (tangents, named)), strict=True)
        primals = tuple(primal.detach() for primal in primals)

        def at(*inputs: Tensor) -> Any:
            positional, keyword = _replaced((args, kwargs), (tangents, named), iter(inputs))
            return func(*positional, **keyword)

        if not hasattr(push, "how"):
            tangent, push.how = _first_of(at, primals, deltas)  # type: ignore[attr-defined]
            return tangent
        ways = dict(_WAYS)
        return ways[push.how](at, primals, deltas)

    return value, push


def _first_of(at: Callable[..., Any], primals: Any, deltas: Any) -> tuple[Any, str]:
    """The tangent by the first way that works, and that way's name."""
    reasons = []
    for how, way in _WAYS:
        try:
            return way(at, primals, deltas), how
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # NotImplementedError is one; torch raises either
            reasons.append(str(error).partition("\n")[0])
    raise NotImplementedError("; ".join(dict.fromkeys(reasons)))


def _forward(at: Callable[..., Any], primals: tuple[Tensor, ...], deltas: tuple[Tensor, ...]) -> Any:
    with forward_mode():
        return torch.func.jvp(at, primals, deltas)[1]


def _backward_twice(at: Callable[..., Any], primals: tuple[Tensor, ...], deltas: tuple[Tensor, ...]) -> Any:
    """J v as the derivative of <J^T u, v> in u."""
    with torch.enable_grad():
        leaves = [primal.detach().requires_grad_() for primal in primals]
        out = at(*leaves)
        several = isinstance(out, tuple | list)
        derived = [y for y in (out if several else (out,)) if isinstance(y, Tensor) and y.requires_grad]
        if not derived:
            return [None for _ in out] if several else None
        us = [ramp(y) for y in derived]
        pulled = torch.autograd.grad(derived, leaves, us, create_graph=True, allow_unused=True)
        tangents = iter(turned(pulled, deltas, us))
    outputs = [
        next(tangents) if isinstance(y, Tensor) and y.requires_grad else None
        for y in (out if several else (out,))
    ]
    return outputs if several else outputs[0]


_WAYS = (("torch's forward mode", _forward), ("its backward, derived once more,", _backward_twice))


def _pairs(item: Any, tangent: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor of the arguments that has a tangent, with that tangent."""
    if isinstance(tangent, Tensor):
        yield item, tangent
    elif isinstance(tangent, tuple | list):
        for pair in zip(item, tangent, strict=False):
            yield from _pairs(*pair)
    elif isinstance(tangent, dict):
        for key, part in tangent.items():
            yield from _pairs(item[key], part)


def _replaced(item: Any, tangent: Any, fresh: Iterator[Tensor]) -> Any:
    """The arguments with a fresh tensor in place of each that has a tangent, in the order of `_pairs`."""
    if isinstance(tangent, Tensor):
        return next(fresh)
    if isinstance(tangent, tuple | list):
        return type(tangent)(_replaced(*pair, fresh) for pair in zip(item, tangent, strict=False))
    if isinstance(tangent, dict):
        return {key: _replaced(item[key], part, fresh) for key, part in tangent.items()}
    return item
