"""Tiny models of the families in transformers' own list, made by one rule each from the family's configuration.

A configuration is shrunk field by field: `SIZES` says by name how large each number may be. What a family needs
besides, `families_table` says. The weights are stirred, so that nothing is at its special start.
"""

import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.modeling_utils import PreTrainedModel

ROWS, LENGTH, VOCABULARY = 3, 8, 64
WIDTH, HEADS, SIDE, PATCH = 32, 4, 32, 8
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "num_blocks", "n_block")

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
            found[name] = shrunk(value) if name.endswith(("config", "configs")) or name.startswith("rope") else value
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


# -- models and inputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A model in eval mode, and what to call it with.

    Args:
        model: in float64, or in float32 where it does not run otherwise.
        inputs: by name, in float64.
        oracle: the same weights in float64, with experts one after the other where grouped products need float32; None
            where the model is float32 throughout.
        single: whether the model is in float32.
    """

    model: nn.Module
    inputs: dict[str, Any]
    oracle: nn.Module | None
    single: bool = False

    def given(self, dtype: torch.dtype) -> dict[str, Any]:
        """The inputs with their real numbers in some dtype."""
        return {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in self.inputs.items()
        }


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 eval mode, each parameter moved off its start: zero biases, unit norms, gates at 0."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            width = parameter.shape[-1] if parameter.ndim > 1 else 16
            parameter.add_((0.5 / width**0.5) * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: int = ROWS, length: int = LENGTH, seed: int = 2) -> dict[str, Tensor]:
    """A padded batch: each row is one token shorter than the one before; none of its tokens is a special one."""
    ids = torch.randint(10, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(length) < length - torch.arange(rows).unsqueeze(1)).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def found_in(config: Any, name: str) -> Any:
    """A field of a configuration, or of the first configuration inside it that has the field."""
    value = getattr(config, name, None)
    if value is not None and not (name == "image_size" and isinstance(value, dict)):
        return value
    parts = [part for part in vars(config).values() if hasattr(part, "to_dict")]
    return next((v for v in (found_in(part, name) for part in parts) if v is not None), None)


def images(config: Any, rows: int = ROWS) -> Tensor:
    size = found_in(config, "image_size") or SIDE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return drawn(rows, found_in(config, "num_channels") or 3, height, width)


def inputs_of(model: Any) -> dict[str, Tensor]:
    """What a model is called with, read off its forward."""
    config, names = model.config, set(inspect.signature(model.forward).parameters)
    main = model.main_input_name if isinstance(model.main_input_name, str) else model.main_input_name[0]
    given: dict[str, Tensor] = {}
    if main == "input_ids" or (main == "pixel_values" and "input_ids" in names and "vision_config" in vars(config)):
        given |= tokens()
    if "attention_mask" not in names:
        given.pop("attention_mask", None)
    if main == "pixel_values" or (main == "input_ids" and "pixel_values" in names and hasattr(model, "get_text_features")):
        given["pixel_values"] = images(config)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        given["decoder_input_ids"] = tokens(length=5, seed=3)["input_ids"]
    if main == "input_values":
        given["input_values"] = drawn(ROWS, 1200)
    if main == "input_features":
        given["input_features"] = drawn(ROWS, 24, found_in(config, "num_mel_bins") or 16)
    if main == "past_values":
        given["past_values"] = drawn(ROWS, 32, 1)
    if main == "pixel_values_videos":
        given["pixel_values_videos"] = drawn(ROWS, 2, 3, SIDE, SIDE)
    if "use_cache" in names:
        given["use_cache"] = False
    return given


@dataclass(frozen=True)
class Special:
    """What a family needs beyond the rules.

    Args:
        config: fields of the configuration; a dot leads into one inside it, None drops the field.
        inputs: more or other inputs; None drops one.
        single: whether the model computes in float32 alone.
    """

    config: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[Any], dict[str, Any]] = lambda model: {}
    single: bool = False


RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
MOE_V2 = {"num_experts_per_tok": 2, "n_routed_experts": 4}


def boxes(model: Any) -> dict[str, Any]:
    """A box for each token."""
    corners = torch.tensor([[0, 4, 9, 14], [2, 2, 20, 30]]).repeat(ROWS, LENGTH // 2, 1)
    return {"bbox": corners}


def sound(*shape: int) -> Callable[[Any], dict[str, Any]]:
    """Sound by sample under the name that the model has for it."""
    return lambda model: {model.main_input_name: drawn(ROWS, *shape)}


def series(model: Any) -> dict[str, Any]:
    """A time series with its time features and observed places."""
    length = model.config.context_length + max(model.config.lags_sequence)
    future = model.config.prediction_length
    return {
        "past_values": drawn(ROWS, length), "past_time_features": drawn(ROWS, length, 1),
        "past_observed_mask": torch.ones(ROWS, length, dtype=torch.float64),
        "future_values": drawn(ROWS, future, seed=4), "future_time_features": drawn(ROWS, future, 1, seed=5),
    }  # fmt: skip


SERIES = {"prediction_length": 4, "context_length": 12, "lags_sequence": [1, 2], "num_time_features": 1, "feature_size": None}
SPECIAL: dict[str, Special] = {
    "align": Special({"vision_config.width_coefficient": 0.5, "vision_config.depth_coefficient": 1.0, "vision_config.hidden_dim": 32}),
    "audio-spectrogram-transformer": Special({"max_length": 32}, lambda model: {"input_values": drawn(ROWS, 32, 32)}),
    "autoformer": Special(SERIES | {"moving_average": 3, "label_length": 4}, series),
    "informer": Special(SERIES, series),
    "time_series_transformer": Special(SERIES, series),
    "bit": Special({"num_groups": 4}),
    "blip_2_qformer": Special(inputs=lambda model: {"query_embeds": drawn(ROWS, 4, 32), "encoder_hidden_states": drawn(ROWS, 6, 32), "input_ids": None, "attention_mask": None}),
    "bridgetower": Special({"vision_config.hidden_size": 64, "text_config.hidden_size": 64}),
    "bros": Special(inputs=lambda model: {"bbox": drawn(ROWS, LENGTH, 4).abs().float()}, single=True),
    "layoutlm": Special(inputs=boxes),
    "layoutlmv3": Special({"coordinate_size": 6, "shape_size": 4, "input_size": 16, "patch_size": 8}, boxes),
    "lilt": Special({"channel_shrink_ratio": 2, "hidden_size": 48}, boxes),
    "clap": Special(
        {"audio_config.spec_size": 32, "audio_config.num_mel_bins": 8, "audio_config.window_size": 4, "audio_config.patch_embeds_hidden_size": 8},
        lambda model: {"input_features": drawn(ROWS, 1, 32, 8)},
    ),
    "clvp": Special(inputs=lambda model: {"input_features": drawn(ROWS, 32, 20)}),
    "conditional_detr": Special({"backbone_config": RESNET}),
    "dab-detr": Special({"backbone_config": RESNET}, single=True),
    "deformable_detr": Special({"backbone_config": RESNET | {"out_features": ["stage2", "stage3", "stage4"]}}),
    "detr": Special({"backbone_config": RESNET}),
    "table-transformer": Special({"backbone_config": RESNET}),
    "dac": Special(
        {"encoder_hidden_size": 4, "downsampling_ratios": [2, 2], "decoder_hidden_size": 16, "upsampling_ratios": [2, 2], "codebook_size": 8, "codebook_dim": 4, "n_codebooks": 2, "hidden_size": 16, "hop_length": 4},
        sound(1, 64),
    ),
    "data2vec-audio": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3]}, sound(200)),
    "decision_transformer": Special({"vocab_size": 64, "max_ep_len": 32}, lambda model: {
        "states": drawn(ROWS, 4, model.config.state_dim), "actions": drawn(ROWS, 4, model.config.act_dim), "returns_to_go": drawn(ROWS, 4, 1),
        "rewards": drawn(ROWS, 4, 1), "timesteps": torch.arange(4).expand(ROWS, 4), "attention_mask": torch.ones(ROWS, 4),
    }),
    "deepseek_v2": Special(MOE_V2),
    "donut-swin": Special({"embed_dim": 8, "window_size": 4}),
    "swin": Special({"embed_dim": 8, "window_size": 4}),
    "swinv2": Special({"embed_dim": 8, "window_size": 4}),
    "swin2sr": Special({"embed_dim": 24, "num_heads": [2, 2], "depths": [1, 1], "window_size": 4, "num_feat": 8, "image_size": 16}),
    "maskformer-swin": Special({"embed_dim": 8, "window_size": 4}),
    "efficientnet": Special({"width_coefficient": 0.5, "depth_coefficient": 1.0, "hidden_dim": 32}),
    "encodec": Special(
        {"num_filters": 4, "upsampling_ratios": [2, 2], "hidden_size": 16, "codebook_dim": 16, "codebook_size": 16, "num_lstm_layers": 1},
        sound(1, 64),
    ),
    "esm": Special({"vocab_size": 64, "pad_token_id": 1, "mask_token_id": 2}),
    "esmc": Special({"num_key_value_heads": 4}),
    "falcon_h1": Special(MAMBA | {"mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_chunk_size": 4}),
    "bamba": Special(MAMBA | {"mamba_d_state": 8, "mamba_chunk_size": 4, "attn_layer_indices": [1]}),
    "granitemoehybrid": Special(MAMBA | {"mamba_d_state": 8, "mamba_chunk_size": 4}),
    "mamba2": Special({"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 4}),
    "fsmt": Special(single=True),
    "mra": Special(single=True),
    "fastspeech2_conformer": Special(single=True),
    "lxmert": Special(inputs=lambda model: {"visual_feats": drawn(ROWS, 3, model.config.visual_feat_dim), "visual_pos": drawn(ROWS, 3, 4)}),
    "mobilebert": Special({"hidden_size": 48, "true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 16}),
    "mobilevit": Special({"hidden_sizes": [8, 16, 16], "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16], "image_size": 64, "num_attention_heads": 2}),
    "mobilevitv2": Special({"image_size": 64, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [16, 16, 16], "width_multiplier": 0.1}),
    "mobilenet_v1": Special({"depth_multiplier": 0.05}),
    "mobilenet_v2": Special({"depth_multiplier": 0.05}),
    "moonshine": Special({"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4}),
    "levit": Special({"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 3], "key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]]}),
    "hunyuan_v1_dense": Special({"head_dim": 8}),
    "ministral": Special({"head_dim": 8}),
    "nemotron": Special({"num_key_value_heads": 2, "head_dim": 8}),
    "hubert": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "wav2vec2": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "wav2vec2-conformer": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "wavlm": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_buckets": 8}, sound(200)),
    "sew": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "sew-d": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "unispeech": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "speecht5": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "mimi": Special({"num_filters": 4, "upsampling_ratios": [2, 2], "upsample_groups": 32, "codebook_size": 8, "num_quantizers": 2}, sound(1, 64)),
    "chameleon": Special({"vocabulary_map": {"<image>": 8}, "vq_config.base_channels": 32}),
    "reformer": Special({"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [2, 4], "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2, "hash_seed": 0}),
    "sam": Special({"prompt_encoder_config.image_embedding_size": 4}),
    "speech_to_text": Special({"input_feat_per_channel": 16, "conv_channels": 16}, lambda model: {"input_features": drawn(ROWS, 24, 16)}),
    "seggpt": Special(inputs=lambda model: {"prompt_pixel_values": drawn(ROWS, 3, 32, 32), "prompt_masks": drawn(ROWS, 3, 32, 32, seed=5)}),
    "siglip2": Special(),
    "lightglue": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 2, 3, 32, 32)}),
    "ctrl": Special({"vocab_size": 64, "dff": 24}),
    "cpmant": Special({"prompt_types": 4, "prompt_length": 4, "segment_types": 4, "position_bias_num_buckets": 8}),
    "canine": Special({"num_hash_buckets": 16, "local_transformer_stride": 4, "downsampling_rate": 2}),
    "bark": Special(),
    "perceiver": Special({"num_latents": 4, "d_latents": 16, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}, lambda model: {"inputs": drawn(ROWS, 6, model.config.d_model)}),
    "focalnet": Special({"embed_dim": 8, "hidden_sizes": [8, 16, 16, 16]}),
    "cvt": Special({"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 1, 1]}),
    "hgnet_v2": Special({"stem_channels": [3, 4, 8], "stage_in_channels": [8, 16, 16, 16], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 16, 16], "stage_numb_of_layers": [2, 2, 2, 2]}),
    "markuplm": Special({"max_depth": 4, "xpath_unit_hidden_size": 4, "max_xpath_tag_unit_embeddings": 8, "max_xpath_subs_unit_embeddings": 8, "tag_pad_id": 6, "subs_pad_id": 6}),
    "mgp-str": Special({"num_bpe_labels": 16, "num_wordpiece_labels": 16, "max_token_length": 4}),
    "step3p7": Special(),
    "swiftformer": Special(),
}  # fmt: skip


def config_of(family: str) -> Any:
    """The family's configuration, shrunk."""
    kind = CONFIG_MAPPING[family]
    given = shrunk(kind().to_dict())
    for path, value in SPECIAL.get(family, Special()).config.items():
        *outer, last = path.split(".")
        inner = given
        for part in outer:
            inner = inner[part]
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return kind(**given)


def make(family: str) -> Example:
    """A tiny model of a family, the same at each call."""
    name = MODEL_MAPPING_NAMES[family]
    kind = getattr(transformers, name if isinstance(name, str) else name[0])
    special = SPECIAL.get(family, Special())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = stirred(kind(config_of(family)))
    inputs = inputs_of(model) | special.inputs(model)
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if special.single:
        return Example(model.float(), inputs, None, True)
    if any(one._can_set_experts_implementation() for one in model.modules() if isinstance(one, PreTrainedModel)):
        oracle = copy.deepcopy(model)
        oracle.set_experts_implementation("eager")
        return Example(model.float(), inputs, oracle, True)
    return Example(model, inputs, copy.deepcopy(model))
