"""A folder with everything that the program's tests name: a BERT, tasks and vectors, whole and broken."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file

from helpers import checkpoints
from helpers.zoo import normal
from tauspan.editing.model.edit import apply, save
from tauspan.models import fingerprint_of, load_model, state_of
from tauspan.vector import TaskVector

World: TypeAlias = dict[str, str]
ROWS = [("a b c", 0), ("x y z", 1), ("b a", 0), ("z x", 1), ("c c a", 0), ("y z z", 1), ("a", 0), ("z", 1)]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def task(folder: Path, rows: Any = ROWS, header: str = "text,label", **card: Any) -> Path:
    """A task directory; `card` replaces or, with None, removes entries of its card."""
    folder.mkdir(parents=True)
    splits = {}
    for split in ("train", "validation", "test"):
        here = rows[split] if isinstance(rows, dict) else rows
        lines = [header, *(",".join(map(str, row)) for row in here)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        digest = hashlib.sha256((folder / f"{split}.csv").read_bytes()).hexdigest()
        splits[split] = {"file": f"{split}.csv", "sha256": digest}
    whole: dict[str, Any] = {"name": folder.name, "label_names": ["early", "late"], "splits": splits, **card}
    (folder / "card.json").write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))
    return folder


def vector_of(source: Path, seed: int = 0, regime: Any = "standard") -> TaskVector:
    """A small random vector for the model in a directory."""
    model = load_model(source)
    deltas = {
        name: 0.02 * normal(*tensor.shape, seed=seed + place).float()
        for place, (name, tensor) in enumerate(state_of(model).items())
        if tensor.is_floating_point() and not name.startswith("pooler")
    }
    return TaskVector(deltas, fingerprint_of(model), regime, f"tau{seed}", {"base_id": str(source)})


def make(root: Path) -> World:
    """The whole folder; paths by name."""
    model, other = checkpoints.write(root / "model", "bert"), checkpoints.write(root / "other", "bert")
    moved = load_model(other)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.01)
    save(moved, other, overwrite=True)
    found: World = {"root": str(root), "model": str(model), "other": str(other)}
    found |= _tasks(root / "tasks") | _weights(root / "weights") | _vectors(root, model, other)
    found |= _models(root / "models", model)
    (root / "file").write_text("a regular file\n")
    (root / "half").mkdir()
    (root / "half" / "checkpoint.safetensors").write_bytes(b"")
    start = f"model: {model}\ntasks: [email_spam]\n"
    (root / "unknown.yaml").write_text(start + "finetune: {epoks: 1}\n")
    (root / "negative.yaml").write_text(start + "finetune: {epochs: -1}\n")
    found |= {"file": str(root / "file"), "half": str(root / "half")}
    return found | {"recipe": str(root / "unknown.yaml"), "negative": str(root / "negative.yaml")}


def _tasks(root: Path) -> World:
    made = {
        "one": task(root / "one"),
        "two": task(root / "two", ROWS[::-1]),
        "outside": task(root / "outside", [*ROWS, ("q", 2)]),
        "empty": task(root / "empty", {"train": ROWS, "validation": ROWS, "test": []}),
        "changed": task(root / "changed"),
        "ragged": task(root / "ragged", [("a",), *ROWS]),
        "columnless": task(root / "columnless", header="words,label"),
        "cardless": task(root / "cardless", splits=None),
    }
    with (made["changed"] / "test.csv").open("a") as file:
        file.write("d,0\n")
    return {name: str(path) for name, path in made.items()}


def _weights(root: Path) -> World:
    root.mkdir()
    whole = {"w": torch.ones(3), "b": torch.zeros(1)}
    points = {
        "base_file": whole,
        "fewer_file": {"w": torch.ones(3)},
        "shape_file": {**whole, "w": torch.ones(2)},
        "nan_file": {**whole, "w": torch.tensor([0.0, float("nan"), 1.0])},
        "inf_file": {**whole, "w": torch.tensor([0.0, float("inf"), 1.0])},
    }
    for name, tensors in points.items():
        save_file(tensors, root / f"{name}.safetensors")
    torch.save(whole, root / "weights.pt")
    torch.save(whole, root / "weights.bin")
    files = {name: str(root / f"{name}.safetensors") for name in points}
    return files | {"pt": str(root / "weights.pt"), "bin": str(root / "weights.bin")}


def _vectors(root: Path, model: Path, other: Path) -> World:
    tau, folder = vector_of(model), root / "vectors"
    first, *_ = tau.deltas
    fewer = TaskVector({n: d for n, d in tau.deltas.items() if n != first}, tau.base, "standard", "fewer")
    made = {"vector": tau, "linear": tau.as_regime("linear"), "elsewhere": vector_of(other), "fewer": fewer}
    files = {name: tau.save_pretrained(folder / f"{name}.safetensors") for name, tau in made.items()}
    files["done"] = tau.save_pretrained(root / "done").parent
    files["cut"] = folder / "cut.safetensors"
    files["cut"].write_bytes(files["vector"].read_bytes()[:-40])
    header = {"format": "tauspan-vector/1", "base": tau.base, "regime": "standard", "label": "x", "info": {}}
    bad = {**tau.deltas, first: torch.full_like(tau.deltas[first], float("nan"))}
    for name, tensors, text in (
        ("header", tau.deltas, "{not json"),
        ("version", tau.deltas, json.dumps({**header, "format": "tauspan-vector/9"})),
        ("nan_vector", bad, json.dumps(header)),
    ):
        files[name] = folder / f"{name}.safetensors"
        save_file(dict(tensors), files[name], metadata={"tauspan": text})
    save(apply(load_model(model), tau, regime="posthoc"), root / "tangent")
    return {name: str(path) for name, path in files.items()} | {"tangent": str(root / "tangent")}


def _models(root: Path, model: Path) -> World:
    made = {name: root / name for name in ("pickles", "weightless", "configless")}
    for name, folder in made.items():
        folder.mkdir(parents=True)
        for file in model.iterdir():
            if file.suffix == ".json" and not (name == "configless" and file.name == "config.json"):
                (folder / file.name).write_bytes(file.read_bytes())
    torch.save({}, made["pickles"] / "pytorch_model.bin")
    (made["configless"] / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    return {name: str(path) for name, path in made.items()}
