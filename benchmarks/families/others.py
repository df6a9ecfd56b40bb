"""Tiny models of timm and open_clip."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from benchmarks.families.examples import Example, stirred
from benchmarks.families.inputs import drawn, tokens
from benchmarks.families.shrink import ROWS
from torch import Tensor, nn

_FLAT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
# By name: the side of an image, and options of `timm.create_model`.
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (16, _FLAT),
    "cait_xxs24_224": (16, _FLAT),
    "crossvit_tiny_240": (32, {"img_scale": (1.0, 0.875), "patch_size": (8, 14), "embed_dim": (8, 16), "depth": ((1, 1, 0),), "num_heads": (2, 2)}),
    "deit3_small_patch16_224": (16, _FLAT),
    "edgenext_xx_small": (64, {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "heads": (2, 2, 2, 2), "global_block_counts": (0, 1, 1, 1)}),
    "efficientformerv2_s0": (64, {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 2, 2), "num_vit": 1}),
    "eva02_tiny_patch14_224": (16, _FLAT),
    "levit_128s": (64, {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (1, 2, 3), "depth": (1, 1, 1)}),
    "mobilenetv3_small_050": (32, {}),
    "mobilenetv4_conv_small_035": (32, {}),
    "naflexvit_base_patch16_gap": (32, {"embed_dim": 16, "depth": 2, "num_heads": 2}),
    "pit_ti_224": (32, {"base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (1, 2, 2)}),
    "swin_tiny_patch4_window7_224": (32, {"window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}),
    "swinv2_tiny_window8_256": (32, {"window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}),
    "test_byobnet": (32, {}),
    "test_coatnet": (64, {}),
    "test_convnext2": (32, {}),
    "test_efficientnet_evos": (32, {}),
    "test_mambaout": (32, {}),
    "test_maxvit": (64, {}),
    "test_nfnet": (32, {}),
    "test_resnet": (32, {}),
    "test_vit_relpos": (160, {}),
    "tiny_vit_5m_224": (64, {"embed_dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_sizes": (4, 4, 4, 2)}),
    "twins_svt_small": (64, {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 1, 2), "wss": (4, 4, 4, 4)}),
    "vit_tiny_patch16_224": (16, _FLAT),
    "vit_base_patch16_siglip_224": (16, _FLAT),
    "xcit_nano_12_p8_224": (32, _FLAT),
}  # fmt: skip
_SIZED = (
    "vit",
    "beit",
    "cait",
    "deit",
    "crossvit",
    "efficientformerv2",
    "eva",
    "levit",
    "pit",
    "swin",
    "test_maxvit",
    "test_coatnet",
    "twins",
    "xcit",
)

_TOWER = {"width": 16, "layers": 2}
_TEXT = {"context_length": 8, "vocab_size": 64, "heads": 2, **_TOWER}
_VISION = {"image_size": 16, "patch_size": 8, "head_width": 8, **_TOWER}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ViT": {"vision_cfg": _VISION, "text_cfg": _TEXT},
    "ViT with an attentional pool": {"vision_cfg": _VISION | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}, "text_cfg": _TEXT},
    "ViT with scaled cosine attention": {"vision_cfg": _VISION, "text_cfg": _TEXT | {"ls_init_value": 0.1}},
    "ModifiedResNet": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": _TEXT},
    "ViT, SigLIP's text tower": {"vision_cfg": _VISION, "text_cfg": _TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}, "init_logit_bias": -10.0},
    "timm tower": {"vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "avg", "timm_proj": "linear"}, "text_cfg": _TEXT},
    "CoCa": {
        "embed_dim": 16,"vision_cfg": _VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}, "text_cfg": _TEXT | {"embed_cls": True, "output_tokens": True}, "multimodal_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2}},
}  # fmt: skip


class Both(nn.Module):
    """Two towers as one tensor: the features of image and text side by side."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Both, (N, 2 d)."""
        found = self.model(image, text)
        parts = (
            [found["image_features"], found["text_features"]]
            if isinstance(found, Mapping)
            else list(found[:2])
        )
        return torch.cat([part.flatten(1) for part in parts], 1)


def of_timm(name: str) -> Example:
    """A tiny model of timm."""
    import timm

    side, options = TIMM[name]
    sized = {"img_size": side} if name.startswith(_SIZED) else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stirred(timm.create_model(name, num_classes=5, **sized, **options))
    return Example(model, {"x": drawn(ROWS, 3, side, side)}, copy.deepcopy(model))


def of_open_clip(name: str) -> Example:
    """A tiny model of open_clip, both towers."""
    import open_clip

    options = OPEN_CLIP[name]
    coca = "multimodal_cfg" in options
    kind = open_clip.CoCa if coca else open_clip.CLIP
    named = {} if coca else {"output_dict": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = stirred(Both(kind(**{"embed_dim": 8} | named | options)))
    side = options["vision_cfg"]["image_size"]
    inputs = {"image": drawn(ROWS, 3, side, side), "text": tokens()["input_ids"]}
    return Example(model, inputs, copy.deepcopy(model))


OTHERS: dict[str, Callable[[], Example]] = {
    **{f"timm/{name}": lambda name=name: of_timm(name) for name in TIMM},  # type: ignore[misc]
    **{f"open_clip/{name}": lambda name=name: of_open_clip(name) for name in OPEN_CLIP},  # type: ignore[misc]
}
