"""Tangent rules of the normalising layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.tangent.engine.rules import Push, aten, total


def _affine(normed: Tensor | None, unit: Callable[[], Tensor], weight: Any, dweight: Any, dbias: Any) -> Any:
    """The tangent of unit * weight + bias from that of unit."""
    if normed is not None and weight is not None:
        normed = normed * weight
    return total(total(normed, None if dweight is None else unit() * dweight), dbias)


def layer_norm(
    func: Any, x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> tuple[Any, Push]:  # fmt: skip
    """Layer norm; its fused backward without the affine part is the tangent of the normalisation."""
    if weight is not None and x.dtype != weight.dtype:
        x = x.to(weight.dtype)
    shape = list(normalized_shape)
    value, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)

    def push(dx: Any, _: None, dweight: Any, dbias: Any, *__: None) -> Any:
        normed = None
        if dx is not None:
            wide = dx.to(x.dtype).contiguous()
            mask = [True, False, False]
            normed = aten.native_layer_norm_backward(wide, x, shape, mean, rstd, None, None, mask)[0]
        if dweight is None:
            return total(normed if normed is None or weight is None else normed * weight, dbias)
        moved = torch.native_layer_norm(x, shape, dweight, dbias, eps)[0]  # unit * dweight + dbias
        if normed is None:
            return moved
        return moved + normed if weight is None else moved.addcmul_(normed, weight)

    return value, push


def rms_norm(
    func: Any, x: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> tuple[Any, Push]:
    """Root mean square norm, y = x r w with r = 1 / sqrt(mean(x^2) + eps): r dx - x r^3 mean(x dx)."""
    axes = tuple(range(-len(tuple(normalized_shape)), 0))
    small = torch.finfo(x.dtype).eps if eps is None else eps

    def push(dx: Any, _: None, dweight: Any, *__: None) -> Any:
        r = (x.square().mean(axes, keepdim=True) + small).rsqrt()
        unit = x * r
        normed = None if dx is None else r * (dx - unit * (unit * dx).mean(axes, keepdim=True))
        return _affine(normed, lambda: unit, weight, dweight, None)

    return func(x, normalized_shape, weight, eps), push


def group_norm(
    func: Any, x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[Any, Push]:  # fmt: skip
    """Group norm, as layer norm over the channels of each group."""

    def by_group(tensor: Tensor) -> Tensor:
        return tensor.reshape(tensor.shape[0], num_groups, -1)

    def shaped(tensor: Any) -> Any:
        return None if tensor is None else tensor.view(-1, *[1] * (x.ndim - 2))

    def push(dx: Any, _: None, dweight: Any, dbias: Any, *__: None) -> Any:
        flat = by_group(x)
        rstd = (flat.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
        unit = (flat - flat.mean(-1, keepdim=True)) * rstd
        normed = None
        if dx is not None:
            moved = by_group(dx)
            centred = moved - moved.mean(-1, keepdim=True)
            normed = (rstd * (centred - unit * (unit * moved).mean(-1, keepdim=True))).reshape(x.shape)
        return _affine(normed, lambda: unit.reshape(x.shape), shaped(weight), shaped(dweight), shaped(dbias))

    return F.group_norm(x, num_groups, weight, bias, eps), push


def batch_norm(
    func: Any, x: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, cudnn_enabled: bool = True,
) -> tuple[Any, Push]:  # fmt: skip
    """Batch norm with running statistics, which is an affine map."""
    if func is not F.batch_norm:
        raise NotImplementedError(
            "torch.batch_norm, whose arguments are in another order than F.batch_norm's"
        )
    if training or running_mean is None:
        raise NotImplementedError("batch norm over the batch")

    def shaped(tensor: Any) -> Any:
        return None if tensor is None else tensor.view(1, -1, *[1] * (x.ndim - 2))

    def push(dx: Any, _: None, __: None, dweight: Any, dbias: Any, *___: None) -> Any:
        r = shaped((running_var + eps).rsqrt())
        normed = None if dx is None else dx * r
        return _affine(
            normed, lambda: (x - shaped(running_mean)) * r, shaped(weight), shaped(dweight), shaped(dbias)
        )

    return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps), push
