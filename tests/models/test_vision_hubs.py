"""timm and open_clip directories; what needs the packages is skipped where torchvision does not import."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import checkpoints, zoo
from tauspan import store
from tauspan.core.errors import MissingExtraError, ModelError, PickleRefusedError, StoreError
from tauspan.models import fingerprint_of, load_model, save_model, select
from tauspan.models.encoder import Inputs
from tauspan.models.vision_hubs import image_inputs
from tauspan.tangent import linearize

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
TOWER = {"width": 8, "layers": 2}
CLIP = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "head_width": 4, **TOWER},
    "text_cfg": {"context_length": 10, "vocab_size": 49408, "heads": 2, **TOWER},
}


@pytest.fixture
def timm() -> Any:
    zoo.importable("torchvision")
    return zoo.importable("timm")


@pytest.fixture
def open_clip() -> Any:
    zoo.importable("torchvision")
    return zoo.importable("open_clip")


@pytest.fixture
def vit(timm: Any, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A directory as timm writes it, with a head of 7 classes, and the model in it."""
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **size)
    model = zoo.stirred(model, scale=0.1).float()
    home = tmp_path / "vit"
    timm.models.save_for_hf(
        model, home, model_args=size, safe_serialization=True, data_config={"mean": MEAN, "std": STD}
    )
    return home, model


