"""Worlds in which the maps of xi are known by hand."""

from typing import Any

import torch
from torch import Tensor, nn

import tauspan as ts
from helpers import runs, zoo
from helpers.zoo import normal
from tauspan.models import Classifier, Encoder, Head, fingerprint_of, state_of
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.vector import TaskVector

REGIMES = ("standard", "posthoc", "linear")


GRID = (-1.5, -0.4, 0.0, 0.7, 1.0)


Q: dict[str, Any] = {}


Vectors = dict[Task, TaskVector]


def cloud(name: str, seed: int, rows: int = 20, normalize: bool = False) -> Task:
    """Points whose test rows differ in number from task to task."""
    x = normal(rows + 4, 4, seed=seed)
    y = (x[:, 0] > 0).long()
    parts = {"train": slice(2), "validation": slice(2, 4), "test": slice(4, None)}
    head = Head(normal(3, 5, seed=seed + 1), normal(3, seed=seed + 2), scale=2.0, normalize=normalize)
    splits: dict[str, Any] = {key: (x[part], y[part]) for key, part in parts.items()}
    return Task.from_tensors(name, ["a", "b", "c"], head=head, **splits)


def random_vector(model: Encoder, seed: int, regime: Any = "standard") -> TaskVector:
    deltas = {
        name: 0.7 * normal(*tensor.shape, seed=seed + place)
        for place, (name, tensor) in enumerate(state_of(model).items())
    }
    return TaskVector(deltas, fingerprint_of(model), regime, f"tau{seed}")


def world(regime: str, tasks: int = 2, normalize: bool = False) -> tuple[Encoder, Vectors]:
    model, fits = runs.encoder(), "linear" if regime == "linear" else "standard"
    names = ["one", "two", "three"][:tasks]
    return model, {
        cloud(name, 20 * k + 1, 20 + 7 * k, normalize): random_vector(model, 500 * k + 40, fits)
        for k, name in enumerate(names)
    }


def logits(model: Encoder, task: Task, edit: TaskVector, regime: str, point: Any = None) -> Tensor:
    """What the edited model says on the test rows, evaluated on its own."""
    rows = torch.stack(list(task.split("test").inputs))
    head = build_head(task, model)
    if regime == "standard":
        with torch.no_grad():
            return Classifier(ts.apply(model, edit), head)(rows)  # type: ignore[arg-type, no-any-return]
    tangent = linearize(Classifier(model, head), "all", point)
    tangent.load_task_vector(edit.as_regime("linear"))
    return tangent(rows).detach()  # type: ignore[no-any-return]


def apart(first: Tensor, second: Tensor, distance: str) -> list[float]:
    """Each row's distance, entry by entry."""
    if distance == "argmax":
        return [float(int(a.argmax()) != int(b.argmax())) for a, b in zip(first, second, strict=True)]
    p, q = first.softmax(-1).tolist(), second.softmax(-1).tolist()
    return [sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for a, b in zip(p, q, strict=True)]


def brute_force(
    model: Encoder, vectors: Vectors, regime: str, at: tuple[float, float], distance: str, point: Any = None
) -> list[list[float]]:
    """Each task's distances at one point: the sum of vectors is formed first, then the edited model is run."""
    (first, tau1), (second, tau2) = vectors.items()
    both = at[0] * tau1 + at[1] * tau2
    return [
        apart(logits(model, task, a * tau, regime, point), logits(model, task, both, regime, point), distance)
        for task, tau, a in ((first, tau1, at[0]), (second, tau2, at[1]))
    ]


def average(rows: list[float]) -> float:
    return sum(rows) / len(rows)


def xi(report: ts.Report, place: int = 0) -> Tensor:
    return torch.tensor(report.series[place]["xi"], dtype=torch.float64)


class Blocks(nn.Module):
    """Two blocks without biases; each reads its own two inputs and is zero where these are zero."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("left", "right"):
            block = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
            setattr(self, name, zoo.stirred(block, 3 if name == "left" else 4, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x[:, :2]) + self.right(x[:, 2:])  # type: ignore[no-any-return]


def blocks(regime: str, leak: float = 0.0) -> tuple[Encoder, Vectors]:
    """Each task's inputs fill one block; each vector moves that block, and `leak` times the other."""
    model, fits = Encoder(Blocks().eval()), "linear" if regime == "linear" else "standard"
    vectors = {}
    for place, name in enumerate(("left", "right")):
        x = normal(30, 2, seed=place + 5)
        x = torch.cat([x, torch.zeros_like(x)] if place == 0 else [torch.zeros_like(x), x], 1)
        splits: dict[str, Any] = dict.fromkeys(
            ["train", "validation", "test"], (x, torch.zeros(30, dtype=torch.long))
        )
        task = Task.from_tensors(name, ["a", "b", "c"], head=Head(normal(3, 3, seed=place + 9)), **splits)
        tau = random_vector(model, 60 + place)
        deltas = {n: d if n.startswith(name) else leak * d for n, d in tau.deltas.items()}
        vectors[task] = TaskVector(deltas, tau.base, fits, name)  # type: ignore[arg-type]
    return model, vectors
