"""Tangent rules: for each operation, its value and the linear map from input tangents to the output's tangent.

A rule is called as `rule(func, *args, **kwargs)` with the operation itself and its plain arguments, and returns
`(value, push)`. `push` is called with the same arguments (in the rule's own order, if it spells them out), a tangent
where the argument is dual and None elsewhere, and returns the output's tangent (None: no dependence). Pushes run
without a graph and may run many times.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.tangent.engine.maps import ramp, turned
from tauspan.tangent.engine.reference import forward_mode

Push: TypeAlias = Callable[..., Any]
Rule: TypeAlias = Callable[..., tuple[Any, Push]]
aten = torch.ops.aten


def total(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two tangents, each of which may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return first + second


def like(tangent: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tangent of its value's shape and dtype: a broadcast operand's is expanded."""
    if tangent.dtype != dtype:
        tangent = tangent.to(dtype)
    return tangent if tangent.shape == shape else tangent.expand(shape)


# -- linear in one argument --------------------------------------------------------------------------------------


def along(func: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Any, Push]:
    """Linear in its first argument: the tangent goes the same way as the value."""

    def push(dx: Tensor | None = None, *_: Any, **__: Any) -> Any:
        return None if dx is None else func(dx, *rest, **options)

    return func(x, *rest, **options), push


def viewed(func: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Any, Push]:
    """A view; a tangent's memory may lie otherwise than its value's, so its shape is changed with a copy if need be."""
    value = func(x, *rest, **options)
    shape = value.shape

    def push(dx: Tensor | None = None, *_: Any, **__: Any) -> Any:
        return None if dx is None else dx.reshape(shape)

    if value.dtype != x.dtype:
        raise NotImplementedError("a view as another dtype")
    return value, push


def as_complex(func: Any, x: Tensor) -> tuple[Any, Push]:
    """Pairs as complex numbers; torch wants each pair side by side in memory."""
    return func(x), lambda dx: func(dx.contiguous())


def same(func: Any, x: Tensor, *rest: Any, **options: Any) -> tuple[Any, Push]:
    """The identity on tangents; dtype and layout follow the value."""
    return func(x, *rest, **options), lambda dx=None, *_, **__: dx


def dropout(
    func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Any, Push]:
    """The identity: `linearize` has refused active dropout."""
    if training and p:
        raise NotImplementedError("dropout is active")
    return x, lambda dx, *_: dx


def concatenated(func: Any, tensors: Sequence[Tensor], *rest: Any, **options: Any) -> tuple[Any, Push]:
    """cat, stack: an absent tangent is a block of zeros."""

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
    """Filled places have no tangent."""

    def push(dx: Tensor | None, _: None, dvalue: Tensor | None) -> Any:
        if dx is None and dvalue is None:
            return None
        moved = torch.zeros_like(x) if dx is None else dx
        return moved.masked_fill(mask, 0 if dvalue is None else dvalue)

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


# -- sums and products -------------------------------------------------------------------------------------------


def added(func: Any, a: Any, b: Any, *, alpha: float = 1) -> tuple[Any, Push]:
    """The sum a + alpha b."""

    def push(da: Tensor | None, db: Tensor | None, **_: Any) -> Any:
        return total(da, db if db is None or alpha == 1 else db * alpha)

    return (func(a, b) if alpha == 1 else func(a, b, alpha=alpha)), push


def subtracted(func: Any, a: Any, b: Any, *, alpha: float = 1) -> tuple[Any, Push]:
    """The difference a - alpha b."""

    def push(da: Tensor | None, db: Tensor | None, **_: Any) -> Any:
        if da is not None and db is not None:
            return torch.sub(da, db, alpha=alpha)
        return da if db is None else db * -alpha

    return (func(a, b) if alpha == 1 else func(a, b, alpha=alpha)), push


def subtracted_from(func: Any, a: Any, b: Any) -> tuple[Any, Push]:
    """The difference b - a."""

    def push(da: Tensor | None, db: Tensor | None) -> Any:
        return total(None if da is None else -da, db)

    return func(a, b), push


def product(func: Any, a: Any, b: Any) -> tuple[Any, Push]:
    """Bilinear: elementwise and matrix products."""

    def push(da: Tensor | None, db: Tensor | None) -> Any:
        return total(None if da is None else func(da, b), None if db is None else func(a, db))

    return func(a, b), push


def divided(func: Any, a: Any, b: Any) -> tuple[Any, Push]:
    """The quotient a / b."""
    value = func(a, b)

    def push(da: Tensor | None, db: Tensor | None) -> Any:
        return total(None if da is None else da / b, None if db is None else -value * db / b)

    return value, push


