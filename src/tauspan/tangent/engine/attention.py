"""The tangent rule of scaled-dot-product attention; the value and the backward keep the fused kernel."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Scores held at once: enough to keep the cores busy, few enough for a CPU's cache and for a GPU's memory.
_BLOCK = {"cpu": 2**20, "cuda": 2**26}
_FEWEST = 64  # queries of a block: fewer would leave products thin


def scaled_dot_product_attention(
    func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Callable[..., Tensor | None]]:  # fmt: skip
    """O = P V with P = softmax(S), S = s Q K^T + mask; dO = dP V + P dV with dP = P * (dS - sum(P * dS)).

    The scores are formed anew for the tangents, in blocks of rows and queries, so that memory grows with
    batch x length and not with length^2. A row whose every key is masked has no weights and no tangent.
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
        parts = [_aligned(part, out.shape, q.shape) for part in (q, k, v, dq, dk, dv)]
        shape = (*out.shape[:-1], k.shape[-2])
        masks = [_broadcast(attn_mask, shape), _broadcast(dmask, shape)]
        rows, queries = _cuts(shape, _BLOCK.get(q.device.type, 2**24))
        blocks = []
        for begin in range(0, max(shape[0], 1) if len(shape) > 2 else 1, rows):
            some = slice(begin, begin + rows) if len(shape) > 2 else slice(None)
            lines = []
            for first in range(0, max(shape[-2], 1), queries):
                cut = slice(first, first + queries)
                lines.append(_block(*_sliced(parts, masks, some, cut, out.dtype, is_causal), factor=factor))
            blocks.append(lines[0] if len(lines) == 1 else torch.cat(lines, -2))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    return out, push


def _cuts(shape: tuple[int, ...], most: int) -> tuple[int, int]:
    """How many rows of the batch, and how many queries of each, have at most so many scores together."""
    each = math.prod(shape[1:]) if len(shape) > 2 else math.prod(shape)
    if each <= most:
        return max(1, most // max(1, each)), max(1, shape[-2])
    return 1, max(_FEWEST, most * shape[-2] // each)


def _sliced(
    parts: list[Tensor | None],
    masks: list[Tensor | None],
    rows: slice,
    queries: slice,
    dtype: torch.dtype,
    causal: bool,
) -> list[Tensor | None]:
    """The operands of a block: queries, keys, values, their tangents, the mask to add and its tangent."""
    q, k, v, dq, dk, dv = (None if part is None else part[rows].to(dtype) for part in parts)
    mask, dmask = (None if part is None else part[rows][..., queries, :] for part in masks)
    q, dq = (None if part is None else part[..., queries, :] for part in (q, dq))
    if q is not None and k is not None:
        mask = _mask(mask, causal, queries.start, q, k)
    return [q, k, v, dq, dk, dv, mask, None if dmask is None else dmask.to(dtype)]


def _aligned(tensor: Tensor | None, out: torch.Size, query: torch.Size) -> Tensor | None:
    """A tensor with the output's batch and heads: grouped heads repeated, the rest broadcast."""
    if tensor is None or tensor.shape[:-2] == out[:-2]:
        return tensor
    if tensor.ndim > 2 and len(query) > 2 and tensor.shape[-3] not in (1, query[-3]):
        tensor = tensor.repeat_interleave(query[-3] // tensor.shape[-3], -3)
    return tensor.expand(*out[:-2], *tensor.shape[-2:])


def _broadcast(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if mask is None else mask.expand(shape)


def _mask(given: Tensor | None, causal: bool, first: int, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask of some queries, from the first one on, as something to add to their scores."""
    if causal:
        given = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(first)
        given = given.expand(*q.shape[:-1], k.shape[-2])
    if given is not None and given.dtype == torch.bool:
        return torch.zeros(given.shape, dtype=q.dtype, device=q.device).masked_fill(~given, -torch.inf)
    return None if given is None else given.to(q.dtype)


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
