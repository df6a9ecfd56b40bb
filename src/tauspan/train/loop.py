"""The loop: AdamW, warm-up and cosine, clipping, accumulation, validation, log, checkpoint, exact resume."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan import store
from tauspan.errors import NonFiniteError, StoreError, UsageError
from tauspan.linear import Kind
from tauspan.measure import Cost, measured, progress
from tauspan.models import Batch, Encoder, fingerprint_of
from tauspan.processes import World, world
from tauspan.tasks import Task, build_head
from tauspan.train import checkpoint
from tauspan.train.layout import Layout, laid_out
from tauspan.train.rows import Part, Rows
from tauspan.train.settings import Precision, Settings
from tauspan.train.trainee import Trainee, as_parameters, decay
from tauspan.vector import FILE, Regime, TaskVector

log = logging.getLogger(__name__)
LOG = "log.jsonl"
_NONE = -100  # the label of a row that counts for nothing


@dataclass(frozen=True)
class Finetuned:
    """A finished run: the task vector, the history (one entry a step or validation) and what it cost."""

    task_vector: TaskVector
    history: Sequence[dict[str, Any]]
    cost: Cost = field(default_factory=Cost)
    reused: bool = False


def finetune(
    encoder: Encoder,
    task: Task,
    regime: Regime = "linear",
    seed: int = 0,
    *,
    params: str | Sequence[str] = "all",
    point: Literal["encoder", "logits"] | None = None,
    epochs: int = 1,
    max_steps: int | None = None,
    batch_size: int = 32,
    accumulation: int = 1,
    lr: float | None = None,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    decay_toward: Literal["base", "zero"] = "base",
    clip: float = 1.0,
    label_smoothing: float = 0.0,
    max_tokens: int | None = None,
    cache: Kind | Literal["auto"] = "none",
    precision: Precision = "float32",
    cache_folder: str | Path | None = None,
    shard: bool = False,
    out: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    show_progress: bool = True,
) -> Finetuned:
    """Fine-tune an encoder on a task under its frozen head, and return the task vector.

    The two regimes share everything but what is trained: theta of a copy (`"standard"`), or tau of the tangent
    model (`"linear"`). The encoder is never changed. Every other option is explained at
    `tauspan.train.Settings`.

    Args:
        encoder: what `tauspan.load` returned.
        task: rows, classes and head.
        regime: `"standard"` or `"linear"`.
        seed: order of the rows.
        params: which parameters train.
        point: where the tangent model is linearised.
        epochs: passes over the training rows.
        max_steps: end after so many steps.
        batch_size: rows per forward pass, over all processes.
        accumulation: forward passes per step.
        lr: peak learning rate.
        warmup: share or number of warm-up steps.
        weight_decay: decoupled decay.
        decay_toward: what it pulls to.
        clip: largest gradient norm.
        label_smoothing: as in cross-entropy.
        max_tokens: where texts are cut.
        cache: what the tangent model keeps of each batch across epochs; pays from the second or third epoch on.
        precision: `"bfloat16"` or `"tf32"` for the matrix products, tau stays in float32.
        cache_folder: keep the cache in memory-mapped files there instead of in memory.
        shard: under several processes, each keeps its part of every tensor, theta0 and tau alike, on its own GPU if there
            are any; only one block is whole at a time. The vector is the same. The encoder is taken apart for the run,
            and lost if the run ends in an error: load it again then.
        out: folder for the vector, a JSON-lines log and checkpoints; nothing is written without it.
        checkpoint_every: steps between checkpoints.
        resume: continue from the checkpoint in `out`, or reuse its finished vector; bit-identical to a run
            that was never interrupted.
        show_progress: a bar on a terminal.

    Raises:
        UsageError: an impossible setting.
        MismatchError: several processes were started with different settings, models or data.
        NonFiniteError: the loss or a gradient is NaN or infinite.
        StoreError: `out` holds another run, or cannot be written.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> run = ts.finetune(ts.load(torch.nn.Linear(4, 3)), task, regime="linear", lr=0.1, epochs=5)
        >>> run.history[-1]["split"], run.task_vector.regime
        ('validation', 'linear')
    """
    chosen = params if isinstance(params, str) else tuple(params)
    settings = Settings(
        regime, seed, chosen, point, epochs, max_steps, batch_size, accumulation, lr, warmup, weight_decay,
        decay_toward, clip, label_smoothing, max_tokens, cache, precision,
    )  # fmt: skip
    folder = None if out is None else Path(out)
    kept = None if cache_folder is None else Path(cache_folder)
    return train(encoder, task, settings, folder, checkpoint_every, resume, show_progress, kept, shard)


def train(
    encoder: Encoder,
    task: Task,
    settings: Settings,
    out: Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    show_progress: bool = True,
    cache_folder: Path | None = None,
    shard: bool = False,
) -> Finetuned:
    """`finetune` with its settings in one object."""
    return train_on(
        encoder, [task], settings, out, checkpoint_every, resume, show_progress, cache_folder, shard
    )


def train_on(
    encoder: Encoder,
    tasks: Sequence[Task],
    settings: Settings,
    out: Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    show_progress: bool = True,
    cache_folder: Path | None = None,
    shard: bool = False,
) -> Finetuned:
    """One vector for all of the tasks, each under its own frozen head; `train` is the case of one task."""
    if checkpoint_every < 1:
        raise UsageError(f"checkpoint_every={checkpoint_every}: it must be at least 1.")
    base, reading, data = fingerprint_of(encoder), encoder.describe(), _checksum(tasks)
    key = settings.key(base + reading, data)
    with world() as processes, measured() as cost:
        facts = {
            "the base's fingerprint": base[:12],
            "the encoder": reading,
            "the task's checksum": data[:12],
            "shard": repr(shard),
        }
        processes.require_same({**{name: repr(value) for name, value in settings.as_dict().items()}, **facts})
        finished = _finished(out, key, resume)
        if finished is not None:
            return finished
        heads = [build_head(task, encoder, max_tokens=settings.max_tokens) for task in tasks]
        with laid_out(encoder, heads, settings, processes, shard) as (what, layout):
            run = _Run(what, layout, encoder, tasks, settings, key, processes, out, checkpoint_every)
            run.start(resume)
            run.cache(cache_folder)
            run.loop(show_progress and processes.first)
            whose = {"task": run.name} if len(tasks) == 1 else {"tasks": [task.name for task in tasks]}
            info = {**whose, "seed": settings.seed, "recipe": settings.as_dict(), "key": key}
            vector = layout.finished(what, run.name, info, None if out is None else out / FILE)
            if out is not None and processes.first:
                (out / checkpoint.NAME).unlink(missing_ok=True)
        processes.wait()
    return Finetuned(vector, run.history, cost)


def _checksum(tasks: Sequence[Task]) -> str:
    """The task's own checksum, or one hash of several in their order, which numbers the rows."""
    sums = [task.checksum() for task in tasks]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _finished(out: Path | None, key: str, resume: bool) -> Finetuned | None:
    """The finished run in `out`, if it is the one asked for and may be reused."""
    if out is None or not (out / FILE).exists():
        if out is not None and (out / checkpoint.NAME).exists() and not resume:
            raise StoreError(
                f"{out} holds an unfinished run. Continue it with resume (--resume), or choose another."
            )
        return None
    if not resume:
        raise StoreError(
            f"{out / FILE} is already there. Reuse it with resume (--resume), or choose another folder."
        )
    vector = TaskVector.from_pretrained(out / FILE)
    if vector.info.get("key") != key:
        raise StoreError(
            f"{out / FILE} was made with other settings, another base or other data. Choose another folder."
        )
    lines = (out / LOG).read_text().splitlines() if (out / LOG).exists() else []
    return Finetuned(vector, [json.loads(line) for line in lines], reused=True)


