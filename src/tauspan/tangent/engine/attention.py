"""The tangent rule of scaled-dot-product attention; the value and the backward keep the fused kernel."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Scores held at once: enough to keep the cores busy, few enough for a CPU's cache and for a GPU's memory.
_BLOCK = {"cpu": 2**20, "cuda": 2**26}


def scaled_dot_product_attention(
    func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Callable[..., Tensor | None]]:  # fmt: skip
    """O = P V with P = softmax(S), S = s Q K^T + mask; dO = dP V + P dV with dP = P * (dS - sum(P * dS)).

    The scores are formed anew for the tangents, in blocks of rows, so that memory does not grow with
    batch x length^2. A row whose every key is masked has no weights and no tangent.
    """
    if dropout_p:
        raise NotImplementedError("attention with dropout")
    q, k, v = query, key, value
    out = func(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    factor = q.shape[-1] ** -0.5 if scale is None else scale

    def push(
        dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, dmask: Tensor | None = None, *_: None
    ) -> Tensor | None:
        if dq is None and dk is None and dv is None and dmask is None:
            return None
        mask = _mask(attn_mask, is_causal, q.shape[-2], k.shape[-2], q)
        parts = [_aligned(part, out.shape, q.shape) for part in (q, k, v, dq, dk, dv)]
        masks = [_broadcast(part, (*out.shape[:-1], k.shape[-2])) for part in (mask, dmask)]
        scores = math.prod((*out.shape[1:-1], k.shape[-2]))
        step = max(1, _BLOCK.get(q.device.type, 2**24) // max(1, scores))
        if out.ndim == 2 or step >= out.shape[0]:
            return _block(*(None if t is None else t.to(out.dtype) for t in (*parts, *masks)), factor=factor)
        blocks = []
        for begin in range(0, out.shape[0], step):
            rows = [None if t is None else t[begin : begin + step].to(out.dtype) for t in (*parts, *masks)]
            blocks.append(_block(*rows, factor=factor))
        return torch.cat(blocks)

    return out, push


def _aligned(tensor: Tensor | None, out: torch.Size, query: torch.Size) -> Tensor | None:
    """A tensor with the output's batch and heads: grouped heads repeated, the rest broadcast."""
    if tensor is None or tensor.shape[:-2] == out[:-2]:
        return tensor
    if tensor.ndim > 2 and len(query) > 2 and tensor.shape[-3] not in (1, query[-3]):
        tensor = tensor.repeat_interleave(query[-3] // tensor.shape[-3], -3)
    return tensor.expand(*out[:-2], *tensor.shape[-2:])


def _broadcast(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if mask is None else mask.expand(shape)


def _mask(given: Tensor | None, is_causal: bool, rows: int, columns: int, q: Tensor) -> Tensor | None:
    """The mask as something to add to the scores."""
    if is_causal:
        given = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril()
    if given is not None and given.dtype == torch.bool:
        return torch.zeros(given.shape, dtype=q.dtype, device=q.device).masked_fill(~given, -torch.inf)
    return given


def _block(
    q: Any, k: Any, v: Any, dq: Any, dk: Any, dv: Any, mask: Any, dmask: Any, *, factor: float
) -> Tensor:
    """One block's tangent, with batch and heads as one axis: each operand is laid out for the products once."""
    lead, shape = q.shape[:-2], (*q.shape[:-1], k.shape[-2])
    q, k, v, dq, dk, dv = (None if t is None else t.reshape(-1, *t.shape[-2:]) for t in (q, k, v, dq, dk, dv))
    q, dq = q * factor, None if dq is None else dq * factor
    scores = torch.bmm(q, k.mT)
    if mask is None:
        weights = torch.softmax(scores, -1)
    else:
        scores.view(shape).add_(mask)
        weights = torch.ops.aten._safe_softmax(scores, -1)
    moved = None if dq is None else torch.bmm(dq, k.mT)
    if dk is not None:
        moved = torch.bmm(q, dk.mT) if moved is None else moved.baddbmm_(q, dk.mT)
    if dmask is not None:
        moved = dmask.reshape(scores.shape) if moved is None else moved.add_(dmask.reshape(scores.shape))
    if moved is None:
        found = torch.bmm(weights, dv)
    else:
        d_weights = torch.ops.aten._softmax_backward_data(moved, weights, -1, weights.dtype)
        found = torch.bmm(d_weights, v)
        if dv is not None:
            found.baddbmm_(weights, dv)
    return found.view(*lead, *found.shape[-2:])
