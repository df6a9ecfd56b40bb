"""Small fine-tuning runs: points in three classes for a float64 network, short texts for a BERT."""

import fnmatch
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from helpers import checkpoints
from helpers.zoo import normal, stirred
from tauspan.core.params import Params
from tauspan.models import Encoder, Head, load_model
from tauspan.tasks import Task, permutation
from tauspan.train import Finetuned, Settings, finetune

REGIMES = ("standard", "linear")
KEY_BIASES = ("key.bias", "k_proj.bias")  # softmax does not see them: their gradient is zero


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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model(checkpoints.write(folder, "bert"))


def clip(folder: Path) -> tuple[Encoder, Task]:
    """A CLIP, and pictures of which the class says whether they are more red or more green."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_model(checkpoints.write(folder, "clip"))
    pictures = normal(26, 3, 8, 8, seed=7).abs().clamp(0, 1).float()
    labels = (pictures[:, 0].mean((1, 2)) > pictures[:, 1].mean((1, 2))).long()
    held, rest = (pictures[:6], labels[:6]), (pictures[6:], labels[6:])
    return model, Task.from_tensors("pictures", ["red", "green"], train=rest, validation=held, test=held)


def trained(
    settings: Settings, task: Task | None = None, model: Encoder | None = None, **options: Any
) -> Finetuned:
    """A run on `points`, without a bar."""
    return finetune(model or encoder(), task or points(), settings, **options)


def deltas(run: Finetuned) -> dict[str, Tensor]:
    return dict(run.task_vector.deltas)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def script_environment() -> dict[str, str]:
    """What a script needs to import this file, and the benchmarks."""
    here, given = Path(__file__).parents[1], os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join([str(here), str(here.parent), *filter(None, [given])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


# -- training, written out -----------------------------------------------------------------------------------


def learning_rates(settings: Settings, total: int) -> list[float]:
    """Warm-up and cosine, spelled out."""
    warm = int(settings.warmup) if settings.warmup >= 1 else round(settings.warmup * total)
    rising = [(step + 1) / warm for step in range(warm)]
    falling = [(1 + math.cos(math.pi * step / (total - warm))) / 2 for step in range(total - warm)]
    return [settings.peak_lr * share for share in rising + falling]


Count = Callable[[list[int], Tensor], Tensor]  # of a step's rows and their losses: what each row counts


def expected(task: Task, settings: Settings, count: Count | None = None) -> dict[str, Tensor]:
    """What the settings should give on `encoder()`."""
    net, head = network(), task.head
    assert head is not None
    theta0 = {name: tensor.detach() for name, tensor in net.named_parameters()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in theta0.items()}
    to_base = settings.decay_toward == "base"

    def logits(theta: Params, x: Tensor) -> Tensor:
        return 0.7 * functional_call(net, dict(theta), (x,)) @ head.weight.T + head.bias

    def tangent(tau: Params, x: Tensor) -> Tensor:
        value, slope = torch.func.jvp(lambda theta: logits(theta, x), (theta0,), (dict(tau),))
        return value + slope

    if settings.regime == "standard":
        return by_hand(task, settings, theta0, theta0 if to_base else zeros, logits, count)
    minus = {name: -tensor for name, tensor in theta0.items()}
    return by_hand(task, settings, zeros, zeros if to_base else minus, tangent, count)


def by_hand(
    task: Task, settings: Settings, start: Params, centre: Params, logits: Callable[[Params, Tensor], Tensor],
    count: Count | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """The parameters after a run of AdamW, each formula written out."""
    rows = task.split("train")
    x, y = torch.stack(list(rows.inputs)), rows.labels
    size = settings.batch_size * settings.accumulation
    orders = [permutation(len(rows), f"{settings.seed}/{epoch}") for epoch in range(settings.epochs)]
    batches = [order[i : i + size] for order in orders for i in range(0, len(rows), size)]
    batches = batches[: settings.max_steps]
    now = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    mean, square = ({n: torch.zeros_like(t) for n, t in start.items()} for _ in range(2))
    times = dict.fromkeys(now, 1.0)
    for pattern, value in (settings.lr_multipliers or {}).items():
        times |= dict.fromkeys(fnmatch.filter(now, pattern), value)
    for t, (batch, lr) in enumerate(zip(batches, learning_rates(settings, len(batches)), strict=True), 1):
        given = logits(now, x[batch]), y[batch]
        losses = F.cross_entropy(*given, reduction="none", label_smoothing=settings.label_smoothing)
        loss = losses.mean() if count is None else (count(batch, losses.detach()) * losses).mean()
        gradient = dict(zip(now, torch.autograd.grad(loss, list(now.values())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
        factor = min(1.0, settings.clip / norm) if settings.clip else 1.0
        with torch.no_grad():
            for name, p in now.items():
                g = gradient[name] * factor
                mean[name] = 0.9 * mean[name] + 0.1 * g
                square[name] = 0.999 * square[name] + 0.001 * g * g
                p -= lr * settings.weight_decay * (p - centre[name])
                p -= (
                    times[name]
                    * lr
                    * (mean[name] / (1 - 0.9**t))
                    / ((square[name] / (1 - 0.999**t)).sqrt() + 1e-8)
                )
    return {name: p.detach() - start[name] for name, p in now.items()}
