"""Random crops in training: the boxes, the pixels, and a run that sees them."""

import dataclasses
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from helpers import runs
from helpers.interrupting import interrupt
from helpers.runs import REGIMES, deltas, logged, trained
from helpers.tiny import same_bits
from helpers.zoo import normal, stirred
from tauspan.core.errors import UsageError
from tauspan.editing.evaluation import evaluate
from tauspan.models import Encoder, Head, load_model
from tauspan.models.crop import AREA, ASPECT, random_box
from tauspan.models.encoder import Inputs
from tauspan.tasks import Task
from tauspan.train import Settings, finetune, loop

SIDES = st.integers(1, 60)
SETTINGS = Settings("standard", seed=1, batch_size=8, lr=0.05, augment="crop")  # three steps an epoch
INPUTS = Inputs("image", size=6, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resize=7)


# -- boxes ---------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, st.integers())
def test_a_box_lies_in_its_image_and_has_an_allowed_shape_or_is_the_central_one(
    height: int, width: int, seed: int
) -> None:
    box = random_box(height, width, random.Random(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert min(box.height, box.width) >= 1
    central = (box.top, box.left) == ((height - box.height) // 2, (width - box.width) // 2)
    rounded = (box.height + box.width + 1) / 2  # what half a pixel a side can change
    large = AREA[0] * height * width - rounded <= box.height * box.width <= AREA[1] * height * width + rounded
    assert large or central
    slack = 0.5 / min(box.height, box.width) * 2 * ASPECT[1]
    assert ASPECT[0] - slack <= box.width / box.height <= ASPECT[1] + slack or 1 in (height, width)


def written_out(height: int, width: int, draw: torch.Generator) -> tuple[float, float, float, float]:
    """A box as torchvision's class describes it, in torch's own numbers."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    for _ in range(10):
        area = between(0.9, 1.0) * height * width
        ratio = math.exp(between(math.log(3 / 4), math.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=draw))
            left = int(torch.randint(0, width - w + 1, (1,), generator=draw))
            return top, left, h, w
    if width / height < 3 / 4:
        h, w = round(width / (3 / 4)), width
    elif width / height > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", [(100, 100), (60, 80), (90, 64), (40, 100), (100, 30)])
def test_boxes_are_distributed_as_torchvision_draws_them(shape: tuple[int, int]) -> None:
    ours, theirs = random.Random(0), torch.Generator().manual_seed(0)
    mine = list(zip(*[random_box(*shape, ours) for _ in range(3000)], strict=True))
    other = list(zip(*[written_out(*shape, theirs) for _ in range(3000)], strict=True))
    for a, b in zip(mine, other, strict=True):
        spread = statistics.stdev(a) + statistics.stdev(b)
        assert statistics.fmean(a) == pytest.approx(statistics.fmean(b), abs=4 * spread / math.sqrt(3000))
        assert statistics.stdev(a) == pytest.approx(statistics.stdev(b), rel=0.1, abs=0.1)


# -- pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bytes", "floats", "grey"])
def test_a_cropped_image_is_its_box_resized_and_normalised(layout: str) -> None:
    image = (normal(12, 15, 3, seed=1).abs() * 60).clamp(0, 255).to(torch.uint8)
    if layout == "grey":
        image = image[..., 0]
    raw = image / 255 if layout == "floats" else image
    (found,) = INPUTS.encode([raw], crops=[random.Random("x")])
    box = random_box(12, 15, random.Random("x"))
    assert (box.height, box.width) != (12, 15)
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    part = part.permute(2, 0, 1) if part.ndim == 3 else part.expand(3, -1, -1)
    if layout == "floats":
        small = F.interpolate(part[None] / 255, (6, 6), mode="bicubic", antialias=True)[0].clamp(0, 1)
    else:  # as Pillow resizes bytes
        rows = part.permute(1, 2, 0).contiguous().numpy()
        small = torch.from_numpy(np.array(Image.fromarray(rows).resize((6, 6), Image.Resampling.BICUBIC)))
        small = small.permute(2, 0, 1) / 255
    for channel, (mean, std) in enumerate(zip(INPUTS.mean, INPUTS.std, strict=True)):
        torch.testing.assert_close(found[channel], (small[channel] - mean) / std)


# -- training ------------------------------------------------------------------------------------------------


def encoder(inputs: Inputs = INPUTS) -> Encoder:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.Tanh(), nn.Linear(6, 5))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return load_model(Encoder(stirred(net, 0, 0.5).float(), inputs=inputs))


def pictures(rows: int = 22, train: Any = None) -> Task:
    """Pictures of 9 x 8 pixels; the class says which side is brighter."""
    images = normal(rows + 10, 3, 9, 8, seed=3).abs().div(2).clamp(0, 1).float()
    labels = (images[..., :4].mean((1, 2, 3)) > images[..., 4:].mean((1, 2, 3))).long()
    held, rest = (images[:10], labels[:10]), (images[10:] if train is None else train, labels[10:])
    head = Head(normal(2, 5, seed=5).float(), scale=0.7)
    return Task.from_tensors("pictures", ["right", "left"], head=head, train=rest, validation=held, test=held)


@pytest.mark.parametrize("regime", REGIMES)
def test_an_epoch_of_crops_is_an_epoch_of_images_cropped_before(regime: Any) -> None:
    model, task = encoder(), pictures()
    settings = dataclasses.replace(SETTINGS, regime=regime)
    run = trained(settings, task, model)
    draws = [random.Random(f"1/0/0/{row}/crop") for row in range(22)]
    bare = dataclasses.replace(INPUTS, mean=(0.0,) * 3, std=(1.0,) * 3)
    cropped = bare.encode(task.split("train").inputs, crops=draws)  # type: ignore[arg-type]
    assert isinstance(cropped, Tensor)
    exact = encoder(dataclasses.replace(INPUTS, resize=(6, 6)))
    again = trained(dataclasses.replace(settings, augment="none"), pictures(train=cropped), exact)
    assert same_bits(deltas(run), deltas(again))
    plain = trained(dataclasses.replace(settings, augment="none"), task, model)
    assert not same_bits(deltas(run), deltas(plain))


def test_each_epoch_and_seed_has_crops_of_its_own_and_validation_none(monkeypatch: Any) -> None:
    seen: list[list[float] | None] = []
    plain = Inputs.encode

    def watched(self: Inputs, raw: Any, most: Any = None, crops: Any = None) -> Any:
        seen.append(None if crops is None else [draw.random() for draw in crops])
        return plain(self, raw, most)

    model, task = encoder(), pictures()
    monkeypatch.setattr(Inputs, "encode", watched)
    drawn = {}
    for seed in (1, 2):
        seen.clear()
        run = trained(dataclasses.replace(SETTINGS, seed=seed, epochs=2), task, model)
        parts = [numbers for numbers in seen if numbers is not None]
        assert [len(numbers) for numbers in parts] == [8, 8, 6] * 2
        assert len(seen) - len(parts) == 2  # validation after each epoch
        drawn[seed] = [number for numbers in parts for number in numbers]
        assert len(set(drawn[seed])) == 44
        monkeypatch.undo()
        checked = evaluate(
            model,
            [task],
            run.task_vector,
            split="validation",
        ).report()
        assert run.history[-1]["accuracy"] == checked.result["mean"]["accuracy"]
        monkeypatch.setattr(Inputs, "encode", watched)
    assert not set(drawn[1]) & set(drawn[2])


def test_a_row_has_its_crop_whatever_the_batch() -> None:
    whole = trained(SETTINGS, pictures(), encoder())
    halves = trained(dataclasses.replace(SETTINGS, batch_size=4, accumulation=2), pictures(), encoder())
    gaps = {name: delta - deltas(halves)[name] for name, delta in deltas(whole).items()}
    assert max(float(gap.abs().max()) for gap in gaps.values()) < 1e-5


def test_the_function_takes_what_the_settings_take() -> None:
    run = finetune(
        encoder(),
        pictures(),
        SETTINGS,
    )
    assert run.task_vector.info["recipe"]["augment"] == "crop"
    assert same_bits(deltas(run), deltas(trained(SETTINGS, pictures(), encoder())))


def test_one_task_jointly_is_that_task() -> None:
    alone = trained(SETTINGS, pictures(), encoder())
    jointly = finetune(
        encoder(),
        [pictures()],
        SETTINGS,
    )
    assert same_bits(deltas(alone), deltas(jointly))


@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_sees_the_same_crops(step: int, monkeypatch: Any, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, regime="linear", epochs=2)
    with monkeypatch.context() as patch:
        interrupt(patch, loop.Run, "one_step", step)
        with pytest.raises(KeyboardInterrupt):
            trained(settings, pictures(), encoder(), out=tmp_path)
    resumed = trained(settings, pictures(), encoder(), out=tmp_path, resume=True)
    whole = trained(settings, pictures(), encoder())
    assert same_bits(deltas(resumed), deltas(whole))
    assert logged(tmp_path) == whole.history


# -- what is refused -----------------------------------------------------------------------------------------


def test_a_model_that_reads_no_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="augment='crop' cuts images, and Sequential reads tensor inputs"):
        trained(SETTINGS, runs.points(), runs.encoder(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cache_and_crops_exclude_each_other() -> None:
    with pytest.raises(UsageError, match=r"augment='crop' with cache='primal'.*Leave one of them out"):
        Settings(augment="crop", cache="primal")


def test_an_unknown_augmentation() -> None:
    wrong: Any = "corp"
    with pytest.raises(UsageError, match=r"augment='corp'.*Did you mean 'crop'"):
        Settings(augment=wrong)
