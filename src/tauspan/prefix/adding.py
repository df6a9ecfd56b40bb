"""`with_prefix`: an encoder whose attention layers have a prefix that can move, and that is 0 at theta0."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError
from tauspan.models import Encoder
from tauspan.models.encoder import Added
from tauspan.models.extras import require_extra
from tauspan.models.spaces import sharing
from tauspan.models.trial import sample
from tauspan.prefix.attention import BASES, Attended, Prefix, grouped, implementation, watching
from tauspan.prefix.features import FeatureMap, Phi

_CLOSE = 1e-4  # relative: attention by the scores against the layer's own, in float32


@checked
def with_prefix(
    encoder: Encoder,
    phi: Phi = "elu",
    *,
    features: int = 64,
    seed: int = 0,
    rows: Sequence[Any] | None = None,
) -> Encoder:
    """An encoder whose attention layers have a prefix (Z, kappa) beside their keys and values; only it moves.

    A prefix of keys k_p and values v_p in front of a head changes its output to
    (sum_j e^{s q.k_j} v_j + sum_p e^{s q.k_p} v_p) / (sum_j e^{s q.k_j} + sum_p e^{s q.k_p}). With features such that
    phi(q).phi(k) is near e^{s q.k}, the sums over the prefix are phi(q) Z and phi(q).kappa, whatever its length
    (NTK-Attention, arXiv 2406.14036):

        out = (D0 out0 + phi(q) Z) / max(D0 + phi(q).kappa, D0/16),   D0 = sum_j e^{s q.k_j}, masks included

    Z (heads, r, d_v) and kappa (heads, r) are parameters of each layer, one for each key-value head, and are 0 at first:
    then the encoder gives what `encoder` gives, bit for bit, and has its fingerprint and its heads. Task vectors move
    them alone; in the tangent space d out = (phi(q) dZ - (phi(q).dkappa) out0) / D0. Sums of prefixes are sums of
    (Z, kappa), so vectors add as prompts do when one is put behind the other.

    Layers are found by reading one sample, through transformers' registry of attention functions. The weights are shared
    with `encoder`, which is not changed, and are frozen: `params="all"` moves every prefix, `"last:2"` those of the last
    two blocks, a pattern such as `"*"` or `"*.value.*"` also others.

    Args:
        encoder: of a transformers model, whose attention is `"sdpa"` or `"eager"`.
        phi: `"elu"`: r = d numbers. `"taylor"`: r = 1 + d + d(d+1)/2, exact to second order in the scores.
            `"positive"`: random features.
        features: r of `"positive"`.
        seed: of the random features.
        rows: inputs to find the layers with, where the encoder reads tensors; None takes a sample.

    Raises:
        ModelError: a model whose attention does not go through transformers' registry, or is no softmax of scores.
        UsageError: an encoder that has a prefix already, an unknown feature map, or no `rows` where they are needed.

    Cost:
        Parameters: layers x heads x r (d_v + 1). Each forward forms the scores a second time, for D0.

    Example:
        >>> import tauspan as ts
        >>> encoder = ts.with_prefix(ts.load("minilm"))
        >>> sum(p.numel() for p in encoder.parameters() if p.requires_grad)
        76032
    """
    if encoder.space is not None:
        raise UsageError(
            f"{encoder.source} is in the space {encoder.space.word!r}, which its prefix would not be in. Give the "
            "encoder that it was made from."
        )
    if encoder.added is not None:
        raise UsageError(
            f"{encoder.source} has a prefix already ({encoder.added.words}). Give the encoder that it was made from."
        )
    made = FeatureMap(phi, features, seed)
    registered = _registered(encoder)
    seen = _attention_layers(registered, rows)
    for attended in seen.values():
        heads, size, values = attended.key.shape[1], attended.query.shape[-1], attended.value.shape[-1]
        attended.module.add_module(made.name, Prefix(made, heads, size, values, attended.query))
    names = [name for name, parameter in registered.backbone.named_parameters() if parameter.requires_grad]
    facts = {"phi": phi, **({"features": features, "seed": seed} if phi == "positive" else {})}
    said = ", ".join([repr(phi), *(f"{key}={value}" for key, value in facts.items() if key != "phi")])
    registered.added = Added(tuple(names), {"prefix": facts}, f"tauspan.with_prefix(ENCODER, {said})")
    return registered


def _registered(encoder: Encoder) -> Encoder:
    """A copy that shares every tensor, frozen, and whose attention is ours; models without a registry are refused."""
    transformers = require_extra("transformers", "transformers", "a prefix")
    made = sharing(encoder)
    held = [getattr(part, "config", None) for part in made.backbone.modules()]
    configs: dict[int, Any] = {id(one): one for one in held if isinstance(one, transformers.PreTrainedConfig)}
    for config in configs.values():
        base = config._attn_implementation
        if base in BASES:
            config._attn_implementation_internal = implementation(base)
        elif base is not None:
            raise ModelError(
                f"{encoder.source} computes attention by {base!r}, and a prefix is put on {' or '.join(BASES)}. Load it "
                'with attn_implementation="sdpa".'
            )
    return made


def _attention_layers(encoder: Encoder, rows: Sequence[Any] | None) -> dict[nn.Module, Attended]:
    """The layers that go through the registry when a sample is read, each with its call.

    Raises:
        UsageError: no sample can be made.
        ModelError: no layer, or one whose output is not softmax(s Q K^T + mask) V.
    """
    batch = sample(encoder) if rows is None else encoder.encode(rows)
    if batch is None:
        raise UsageError(
            f"{encoder.source} reads {encoder.inputs.modality} inputs, of which no sample can be made: give some, "
            'rows=task.split("train").inputs[:1].'
        )
    seen: dict[nn.Module, Attended] = {}

    def note(attended: Attended) -> None:
        seen[attended.module] = attended

    with torch.no_grad(), watching(note):
        encoder(batch)
    if not seen:
        raise ModelError(
            f"{type(encoder.backbone).__name__} has no attention layer that goes through transformers' registry of "
            "attention functions, which a prefix is put on. Fine-tune its parameters without one."
        )
    for attended in seen.values():
        _require_softmax(attended, encoder)
    return seen


def _require_softmax(attended: Attended, encoder: Encoder) -> None:
    weights = attended.scores().softmax(-1)
    found = (weights @ grouped(attended.value, weights.shape[1]).to(weights.dtype)).transpose(1, 2)
    apart = float((found - attended.out).abs().max() / attended.out.abs().max().clamp_min(1e-30))
    close = max(_CLOSE, 20 * torch.finfo(attended.out.dtype).eps)
    if not apart <= close:
        name = next(name for name, part in encoder.backbone.named_modules() if part is attended.module)
        raise ModelError(
            f"the attention of {name!r} ({type(attended.module).__name__}) differs from softmax(s Q K^T + mask) V by "
            f"{apart:.2g} of its size, so a prefix is no part of it. Fine-tune its parameters without one."
        )