class _Run:
    """One run in progress; `step` counts finished optimiser steps, `whole` is false in the middle of an update."""

    def __init__(
        self, what: Trainee, layout: Layout, encoder: Encoder, tasks: Sequence[Task], settings: Settings, key: str,
        processes: World, out: Path | None, checkpoint_every: int,
    ) -> None:  # fmt: skip
        self.trainee = what
        self.layout = layout
        self.encoder = encoder
        self.tasks = tasks
        self.name = tasks[0].name if len(tasks) == 1 else "joint"
        self.settings = settings
        self.key = key
        self.processes = processes
        self.out = out
        self.every = checkpoint_every
        self.rows = Rows(tasks, settings, processes, layout.together)
        self.total = settings.steps(self.rows.size)
        self.step = 0
        self.whole = True
        self.history: list[dict[str, Any]] = []
        self.cached: dict[Part, Callable[[], Tensor]] = {}
        native = 0.0 if what.anchor() is not None else settings.weight_decay
        self.anchor = what.anchor() if settings.weight_decay else None
        self.optimiser = torch.optim.AdamW(as_parameters(what.parameters), weight_decay=native, fused=True)

    # -- state on disk ---------------------------------------------------------------------------------------

    def start(self, resume: bool) -> None:
        if self.out is None:
            return
        file = self.out / checkpoint.NAME
        if resume and file.exists():
            state = checkpoint.restore(file, self.key, self.trainee.parameters, self.optimiser, self.layout)
            self.step, self.history = state["step"], state["history"]
            log.info("resumed %s at step %d of %d", self.out, self.step, self.total)
        if self.processes.first:
            self._write_log()

    def save(self) -> None:
        if self.out is not None:
            state = {"key": self.key, "step": self.step, "history": self.history}
            file = self.out / checkpoint.NAME
            checkpoint.save(file, self.trainee.parameters, self.optimiser, state, self.layout)

    def _write_log(self) -> None:
        """Write the log anew from the history: after a resume it holds each step once."""
        assert self.out is not None  # noqa: S101 - callers checked
        store.write_text(self.out / LOG, "".join(json.dumps(entry) + "\n" for entry in self.history))

    def note(self, entry: dict[str, Any]) -> None:
        self.history.append(entry)
        if self.out is not None and self.processes.first:
            with (self.out / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    # -- steps -----------------------------------------------------------------------------------------------

    def loop(self, show: bool) -> None:
        per_epoch = self.rows.per_epoch

        def validate_if_due() -> None:
            ended = self.step % per_epoch == 0 or self.step == self.total
            if ended and self.history and self.history[-1]["split"] == "train":
                self.validate()

        title = f"{self.name} ({self.settings.regime})"
        with progress(title, self.total, show) as advance:
            advance(self.step, "")
            try:
                validate_if_due()  # a resumed run may have been interrupted just before
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
                # in the middle of an update, or where the processes would have to meet, the checkpoint before stands
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
        gradients, norm = self.layout.exchange(self.trainee.parameters, loss)
        if not torch.isfinite(norm) or not torch.isfinite(loss):
            raise NonFiniteError(
                f"step {self.step} of {self.name!r}: loss {float(loss):g}, gradient norm {float(norm):g} at "
                f"learning rate {settings.lr_at(self.step, self.total):g}. Lower the learning rate or clip the gradient."
            )
        if settings.clip:
            torch._foreach_mul_(gradients, min(1.0, settings.clip / (float(norm) + 1e-12)))
        self.whole = False
        self._update()
        self.note({"split": "train", "step": self.step, "loss": float(loss), "gradient_norm": float(norm),
                   "lr": settings.lr_at(self.step - 1, self.total)})  # fmt: skip
        self.whole = True
        return float(loss)

    def cache(self, folder: Path | None) -> None:
        """Keep what theta0 alone decides of every batch, if the settings ask for it."""
        if self.settings.cache == "none":
            return
        mine = [part for place in range(self.rows.per_epoch) for part in self.rows.step(0, place)[0]]
        encoded = [self._batch(part)[0] for part in mine]
        self.cached = dict(zip(mine, self.trainee.cache(encoded, self.settings.cache, folder), strict=True))

    def _batch(self, part: Part, split: str = "train") -> tuple[Batch, Tensor]:
        """Inputs and labels of one forward pass; one without rows reads the first row, and no label."""
        task, places = self.tasks[part[0]], part[1]
        rows = task.split(split).take(places or (0,))
        batch = self.encoder.encode(rows.inputs, task.tokens(self.settings.max_tokens))
        return batch, rows.labels if places else torch.full_like(rows.labels, _NONE)

    def _backward(self, part: Part, size: int) -> Tensor:
        if self.cached:
            logits, labels = self.cached[part](), self.tasks[part[0]].split("train").labels[list(part[1])]
        else:
            batch, labels = self._batch(part)
            logits = self.trainee(batch, part[0])
        labels = labels.to(logits.device)
        loss = (
            F.cross_entropy(
                logits,
                labels,
                reduction="sum",
                label_smoothing=self.settings.label_smoothing,
                ignore_index=_NONE,
            )
            / size
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().cpu()

    def _update(self) -> None:
        lr = self.settings.lr_at(self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        if self.anchor is not None:
            decay(self.trainee.parameters, self.anchor, lr * self.settings.weight_decay)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    @torch.no_grad()
    def validate(self) -> None:
        """Note loss and accuracy on validation; of several tasks the means, with each task's own under `tasks`."""
        found = {task.name: self._validated(place) for place, task in enumerate(self.tasks)}
        means = {key: sum(one[key] for one in found.values()) / len(found) for key in ("loss", "accuracy")}
        own = {} if len(found) == 1 else {"tasks": found}
        self.note({"split": "validation", "step": self.step, **means, **own})

    def _validated(self, task: int) -> dict[str, float]:
        size = len(self.tasks[task].split("validation"))
        device = next(iter(self.trainee.parameters.values())).device  # NCCL exchanges nothing on the CPU
        right, loss = torch.zeros((), device=device), torch.zeros((), device=device)
        for places in self._shares(size):
            batch, labels = self._batch((task, places), "validation")
            logits = self.trainee(batch, task).cpu()
            right += (logits.argmax(-1) == labels).sum()
            loss += F.cross_entropy(logits, labels, reduction="sum", ignore_index=_NONE)
        self.processes.sum([right, loss])
        return {"loss": float(loss) / size, "accuracy": float(right) / size}

    def _shares(self, size: int) -> Iterator[tuple[int, ...]]:
        mine = tuple(range(size))[self.processes.rank :: self.processes.size]
        for begin in range(0, -(-size // self.processes.size), 64):  # as many in every process
            yield mine[begin : begin + 64]
