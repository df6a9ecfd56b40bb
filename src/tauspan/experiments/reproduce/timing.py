"""The time of one training step on this machine, measured for a few seconds with the real model on random rows."""

import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tauspan.core.measure import measured
from tauspan.models import Batch, Encoder, Head, eval_mode
from tauspan.train import Settings
from tauspan.train.timing import clocked
from tauspan.train.trainee import Trainee, trainee

_CLASSES = 10
_FEWEST = 2  # rows of the first, unmeasured step
_LINE = "a line of text that is about as long as a short message or a sentence of a review"


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step on a whole batch, scaled from `rows` rows, and the peak memory at these rows."""

    seconds: float
    rows: int
    peak_mb: float


def step_time(encoder: Encoder, settings: Settings, budget: float = 3.0) -> StepTime:
    """Time steps of one regime for about `budget` seconds.

    Forward and backward are timed, without the optimiser and without reading data, on random images or on copies of one
    line of text. If a whole batch would take longer than the budget, fewer rows are timed and the seconds are scaled
    up, although a large batch takes less time per row.

    Args:
        encoder: on the device it will train on; it is not changed.
        settings: of the fine-tuning; regime, parameters, point, batch and accumulation count.
        budget: seconds.
    """
    batch = settings.batch_size
    with eval_mode(encoder), torch.no_grad():
        width = encoder(_batch(encoder, 1, settings)).shape[-1]
    head = Head(torch.eye(_CLASSES, width), scale=encoder.logit_scale, normalize=True)
    head.to(next(encoder.parameters()).device)
    what = trainee(encoder, [head], settings)
    with measured() as cost:
        first = _seconds(what, encoder, min(_FEWEST, batch), settings)  # this call also warms up caches
        second = _seconds(what, encoder, min(_FEWEST, batch), settings)
        rows = max(1, min(batch, int(_FEWEST * budget / 2 / max(min(first, second), 1e-4))))
        taken: list[float] = []
        while not taken or (sum(taken) < budget / 2 and len(taken) < 5):
            taken.append(_seconds(what, encoder, rows, settings))
    whole = statistics.median(taken) * batch / rows * settings.accumulation
    return StepTime(whole, rows, cost.peak_mb)


def _batch(encoder: Encoder, rows: int, settings: Settings) -> Batch:
    inputs = encoder.inputs
    if inputs.modality == "text":
        return encoder.encode([_LINE] * rows, settings.max_tokens)
    return encoder.encode(list((256 * torch.rand(rows, inputs.size, inputs.size, 3)).byte()))


def _seconds(what: Trainee, encoder: Encoder, rows: int, settings: Settings) -> float:
    batch = _batch(encoder, rows, settings)
    labels = (torch.arange(rows) % _CLASSES).to(next(iter(what.parameters.values())).device)
    for tensor in what.parameters.values():
        tensor.grad = None

    def step() -> None:
        loss = F.cross_entropy(what(batch, 0), labels)
        loss.backward()  # type: ignore[no-untyped-call]

    return clocked(step, labels.device)
