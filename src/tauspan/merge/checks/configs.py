"""Configurations against each other: settings that change what a model computes while every shape stays the same."""

from collections.abc import Iterator, Mapping
from typing import Any

from tauspan.merge.sources.inputs import Source, config_of
from tauspan.merge.sources.problems import Problem

_TIES = "tie_word_embeddings"
_FIELDS = frozenset((
    # heads: the same matrices cut into other pieces
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_heads", "n_head", "n_heads", "num_kv_heads",
    "encoder_attention_heads", "decoder_attention_heads", "multi_query", "new_decoder_architecture",
    # positions and masks
    "rope_theta", "rotary_emb_base", "rotary_pct", "rotary_dim", "partial_rotary_factor", "position_embedding_type",
    "alibi", "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "is_decoder",
    "relative_attention_num_buckets", "relative_attention_max_distance",
    # activations
    "hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj", "dense_act_fn",
    # norms and factors
    "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "rms_norm_eps", "norm_eps", "norm_epsilon", "pre_norm",
    "do_layer_norm_before", "use_parallel_residual", "parallel_attn", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "scale_embedding", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping", "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    # experts, patches and ties
    "num_experts_per_tok", "norm_topk_prob", "patch_size", "pooling_type", "hidden_pooling", _TIES,
))  # fmt: skip
_ROPE = ("rope_parameters", "rope_scaling")  # of transformers from 5 on, and before


def functions(reference: Source, model: Source) -> Iterator[Problem]:
    """Whether both configurations make one function of the same weights; what only one of them states is not compared."""
    theirs, mine = config_of(reference.path), config_of(model.path)
    told = {_TIES} if set(reference.tensors) != set(model.tensors) else set()  # the names show it
    differ = [
        f"{key} is {own!r} and {other!r}"
        for key, own, other in _differing(mine, theirs, "")
        if key not in told
    ]
    if differ:
        yield Problem(
            "error",
            "config",
            None,
            model.label,
            model.path / "config.json" if model.path.is_dir() else model.path,
            f"config.json of {model.path} and of {reference.path} make different functions of the same weights: "
            f"{'; '.join(differ)}. Merge models of one configuration; the result takes that of {reference.path}.",
        )


def _differing(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], above: str
) -> Iterator[tuple[str, Any, Any]]:
    """Names and both values of what differs, in the parts of a model of several too."""
    for key in mine:
        own, other = mine[key], theirs.get(key)
        if key.endswith("_config") and isinstance(own, Mapping) and isinstance(other, Mapping):
            yield from _differing(own, other, f"{above}{key}.")
        elif key in _FIELDS and key != "rope_theta" and key in theirs and own != other:
            yield f"{above}{key}", own, other
    first, second = _rope(mine), _rope(theirs)
    if first and second:
        for key in sorted({*first, *second}):
            one, two = (rope.get(key, "default" if key == "rope_type" else None) for rope in (first, second))
            if one != two and (key == "rope_type" or None not in (one, two)):
                yield f"{above}{key}", one, two


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings under one spelling; empty where the configuration states none."""
    found = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") is not None else {}
    for key in _ROPE:
        stated = config.get(key)
        if isinstance(stated, Mapping):
            found |= {"rope_type" if name == "type" else str(name): value for name, value in stated.items()}
        elif key in config:
            found.setdefault("rope_type", "default")
    return found
