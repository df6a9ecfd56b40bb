"""What a page shows of rows: texts cut short, thumbnails of pictures, and nothing of numbers."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.imagesets import rows as pictures
from helpers.imagesets import write_folder
from tauspan.editing.desk.examples import LONGEST, shown
from tauspan.tasks import Split
from tauspan.tasks.readers import TableOptions, read_rows


def opened(address: str) -> Image.Image:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_texts_are_cut() -> None:
    rows = Split(["short", "x" * LONGEST, "y" * (LONGEST + 1)], torch.zeros(3, dtype=torch.long))
    found = shown(rows, [0, 1, 2])
    assert found is not None
    assert found[:2] == ["short", "x" * LONGEST]
    assert found[2] == "y" * (LONGEST - 1) + "…"


def test_numbers_are_not_shown() -> None:
    assert shown(Split(torch.ones(2, 3), torch.zeros(2, dtype=torch.long)), [0, 1]) is None  # type: ignore[arg-type]
    assert shown(Split([np.zeros((4, 4), np.uint8)], torch.zeros(1, dtype=torch.long)), [0]) is None


@pytest.mark.parametrize("kind", ["array", "picture"])
def test_pictures_become_thumbnails(kind: str) -> None:
    pixels = np.zeros((200, 100, 3), np.uint8)
    pixels[:100] = (250, 10, 10)
    items = [pixels, Image.fromarray(pixels)]
    found = shown(Split([items[kind == "picture"]], torch.zeros(1, dtype=torch.long)), [0])
    assert found is not None
    image = opened(found[0])
    assert image.size == (24, 48)
    red = image.convert("RGB").getpixel((12, 5))
    assert isinstance(red, tuple)
    assert red[0] > 200 > 50 > red[1]
    assert len(found[0]) < 4000


def test_encoded_pictures_become_thumbnails(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", pictures("train", count=3))
    (gathered, *_) = read_rows(tmp_path / "train", TableOptions("text", "label", None, None))  # type: ignore[arg-type]
    rows = Split(gathered.inputs, torch.zeros(len(gathered.inputs), dtype=torch.long))
    found = shown(rows, [0, 2])
    assert found is not None
    assert [max(opened(one).size) <= 48 for one in found] == [True, True]
