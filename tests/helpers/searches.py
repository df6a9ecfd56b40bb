"""Clouds of rows, models and vectors on which every search can be worked out by hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import tauspan as ts
from helpers.runs import encoder
from helpers.zoo import normal
from tauspan.models import Encoder, Head, fingerprint_of, state_of
from tauspan.tasks import Task
from tauspan.vector import TaskVector

REGIMES = ("standard", "posthoc", "linear")


Q: dict[str, Any] = {}


def eye() -> Encoder:
    """Features are the inputs: two of them, one weight matrix, the identity."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
    return ts.load(layer)  # type: ignore[return-value]


def turn(model: Encoder, by: float = 1.0, regime: Any = "standard") -> TaskVector:
    """Adds `by` times the first input to the second feature."""
    (name,) = state_of(model)
    return TaskVector({name: torch.tensor([[0.0, 0.0], [by, 0.0]])}, fingerprint_of(model), regime, "turn")


def steps(
    name: str, right_above: Sequence[float], right_below: Sequence[float] = (), test: Any = None
) -> Task:
    """Each row is right above, or up to, its own alpha along `turn`, in every regime."""

    def rows(above: Sequence[float], below: Sequence[float]) -> Any:
        x = torch.tensor([[1.0, 1.0 - s] for s in (*above, *below)])
        return x, torch.tensor([1] * len(above) + [0] * len(below))

    here = rows(right_above, right_below)
    far = rows(*test) if test else here
    splits = {"train": here, "validation": here, "test": far}
    return Task.from_tensors(
        name, ["low", "high"], head=Head(torch.eye(2), scale=1.0), labels="from_0", **splits
    )


def cloud(name: str, seed: int) -> Task:
    """Points whose labels have little to do with the encoder."""
    x = normal(24, 4, seed=seed)
    parts = {"train": x[:8], "validation": x[8:16], "test": x[16:]}
    splits = {key: (part, (part[:, 0] > 0.1).long()) for key, part in parts.items()}
    head = Head(normal(2, 5, seed=seed + 1), scale=1.0)
    return Task.from_tensors(name, ["no", "yes"], head=head, **splits)


def random_vector(model: Encoder, seed: int, regime: Any) -> TaskVector:
    deltas = {
        name: normal(*tensor.shape, seed=seed + place) * 0.8
        for place, (name, tensor) in enumerate(state_of(model).items())
    }
    return TaskVector(deltas, fingerprint_of(model), regime, f"tau{seed}")


def world(regime: str) -> tuple[Encoder, dict[Task, TaskVector]]:
    model, fits = encoder(), "linear" if regime == "linear" else "standard"
    tasks = [cloud("one", 20), cloud("two", 30)]
    return model, {task: random_vector(model, 40 + 10 * i, fits) for i, task in enumerate(tasks)}
