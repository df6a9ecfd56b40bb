"""timm itself: families that it makes and saves give its features here, its pictures, and its numbers once edited."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tauspan
from helpers import zoo
from tauspan.models import fingerprint_of
from tauspan.vector import TaskVector

pytestmark = pytest.mark.slow
# timm's own small models of its families: 160 pixels, less than a million parameters
FAMILIES = [
    "test_vit", "test_vit2", "test_resnet", "test_convnext", "test_convnext2", "test_efficientnet", "test_nfnet",
    "test_byobnet",
]  # fmt: skip


@pytest.fixture
def timm() -> Any:
    zoo.importable("torchvision")
    return zoo.importable("timm")


def made(timm: Any, name: str, seed: int = 0) -> Any:
    """A model with a head of 5 classes, no parameter and no running statistic at its start."""
    torch.manual_seed(seed)
    model = zoo.stirred(timm.create_model(name, num_classes=5), seed=seed, scale=0.02).float()
    draw = torch.Generator().manual_seed(seed)
    for buffer in (b for key, b in model.named_buffers() if key.endswith(("running_mean", "running_var"))):
        buffer.add_(0.1 * torch.rand(buffer.shape, generator=draw))
    return model


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    coarse = [draw.integers(0, 256, (high // 8 + 1, wide // 8 + 1, 3), dtype=np.uint8)
              for high, wide in ((160, 160), (224, 301), (97, 180))]  # fmt: skip
    return [one.repeat(8, 0).repeat(8, 1) for one in coarse]


def transformed(timm: Any, model: Any) -> Tensor:
    """The pictures as timm's own evaluation makes them for a model."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return torch.stack([transform(Image.fromarray(one)) for one in pictures()])


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_family_that_timm_saved_gives_its_features_of_its_pictures(
    name: str, timm: Any, tmp_path: Path
) -> None:
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    model = made(timm, name)
    timm.models.save_for_hf(model, tmp_path / "saved", safe_serialization=True)
    encoder = tauspan.load(f"local-dir:{tmp_path / 'saved'}")
    batch = encoder.encode(pictures())
    torch.testing.assert_close(batch, transformed(timm, model), rtol=0, atol=1e-5)
    features = model.forward_head(model.forward_features(batch), pre_logits=True)
    close(encoder(batch), features)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, num_classes=0).eval()
    close(encoder(batch), theirs(batch))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
@torch.no_grad()
def test_an_edit_that_was_written_here_is_timms_own_tuned_model(name: str, timm: Any, tmp_path: Path) -> None:
    base, tuned = made(timm, name), made(timm, name)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if key.endswith("weight") and parameter.dim() > 1 and "head" not in key:
                parameter.mul_(1.1)
    for folder, model in (("base", base), ("tuned", tuned)):
        timm.models.save_for_hf(model, tmp_path / folder, safe_serialization=True)
    vector = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    edited = tauspan.apply(tauspan.load(f"local-dir:{tmp_path / 'base'}"), vector)
    tauspan.save(edited, tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert theirs.num_classes == 5  # the head that the base's files hold is written again
    batch = edited.encode(pictures())
    close(theirs(batch), tuned.eval()(batch), 1e-4)
    assert fingerprint_of(tauspan.load(f"local-dir:{tmp_path / 'out'}")) == fingerprint_of(edited)
    torch.testing.assert_close(transformed(timm, theirs), batch, rtol=0, atol=1e-5)


def test_a_model_that_was_never_saved_is_an_encoder(timm: Any) -> None:
    model = timm.create_model("test_vit", num_classes=0).eval()
    encoder = tauspan.load(model)
    batch = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder(batch), model(batch))
