"""Toy image data sets in the formats that real ones come in: 16 x 16 pixels, a few rows a class."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

CLASSES = ("red fox", "polka-dotted", "sea")
COUNTS = {"train": 8, "test": 3}


def picture(seed: int) -> Image.Image:
    """A random image, smooth enough for its perceptual hashes to hold under re-encoding."""
    rough = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((16, 16), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """An image's file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rows(split: str, classes: int = len(CLASSES), count: int | None = None) -> list[tuple[bytes, int]]:
    """Encoded images and labels, the classes in turn; no image stands in two splits."""
    start = 1000 * ("train", "validation", "test").index(split)
    number = classes * (COUNTS.get(split, 2) if count is None else count)
    return [(encoded(picture(start + row)), row % classes) for row in range(number)]


def write_folder(folder: Path, found: list[tuple[bytes, int]], names: Any = CLASSES) -> Path:
    """A folder per class."""
    for row, (data, label) in enumerate(found):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        (folder / names[label] / f"{row:04}.png").write_bytes(data)
    return folder


def table(
    found: list[tuple[bytes, int]], names: Any = CLASSES, image: str = "image", label: str = "label"
) -> Any:
    """A table as the hub has it; without names its labels are numbers."""
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({image: datasets.Image(), label: kind})
    content = {
        image: [{"bytes": data, "path": None} for data, _ in found],
        label: [place for _, place in found],
    }
    return datasets.Dataset.from_dict(content, features=features)


def write_parquet(file: Path, found: list[tuple[bytes, int]], names: Any = CLASSES, **columns: str) -> Path:
    """Such a table as a parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table(found, names, **columns).to_parquet(file)
    return file


def write_npz(file: Path, found: list[tuple[bytes, int]]) -> Path:
    """Decoded images and numbers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data, _ in found]
    np.savez(file, image=np.stack(pixels), label=np.array([label for _, label in found]))
    return file


def write_card(folder: Path, names: Any = CLASSES) -> Path:
    """A directory with a card and npz files."""
    entries = {}
    for split in ("train", "validation", "test"):
        file = write_npz(folder / f"{split}.npz", rows(split))
        entries[split] = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    card = {"name": folder.name, "label_names": list(names), "splits": entries}
    (folder / "card.json").write_text(json.dumps(card))
    return folder