def divided_by(func: Any, a: Any, b: Any) -> tuple[Any, Push]:
    """The quotient b / a."""
    value = func(a, b)

    def push(da: Tensor | None, db: Tensor | None) -> Any:
        return total(None if da is None else -value * da / a, None if db is None else db / a)

    return value, push


def power(func: Any, x: Any, exponent: Any) -> tuple[Any, Push]:
    """The power x ** p for a number p; anything else by forward mode."""
    if not isinstance(x, Tensor) or isinstance(exponent, Tensor) or exponent == 0:
        return by_forward_mode(func, x, exponent)

    def push(dx: Tensor | None, *_: Any) -> Any:
        return None if dx is None else dx * (x * 2 if exponent == 2 else exponent * x ** (exponent - 1))

    return func(x, exponent), push


def einsum(func: Any, equation: str, *operands: Any) -> tuple[Any, Push]:
    """Multilinear: one term for each operand that moves."""
    tensors = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)

    def push(_: None, *tangents: Any) -> Any:
        moved = tangents[0] if isinstance(tangents[0], list | tuple) else tangents
        found: Tensor | None = None
        for place, delta in enumerate(moved):
            if delta is not None:
                parts = [*tensors[:place], delta, *tensors[place + 1 :]]
                found = total(found, torch.einsum(equation, *parts))
        return found

    return func(equation, *operands), push


def with_addend(
    func: Any, c: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> tuple[Any, Push]:
    """addmm, baddbmm: beta c + alpha a b."""

    def push(dc: Tensor | None, da: Tensor | None, db: Tensor | None, **_: Any) -> Any:
        found = None if dc is None else dc * beta
        for left, right in ((da, mat2), (mat1, db)):
            if left is not None and right is not None:
                found = left.matmul(right) * alpha if found is None else func(found, left, right, alpha=alpha)
        return found

    return func(c, mat1, mat2, beta=beta, alpha=alpha), push


def linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, Push]:
    """The map x W^T + b; the second product is added into the first one's result."""

    def push(dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None = None) -> Any:
        if dweight is None:
            found = None if dx is None else F.linear(dx, weight)
            return total(found, dbias)
        found = F.linear(x, dweight, dbias)
        if dx is None:
            return found
        if found.dtype != dx.dtype or torch.is_grad_enabled():
            return found + F.linear(dx, weight)
        found.view(-1, found.shape[-1]).addmm_(
            dx.reshape(-1, dx.shape[-1]), weight.detach().t().to(found.dtype)
        )
        return found

    return func(x, weight, bias), push


def grouped(
    func: Any,
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: Any = None,
) -> tuple[Any, Push]:
    """Products of groups of rows, each with a matrix of its own: bilinear, as mixtures of experts use it."""
    if bias is not None:
        raise NotImplementedError("grouped_mm with a bias")

    def products(left: Tensor, right: Tensor) -> Any:
        return func(_laid_out(left, a), _laid_out(right, b), offs=offs, out_dtype=out_dtype)

    def push(da: Tensor | None, db: Tensor | None, *_: Any) -> Any:
        return total(None if da is None else products(da, b), None if db is None else products(a, db))

    return func(a, b, offs=offs, out_dtype=out_dtype), push


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor with its numbers in memory as another one's, which some kernels insist on."""
    if tensor.stride() == like.stride() and tensor.storage_offset() == like.storage_offset():
        return tensor
    return torch.empty_like(like.detach()).copy_(tensor)


def convolution(
    func: Any, x: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **options: Any
) -> tuple[Any, Push]:
    """Any convolution: bilinear in input and kernel, with an added bias."""

    def push(dx: Any, dweight: Any, dbias: Any = None, *_: Any, **__: Any) -> Any:
        found = total(
            None if dx is None else func(dx, weight, None, *rest, **options),
            None if dweight is None else func(x, dweight, None, *rest, **options),
        )
        if dbias is None:
            return found
        return total(found, dbias.view(-1, *[1] * (weight.ndim - 2)))

    return func(x, weight, bias, *rest, **options), push


