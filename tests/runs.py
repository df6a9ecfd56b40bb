"""Small fine-tuning runs: points in three classes for a float64 network, short texts for a BERT."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import checkpoints
from tauspan.models import Encoder, Head, load_model
from tauspan.tasks import Task
from tauspan.train import Finetuned, Settings, train
from zoo import normal, stirred

REGIMES = ("standard", "linear")


def network(seed: int = 0) -> nn.Sequential:
    """Two layers in float64."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    return stirred(net, seed, 0.5)  # type: ignore[return-value]


def encoder(seed: int = 0) -> Encoder:
    return load_model(network(seed))


def points(rows: int = 22, dtype: torch.dtype = torch.float64, head: bool = True) -> Task:
    """Points in the plane of two coordinates of four; 10 for validation, 10 for a test."""
    x = normal(rows + 20, 4, seed=3).to(dtype)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    parts = {"validation": slice(10), "test": slice(10, 20), "train": slice(20, None)}
    splits: dict[str, Any] = {name: (x[part], y[part]) for name, part in parts.items()}
    made = Head(normal(3, 5, seed=5).to(dtype), normal(3, seed=6).to(dtype), scale=0.7) if head else None
    return Task.from_tensors("points", ["a", "b", "c"], head=made, **splits)


def texts(rows: int = 20) -> Task:
    """Texts of one to six letters; the class says whether an early letter of the alphabet leads."""
    draw = random.Random(4)
    words = [" ".join(draw.choices("abcdefghij", k=draw.randint(1, 6))) for _ in range(rows + 8)]
    labels = torch.tensor([int(text[0] < "f") for text in words])
    held, rest = (words[:8], labels[:8]), (words[8:], labels[8:])
    return Task.from_tensors("texts", ["late", "early"], train=rest, validation=held, test=held)


def bert(folder: Path) -> Encoder:
    return load_model(checkpoints.write(folder, "bert"))


def trained(
    settings: Settings, task: Task | None = None, model: Encoder | None = None, **options: Any
) -> Finetuned:
    """A run on `points`, without a bar."""
    return train(model or encoder(), task or points(), settings, show_progress=False, **options)


def deltas(run: Finetuned) -> dict[str, Tensor]:
    return dict(run.task_vector.deltas)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
