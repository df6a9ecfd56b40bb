"""How the numbers of a vector are changed for another base: each method is a function and a row of `METHODS`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.core.choices import Transport
from tauspan.core.errors import UsageError, listed
from tauspan.core.reading import Reading
from tauspan.editing.rebasing.rebasin import rebased, run_hooked
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import Batches, batches
from tauspan.tasks.reference import TaskTargets

Deltas: TypeAlias = dict[str, Tensor]
_SEEN = 12  # tokens of a text: enough to see whether f depends on an order


def read(encoder: Encoder, task: Task, split: str, reading: Reading) -> Batches:
    """The batches of a split with the indices of their rows."""
    cut = task.tokens(reading.max_tokens)
    return batches(encoder, task.split(split), cut, reading.batch_size, task.objective)


def _same(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    return deltas


def _shifted(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    first, second = (dict(one.backbone.named_parameters()) for one in (old, new))
    found = {}
    for name, delta in deltas.items():
        way = (second[name].detach().cpu().double() - first[name].detach().cpu().double()).to(delta)
        size = float(way.double().square().sum())
        found[name] = delta - (float((delta * way).double().sum()) / size) * way if size else delta
    return found


def _signed(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    classifier = Classifier(new, build_head(task, new, max_tokens=reading.max_tokens))
    targets = TaskTargets(task, new, reading.max_tokens)
    known = dict(new.backbone.named_parameters())
    total = {name: torch.zeros_like(known[name]) for name in deltas}
    with models.eval_mode(classifier), _asking(known, list(deltas)):
        for places, batch in read(new, task, "train", reading):
            logits = classifier(batch)
            loss = task.objective.total(logits, targets("train", places).to(logits.device))
            grads = torch.autograd.grad(loss, [known[name] for name in deltas], allow_unused=True)
            for name, grad in zip(deltas, grads, strict=True):
                if grad is not None:
                    total[name] += grad
    return {
        name: torch.where(
            delta.sign() == -total[name].detach().sign().to(delta), delta, torch.zeros_like(delta)
        )
        for name, delta in deltas.items()
    }


@contextmanager
def _asking(known: Mapping[str, Tensor], names: list[str]) -> Iterator[None]:
    """Inside the block these parameters have gradients."""
    before = {name: known[name].requires_grad for name in names}
    for name in names:
        known[name].requires_grad_()
    try:
        yield
    finally:
        for name, asked in before.items():
            known[name].requires_grad_(asked)


def _turned(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    layers = [
        name for name, one in old.backbone.named_modules()
        if isinstance(one, nn.Linear) and any(f"{name}.{part}".lstrip(".") in deltas for part in ("weight", "bias"))
    ]  # fmt: skip
    if not layers:
        raise UsageError("method='procrustes': no linear layer moves. Take 'same', 'shift' or 'sign'.")
    products: dict[tuple[str, str], Tensor] = {}
    for (_, mine), (_, theirs) in zip(
        read(old, task, "train", reading), read(new, task, "train", reading), strict=True
    ):
        before, after = _seen(old, mine, layers), _seen(new, theirs, layers)
        for key, here in before.items():
            product = here.T @ after[key]
            products[key] = products[key] + product if key in products else product
    turns = {key: _orthogonal(product) for key, product in products.items()}
    found = dict(deltas)
    for name in layers:
        weight, bias = f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")
        inside, outside = turns[name, "in"], turns[name, "out"]
        if weight in found:
            found[weight] = (outside.T @ found[weight].double().cpu() @ inside).to(deltas[weight])
        if bias in found:
            found[bias] = (outside.T @ found[bias].double().cpu()).to(deltas[bias])
    return found


def _seen(encoder: Encoder, batch: Batch, layers: list[str]) -> dict[tuple[str, str], Tensor]:
    """Inputs and outputs of the layers, a row for each position of each call, float64."""
    found: dict[tuple[str, str], list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            for key, value in (("in", given[0]), ("out", output)):
                found.setdefault((name, key), []).append(value.detach().double().cpu().flatten(0, -2))

        return hook

    run_hooked(encoder, batch, {name: keep(name) for name in layers})
    missing = [name for name in layers if (name, "in") not in found]
    if missing:
        raise UsageError(
            f"method='procrustes': the layers {listed(missing)} are not called. Take another method."
        )
    return {key: torch.cat(calls) for key, calls in found.items()}


def _orthogonal(product: Tensor) -> Tensor:
    """T with X T nearest to Y, from X^T Y; where the rows do not decide it, nearest to the identity."""
    scale = float(product.diagonal().abs().mean()) or 1.0
    u, _, vt = torch.linalg.svd(product + 1e-9 * scale * torch.eye(len(product), dtype=product.dtype))
    turn: Tensor = u @ vt
    return turn


def _rebased(deltas: Deltas, old: Encoder, new: Encoder, task: Task, reading: Reading) -> Deltas:
    tokens = _SEEN if reading.max_tokens is None else min(reading.max_tokens, _SEEN)
    _, batch = read(old, task, "train", replace(reading, batch_size=2, max_tokens=tokens))[0]
    return rebased(deltas, old, new, batch)


METHODS: Mapping[Transport, Callable[[Deltas, Encoder, Encoder, Task, Reading], Deltas]] = {
    "same": _same, "shift": _shifted, "sign": _signed, "procrustes": _turned,
    "rebasin": _rebased,
}  # fmt: skip
