"""Tangent rules of sums, products, linear maps, convolutions, embeddings and distances."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.tangent.engine.fallback import by_forward_mode
from tauspan.tangent.engine.rules import Push, total


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
    """Bilinear operations: elementwise and matrix products."""

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
    """Multilinear: the tangent is a sum with one term for each operand that has a tangent."""
    tensors = list(operands[0]) if isinstance(operands[0], list | tuple) else list(operands)

    def push(_: None, *tangents: Any) -> Any:
        deltas = tangents[0] if isinstance(tangents[0], list | tuple) else tangents
        out: Tensor | None = None
        for index, delta in enumerate(deltas):
            if delta is not None:
                parts = [*tensors[:index], delta, *tensors[index + 1 :]]
                out = total(out, torch.einsum(equation, *parts))
        return out

    return func(equation, *operands), push


def with_addend(
    func: Any, c: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> tuple[Any, Push]:
    """addmm, baddbmm: beta c + alpha a b."""

    def push(dc: Tensor | None, da: Tensor | None, db: Tensor | None, **_: Any) -> Any:
        out = None if dc is None else dc * beta
        for left, right in ((da, mat2), (mat1, db)):
            if left is not None and right is not None:
                out = left.matmul(right) * alpha if out is None else func(out, left, right, alpha=alpha)
        return out

    return func(c, mat1, mat2, beta=beta, alpha=alpha), push


def linear(func: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, Push]:
    """The map x W^T + b; the second product is added in place to the result of the first."""

    def push(dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None = None) -> Any:
        if dweight is None:
            return total(None if dx is None else F.linear(dx, weight), dbias)
        out = F.linear(x, dweight, dbias)
        if dx is None:
            return out
        if out.dtype != dx.dtype or torch.is_grad_enabled():
            return out + F.linear(dx, weight)
        out.view(-1, out.shape[-1]).addmm_(dx.reshape(-1, dx.shape[-1]), weight.detach().t().to(out.dtype))
        return out

    return func(x, weight, bias), push


def grouped(
    func: Any,
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: Any = None,
) -> tuple[Any, Push]:
    """Groups of rows, each times its own matrix, as mixtures of experts use it: bilinear."""
    if bias is not None:
        raise NotImplementedError("grouped_mm with a bias")

    def products(left: Tensor, right: Tensor) -> Any:
        return func(_laid_out(left, a), _laid_out(right, b), offs=offs, out_dtype=out_dtype)

    def push(da: Tensor | None, db: Tensor | None, *_: Any) -> Any:
        return total(None if da is None else products(da, b), None if db is None else products(a, db))

    return func(a, b, offs=offs, out_dtype=out_dtype), push


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in the memory layout of another, which some of torch's kernels require."""
    if tensor.stride() == like.stride() and tensor.storage_offset() == like.storage_offset():
        return tensor
    return torch.empty_like(like.detach()).copy_(tensor)


def convolution(
    func: Any, x: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **options: Any
) -> tuple[Any, Push]:
    """Any convolution: bilinear in input and kernel, with an added bias."""

    def push(dx: Any, dweight: Any, dbias: Any = None, *_: Any, **__: Any) -> Any:
        out = total(
            None if dx is None else func(dx, weight, None, *rest, **options),
            None if dweight is None else func(x, dweight, None, *rest, **options),
        )
        if dbias is None:
            return out
        return total(out, dbias.view(-1, *[1] * (weight.ndim - 2)))

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

    # padding_idx is passed on: that row gets no gradient, as in ordinary fine-tuning.
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
    """All distances |x_i - y_j|_p; the push goes through `vector_norm`, since torch cannot derive `cdist` twice."""
    value = func(x, y, p) if compute_mode is None else func(x, y, p, compute_mode)

    def norms(a: Tensor, b: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, -1)
        return lengths

    push = by_forward_mode(norms, x, y)[1]
    return value, lambda dx=None, dy=None, *_: push(dx, dy)
