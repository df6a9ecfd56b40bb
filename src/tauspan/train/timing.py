"""How long a fine-tuning will take on this machine: its own first steps, and passes over its validation rows, timed."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from tauspan.core.measure import progress
from tauspan.core.processes import World
from tauspan.models import Encoder
from tauspan.tasks import Task, build_head
from tauspan.tasks.reference import TaskTargets
from tauspan.train.layout import laid_out
from tauspan.train.loop import VALIDATED, Run
from tauspan.train.settings import Settings
from tauspan.train.trainee import in_space

_MOST, _FEWEST = 12, 2  # steps that are timed


@dataclass(frozen=True)
class Pace:
    """The time of a fine-tuning, from some of its steps.

    Args:
        first: seconds until the first step has ended: heads, targets, a copy of the weights, and checks.
        step: seconds of each later one, the median of those that were timed.
        timed: how many these were.
        validation: seconds of a pass over all validation rows, scaled from at most 64 rows of each task.
        steps: of the whole run.
        validations: how many passes it makes.
    """

    first: float
    step: float
    timed: int
    validation: float
    steps: int
    validations: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.first + self.step * (self.steps - 1) + self.validation * self.validations


def pace(encoder: Encoder, tasks: Sequence[Task], settings: Settings, budget: float = 2.0) -> Pace:
    """Train for some steps in this process, for about `budget` seconds, and throw the result away.

    Args:
        encoder: on the device where it will train; it is not changed.
        tasks: of the run.
        settings: of the run; a cache is not made.
        budget: seconds of timed steps; two are timed in any case.
    """
    device = next(encoder.parameters()).device
    few = [one.subset(validation=min(VALIDATED, len(one.split("validation")))) for one in tasks]
    begun = time.perf_counter()
    heads = [build_head(task, encoder, max_tokens=settings.max_tokens) for task in few]
    targets = [TaskTargets(task, encoder, settings.max_tokens) for task in few]
    moving, own = in_space(encoder, settings)
    with laid_out(moving, heads, own, World(), False) as (what, layout):
        run = Run(what, layout, encoder, few, targets, settings, "", World(), None, 1)
        with closing(run.to_come()) as run.incoming, progress("timing steps", _MOST) as advance:

            def step() -> None:
                run.one_step(*divmod(run.step, run.rows.per_epoch))
                advance(1, "")

            clocked(step, device)
            first, taken = time.perf_counter() - begun, list[float]()
            while run.step < run.total and len(taken) < _MOST - 1:
                taken.append(clocked(step, device))
                if len(taken) >= _FEWEST and sum(taken) > budget:
                    break
        validation = clocked(run.validate, device)
    share = sum(len(one.split("validation")) for one in few) / sum(
        len(one.split("validation")) for one in tasks
    )
    return Pace(
        first, statistics.median(taken) if taken else 0.0, len(taken), validation / share, run.total,
        math.ceil(run.total / run.rows.per_epoch),
    )  # fmt: skip


def clocked(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of `work`; a GPU's queue is emptied before and after."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
