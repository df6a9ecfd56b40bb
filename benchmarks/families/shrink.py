"""Configurations of transformers' families shrunk by the names of their fields: `SIZES` says how large each number may be."""

import re
from typing import Any

ROWS, LENGTH, VOCABULARY = 3, 8, 64
WIDTH, HEADS, SIDE, PATCH = 32, 4, 32, 8
_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "depth",
    "encoder_layers",
    "num_blocks",
    "n_block",
)

# What a number becomes, by the first pattern that fits its name; None leaves it as it is.
SIZES: tuple[tuple[str, int | None], ...] = (
    (r"(\w+_)?vocab_size(_per_layer_input)?|\w*input_vocab_size|\w*output_vocab_size", VOCABULARY),
    (r"(entity_)vocab_size", VOCABULARY),
    (r"n_group", 2),
    (r"topk_group", 1),
    (r".*(token_id|token_index|_id|_ids|index|idx|indexes)", None),
    (r"max_(2d_)?position\w*|n_positions|n_ctx|max_seq_len|seq_length|max_(source|target)_positions|num_position_embeddings|original_max_position_embeddings", 64),
    (r"(.*_size_per|.*temporal|.*merge|.*chunk|.*context|.*block_size|.*scale|.*stride|.*rate|.*step|max_|min_|n?_?group|.*kernel|.*num_(attention_)?groups|.*downsample|.*upsample).*", None),
    (r"(\w+_)?image_size|pretrain_image_size|img_size", SIDE),
    (r"(\w+_)?patch_size", PATCH),
    (r"(\w*_)?(num_)?(key_value|kv)_heads|n_head_kv", HEADS // 2),
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r"(\w*_)?(num_|n_)(\w+_)?heads?|\w*attention_heads|n_head|\w*_heads", HEADS),
    (r"\w*head_dim|d_kv|d_head|attention_head_size|\w*d_head|rotary_dim", WIDTH // HEADS),
    (r"(\w+_)?(num_|n_)(\w+_)?layers?|\w*encoder_layers|\w*decoder_layers|depth|n_layer|num_blocks|layers|\w+_layers|resampler_depth", 2),
    (r"\w*(num|n)(_\w+)?_experts|moe_num_experts|num_experts", 4),
    (r"\w*experts_per_tok(en)?|moe_topk|top_k|moe_k|\w*_top_k|num_selected_experts", 2),
    (r"\w*intermediate_size|\w*intermediate_dim|\w*ffn_dim\w*|d_ff|d_inner|n_inner|mlp_dim|\w*ffn_hidden_size|\w*mlp_hidden_size|dim_feedforward|\w*feedforward_dim|\w*intermediate_size_mlp", 24),
    (r"\w*hidden_size|\w*hidden_dim|d_model|n_embd|\w*embed_dim|\w*embedding_size|\w*_dim|dim|\w*embedding_dim|emb_dim|\w*_width|\w*hidden_size_global|\w*hidden_dimension|encoder_width|\w+_embed_dim|out_hidden_size|fpn_hidden_size|feature_size|\w*_channels?|\w*lora_rank|projection_size|mask_feature_size|\w*_rank", WIDTH),
    (r"num_quer(y_tokens|ies)|num_latents|\w*n_latents", 4),
    (r"num_frames", 2),
    (r"num_mel_bins|num_filters|upsample_initial_channel|codebook_size", WIDTH),
)  # fmt: skip
_DERIVED = frozenset({"qk_head_dim"})
_COMPILED = [(re.compile(pattern), size) for pattern, size in SIZES]
_KEEP = frozenset({"num_channels", "in_channels", "audio_channels", "in_chans"})


def small(name: str, value: int) -> int:
    """What a number of a configuration becomes."""
    if name in _KEEP:
        return value
    for pattern, size in _COMPILED:
        if pattern.fullmatch(name):
            return value if size is None else min(value, size)
    return value


def shrunk(given: dict[str, Any]) -> dict[str, Any]:
    """A configuration's fields, each as small as its name allows; lists with an entry for each layer keep one of a kind."""
    given = {name: value for name, value in given.items() if name not in _DERIVED}
    stages = len(given["depths"]) if isinstance(given.get("depths"), list | tuple) else 0
    given = {name: value for name, value in given.items() if not (stages and name in _LAYERS)}
    count = next((given[name] for name in _LAYERS if isinstance(given.get(name), int)), 0)
    by_layer = {
        name: value
        for name, value in given.items()
        if isinstance(value, list | tuple) and len(value) == count > 2 and name != "depths"
    }
    kept = _one_of_a_kind(list(zip(*by_layer.values(), strict=True))) if by_layer else [0, 1]
    found: dict[str, Any] = {}
    special = VOCABULARY
    for name, value in given.items():
        if name == "per_layer_config" and isinstance(value, dict):
            found[name] = {kept.index(int(at)): shrunk(one) for at, one in value.items() if int(at) in kept}
        elif isinstance(value, dict):
            found[name] = (
                shrunk(value) if name.endswith(("config", "configs")) or name.startswith("rope") else value
            )
        elif isinstance(value, bool) or value is None:
            found[name] = value
        elif name in by_layer:
            found[name] = [value[place] for place in kept]
        elif name in _LAYERS and isinstance(value, int) and by_layer:
            found[name] = len(kept)
        elif isinstance(value, int):
            found[name] = small(name, value)
            if name.endswith(("token_id", "token_index")) and value >= VOCABULARY:
                special -= 1
                found[name] = special
        elif name == "partial_rotary_factor" and isinstance(value, float):
            found[name] = min(1.0, max(value, 0.5))
        elif isinstance(value, list | tuple) and value and all(type(entry) is int for entry in value):
            found[name] = _small_list(name, list(value))
        else:
            found[name] = value
    if "kv_lora_rank" in found and "num_key_value_heads" in found:
        found["num_key_value_heads"] = found["num_attention_heads"]
    features = found.get("out_features") or []
    if found.get("stage_names") and any(int(one[5:] or 0) > 4 for one in features if one.startswith("stage")):
        for name in ("out_features", "out_indices", "stage_names"):  # of a stack of equal blocks
            found.pop(name, None)
    return found


def _one_of_a_kind(layers: list[tuple[Any, ...]]) -> list[int]:
    """The places of the first layer of each kind; two at least."""
    places = [place for place, layer in enumerate(layers) if layer not in layers[:place]]
    return places if len(places) > 1 else [0, 1]


def _small_list(name: str, values: list[int]) -> list[int]:
    if name == "stem_channels":
        return [min(8, value) for value in values]
    if name == "mrope_section":
        return [2, 1, 1]
    if name in ("depths", "num_block_repeats", "blocks_per_stage", "stage_num_blocks", "layer_depths"):
        return [1] * len(values)
    if name in ("image_size", "img_size"):
        return [SIDE] * len(values)
    if name in ("patch_size",):
        return [min(PATCH, value) for value in values]
    if re.search(r"heads", name):
        return [max(1, value // min(values)) for value in values]
    if re.search(r"hidden_sizes|embed_dim|dims?$|channels|widths|conv_dim|hidden_size", name):
        return [max(1, value * 8 // min(values)) for value in values]
    return values