def embedding(
    func: Any, ids: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> tuple[Any, Push]:  # fmt: skip
    """Rows of a table: linear in the table."""
    if max_norm is not None:
        raise NotImplementedError("an embedding with max_norm changes its own weights")
    if func is not F.embedding:
        raise NotImplementedError("torch.embedding, whose arguments are in another order than F.embedding's")

    # padding_idx stays: ordinary fine-tuning gives that row no gradient, and neither does this.
    def rows(table: Tensor) -> Tensor:
        return F.embedding(ids, table, padding_idx, None, norm_type, scale_grad_by_freq, sparse)

    return rows(weight), lambda _ids, dweight, *_: rows(dweight)


def embedding_bag(
    func: Any, ids: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None,
    norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> tuple[Any, Push]:  # fmt: skip
    """Sums or means of rows of a table: linear in the table and in the weights of the rows."""
    if mode == "max" or max_norm is not None or ids.is_floating_point():
        raise NotImplementedError(f"an embedding bag with mode={mode!r}, max_norm={max_norm}")

    def bags(table: Tensor, weights: Tensor | None) -> Tensor:
        return F.embedding_bag(
            ids, table, offsets, None, norm_type, scale_grad_by_freq, mode, sparse, weights, include_last_offset,
            padding_idx,
        )  # fmt: skip

    def push(_: None, dtable: Any = None, *rest: Any) -> Any:
        dweights = rest[6] if len(rest) > 6 else None
        return total(
            None if dtable is None else bags(dtable, per_sample_weights),
            None if dweights is None else bags(weight, dweights),
        )

    return bags(weight, per_sample_weights), push


def distances(func: Any, x: Tensor, y: Tensor, p: float = 2.0, compute_mode: Any = None) -> tuple[Any, Push]:
    """All distances |x_i - y_j|_p: torch has no second derivative of its own kernel, so the norm's is taken."""
    value = func(x, y, p) if compute_mode is None else func(x, y, p, compute_mode)

    def norms(a: Tensor, b: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)
        return lengths

    push = by_forward_mode(norms, x, y)[1]
    return value, lambda dx=None, dy=None, *_: push(dx, dy)


# -- everything else ---------------------------------------------------------------------------------------------


def by_forward_mode(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, Push]:
    """Any operation: by torch's forward mode, or by its backward derived once more; the value is formed again for each.

    The push has an attribute `how`, which says after the first use what computed it.

    Raises:
        NotImplementedError: from the push: torch can derive the operation in neither way.
    """
    value = func(*args, **kwargs)

    def push(*tangents: Any, **named: Any) -> Any:
        primals, deltas = zip(*_moved((args, kwargs), (tangents, named)), strict=True)
        primals = tuple(primal.detach() for primal in primals)

        def at(*inputs: Tensor) -> Any:
            positional, keyword = _replaced((args, kwargs), (tangents, named), iter(inputs))
            return func(*positional, **keyword)

        if not hasattr(push, "how"):
            found, push.how = _first_of(at, primals, deltas)  # type: ignore[attr-defined]
            return found
        ways = dict(_WAYS)
        return ways[push.how](at, primals, deltas)

    return value, push


def _first_of(at: Callable[..., Any], primals: Any, deltas: Any) -> tuple[Any, str]:
    """The tangent by the first way that works, and which it was."""
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
    """J v as the derivative in u of <J^T u, v>."""
    with torch.enable_grad():
        leaves = [primal.detach().requires_grad_() for primal in primals]
        out = at(*leaves)
        several = isinstance(out, tuple | list)
        derived = [y for y in (out if several else (out,)) if isinstance(y, Tensor) and y.requires_grad]
        if not derived:
            return [None for _ in out] if several else None
        us = [ramp(y) for y in derived]
        pulled = torch.autograd.grad(derived, leaves, us, create_graph=True, allow_unused=True)
        moved = iter(turned(pulled, deltas, us))
    found = [
        next(moved) if isinstance(y, Tensor) and y.requires_grad else None
        for y in (out if several else (out,))
    ]
    return found if several else found[0]


_WAYS = (("torch's forward mode", _forward), ("its backward, derived once more,", _backward_twice))


def _moved(item: Any, tangent: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor that has a tangent, with it, wherever it lies in the arguments."""
    if isinstance(tangent, Tensor):
        yield item, tangent
    elif isinstance(tangent, tuple | list):
        for pair in zip(item, tangent, strict=False):
            yield from _moved(*pair)
    elif isinstance(tangent, dict):
        for key, part in tangent.items():
            yield from _moved(item[key], part)


def _replaced(item: Any, tangent: Any, fresh: Iterator[Tensor]) -> Any:
    """The arguments with a fresh tensor for each that has a tangent, in the order of `_moved`."""
    if isinstance(tangent, Tensor):
        return next(fresh)
    if isinstance(tangent, tuple | list):
        return type(tangent)(_replaced(*pair, fresh) for pair in zip(item, tangent, strict=False))
    if isinstance(tangent, dict):
        return {key: _replaced(item[key], part, fresh) for key, part in tangent.items()}
    return item
