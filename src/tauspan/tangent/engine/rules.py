"""Tangent rules: for each operation, its value and the linear map from input tangents to the output's tangent.

A rule is called as `rule(func, *args, **kwargs)` with the operation itself and its plain arguments, and returns
`(value, push)`. `push` is called with the same arguments (in the rule's own order, if it spells them out), a tangent
where the argument is dual and None elsewhere, and returns the output's tangent (None: no dependence). Pushes run
without a graph and may run many times. The rules here are of operations that are linear in one argument.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Push: TypeAlias = Callable[..., Any]
Rule: TypeAlias = Callable[..., tuple[Any, Push]]
aten = torch.ops.aten


def total(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two tangents, each of which may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def like(tangent: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tangent in its value's shape and dtype; that of a broadcast operand is expanded."""
    if tangent.dtype != dtype:
        tangent = tangent.to(dtype)
    return tangent if tangent.shape == shape else tangent.expand(shape)


def along(func: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Any, Push]:
    """Any operation that is linear in its first argument: it is applied to the tangent too."""

    def push(dx: Tensor | None = None, *_: Any, **__: Any) -> Any:
        return None if dx is None else func(dx, *rest, **options)

    return func(x, *rest, **options), push


def viewed(func: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Any, Push]:
    """A view: the tangent is reshaped, with a copy where its memory layout differs from the value's."""
    value = func(x, *rest, **options)
    shape = value.shape

    def push(dx: Tensor | None = None, *_: Any, **__: Any) -> Any:
        return None if dx is None else dx.reshape(shape)

    if value.dtype != x.dtype:
        raise NotImplementedError("a view as another dtype")
    return value, push


def as_complex(func: Any, x: Tensor) -> tuple[Any, Push]:
    """Pairs as complex numbers; torch requires each pair to be contiguous in memory."""
    return func(x), lambda dx: func(dx.contiguous())


def same(func: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Any, Push]:
    """The identity; `like` then gives the tangent the value's dtype."""
    return func(x, *rest, **options), lambda dx=None, *_, **__: dx


def dropout(
    func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Any, Push]:
    """Inactive dropout, the identity; `linearize` refuses active dropout."""
    if training and p:
        raise NotImplementedError("dropout is active")
    return x, lambda dx, *_: dx


def concatenated(func: Any, tensors: Sequence[Tensor], *rest: Any, **options: Any) -> tuple[Any, Push]:
    """Cat and stack: an absent tangent becomes a block of zeros."""

    def push(tangents: Sequence[Tensor | None], *_: Any, **__: Any) -> Any:
        pairs = zip(tensors, tangents, strict=True)
        return func([torch.zeros_like(x) if dx is None else dx for x, dx in pairs], *rest, **options)

    return func(tensors, *rest, **options), push


def padded(func: Any, x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> tuple[Any, Push]:
    """Padding: a constant border has no tangent."""

    def push(dx: Tensor, *_: Any) -> Any:
        return func(dx, pad, mode, None)

    return func(x, pad, mode, value), push


def masked_fill(func: Any, x: Tensor, mask: Tensor, value: Any) -> tuple[Any, Push]:
    """masked_fill: entries that are filled with a constant have no tangent."""

    def push(dx: Tensor | None, _: None, dvalue: Tensor | None) -> Any:
        if dx is None and dvalue is None:
            return None
        tangent = torch.zeros_like(x) if dx is None else dx
        return tangent.masked_fill(mask, 0 if dvalue is None else dvalue)

    return func(x, mask, value), push


def where(func: Any, first: Tensor, second: Any, third: Any, /) -> tuple[Any, Push]:
    """torch.where(condition, a, b), or as a method a.where(condition, b)."""
    method = first.dtype != torch.bool
    condition = second if method else first
    value = func(first, second, third)

    def push(d_first: Tensor | None, d_second: Tensor | None, d_third: Tensor | None) -> Any:
        da, db = (d_first if method else d_second), d_third
        zero = torch.zeros((), dtype=value.dtype, device=value.device)
        return torch.where(condition, zero if da is None else da, zero if db is None else db)

    return value, push
