"""Attention with a prefix of (Z, kappa), as a function of transformers' registry: no code for any architecture."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.prefix.features import FeatureMap

FLOOR = 1 / 16  # the least D as a share of D0
BASES = ("sdpa", "eager")  # the attention functions that a prefix is put on
_IMPLEMENTATION = "tauspan_prefix_"
_HIDDEN = -1e30  # the score of a masked key; finite, so that a row without any key has no gradient of NaN
_LEAST = -60.0  # log D0 below this counts as this: its reciprocal stays a number of float32
_OTHERS = (
    "softcap",
    "s_aux",
)  # arguments that make attention another function than softmax(s Q K^T + mask) V


class Prefix(nn.Module):
    """What one attention layer gets: Z of shape (heads, r, d_v) and kappa of shape (heads, r), by key-value head.

    Both start at 0. Of a prefix of keys k_p and values v_p they are Z = sum_p phi(k_p) v_p^T, kappa = sum_p phi(k_p).

    Args:
        phi: the feature map.
        heads: key-value heads; queries of a group share those of their head.
        size: d, entries of a query.
        values: d_v, entries of a value.
        like: a tensor whose device they get, and whose dtype, float32 at least.
    """

    directions: Tensor

    def __init__(self, phi: FeatureMap, heads: int, size: int, values: int, like: Tensor) -> None:
        super().__init__()
        self.phi, self.heads = phi, heads
        start = torch.zeros(
            heads, phi.width(size), values + 1,
            dtype=torch.promote_types(like.dtype, torch.float32), device=like.device,
        )  # fmt: skip
        self.z = nn.Parameter(start[..., :-1].clone())
        self.kappa = nn.Parameter(start[..., -1].clone())
        self.register_buffer("directions", phi.directions(size).to(start), persistent=False)

    def reset_parameters(self) -> None:
        """No prefix."""
        nn.init.zeros_(self.z)
        nn.init.zeros_(self.kappa)

    def features(self, x: Tensor, scaling: float) -> Tensor:
        """The features of queries or keys of shape (..., d)."""
        return self.phi(x.to(torch.promote_types(x.dtype, torch.float32)) * scaling**0.5, self.directions)

    def forward(self, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """phi(q) Z of shape (N, H, L, d_v) and phi(q).kappa of shape (N, H, L, 1), of queries (N, H, L, d)."""
        rows, heads, length, size = query.shape
        phi = self.features(query.reshape(rows, self.heads, -1, size), scaling)
        both = phi @ torch.cat([self.z, self.kappa.unsqueeze(-1)], -1).to(phi.dtype)
        both = both.reshape(rows, heads, length, -1)
        return both[..., :-1], both[..., -1:]


@dataclass(frozen=True)
class Attended:
    """One call of an attention layer: its module, what it read, its mask, and the output without a prefix.

    Args:
        module: the layer.
        query: shape (N, H, L, d).
        key: shape (N, H_kv, S, d).
        value: shape (N, H_kv, S, d_v).
        mask: added to the scores, or True where a key is seen; None hides nothing.
        scaling: s of the scores s Q K^T.
        out: shape (N, L, H, d_v).
        biased: whether the mask holds a bias of positions.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    out: Tensor
    biased: bool = False

    def scores(self) -> Tensor:
        """S = s Q K^T + mask, shape (N, H, L, S), in float32 at least."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        key = grouped(self.key, self.query.shape[1])
        scores = (self.query.to(wide) * self.scaling) @ key.to(wide).mT
        if self.mask is None:
            return scores
        if self.mask.dtype == torch.bool:
            return scores.masked_fill(~self.mask, _HIDDEN)
        return scores + self.mask.clamp_min(_HIDDEN)

    def with_prefix(self, numerator: Tensor, share: Tensor) -> Tensor:
        """(D0 out0 + phi(q) Z) / (D0 + phi(q).kappa), D0 the row's sum of exp(scores).

        It is computed as (out0 + phi(q) Z / D0) / max(1 + phi(q).kappa / D0, 1/16): at 0 it is out0, bit for bit. A row
        that sees no key keeps its output.
        """
        log_d0 = torch.logsumexp(self.scores(), -1, keepdim=True)
        over = (-log_d0.clamp_min(_LEAST)).exp().masked_fill(log_d0.detach() < _HIDDEN / 2, 0.0)
        whole = (1 + over * share).clamp_min(FLOOR).transpose(1, 2)
        return ((self.out + (over * numerator).transpose(1, 2)) / whole).to(self.out.dtype)


def grouped(part: Tensor, heads: int) -> Tensor:
    """Keys or values of shape (N, H_kv, ...), one for each of the H query heads."""
    groups = heads // part.shape[1]
    return part if groups == 1 else part.repeat_interleave(groups, 1)


Watcher = Callable[[Attended], Tensor | None]
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("tauspan_prefix_watchers", default=())


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside the block each layer's call is shown to `watcher`; a tensor that it returns replaces the layer's output."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def implementation(base: str) -> str:
    """The name in transformers' registry of an attention function with a prefix on it, which it gets here."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _IMPLEMENTATION + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(name, _on(base))
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _on(base: str) -> Callable[..., tuple[Tensor, Any]]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        out, weights = _plain(base, module)(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        prefix = next((part for part in module.children() if isinstance(part, Prefix)), None)
        watchers = _watchers.get()
        if prefix is None and not watchers:
            return out, weights
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        mask = _mask(base, module, query, key, attention_mask, options)
        biased = options.get("position_bias") is not None
        attended = Attended(module, query, key, value, mask, scale, out, biased)
        for watcher in watchers:
            changed = watcher(attended)
            if changed is not None:
                return changed, weights
        return (out if prefix is None else attended.with_prefix(*prefix(query, scale))), weights

    return attention


def _plain(base: str, module: nn.Module) -> Callable[..., tuple[Tensor, Any]]:
    """The attention function that the layer used before: transformers', or its own file's."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    found: Any = own if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
    if found is None:
        raise ModelError(
            f"{type(module).__name__} keeps its attention where it cannot be found. Load the model with "
            'attn_implementation="sdpa".'
        )
    return found  # type: ignore[no-any-return]


def _mask(
    base: str, module: nn.Module, query: Tensor, key: Tensor, given: Tensor | None, options: dict[str, Any]
) -> Tensor | None:
    """The mask of the scores, with the causal one that fused attention makes itself, and a bias of positions."""
    for name in _OTHERS:
        if options.get(name) is not None:
            raise ModelError(
                f"{type(module).__name__} computes attention with {name}, so that its weights are not "
                "softmax(Q K^T + mask), which a prefix is a part of. Fine-tune its parameters instead, without a prefix."
            )
    length, keys = query.shape[2], key.shape[2]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if given is None and base == "sdpa" and causal and length > 1:
        given = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril()
    bias = options.get("position_bias")
    if bias is None or given is None:
        return given if bias is None else bias
    return torch.where(given, bias, _HIDDEN) if given.dtype == torch.bool else bias + given
