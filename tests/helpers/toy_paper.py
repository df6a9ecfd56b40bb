"""The paper at toy scale: image folders of a few catalog names with descriptions of their own, and tiny models."""

from pathlib import Path
from typing import Any

import numpy as np
import transformers
import yaml
from PIL import Image

from helpers import checkpoints, zoo

CLASSES = ("red square", "green square", "blue square")
TASKS = ("mnist", "svhn")
CONTROL = "imagenet"


def image(place: int, shade: int, rng: Any) -> Any:
    """A small picture in which one channel is bright."""
    pixels = rng.integers(0, 90, (10, 10, 3), dtype=np.uint8)
    pixels[..., place] = 160 + shade
    return pixels


def data_set(root: Path, name: str, rows: int = 12, classes: Any = CLASSES, **changes: Any) -> Path:
    """A folder of images, train and test, with a description that stands for the packaged one."""
    folder, rng = root / name, np.random.default_rng(len(name) * 7 + rows)
    described = {
        "name": name, "title": name, "hub": {"id": f"toy/{name}"}, "class_count": len(classes),
        "classes": list(classes), "templates": ["a photo of a {}.", "a {}."], "source": "made here", "licence": "none",
        "sizes": {"train": rows, "validation": 1, "test": rows}, "download_gb": 0.0, **changes,
    }  # fmt: skip
    for split in ("train", "test"):
        for place, own in enumerate(CLASSES):
            (folder / split / own).mkdir(parents=True)
            for number in range(rows // len(CLASSES)):
                picture = Image.fromarray(image(place, number, rng))
                picture.save(folder / split / own / f"{number}.png")
    (folder / "set.yaml").write_text(yaml.safe_dump(described))
    return folder


def data(root: Path) -> Path:
    """Both tasks and the control."""
    for name in (*TASKS, CONTROL):
        data_set(root, name)
    return root


def models(root: Path) -> dict[str, Path]:
    """A CLIP and a BERT that read 64 tokens, and a plain vision transformer, as the hub has them."""
    made = {kind: checkpoints.write(root / kind, kind) for kind in ("clip", "vit", "bert")}
    text, clip = zoo.bert_model().config, zoo.clip_model().config
    text.max_position_embeddings = clip.text_config.max_position_embeddings = 64
    for kind, model in (("bert", transformers.BertModel(text)), ("clip", transformers.CLIPModel(clip))):
        checkpoints.write_model(made[kind], zoo.stirred(model, scale=0.1).float())
    return made
