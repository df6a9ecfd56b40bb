"""Joint fine-tuning: one vector for several tasks at once, the ceiling that sums of vectors are measured against."""

from collections.abc import Sequence
from pathlib import Path

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, listed
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.train.finetuning import Finetuned, train
from tauspan.train.settings import Settings


@checked
def finetune_jointly(
    encoder: Encoder,
    tasks: Sequence[Task],
    settings: Settings,
    out: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    shard: bool = False,
) -> Finetuned:
    """Fine-tune an encoder on all tasks together, each under its own frozen head, and return one task vector.

    Minimises sum_t sum_n CE(h_t(f(x_tn)), y_tn) / sum_t N_t over theta (`"standard"`) or over tau in the tangent
    model (`"linear"`). The batch of a step is drawn from all rows of all tasks, so that a task weighs as many rows as
    it has; each row counts under its own task's head. One epoch has every row of every task once, in
    ceil(sum_t N_t / (batch_size * accumulation)) steps. Optimiser, schedule, checkpoints and log are those of
    `finetune`, and with one task the vector is the same, bit for bit.

    Args:
        encoder: what `tauspan.load` returned.
        tasks: at least one, each with a name of its own; their order numbers the rows, and so decides the batches.
        settings: as for one task. `batch_size` counts rows of all tasks together; a cache cannot be kept for several.
        out: folder for the vector, a JSON-lines log and checkpoints; nothing is written without it.
        checkpoint_every: steps between checkpoints.
        resume: continue from the checkpoint in `out`, or reuse its finished vector; the same bits.
        shard: as in `finetune`.

    Returns:
        A `Finetuned` with the vector `joint`. Validation entries of its history hold the means over tasks, and each
        task's loss and accuracy under `tasks`.

    Raises:
        UsageError: no task, two of one name, or a cache for several tasks.
        MismatchError, NonFiniteError, StoreError: as in `finetune`.

    Cost:
        The same rows a step as one task, in as many forward passes as tasks have rows in the batch.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
        >>> parts = [("parity", y % 2), ("half", y // 2)]
        >>> tasks = [
        ...     ts.Task.from_tensors(name, ["no", "yes"], train=(x, y), validation=(x, y), test=(x, y))
        ...     for name, y in parts
        ... ]
        >>> run = finetune_jointly(ts.load(torch.nn.Linear(4, 3)), tasks, Settings(epochs=2))
        >>> run.task_vector.label, run.history[-1]["step"], list(run.history[-1]["tasks"])
        ('joint', 2, ['parity', 'half'])
    """
    names = [task.name for task in tasks]
    if not tasks:
        raise UsageError("joint fine-tuning has no task: give at least one.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"several tasks are named {listed(twice)}: give each a name of its own.")
    if len(tasks) > 1 and settings.cache != "none":
        raise UsageError(
            f"cache={settings.cache!r}: nothing is kept of the batches of {len(tasks)} tasks. Set cache='none'."
        )
    folder = None if out is None else Path(out)
    return train(encoder, tasks, settings, folder, checkpoint_every, resume, shard=shard)