@pytest.fixture
def clip(open_clip: Any, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A directory as open_clip writes it, and the model in it."""
    model = zoo.stirred(open_clip.CLIP(**CLIP), scale=0.1).float()
    home = tmp_path / "clip"
    home.mkdir()
    save_file(model.state_dict(), home / "open_clip_model.safetensors")
    config = {"model_cfg": CLIP, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    checkpoints.write_json(home / "open_clip_config.json", config)
    return home, model


def images() -> torch.Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# -- without the packages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "interpolation", "resize", "smooth"),
    [
        (None, None, 9, "bicubic"),
        ("center", "bilinear", 9, "bilinear"),
        ("shortest", "random", 9, "bicubic"),
        ("squash", "bicubic", (9, 9), "bicubic"),
    ],
)
def test_resizing_and_cropping_follow_the_librarys_settings(
    mode: str | None, interpolation: str | None, resize: Any, smooth: str
) -> None:
    settings = {"mean": MEAN, "std": STD, "interpolation": interpolation}
    found = image_inputs(settings, 8, 9, mode, Path("home"))
    assert found == Inputs("image", None, 8, MEAN, STD, resize, smooth, centre="torchvision")


@pytest.mark.parametrize(("mode", "interpolation"), [("border", "bicubic"), ("center", "lanczos")])
def test_preprocessing_that_is_not_known_is_refused(mode: str, interpolation: str) -> None:
    with pytest.raises(ModelError, match=r"home .* images by '(border|lanczos)'; known: "):
        image_inputs({"interpolation": interpolation}, 8, 9, mode, Path("home"))


@pytest.mark.parametrize(
    ("package", "config"), [("timm", "config.json"), ("open_clip", "open_clip_config.json")]
)
def test_a_package_that_is_not_there_is_named_with_its_extra(
    package: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    checkpoints.write_json(tmp_path / config, {"architecture": "vit_tiny_patch16_224"})
    monkeypatch.setitem(sys.modules, package, None)
    extra = package.replace("_", "-")
    with pytest.raises(MissingExtraError, match=rf"needs {package} .*pip install 'tauspan\[{extra}\]'"):
        load_model(f"local-dir:{tmp_path}")


def test_weights_in_a_pickle_are_refused_unopened(tmp_path: Path) -> None:
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    checkpoints.write_json(tmp_path / "open_clip_config.json", {})
    with pytest.raises(PickleRefusedError, match=r"open_clip_pytorch_model\.bin"):
        load_model(f"local-dir:{tmp_path}")


def test_a_scheme_in_front_of_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        load_model("local-dir:nowhere")


# -- timm ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_a_timm_model_gives_its_features_before_the_head(vit: tuple[Path, Any]) -> None:
    home, model = vit
    encoder = load_model(f"local-dir:{home}")
    expected = model.forward_head(model.forward_features(images()), pre_logits=True)
    torch.testing.assert_close(encoder(images()), expected)
    assert encoder.inputs.size == 8
    assert (encoder.inputs.mean, encoder.inputs.std) == (MEAN, STD)
    assert not any(layer.training for layer in encoder.modules())


@pytest.mark.slow
@torch.no_grad()
def test_a_saved_timm_model_loads_here_and_in_timm(vit: tuple[Path, Any], timm: Any, tmp_path: Path) -> None:
    encoder = load_model(f"local-dir:{vit[0]}")
    next(encoder.parameters()).add_(0.1)
    save_model(encoder, tmp_path / "out")
    again = load_model(f"local-dir:{tmp_path / 'out'}")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert fingerprint_of(again) == fingerprint_of(encoder)
    torch.testing.assert_close(again(images()), encoder(images()), rtol=0, atol=1e-6)
    features = theirs.forward_head(theirs.forward_features(images()), pre_logits=True)
    torch.testing.assert_close(features, encoder(images()), rtol=0, atol=1e-6)
    assert torch.equal(theirs.head.weight, vit[1].head.weight)  # which the encoder does not use


@pytest.mark.slow
def test_a_timm_model_can_be_linearised_in_part(vit: tuple[Path, Any]) -> None:
    encoder = load_model(f"local-dir:{vit[0]}")
    lin = linearize(encoder, "attention")
    lin(images()).sum().backward()
    assert select(encoder, "attention")[:2] == ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias")
    assert all(tau.grad is not None for tau in lin.tau.values())


@pytest.mark.slow
def test_a_missing_tensor_of_a_timm_model_is_named(vit: tuple[Path, Any]) -> None:
    file = vit[0] / "model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.1.mlp.fc1.weight"]
    save_file(tensors, file)
    with pytest.raises(StoreError, match=r"lacks 1 weights .*\(blocks\.1\.mlp\.fc1\.weight\)"):
        load_model(f"local-dir:{vit[0]}")


@pytest.mark.slow
def test_a_timm_config_that_does_not_fit_the_weights_is_refused(vit: tuple[Path, Any]) -> None:
    checkpoints.edit_json(vit[0] / "config.json", lambda config: config["model_args"].update(embed_dim=16))
    with pytest.raises(StoreError, match="do not fit its configuration"):
        load_model(f"local-dir:{vit[0]}")


@pytest.mark.slow
def test_a_config_of_another_library_is_refused(vit: tuple[Path, Any]) -> None:
    checkpoints.write_json(vit[0] / "config.json", {"model_type": "vit"})
    with pytest.raises(ModelError, match="has no `architecture`"):
        load_model(f"local-dir:{vit[0]}")


@pytest.mark.slow
def test_an_architecture_that_timm_does_not_know_is_a_model_error(vit: tuple[Path, Any]) -> None:
    checkpoints.write_json(vit[0] / "config.json", {"architecture": "vit_of_nobody"})
    with pytest.raises(ModelError, match="could not build 'vit_of_nobody'"):
        load_model(f"local-dir:{vit[0]}")


SETTINGS: dict[str, dict[str, Any]] = {
    "as usual": {"input_size": (3, 32, 32), "mean": MEAN, "std": STD},
    "its own statistics": {"input_size": (3, 32, 32)},
    "the whole picture": {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": MEAN, "std": STD},
    "bilinear": {
        "input_size": (3, 32, 32),
        "crop_pct": 0.9,
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
    },
    "squashed": {
        "input_size": (3, 32, 32),
        "crop_pct": 0.95,
        "crop_mode": "squash",
        "mean": MEAN,
        "std": STD,
    },
}


def pictures() -> list[np.ndarray]:
    """Blocks of colours in several shapes."""
    draw, made = np.random.default_rng(0), []
    for height, width in [(32, 32), (90, 61), (40, 130), (20, 25), (33, 35), (34, 37), (35, 41)]:
        coarse = draw.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
        made.append(coarse.repeat(3, 0).repeat(3, 1)[:height, :width].copy())
    return made


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS)
def test_images_become_what_timms_own_transform_makes_of_them(
    case: str, vit: tuple[Path, Any], timm: Any
) -> None:
    settings = SETTINGS[case]
    checkpoints.edit_json(vit[0] / "config.json", lambda c: c.update(pretrained_cfg=settings))
    checkpoints.edit_json(vit[0] / "config.json", lambda c: c["model_args"].update(dynamic_img_size=True))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=settings))
    expected = torch.stack([transform(Image.fromarray(one)) for one in pictures()])
    found = load_model(f"local-dir:{vit[0]}").encode(pictures())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 32, 16), (1, 32, 32), (32, 32)])
def test_pictures_that_are_not_square_and_coloured_are_refused(shape: Any, vit: tuple[Path, Any]) -> None:
    checkpoints.edit_json(vit[0] / "config.json", lambda c: c.update(pretrained_cfg={"input_size": shape}))
    with pytest.raises(
        ModelError, match=r"reads pictures of shape .*; read are square ones of three colours"
    ):
        load_model(f"local-dir:{vit[0]}")


@pytest.mark.slow
def test_a_timm_model_that_does_not_pool_is_refused(vit: tuple[Path, Any]) -> None:
    checkpoints.edit_json(vit[0] / "config.json", lambda c: c["model_args"].update(global_pool=""))
    with pytest.raises(ModelError, match=r"gives features of shape \(1, 5, 8\) for one input"):
        load_model(f"local-dir:{vit[0]}")


# -- open_clip -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_an_open_clip_model_gives_unnormalised_image_features(
    clip: tuple[Path, Any], open_clip: Any, caplog: pytest.LogCaptureFixture
) -> None:
    home, model = clip
    encoder = load_model(f"local-dir:{home}")
    torch.testing.assert_close(encoder(images()), model.encode_image(images()))
    ids = open_clip.get_tokenizer(f"local-dir:{home}")(["a cat", "a dog"])
    prompts = F.normalize(model.encode_text(ids), dim=-1)
    torch.testing.assert_close(encoder.embed_labels(["a cat", "a dog"]), prompts)
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert (encoder.inputs.size, encoder.inputs.mean, encoder.inputs.std) == (8, MEAN, STD)
    assert not caplog.records
    assert not any(layer.training for layer in encoder.modules())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_become_what_open_clips_own_transform_makes_of_them(
    mode: str, interpolation: str, clip: tuple[Path, Any], open_clip: Any
) -> None:
    settings = {"mean": MEAN, "std": STD, "resize_mode": mode, "interpolation": interpolation}
    checkpoints.edit_json(clip[0] / "open_clip_config.json", lambda c: c.update(preprocess_cfg=settings))
    found = open_clip.transform.PreprocessCfg(**settings, size=8)
    transform = open_clip.transform.image_transform_v2(found, is_train=False)
    expected = torch.stack([transform(Image.fromarray(one)) for one in pictures()])
    torch.testing.assert_close(
        load_model(f"local-dir:{clip[0]}").encode(pictures()), expected, rtol=0, atol=1e-5
    )


@pytest.mark.slow
@torch.no_grad()
def test_a_saved_open_clip_model_loads_here_and_in_open_clip(
    clip: tuple[Path, Any], open_clip: Any, tmp_path: Path
) -> None:
    encoder = load_model(f"local-dir:{clip[0]}")
    encoder.backbone.visual.proj.add_(0.1)
    save_model(encoder, tmp_path / "out")
    again = load_model(f"local-dir:{tmp_path / 'out'}")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert fingerprint_of(again) == fingerprint_of(encoder)
    torch.testing.assert_close(again(images()), encoder(images()), rtol=0, atol=1e-6)
    torch.testing.assert_close(theirs.encode_image(images()), encoder(images()), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_weights_of_other_libraries_beside_its_own_are_not_looked_at(clip: tuple[Path, Any]) -> None:
    home, _ = clip
    save_file({"other": torch.ones(1)}, home / "model.safetensors")
    (home / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    before = fingerprint_of(load_model(f"local-dir:{home}"))
    (home / "model.safetensors").unlink()
    assert fingerprint_of(load_model(f"local-dir:{home}")) == before


@pytest.mark.slow
def test_a_pickle_is_not_preferred_to_safetensors(clip: tuple[Path, Any]) -> None:
    home, model = clip
    (home / "open_clip_model.safetensors").rename(home / "model.safetensors")
    (home / "open_clip_pytorch_model.bin").write_bytes(b"never read")
    encoder = load_model(f"local-dir:{home}")
    assert torch.equal(encoder.backbone.visual.proj, model.visual.proj)


@pytest.mark.slow
def test_an_open_clip_model_is_linearised_on_its_image_side(clip: tuple[Path, Any]) -> None:
    lin = linearize(load_model(f"local-dir:{clip[0]}"))
    lin(images()).sum().backward()
    assert all(name.startswith("visual.") for name in lin.tau)
    assert all(tau.grad is not None for tau in lin.tau.values())


@pytest.mark.slow
def test_a_missing_tensor_of_an_open_clip_model_is_named(clip: tuple[Path, Any]) -> None:
    file = clip[0] / "open_clip_model.safetensors"
    tensors = store.Checkpoint(file).read()
    del tensors["visual.proj"]
    save_file(tensors, file)
    with pytest.raises(StoreError, match=r"(?s)does not fit the configuration.*visual\.proj"):
        load_model(f"local-dir:{clip[0]}")


@pytest.mark.slow
def test_an_open_clip_config_without_a_model_is_a_model_error(clip: tuple[Path, Any]) -> None:
    checkpoints.write_json(clip[0] / "open_clip_config.json", {})
    with pytest.raises(ModelError, match="open_clip could not build"):
        load_model(f"local-dir:{clip[0]}")
