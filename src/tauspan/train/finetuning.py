"""`finetune`: one task or several, from the start, from a checkpoint, or a finished run that is reused."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.errors import StoreError, UsageError, listed
from tauspan.core.measure import Cost, measured, underway
from tauspan.core.processes import world
from tauspan.core.recording import recording
from tauspan.core.report import Cell, Table
from tauspan.models import Encoder, fingerprint_of
from tauspan.tasks import Task, build_head
from tauspan.tasks.reference import TaskTargets
from tauspan.train import checkpoint
from tauspan.train.groups import require_known
from tauspan.train.layout import laid_out
from tauspan.train.loop import LOG, OnLog, Run
from tauspan.train.penalty import Penalty, Training
from tauspan.train.settings import Settings
from tauspan.train.trainee import in_space
from tauspan.train.weights import RowWeights, Weighing
from tauspan.vector import FILE, TaskVector


@dataclass(frozen=True)
class Finetuned:
    """A finished run: the task vector, the history (an entry for each step and each validation) and the cost."""

    task_vector: TaskVector
    history: Sequence[dict[str, Any]]
    cost: Cost = field(default_factory=Cost)
    reused: bool = False

    def __repr__(self) -> str:
        last = next((one for one in reversed(self.history) if one.get("split") == "validation"), None)
        found = "" if last is None else f", validation {validated(last)}"
        spent = "reused" if self.reused else f"{self.cost.seconds:.1f} s"
        return f"Finetuned({self.task_vector.label!r}, {len(self.history)} entries{found}, {spent})"

    def _repr_markdown_(self) -> str:
        """One line, and the validations as a table."""
        rows: list[dict[str, Cell]] = [
            {name: value for name, value in one.items() if name not in ("split", "tasks")}
            for one in self.history
            if one.get("split") == "validation"
        ]
        return f"`{self!r}`\n\n{Table('Validation', rows).to_markdown()}" if rows else f"`{self!r}`"


def validated(entry: Mapping[str, Any]) -> str:
    """The metrics of a validation in words, such as `accuracy 0.812`."""
    found = {name: value for name, value in entry.items() if name not in ("split", "step", "loss", "tasks")}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items()) or f"loss {entry['loss']:.3f}"


@checked
def finetune(
    encoder: Encoder,
    task: Task | Sequence[Task],
    settings: Settings = Settings(),
    *,
    out: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    cache_folder: str | Path | None = None,
    shard: bool = False,
    on_log: OnLog | None = None,
    penalty: Penalty | None = None,
    weights: RowWeights | None = None,
) -> Finetuned:
    """Fine-tune an encoder on a task under its frozen head, and return the task vector.

    The regimes differ only in what is trained: theta of a copy (`"standard"`), or tau of the tangent model (`"linear"`).
    The encoder is never changed.

    Several tasks give one vector by joint training, with which sums of task vectors are compared. It minimises
    sum_t sum_n CE(h_t(f(x_tn)), y_tn) / sum_t N_t. The rows of a step are drawn from all tasks, the loss of a row uses
    the frozen head h_t of its own task, and an epoch has every row of every task once.

    Args:
        encoder: what `tauspan.load` returned.
        task: rows, classes and head; or several tasks with different names, whose order numbers the rows.
        settings: everything that decides the vector; see `tauspan.Settings`.
        out: folder for the vector, a JSON-lines log and checkpoints; nothing is written without it.
        checkpoint_every: steps between checkpoints.
        resume: continue from the checkpoint in `out`, or reuse its finished vector; bit-identical to a run
            that was never interrupted.
        cache_folder: keep the cache in memory-mapped files there instead of in memory.
        shard: with several processes, each keeps its part of every tensor (theta0 and tau), on its own GPU if there are
            any; only one block is whole at a time. The vector is the same. The encoder is taken apart for the run,
            and lost if the run ends in an error: load it again then.
        on_log: called with each record of the log when it is written, as a dictionary of its own: `split`, `step`, `loss`
            and, of training, `gradient_norm` and `lr`, of validation, `accuracy` (and `tasks`, where there are several).
            With several processes the first alone calls it. A run that is resumed passes on what it does itself; one
            that is reused, nothing. It changes nothing of the vector. `docs/how-to/tracking.md` has one for TensorBoard,
            W&B, MLflow and trackio.

        penalty: a term that is added to the loss of each step; see `tauspan.drift`. Not with `shard`.
        weights: what each training row counts in the loss, 0 or more, of several tasks in their order: a step's loss is
            sum_n w_n l_n / B over its B rows. Or `tauspan.sequence.WorstGroup`, the worst of several groups of rows.
            Weights of 1 change nothing, bit for bit. Validation and a penalty count all rows alike.

    Returns:
        The vector, labelled by the task, or `joint` for several; the history; and what it cost. With several tasks the
        validation entries of the history hold means, and each task's loss and accuracy under `tasks`.

    Raises:
        UsageError: an impossible setting, no task, two tasks of one name, or a cache for several tasks.
        MismatchError: several processes were started with different settings, models or data.
        NonFiniteError: the loss or a gradient is NaN or infinite.
        StoreError: `out` holds another run, or cannot be written.
        TauspanError: `on_log` raised an error; the run can be resumed from its last checkpoint.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> seen = []
        >>> settings = ts.Settings(regime="linear", lr=0.1, epochs=5)
        >>> run = ts.finetune(ts.load(torch.nn.Linear(4, 3)), task, settings, on_log=seen.append)
        >>> run.history[-1]["split"], run.task_vector.regime, seen == run.history
        ('validation', 'linear', True)
    """
    tasks = [task] if isinstance(task, Task) else list(task)
    require_together(tasks, settings)
    if checkpoint_every < 1:
        raise UsageError(f"checkpoint_every={checkpoint_every}: it must be at least 1.")
    if settings.augment != "none" and encoder.inputs.modality != "image":
        raise UsageError(
            f"augment={settings.augment!r} cuts images, and {encoder.source} reads {encoder.inputs.modality} inputs. "
            "Leave it out."
        )
    folder = None if out is None else Path(out)
    base, reading, data = fingerprint_of(encoder), encoder.describe(), _checksum(tasks)
    if encoder.added is not None:
        reading = f"{reading}|{encoder.added.words}"
    weighing = None if weights is None else Weighing(weights, [len(one.split("train")) for one in tasks])
    if weighing is not None:
        data = f"{data}|{json.dumps(weighing.facts())}"
    if penalty is not None:
        if shard:
            raise UsageError("shard=True with a penalty: it needs tau whole. Leave one of the two out.")
        data = f"{data}|{json.dumps(penalty.facts(), sort_keys=True, default=str)}"
    key = settings.key(base + reading, data)
    with world() as processes, recording(), measured() as cost:
        facts = {
            "the base's fingerprint": base[:12],
            "the encoder": reading,
            "the task's checksum": hashlib.sha256(data.encode()).hexdigest()[:12],
            "shard": repr(shard),
        }
        processes.require_same({**{name: repr(value) for name, value in settings.as_dict().items()}, **facts})
        finished = _finished(folder, key, resume)
        if finished is not None:
            return finished
        names = ", ".join(task.name for task in tasks)
        with underway(f"fine-tuning on {names}", processes.first):
            heads = [build_head(task, encoder, max_tokens=settings.max_tokens) for task in tasks]
            targets = [TaskTargets(task, encoder, settings.max_tokens) for task in tasks]
            for one in targets:  # before a layout in shards takes the encoder apart
                for split in ("train", "validation"):
                    one.prepare(split)
        moving, own = in_space(encoder, settings)
        require_known(settings, moving)
        with laid_out(moving, heads, own, processes, shard) as (what, layout):
            run = Run(
                what, layout, encoder, tasks, targets, settings, key, processes, folder, checkpoint_every, on_log
            )  # fmt: skip
            run.weights = weighing
            training = Training(encoder, moving, what, own, tasks, run.total)
            if penalty is not None:  # before anything is written: a penalty may refuse the run
                run.guide, run.term = penalty.guide(training), penalty.begun(training)
            run.start(resume)
            with underway(f"cache of {names}", processes.first):
                run.cache(None if cache_folder is None else Path(cache_folder))
            run.loop(processes.first)
            whose = {"task": run.name} if len(tasks) == 1 else {"tasks": [task.name for task in tasks]}
            info = {**whose, "seed": settings.seed, "recipe": settings.as_dict(), "key": key}
            if weighing is not None:
                info["weights"] = dict(weighing.facts())
            if penalty is not None:
                guided = {} if run.guide is None else run.guide.measured()
                info["penalty"] = {**penalty.facts(), **penalty.measured(training), **guided}
            vector = layout.finished(what, run.name, info, None if folder is None else folder / FILE)
            if folder is not None and processes.first:
                (folder / checkpoint.NAME).unlink(missing_ok=True)
        processes.wait()
    return Finetuned(vector, run.history, cost)


def require_together(tasks: Sequence[Task], settings: Settings) -> None:
    """Raise unless there is a task, and several can be trained together."""
    names = [task.name for task in tasks]
    if not tasks:
        raise UsageError("fine-tuning has no task: give at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"several tasks are named {listed(twice)}: give each a name of its own.")
    if len(tasks) > 1 and settings.cache != "none":
        raise UsageError(
            f"cache={settings.cache!r}: nothing is kept of the batches of {len(tasks)} tasks. Set cache='none'."
        )


def _checksum(tasks: Sequence[Task]) -> str:
    """The checksum of the task, or one hash of several tasks in their order."""
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
