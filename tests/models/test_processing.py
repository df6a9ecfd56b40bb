"""Pictures become what the model's own image processor makes of them, by the faster way only where that is the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from helpers import checkpoints
from helpers.checkpoints import Copy
from tauspan.core.errors import DataError, ModelError
from tauspan.models import load_model
from tauspan.models.inputs import Inputs
from tauspan.models.processing import image_inputs

homes = pytest.fixture(scope="module")(checkpoints.homes)
copy = pytest.fixture(checkpoints.copy)

SHAPES = [(64, 64), (133, 90), (70, 215), (31, 40), (300, 64)]
SIDE = {"height": 64, "width": 64}
STATISTICS = {"image_mean": checkpoints.MEAN, "image_std": checkpoints.STD}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blocks of colours up to black and white: their edges overshoot, and tell filters and channels apart."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
    return coarse.repeat(5, 0).repeat(5, 1)[:height, :width]


def config_only(folder: Path, kind: str) -> Path:
    """A directory with nothing but a configuration, enough to read its processor."""
    transformers.AutoConfig.for_model(kind).save_pretrained(folder)
    return folder


FAST: dict[str, tuple[str, str, dict[str, Any]]] = {
    "shorter side, then a crop": ("CLIP", "clip", {"size": {"shortest_edge": 70}, "crop_size": 64}),
    "a crop beyond the edge": ("CLIP", "clip", {"size": {"shortest_edge": 50}, "crop_size": 64}),
    "exact, then a crop": ("CLIP", "clip", {"size": {"height": 72, "width": 70}, "crop_size": 64}),
    "squashed": ("CLIP", "clip", {"size": SIDE, "do_center_crop": False}),
    "nearest": ("ViT", "vit", {"size": SIDE, "resample": 0}),
    "squashed, bilinear": ("ViT", "vit", {"size": SIDE}),
    "without normalisation": ("ViT", "vit", {"size": SIDE, "do_normalize": False}),
    "SigLIP": ("Siglip", "siglip", {"size": SIDE}),
    "DeiT": ("DeiT", "deit", {"size": {"height": 72, "width": 72}, "crop_size": SIDE}),
    "BiT": ("Bit", "bit", {"size": {"shortest_edge": 70}, "crop_size": SIDE}),
    "ConvNeXt, cropped": ("ConvNext", "convnext", {"size": {"shortest_edge": 64}, "crop_pct": 0.875}),
    "ConvNeXt, squashed": ("ConvNext", "convnext", {"size": {"shortest_edge": 384}}),
}
OWN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LeViT's larger side": ("Levit", "levit", {"size": {"shortest_edge": 64}, "crop_size": SIDE}),
    "Lanczos": ("ViT", "vit", {"size": SIDE, "resample": 1}),
    "a box filter": ("ViT", "vit", {"size": SIDE, "resample": 4}),
    "without rescaling": ("ViT", "vit", {"size": SIDE, "do_rescale": False}),
    "another factor": ("ViT", "vit", {"size": SIDE, "rescale_factor": 1 / 127.5}),
    "not square": ("ViT", "vit", {"size": {"height": 64, "width": 48}}),
    "blue first": ("MobileViT", "mobilevit", {"size": {"shortest_edge": 70}, "crop_size": SIDE}),
    "EfficientNet's offset": ("EfficientNet", "efficientnet", {"size": SIDE, "rescale_offset": True}),
    "normalised twice": ("EfficientNet", "efficientnet", {"size": SIDE, "include_top": True}),
    "Perceiver's crop": ("Perceiver", "perceiver", {"size": SIDE, "crop_size": {"height": 72, "width": 72}}),
    "a Hamming filter": ("Pvt", "pvt", {"size": SIDE, "resample": 5}),
}


def saved(folder: Path, family: str, kind: str, options: dict[str, Any]) -> Any:
    """The processor of transformers (Pillow's variety, which needs no torchvision), saved beside a configuration."""
    processor = getattr(transformers, f"{family}ImageProcessorPil")(**{**STATISTICS, **options})
    processor.save_pretrained(config_only(folder, kind))
    return processor


def by_library(processor: Any, pictures: list[np.ndarray]) -> torch.Tensor:
    made = [np.array(processor([one])["pixel_values"][0], dtype=np.float32) for one in pictures]
    return torch.from_numpy(np.stack(made))


@pytest.mark.parametrize("case", FAST)
def test_the_faster_way_gives_what_the_processor_gives(case: str, tmp_path: Path) -> None:
    processor = saved(tmp_path, *FAST[case])
    inputs = image_inputs(tmp_path)
    assert inputs.processor is None
    pictures = [picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    found, expected = inputs.encode(pictures), by_library(processor, pictures)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", OWN)
def test_other_settings_go_through_the_processor_itself(case: str, tmp_path: Path) -> None:
    processor = saved(tmp_path, *OWN[case])
    inputs = image_inputs(tmp_path)
    assert inputs.processor is not None
    pictures = [picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    torch.testing.assert_close(inputs.encode(pictures), by_library(processor, pictures), rtol=0, atol=0)
    assert inputs.size == by_library(processor, pictures).shape[-1]


def test_settings_that_the_faster_way_mistakes_are_found_out_on_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that does something to pictures of which no setting speaks."""
    saved(tmp_path, *FAST["squashed, bilinear"])
    family = transformers.ViTImageProcessorPil
    honest = family.normalize
    for change in (
        lambda made: made[::-1].copy(),
        lambda made: made + 0.02,
        lambda made: np.roll(made, 1, -1),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(family, "normalize", lambda self, *a, c=change, **k: c(honest(self, *a, **k)))
            assert image_inputs(tmp_path).processor is not None
    assert image_inputs(tmp_path).processor is None


OLDER: dict[str, dict[str, Any]] = {
    "numbers": {"size": 70, "crop_size": 64, "do_center_crop": True},
    "numbers, and an extractor": {"size": 64, "crop_size": 64, "feature_extractor_type": "CLIPFeatureExtractor"},
    "no crop": {"size": {"height": 64, "width": 64}, "do_center_crop": False},
    "a crop of two numbers": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    "as a fast processor writes it": {
        "size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "device": None,
        "image_processor_type": "CLIPImageProcessorFast", "disable_grouping": None, "input_data_format": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", OLDER)
def test_older_files_are_read_as_transformers_reads_them(case: str, tmp_path: Path) -> None:
    config_only(tmp_path, "clip")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**STATISTICS, **OLDER[case]}))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pictures = [picture(*shape) for shape in SHAPES]
    found = image_inputs(tmp_path).encode(pictures)
    torch.testing.assert_close(found, by_library(processor, pictures), rtol=0, atol=1e-5)


def test_the_settings_of_a_processor_for_text_and_images_are_found(copy: Copy) -> None:
    home = copy("clip")
    before = load_model(home).inputs
    (home / "preprocessor_config.json").unlink()
    options = {"size": {"shortest_edge": 9}, "crop_size": 8}
    images = transformers.CLIPImageProcessorPil(**options, **STATISTICS)
    transformers.CLIPProcessor(images, checkpoints.clip_tokenizer()).save_pretrained(home)
    found = load_model(home).inputs
    assert (found.mean, found.std) == (before.mean, before.std)
    assert (found.size, found.resize) == (8, 9)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_without_a_processors_file_the_guess_is_told(kind: str, copy: Copy) -> None:
    home = copy(kind)
    (home / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"squashed to the 8 pixels of its configuration, with mean 0\.5"):
        encoder = load_model(home)
    assert (encoder.inputs.size, encoder.inputs.resize) == (8, (8, 8))
    family = {"vit": transformers.ViTImageProcessorPil, "clip": transformers.CLIPImageProcessorPil}[kind]
    square = {"height": 8, "width": 8}
    family(size=square, crop_size=square, **STATISTICS).save_pretrained(home)  # as the warning says
    assert load_model(home).inputs.mean == tuple(checkpoints.MEAN)


def test_an_image_size_that_stands_nowhere_is_taken_with_a_warning(copy: Copy) -> None:
    home = copy("clip")
    (home / "preprocessor_config.json").unlink()
    checkpoints.edit_json(home / "config.json", lambda config: config["vision_config"].pop("image_size"))
    with pytest.warns(UserWarning, match="squashed to 224 pixels"):
        assert image_inputs(home).size == 224


def test_a_processor_that_does_not_fit_its_model_is_refused(copy: Copy) -> None:
    home = copy("vit")
    checkpoints.image_settings(home, {"height": 8, "width": 6})
    with pytest.raises(ModelError, match=r"ViTModel does not turn images alone into features .*8\*6"):
        load_model(home)


def test_a_processor_of_another_size_is_told_with_both_sizes(copy: Copy) -> None:
    home = copy("vit")
    checkpoints.image_settings(home, {"height": 16, "width": 16})
    with pytest.raises(
        ModelError, match=r"makes pictures of 16 pixels, and its configuration says 8: save a processor"
    ):
        load_model(home)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(home)  # as it says
    assert load_model(home).inputs.size == 8


@pytest.mark.parametrize("content", ["{", '{"image_processor_type": "NoImageProcessor"}', '{"size": "big"}'])
def test_a_processors_file_that_cannot_be_read_is_a_model_error(content: str, copy: Copy) -> None:
    home = copy("vit")
    (home / "preprocessor_config.json").write_text(content)
    with pytest.raises(ModelError, match="image processor"):
        load_model(home)


def test_what_a_models_own_processor_cannot_do_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, *OWN["blue first"])
    inputs = image_inputs(tmp_path)
    with pytest.raises(DataError, match="reads bytes, and a picture has float32 values"):
        inputs.encode([np.zeros((64, 64, 3), np.float32)])
    import random

    with pytest.raises(DataError, match='augment="none"'):
        inputs.encode([picture(64, 64)], crops=[random.Random(0)])
    grey = picture(64, 64)[..., 0]
    torch.testing.assert_close(inputs.encode([grey]), inputs.encode([np.stack([grey] * 3, -1)]))


def test_two_processors_tell_heads_and_stages_apart(tmp_path: Path) -> None:
    found = set()
    for place, case in enumerate(OWN):
        saved(tmp_path / str(place), *OWN[case])
        found.add(image_inputs(tmp_path / str(place)).describe())
    assert len(found) == len(OWN)
    assert image_inputs(tmp_path / "0").describe() == image_inputs(tmp_path / "0").describe()
    assert Inputs("image").describe() not in found
