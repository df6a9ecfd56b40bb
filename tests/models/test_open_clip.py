"""open_clip itself: models of its configurations, saved by it, give its image and text features of its pictures."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import tauspan
from helpers import checkpoints, zoo
from tauspan.models import fingerprint_of
from tauspan.vector import TaskVector

pytestmark = pytest.mark.slow
VISION = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
TEXT = {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
PROMPTS = ["a cat", "a dog", "A photo of two DOGS"]
KINDS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT},
    "vit, quick gelu": {"embed_dim": 12, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "vit, pooled by attention": {
        "embed_dim": 12,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "pool_type": "tok"},
        "text_cfg": TEXT,
    },
    "vit, mean of patches": {
        "embed_dim": 12,
        "vision_cfg": {**VISION, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    "text tower apart": {"embed_dim": 12, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "sigmoid loss": {
        "embed_dim": 12, "init_logit_bias": -10, "custom_text": True, "vision_cfg": VISION, "text_cfg": TEXT,
    },
    "timm tower": {
        "embed_dim": 12,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
        "text_cfg": TEXT,
    },
}  # fmt: skip


@pytest.fixture
def open_clip() -> Any:
    zoo.importable("torchvision")
    return zoo.importable("open_clip")


def made(open_clip: Any, kind: str, folder: Path) -> tuple[Any, Any]:
    """A model of a configuration that open_clip is told, moved off its start, and its transform of pictures."""
    folder.mkdir(exist_ok=True)
    name = f"tiny-{kind.replace(' ', '-').replace(',', '')}"
    (folder / f"{name}.json").write_text(json.dumps(KINDS[kind]))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    statistics = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}
    model, _, transform = open_clip.create_model_and_transforms(name, **statistics)
    return zoo.stirred(model, scale=0.05).float(), transform


def saved(open_clip: Any, model: Any, kind: str, folder: Path) -> Path:
    """The directory that open_clip writes of a model for the hub; its tokenizer is the one that it ships."""

    class Shipped:
        def save_pretrained(self, _: Path) -> None:
            """Nothing lies beside a model that is read with open_clip's own tokenizer."""

    hub = importlib.import_module("open_clip.push_to_hf_hub")  # a function of that name hides it
    hub.save_for_hf(model, Shipped(), KINDS[kind], str(folder), safe_serialization=True)
    return folder


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    coarse = [draw.integers(0, 256, (high // 8 + 1, wide // 8 + 1, 3), dtype=np.uint8)
              for high, wide in ((160, 160), (64, 91), (97, 180))]  # fmt: skip
    return [one.repeat(8, 0).repeat(8, 1) for one in coarse]


def close(found: Tensor, wanted: Tensor) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_that_it_saved_gives_its_features_of_pictures_and_prompts(
    kind: str, open_clip: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, transform = made(open_clip, kind, tmp_path / "configs")
    home = saved(open_clip, model, kind, tmp_path / "saved")
    encoder = tauspan.load(f"local-dir:{home}")
    batch = encoder.encode(pictures())
    wanted = torch.stack([transform(Image.fromarray(one)) for one in pictures()])
    torch.testing.assert_close(batch, wanted, rtol=0, atol=1e-5)
    close(encoder(batch), model.encode_image(batch))
    tokens = open_clip.get_tokenizer(f"local-dir:{home}")(PROMPTS)
    close(encoder.embed_labels(PROMPTS), F.normalize(model.encode_text(tokens), dim=-1))
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())


@pytest.mark.parametrize("kind", ["vit", "text tower apart", "resnet"])
@torch.no_grad()
def test_an_edit_that_was_written_here_is_its_own_tuned_model(
    kind: str, open_clip: Any, tmp_path: Path
) -> None:
    model, _ = made(open_clip, kind, tmp_path / "configs")
    base = saved(open_clip, model, kind, tmp_path / "base")
    for parameter in model.visual.parameters():
        parameter.mul_(1.1)
    tuned = saved(open_clip, model, kind, tmp_path / "tuned")
    vector = TaskVector.from_checkpoints(
        *(folder / "open_clip_model.safetensors" for folder in (base, tuned))
    )
    edited = tauspan.apply(tauspan.load(f"local-dir:{base}"), vector)
    tauspan.save(edited, tmp_path / "out")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    batch = edited.encode(pictures())
    wanted = torch.stack([transform(Image.fromarray(one)) for one in pictures()])
    torch.testing.assert_close(batch, wanted, rtol=0, atol=1e-5)
    close(theirs.eval().encode_image(batch), model.encode_image(batch))
    close(edited(batch), model.encode_image(batch))
    again = tauspan.load(f"local-dir:{tmp_path / 'out'}")
    assert fingerprint_of(again) == fingerprint_of(edited)


@torch.no_grad()
def test_a_tokenizer_that_it_saved_beside_the_model_is_used(open_clip: Any, tmp_path: Path) -> None:
    checkpoints.clip_tokenizer().save_pretrained(tmp_path / "words")
    text = {**TEXT, "vocab_size": 64, "hf_tokenizer_name": str(tmp_path / "words")}
    KINDS["own words"] = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": text}
    try:
        model, _ = made(open_clip, "own words", tmp_path / "configs")
        home = saved(open_clip, model, "own words", tmp_path / "saved")
    finally:
        del KINDS["own words"]
    checkpoints.clip_tokenizer().save_pretrained(home)
    encoder = tauspan.load(f"local-dir:{home}")
    tokens = open_clip.get_tokenizer(f"local-dir:{home}")(PROMPTS)
    assert int(tokens.max()) < 64
    close(encoder.embed_labels(PROMPTS), F.normalize(model.encode_text(tokens), dim=-1))
