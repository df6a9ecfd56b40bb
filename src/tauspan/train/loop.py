"""The training loop: AdamW, warm-up and cosine, clipping, accumulation, validation, log, checkpoint, exact resume."""

import copy
import json
import logging
import math
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.ahead import ahead
from tauspan.core.errors import NonFiniteError, TauspanError, UsageError, listed
from tauspan.core.measure import progress
from tauspan.core.params import broken_rows
from tauspan.core.processes import World
from tauspan.models import Batch, Encoder
from tauspan.objectives import Classification, Objective
from tauspan.tasks import Task
from tauspan.tasks.batches import encoded
from tauspan.tasks.reference import TaskTargets
from tauspan.train import checkpoint
from tauspan.train.groups import groups
from tauspan.train.layout import Layout
from tauspan.train.penalty import Guide, Term
from tauspan.train.rows import Part, TrainingRows
from tauspan.train.settings import Settings
from tauspan.train.trainee import Trainee, decay
from tauspan.train.weights import Weighing

log = logging.getLogger(__name__)
LOG = "log.jsonl"
VALIDATED = 64  # rows of a pass over validation, in each process
OnLog: TypeAlias = Callable[[dict[str, Any]], object]


class Run:
    """A run in progress; `step` counts finished optimiser steps, and `whole` is false while a step is being applied."""

    def __init__(
        self, what: Trainee, layout: Layout, encoder: Encoder, tasks: Sequence[Task], targets: Sequence[TaskTargets],
        settings: Settings, key: str, processes: World, out: Path | None, checkpoint_every: int,
        on_log: OnLog | None = None,
    ) -> None:  # fmt: skip
        self.trainee = what
        self.layout = layout
        self.encoder = encoder
        self.tasks = tasks
        self.targets = targets
        self.objectives = [trained(task, settings.label_smoothing).bound(encoder.language) for task in tasks]
        if encoder.language is not None:
            encoder.language.require_untrained(what.parameters)
        self.name = tasks[0].name if len(tasks) == 1 else "joint"
        self.settings = settings
        self.key = key
        self.processes = processes
        self.out = out
        self.every = checkpoint_every
        self.on_log = on_log
        self.rows = TrainingRows(tasks, settings, processes, layout.together)
        self.total = settings.steps(self.rows.size)
        self.step = 0
        self.whole = True
        self.history: list[dict[str, Any]] = []
        self.cached: dict[Part, Callable[[], Tensor]] = {}
        self.wrong = ""
        self.term: Term | None = None
        self.guide: Guide | None = None
        self.weights: Weighing | None = None
        self.incoming: Iterator[tuple[Batch, Tensor]] = iter(())
        native = 0.0 if what.anchor() is not None else settings.weight_decay
        self.anchor = what.anchor() if settings.weight_decay else None
        self.optimiser = torch.optim.AdamW(groups(what.parameters, settings, native), fused=True)

    # -- state on disk ---------------------------------------------------------------------------------------

    def start(self, resume: bool) -> None:
        """Load the checkpoint if `resume` is set and there is one, and write the log; without a folder, do nothing."""
        if self.out is None:
            return
        file = self.out / checkpoint.NAME
        if resume and file.exists():
            state = checkpoint.restore(file, self.key, self.trainee.parameters, self.optimiser, self.layout)
            self.step, self.history = state["step"], state["history"]
            if self.weights is not None:
                self.weights.resume(self.history)
            log.info("resumed %s at step %d of %d", self.out, self.step, self.total)
        if self.processes.first and (self.history or (self.out / LOG).exists()):
            self._write_log()

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder."""
        if self.out is not None:
            state = {"key": self.key, "step": self.step, "history": self.history}
            file = self.out / checkpoint.NAME
            checkpoint.save(file, self.trainee.parameters, self.optimiser, state, self.layout)

    def _write_log(self) -> None:
        """Write the log again from the history, so that after a resume it holds each step once."""
        assert self.out is not None  # noqa: S101 - callers checked
        store.write_text(self.out / LOG, "".join(json.dumps(entry) + "\n" for entry in self.history))

    def note(self, entry: dict[str, Any]) -> None:
        """Add an entry to the history and the log, and tell who listens."""
        self.history.append(entry)
        if self.out is not None and self.processes.first:
            if len(self.history) == 1 and not (self.out / LOG).exists():
                self._write_log()  # only now: a run that is refused leaves nothing
            else:
                with (self.out / LOG).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
        if self.on_log is not None and self.processes.first:
            try:
                self.on_log(copy.deepcopy(entry))
            except Exception as error:
                raise TauspanError(
                    f"on_log={_called(self.on_log)} raised {type(error).__name__} at step {entry['step']} of "
                    f"{self.name!r} ({entry['split']}): {error}. Repair it or leave it out; with `out` and a checkpoint "
                    "there, resume=True goes on."
                ) from error

    # -- steps -----------------------------------------------------------------------------------------------

    def loop(self, show: bool) -> None:
        """Run the remaining steps, with validation and checkpoints between them."""
        per_epoch = self.rows.per_epoch

        def validate_if_due() -> None:
            ended = self.step % per_epoch == 0 or self.step == self.total
            if ended and self.history and self.history[-1]["split"] == "train":
                self.validate()

        title = f"{self.name} ({self.settings.regime})"
        with progress(title, self.total, show) as advance, closing(self.to_come()) as self.incoming:
            advance(self.step, "")
            try:
                validate_if_due()  # a resumed run may have been interrupted just before validation
                while self.step < self.total:
                    started = time.perf_counter()
                    loss = self.one_step(self.step // per_epoch, self.step % per_epoch)
                    rate = (
                        self.settings.batch_size
                        * self.settings.accumulation
                        / (time.perf_counter() - started)
                    )
                    advance(1, f"loss {loss:.3f}, {rate:.0f} rows/s")
                    validate_if_due()
                    if self.step % self.every == 0 and self.step < self.total:
                        self.save()
            except KeyboardInterrupt:
                # no checkpoint is written during an update, or where all processes would have to write it together
                if self.whole and not self.layout.together:
                    self.save()
                raise

    def one_step(self, epoch: int, place: int) -> float:
        """One optimiser step on the global batch; the loss is the mean over all its rows."""
        settings = self.settings
        parts, size = self.rows.step(epoch, place)
        loss = torch.zeros(())
        for part in parts:
            loss += self._backward(part, size)
        extra: dict[str, Any] = self._penalised()
        gradients, norm = self.layout.exchange(self.trainee.parameters, loss)
        if not torch.isfinite(norm) or not torch.isfinite(loss):
            raise NonFiniteError(
                f"step {self.step} of {self.name!r}: loss {float(loss):g}, gradient norm {float(norm):g} at "
                f"learning rate {settings.lr_at(self.step, self.total):g}{self._broken()}. Lower the learning rate or "
                "clip the gradient; at step 0 look at the rows and weights themselves."
            )
        if settings.clip:
            torch._foreach_mul_(gradients, min(1.0, settings.clip / (float(norm) + 1e-12)))
        if self.weights is not None:
            extra |= self.weights.stepped(size, self.processes, norm.device)
        self.whole = False
        self._update()
        self.note({"split": "train", "step": self.step, "loss": float(loss), "gradient_norm": float(norm),
                   "lr": settings.lr_at(self.step - 1, self.total), **extra})  # fmt: skip
        self.whole = True
        return float(loss)

    def _penalised(self) -> dict[str, float]:
        """The penalty of this step, whose gradient is added; nothing without one."""
        if self.term is None:
            return {}
        value = self.term(self.step)
        (value / self.processes.size).backward()  # type: ignore[no-untyped-call]
        found = float(value.detach())
        if not math.isfinite(found):
            raise NonFiniteError(
                f"step {self.step} of {self.name!r}: the penalty is {found}. Lower the learning rate or the weight."
            )
        return {"penalty": found}

    def cache(self, folder: Path | None) -> None:
        """Cache what depends on theta0 alone for every batch, if the settings ask for it."""
        if self.settings.cache == "none":
            return
        mine = [part for place in range(self.rows.per_epoch) for part in self.rows.step(0, place)[0]]
        encoded = [self._batch(part)[0] for part in mine]
        self.cached = dict(zip(mine, self.trainee.cache(encoded, self.settings.cache, folder), strict=True))

    def _batch(self, part: Part, split: str = "train", epoch: int = 0) -> tuple[Batch, Tensor]:
        """Inputs and targets of one forward pass; a pass without rows reads the first row, and has no target."""
        task, places = self.tasks[part[0]], part[1]
        rows = task.split(split).take(places or (0,))
        crops = None
        if split == "train" and self.settings.augment == "crop":
            # by seed, epoch and row, so that crops do not depend on processes, batch size or interruptions
            about = f"{self.settings.seed}/{epoch}/{part[0]}"
            crops = [random.Random(f"{about}/{place}/crop") for place in places or (0,)]
        batch = encoded(self.encoder, rows, task.objective, task.tokens(self.settings.max_tokens), crops)
        return batch, self.targets[part[0]](split, places or (0,))[: len(places)]

    def to_come(self) -> Generator[tuple[Batch, Tensor]]:
        """The batches of the remaining steps; images are decoded while earlier steps compute."""
        per_epoch = self.rows.per_epoch
        places = (divmod(step, per_epoch) for step in range(self.step, self.total))
        parts = (
            (part, "train", epoch) for epoch, place in places for part in self.rows.step(epoch, place)[0]
        )
        return ahead(lambda what: self._batch(*what), parts, self.encoder.inputs.ahead)

    def _backward(self, part: Part, size: int) -> Tensor:
        beside: Tensor | float = 0.0
        if self.cached:
            logits, labels = self.cached[part](), self.targets[part[0]]("train", part[1])
        else:
            batch, labels = next(self.incoming)
            if self.guide is None:
                logits = self.trainee(batch, part[0])
            else:
                reach = self.guide.reach(self.step)
                features, logits = self.trainee.reached(batch, part[0], reach)
                beside = self.guide.loss(reach, part, features)
        objective, given = self.objectives[part[0]], (logits[: len(labels)], labels.to(logits.device))
        own = objective.total(*given) if self.weights is None else self.weights.total(part, objective, *given)
        loss = (own + beside) / size
        loss.backward()  # type: ignore[no-untyped-call]
        found = loss.detach().cpu()
        if not torch.isfinite(found):  # the error is raised later, when all processes know of it
            task = self.tasks[part[0]].name
            rows = [str(part[1][row]) for row in broken_rows(logits.detach()) if row < len(part[1])]
            self.wrong = (
                f"; the logits are not finite in the training rows {listed(rows)} of {task!r}" if rows else ""
            )
            if not rows:
                self.wrong = self._unlosable(part, logits.detach()[: len(labels)], labels)
        return found

    def _unlosable(self, part: Part, logits: Tensor, labels: Tensor) -> str:
        """The rows whose loss is not finite though their logits are."""
        objective = self.objectives[part[0]]
        losses = objective.losses(logits, labels.to(logits.device))
        rows = [str(part[1][row]) for row in broken_rows(losses[:, None])]
        return (
            f"; the loss {objective.word} of the training rows {listed(rows)} of {self.tasks[part[0]].name!r} is not "
            "finite, though their logits are: look at their targets"
            if rows
            else ""
        )

    def _broken(self) -> str:
        """Where NaN or infinity appeared first: in which rows, or else in the gradient of which tensor."""
        known = self.trainee.parameters.items()
        tensors = (name for name, p in known if p.grad is not None and broken_rows(p.grad.flatten()))
        first = next(tensors, None)
        return self.wrong or ("" if first is None else f"; the gradient of {first!r} is not finite")

    def _update(self) -> None:
        lr = self.settings.lr_at(self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["multiplier"]
        if self.anchor is not None:
            decay(self.trainee.parameters, self.anchor, lr * self.settings.weight_decay)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    @torch.no_grad()
    def validate(self) -> None:
        """Log loss and metric on validation; for several tasks the means, and each task's values under `tasks`."""
        found = {task.name: self._validated(place) for place, task in enumerate(self.tasks)}
        shared = [key for key in next(iter(found.values())) if all(key in one for one in found.values())]
        means = {key: sum(one[key] for one in found.values()) / len(found) for key in shared}
        own = {} if len(found) == 1 else {"tasks": found}
        self.note({"split": "validation", "step": self.step, **means, **own})

    def _validated(self, task: int) -> dict[str, float]:
        size = len(self.tasks[task].split("validation"))
        device = next(
            iter(self.trainee.parameters.values())
        ).device  # NCCL does not exchange tensors on the CPU
        scores, loss, broken = torch.zeros((), device=device), torch.zeros((), device=device), False
        objective = self.tasks[task].objective.bound(self.encoder.language)
        shares = (((task, places), "validation") for places in self._shares(size))
        for batch, labels in ahead(lambda what: self._batch(*what), shares, self.encoder.inputs.ahead):
            logits = self.trainee(batch, task).cpu()
            logits = logits[: len(labels)]
            broken |= bool(broken_rows(logits))
            scores += objective.scores(logits, labels).sum()
            loss += objective.total(logits, labels)
        count = torch.tensor(float(broken), device=device)
        self.processes.sum([scores, loss, count])
        if count or not torch.isfinite(loss):
            raise NonFiniteError(
                f"step {self.step} of {self.name!r}: the logits of {self.tasks[task].name!r} are NaN or infinite on "
                f"validation rows (loss {float(loss) / size:g}). Lower the learning rate, or look at what the rows hold."
            )
        metric = objective.summary(float(scores) / size)
        if not math.isfinite(metric):
            raise NonFiniteError(
                f"step {self.step} of {self.name!r}: the {objective.metric} of {self.tasks[task].name!r} on validation "
                f"rows is {metric} (loss {float(loss) / size:g}): the run has diverged. Lower the learning rate, "
                f"{self.settings.peak_lr:g}."
            )
        return {"loss": float(loss) / size, objective.metric: metric}

    def _shares(self, size: int) -> Iterator[tuple[int, ...]]:
        mine = tuple(range(size))[self.processes.rank :: self.processes.size]
        for begin in range(0, -(-size // self.processes.size), VALIDATED):  # the same number in every process
            yield mine[begin : begin + VALIDATED]


def trained(task: Task, smoothing: float) -> Objective:
    """The objective that a task is trained by.

    Raises:
        UsageError: label smoothing for a task that has no classes.
    """
    if not smoothing:
        return task.objective
    if not task.classes:
        raise UsageError(
            f"label_smoothing={smoothing:g} moves targets towards all classes, and {task.name!r} is "
            f"{task.objective.word}: "
            "set label_smoothing=0."
        )
    return Classification(smoothing)


def _called(function: OnLog) -> str:
    """The name by which a callback is known."""
    return str(getattr(function, "__qualname__", None) or type(function).__name__)
