"""What families need beyond the rules: fields of their configuration, inputs, float32."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.families.inputs import drawn, tokens
from benchmarks.families.shrink import LENGTH, ROWS


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

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
MROPE_TEXT = {"text_config." + name: value for name, value in MROPE.items()}
HALF = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.5,
    }
}


def boxes(model: Any) -> dict[str, Any]:
    """A box for each token."""
    corners = torch.tensor([[0, 4, 9, 14], [2, 2, 20, 30]]).repeat(ROWS, LENGTH // 2, 1)
    return {"bbox": corners}


def queried(model: Any) -> dict[str, Any]:
    """Tokens that begin with a place for each query of the image."""
    ids = tokens()["input_ids"]
    ids[:, : model.config.num_query_tokens] = model.config.image_token_index
    return {"input_ids": ids}


def siglip2_patches(model: Any) -> dict[str, Any]:
    """Images as patches, with their masks and shapes."""
    width = (
        model.config.vision_config.patch_size
        if hasattr(model.config, "vision_config")
        else model.config.patch_size
    )
    return {
        "pixel_values": drawn(ROWS, 16, 3 * width**2), "pixel_attention_mask": torch.ones(ROWS, 16, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[4, 4]] * ROWS),
    }  # fmt: skip


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


SERIES = {
    "prediction_length": 4,
    "context_length": 12,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "feature_size": None,
}
SPECIAL: dict[str, Special] = {
    "audio-spectrogram-transformer": Special({"max_length": 32}, lambda model: {"input_values": drawn(ROWS, 32, 32)}),
    "informer": Special(SERIES, series),
    "time_series_transformer": Special(SERIES, series),
    "bit": Special({"num_groups": 4}),
    "blip_2_qformer": Special(inputs=lambda model: {"query_embeds": drawn(ROWS, 4, 32), "encoder_hidden_states": drawn(ROWS, 6, 32), "input_ids": None, "attention_mask": None}),
    "bridgetower": Special({"vision_config.hidden_size": 64, "text_config.hidden_size": 64}),
    "bros": Special(inputs=lambda model: {"bbox": drawn(ROWS, LENGTH, 4).abs().float()}, single=True),
    "layoutlm": Special(inputs=boxes),
    "layoutlmv3": Special({"coordinate_size": 6, "shape_size": 4, "input_size": 16, "patch_size": 8}, boxes),
    "lilt": Special({"channel_shrink_ratio": 2, "hidden_size": 48}, boxes),
    "clvp": Special(inputs=lambda model: {"input_features": drawn(ROWS, 32, 20)}),
    "conditional_detr": Special({"backbone_config": RESNET}),
    "dab-detr": Special({"backbone_config": RESNET}, single=True),
    "deformable_detr": Special({"backbone_config": RESNET | {"out_features": ["stage2", "stage3", "stage4"]}}),
    "detr": Special({"backbone_config": RESNET}),
    "table-transformer": Special({"backbone_config": RESNET}),
    "data2vec-audio": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3]}, sound(200)),
    "decision_transformer": Special({"vocab_size": 64, "max_ep_len": 32}, lambda model: {
        "states": drawn(ROWS, 4, model.config.state_dim), "actions": drawn(ROWS, 4, model.config.act_dim), "returns_to_go": drawn(ROWS, 4, 1),
        "rewards": drawn(ROWS, 4, 1), "timesteps": torch.arange(4).expand(ROWS, 4), "attention_mask": torch.ones(ROWS, 4),
    }),
    "deepseek_v2": Special(MOE_V2),
    "swinv2": Special({"embed_dim": 8, "window_size": 4}),
    "swin2sr": Special({"embed_dim": 24, "num_heads": [2, 2], "depths": [1, 1], "window_size": 4, "num_feat": 8, "image_size": 16}),
    "maskformer-swin": Special({"embed_dim": 8, "window_size": 4}),
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
    "inkling2": Special(single=True),
    "inkling2_text": Special(single=True),
    "gradium_phonon_tts": Special({"num_key_value_heads": 4}),
    "prophetnet": Special(single=True),
    "mra": Special(single=True),
    "fastspeech2_conformer": Special(single=True),
    "lxmert": Special(inputs=lambda model: {"visual_feats": drawn(ROWS, 3, model.config.visual_feat_dim), "visual_pos": drawn(ROWS, 3, 4)}),
    "mobilebert": Special({"hidden_size": 48, "true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 16}),
    "mobilevit": Special({"hidden_sizes": [8, 16, 16], "neck_hidden_sizes": [4, 8, 8, 8, 8, 8, 16], "image_size": 64, "num_attention_heads": 2}),
    "mobilevitv2": Special({"image_size": 64, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [16, 16, 16], "width_multiplier": 0.1}),
    "mobilenet_v1": Special({"depth_multiplier": 0.05}),
    "mobilenet_v2": Special({"depth_multiplier": 0.05}),
    "moonshine": Special({"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4}),
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
    "mimi": Special({"num_filters": 4, "upsampling_ratios": [2, 2], "upsample_groups": 32, "codebook_size": 8, "num_quantizers": 2}, sound(1, 64)),
    "chameleon": Special({"vocabulary_map": {"<image>": 8}, "vq_config.base_channels": 32}),
    "reformer": Special({"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [2, 4], "attn_layers": ["local", "lsh"], "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2, "hash_seed": 0}),
    "speech_to_text": Special({"input_feat_per_channel": 16, "conv_channels": 16}, lambda model: {"input_features": drawn(ROWS, 24, 16)}),
    "lightglue": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 2, 3, 32, 32)}),
    "ctrl": Special({"vocab_size": 64, "dff": 24}),
    "cpmant": Special({"prompt_types": 4, "prompt_length": 4, "segment_types": 4, "position_bias_num_buckets": 8}),
    "led": Special({"attention_window": [4, 4], "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}),
    "longformer": Special({"attention_window": [4, 4]}),
    "canine": Special({"num_hash_buckets": 16, "local_transformer_stride": 4, "downsampling_rate": 2}, single=True),
    "perceiver": Special({"num_latents": 4, "d_latents": 16, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}, lambda model: {"inputs": drawn(ROWS, 6, model.config.d_model)}),
    "focalnet": Special({"embed_dim": 8, "hidden_sizes": [8, 16, 16, 16]}),
    "cvt": Special({"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 1, 1]}),
    "hgnet_v2": Special({"stem_channels": [3, 4, 8], "stage_in_channels": [8, 16, 16, 16], "stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [16, 16, 16, 16], "stage_numb_of_layers": [2, 2, 2, 2]}),
    "markuplm": Special({"max_depth": 4, "xpath_unit_hidden_size": 4, "max_xpath_tag_unit_embeddings": 8, "max_xpath_subs_unit_embeddings": 8, "tag_pad_id": 6, "subs_pad_id": 6}),
    "mgp-str": Special({"num_bpe_labels": 16, "num_wordpiece_labels": 16, "max_token_length": 4}),
    "glm4v": Special(MROPE_TEXT),
    "glm4v_text": Special(MROPE),
    "glm46v": Special(MROPE_TEXT),
    "glm4v_moe": Special({"text_config." + name: value for name, value in HALF.items()}),
    "glm4v_moe_text": Special(HALF),
    "glm_image": Special(MROPE_TEXT),
    "glm_image_text": Special(MROPE),
    "glm_ocr": Special(MROPE_TEXT),
    "glm_ocr_text": Special(MROPE),
    "glmga": Special(MROPE_TEXT),
    "paddleocr_vl": Special(MROPE_TEXT),
    "qwen2_vl": Special(MROPE_TEXT),
    "qwen2_vl_text": Special(MROPE),
    "qwen2_5_vl": Special(MROPE_TEXT),
    "qwen2_5_vl_text": Special(MROPE),
    "csm": Special({"codec_config.upsample_groups": 32}),
    "mimi_decoder": Special({"upsample_groups": 32}),
    "lfm2_moe": Special({"layer_types": ["conv", "full_attention"]}),
    "step3p7": Special({"text_config.sliding_window": 4}),
    "moonshine_streaming": Special({"num_key_value_heads": 4}),
    "granite_speech5_encoder": Special({"context_size": 8}),
    "granite_speech5_ctc": Special({"encoder_config.context_size": 8}),
    "mistral4": Special({"num_key_value_heads": 4}),
    "dots1": Special({"n_routed_experts": 4}),
    "hunyuan_v1_moe": Special({"head_dim": 8}),
    "hunyuan_vl": Special({"text_config.head_dim": 8}),
    "hunyuan_vl_text": Special({"head_dim": 8}),
    "glmasr_encoder": Special(inputs=lambda model: {"input_features": drawn(ROWS, model.config.num_mel_bins, 24)}),
    "dia": Special(inputs=lambda model: {"decoder_input_ids": torch.randint(0, 8, (ROWS, 5, 9), generator=torch.Generator().manual_seed(4))}),
    "autoformer": Special(single=True),
    "fastspeech2_conformer_with_hifigan": Special(single=True),
    "idefics": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 1, 3, 32, 32), "image_attention_mask": torch.ones(ROWS, LENGTH, 1, dtype=torch.long)}),
    "siglip2_vision_model": Special(inputs=lambda model: siglip2_patches(model)),
    "siglip2": Special(inputs=lambda model: siglip2_patches(model)),
    "idefics3_vision": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 3, 32, 32)}),
    "smolvlm_vision": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 3, 32, 32)}),
    "granite_docling_vision": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 3, 32, 32)}),
    "pp_ocrv5_mobile_rec": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 3, 48, 64)}),
    "rt_detr": Special({"backbone_config.layer_type": "basic", "backbone_config.embedding_size": 8}),
    "rt_detr_v2": Special({"backbone_config.layer_type": "basic", "backbone_config.embedding_size": 8}),
    "sam2": Special({"vision_config.backbone_config.hidden_size": 8, "vision_config.backbone_config.embed_dim_per_stage": [8, 16, 16, 16], "vision_config.backbone_channel_list": [16, 16, 16, 8], "vision_config.backbone_config.num_attention_heads_per_stage": [1, 2, 2, 2]}),
    "qwen2_audio_encoder": Special({"num_mel_bins": 16}, lambda model: {"input_features": drawn(ROWS, 16, 2 * model.config.max_source_positions)}),
    "moss_transcribe_diarize_audio": Special({"num_mel_bins": 16}, lambda model: {"input_features": drawn(ROWS, 16, 2 * model.config.max_source_positions)}),
    "seggpt": Special(inputs=lambda model: {"prompt_pixel_values": drawn(ROWS, 3, 16, 32), "prompt_masks": drawn(ROWS, 3, 16, 32, seed=5), "pixel_values": drawn(ROWS, 3, 16, 32, seed=6)}),
    "swin": Special({"embed_dim": 8, "window_size": 4, "patch_size": 4, "depths": [1, 1], "num_heads": [1, 2], "out_features": None, "out_indices": None, "stage_names": None}),
    "donut-swin": Special({"embed_dim": 8, "window_size": 4, "patch_size": 4, "depths": [1, 1], "num_heads": [1, 2]}),
    "clap": Special(
        {"audio_config.spec_size": 32, "audio_config.num_mel_bins": 8, "audio_config.window_size": 4, "audio_config.patch_embeds_hidden_size": 8, "audio_config.depths": [1, 1], "audio_config.num_attention_heads": [1, 2], "audio_config.hidden_size": 16},
        lambda model: {"input_features": drawn(ROWS, 1, 32, 8)},
    ),
    "efficientnet": Special({"in_channels": [32, 16, 24, 40, 80, 112, 192], "out_channels": [16, 24, 40, 80, 112, 192, 320], "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320}),
    "levit": Special({"image_size": 64, "patch_size": 16, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 3], "key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 3, 4, 2, 2]]}),
    "blip-2": Special({"image_token_index": 60}, lambda model: queried(model)),
    "instructblip": Special({"image_token_index": 60}, lambda model: queried(model) | {"qformer_input_ids": tokens(length=6, seed=6)["input_ids"]}),
    "dbrx": Special({"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0}),
    "speecht5": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, lambda model: {"input_values": drawn(ROWS, 6, 32), "decoder_input_values": drawn(ROWS, 5, 32)}),
    "sam": Special({"prompt_encoder_config.image_embedding_size": 4, "vision_config.num_pos_feats": 16}),
    "oneformer": Special({"task_seq_len": 6}, lambda model: {"task_inputs": tokens(length=6, seed=6)["input_ids"]}),
    "dac": Special(
        {"encoder_hidden_size": 4, "downsampling_ratios": [2, 2], "decoder_hidden_size": 16, "upsampling_ratios": [2, 2], "codebook_size": 8, "codebook_dim": 4, "n_codebooks": 2, "hidden_size": 16, "hop_length": 4},
        sound(1, 64),
    ),
    "whisper": Special({"num_mel_bins": 16}, lambda model: {"input_features": drawn(ROWS, 16, 2 * model.config.max_source_positions)}),
    "voxtral_encoder": Special({"num_mel_bins": 16}, lambda model: {"input_features": drawn(ROWS, 16, 2 * model.config.max_source_positions)}),
    "videomae": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, model.config.num_frames, 3, 32, 32)}),
    "timesformer": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, model.config.num_frames, 3, 32, 32)}),
    "vivit": Special({"tubelet_size": [2, 8, 8]}, lambda model: {"pixel_values": drawn(ROWS, model.config.num_frames, 3, 32, 32)}),
    "xclip": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, model.config.vision_config.num_frames, 3, 32, 32)}),
    "vilt": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 3, 32, 32)}),
    "xmod": Special({"default_language": "en_XX"}),
    "wav2vec2-bert": Special({"feature_projection_input_dim": 16}),
    "unispeech-sat": Special({"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, sound(200)),
    "xglm": Special(single=True),
    "udop": Special(inputs=boxes),
    "tvp": Special(inputs=lambda model: {"pixel_values": drawn(ROWS, 2, 3, 32, 32)}),
    "align": Special({"vision_config.in_channels": [32, 16, 24, 40, 80, 112, 192], "vision_config.out_channels": [16, 24, 40, 80, 112, 192, 320], "vision_config.width_coefficient": 0.25, "vision_config.depth_coefficient": 0.5, "vision_config.hidden_dim": 320, "projection_dim": 320, "text_config.hidden_size": 32}),
}  # fmt: skip


# Families of the list that are not tried, and why.
_LARGE = """
blt csm fast_vlm gemma3n gemma3n_text gemma3n_vision janus mask2former maskformer mistral_large4
mistral_large4_text nemo_speechlm pe_audio pe_audio_encoder pe_audio_video pe_audio_video_encoder pe_video
pe_video_encoder qwen3_asr radio seamless_m4t seamless_m4t_v2 t5gemma t5gemma2 timm_wrapper vibevoice
vibevoice_acoustic_tokenizer vibevoice_asr
"""
_LIBRARY = "dinat layoutlmv2"
_INPUTS = """
audioflamingo3_encoder bark bridgetower cohere_compass_vision cosmos3_edge_vision edgetam_video emu3
exaone4_5_vision fun_asr_nano_encoder gemma3n_audio gemma4_vision glm4v_moe_vision glm4v_vision
glm5_next_vision glm_image_vision glm_image_vqmodel glm_ocr_vision granite4_vision
grounding-dino hunyuan_vl_vision inkling2_vision instructblipvideo kimi_k25_vision kosmos-2
lfm3_vl_vision minicpm_ocr_vision minicpmv4_7_vision mm-grounding-dino muse_glimmer_assistant
muse_glimmer_vision muse_spark_vision nemotron3_5_transcribe_word_timestamp neucodec omdet-turbo pi0
qwen2_5_vl_vision qwen3_5_moe_vision qwen3_5_vision qwen3_asr_encoder qwen3_vl_moe_vision qwen3_vl_vision
qwen4_exp_vision sam2_video sam3_tracker_video sam3_video timesfm tvp
vibevoice_acoustic_tokenizer_decoder vibevoice_acoustic_tokenizer_encoder video_llama_3_vision videoprism
voxtral_realtime xcodec2
"""
_SIZES = """
align autoformer bailing_hybrid bros clvp cohere_compass cohere_compass_text cvt d_fine deepseek_ocr2 deimv2
depth_pro diffusion_gemma dots1 dots3_note dots3_note_text edgetam edgetam_vision_model efficientloftr
ernie4_5_vl_moe fastspeech2_conformer_with_hifigan fun_asr_nano gemma4_audio granite_speech5_ctc
granite_speech5_encoder higgs_audio_v2_tokenizer hunyuan_vl hunyuan_vl_text kyutai_speech_to_text lightglue
lw_detr mimi_decoder mimi_encoder mistral4 molmo2 muse_spark_audio musicgen musicgen_melody neomme
perception_lm pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder pocket_tts_audio_tokenizer_encoder
pp_doclayout_v3 pp_doclayout_v4 pp_ocrv5_mobile_rec pp_ocrv5_server_rec pp_ocrv6_medium_det pp_ocrv6_small_det
pp_ocrv6_small_rec pp_ocrv6_tiny_rec qwen2_5_omni_thinker qwen3_omni_moe_thinker qwen4_exp qwen4_exp_text
rt_detr rt_detr_v2 sam2 sam2_hiera_det_model sam2_vision_model sam3_lite_text_text_model sam3_tracker sam_hq
sapiens2 t5gemma2_encoder textnet timesfm2_5 timm_backbone udop univnet uvdoc vision-text-dual-encoder vits
voxtral_realtime_encoder voxtral_realtime_text xcodec zamba zamba2
"""
LEFT_OUT: dict[str, str] = {
    "hrm_text": "its cycles make minutes of work of a tiny model",
    "reformer": "its backward raises in eval mode, so ordinary autograd has no gradient of it, and tauspan says so",
    **dict.fromkeys(_LARGE.split(), "sizes that its configuration does not decide are far from tiny"),
    **dict.fromkeys(_LIBRARY.split(), "it needs a library of its own for its kernels or its backbone"),
    **dict.fromkeys(
        _INPUTS.split(), "it is called with what its processor or another part of a larger model makes"
    ),
    **dict.fromkeys(
        _SIZES.split(), "the rules that shrink a configuration by names do not fit its sizes together"
    ),
}
