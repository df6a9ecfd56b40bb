"""`checkpoint_trajectory`: the checkpoints of a fine-tuning beside the linearisation of the model that it began from."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.choices import SplitName
from tauspan.core.errors import ModelError, StoreError, UsageError, listed
from tauspan.core.params import Params
from tauspan.core.reading import Reading
from tauspan.core.report import noted
from tauspan.kernel import Outputs
from tauspan.kernel.diagnose.trajectory import Trajectory, trajectory
from tauspan.kernel.diagnose.verdict import CARRIES
from tauspan.models import Classifier, Encoder
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled
from tauspan.vector import TaskVector

log = logging.getLogger(__name__)
_NUMBER = re.compile(r"(\d+)$")


@noted
@checked
def checkpoint_trajectory(
    encoder: Encoder,
    task: Task,
    checkpoints: Sequence[str | Path],
    *,
    rows: int = 64,
    split: SplitName = "train",
    outputs: Outputs | None = None,
    params: str | Sequence[str] = "all",
    tolerance: float = CARRIES,
    draws: int = 1000,
    reading: Reading = Reading(batch_size=32),
    seed: int = 0,
) -> Trajectory:
    """How long the tangent model of a pre-trained encoder holds along a fine-tuning whose checkpoints lie in folders.

    Each checkpoint is read on its own, as `TaskVector.from_checkpoints` reads it, and its features are seen under the
    task's frozen head, which is made of the pre-trained encoder. A head that was trained along is left out, with a
    warning, so that losses are not those of the training. There is no closed form of such trainings (cross-entropy,
    AdamW, batches): the path is the tangent model at each checkpoint's weights.

    Args:
        encoder: the pre-trained model that the fine-tuning began from, as `tauspan.load` returned it from a directory or
            id.
        task: rows, classes and head.
        checkpoints: folders whose names end in their step, such as transformers' `checkpoint-100`, in any order; or one
            folder that holds such folders.
        rows: at most so many rows of each split, for losses and kernels.
        split: the split whose rows decide when the net leaves; those of validation (or test) stand beside them.
        outputs: of the kernels; see `trajectory`.
        params: the parameters that move.
        tolerance: see `trajectory`.
        draws: of the bootstrap over rows.
        reading: batches, and where texts are cut.
        seed: of the drawn rows and of the bootstrap.

    Returns:
        A `Trajectory`, in which `split` is called training rows, and the others test rows.

    Raises:
        StoreError: no checkpoint there.
        UsageError: a folder without a step in its name, two of one step.
        ModelError: the encoder does not come from a directory or an id.
        MismatchError: a checkpoint is of another model.

    Cost:
        As `trajectory`, and one pass over each checkpoint's files.
    """
    reading.require_no_point("checkpoint_trajectory")
    if task.objective.headless:
        raise UsageError(
            f"task {task.name!r} is {task.objective.word}, whose outputs are all states of a text: give a task of "
            "classes or numbers on the same texts."
        )
    if encoder.home is None:
        raise ModelError(
            f"the encoder ({encoder.source}) was made of a module, and checkpoints in folders belong to a model in a "
            "folder: load it with `tauspan.load(directory)`, or give `trajectory` the points yourself."
        )
    found = _numbered(checkpoints)
    other: SplitName = "test" if split == "validation" else "validation"
    drawn = task.subset(seed=seed, **{split: rows, other: rows})
    classifier = Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens))
    sides = []
    for name in (split, other):
        parts = labelled(encoder, drawn.split(name), task.tokens(reading.max_tokens), reading.batch_size)
        sides.append(([batch for batch, _ in parts], torch.cat([labels for _, labels in parts])))
    path = trajectory(
        classifier, _points(encoder, found), *sides[0], test=sides[1], objective=task.objective, params=params,
        rows=None, outputs=outputs, tolerance=tolerance, draws=draws, seed=seed,
    )  # fmt: skip
    facts = {
        "base": encoder.source, "task": task.name, "split": split, "checkpoints": [str(folder) for _, folder in found]
    }  # fmt: skip
    return replace(path, provenance={**facts, **path.provenance})


def _numbered(paths: Sequence[str | Path]) -> list[tuple[int, Path]]:
    """The checkpoints by their steps, rising."""
    folders = [Path(path) for path in paths]
    if len(folders) == 1 and not (folders[0] / "config.json").is_file():
        inside = [one for one in folders[0].glob("checkpoint-*") if one.is_dir()]
        if not inside:
            raise StoreError(
                f"{folders[0]} holds no checkpoints: give the folders themselves, or the folder that holds them "
                "(checkpoint-100, checkpoint-200, as transformers' Trainer writes)."
            )
        folders = inside
    if not folders:
        raise UsageError(
            "no checkpoints: give the folders that the fine-tuning wrote, such as checkpoint-100."
        )
    numbered: dict[int, Path] = {}
    for folder in folders:
        number = _NUMBER.search(folder.name)
        if number is None:
            raise UsageError(
                f"{folder.name!r} does not say its step: name it with the step at the end, such as checkpoint-100."
            )
        step = int(number[1])
        if step in numbered or step == 0:
            double = f" and {numbered[step]}" if step in numbered else ", and the model itself is step 0"
            raise UsageError(f"{folder} is step {step}{double}: give one point for each step from 1 on.")
        numbered[step] = folder
    return sorted(numbered.items())


def _points(encoder: Encoder, checkpoints: Sequence[tuple[int, Path]]) -> Iterator[tuple[int, Params]]:
    """The encoder itself, then each checkpoint by the names of the encoder in memory."""
    known = models.named_unique(encoder.backbone)
    start = {name: known[name].detach() for name in models.movable(encoder)}
    yield 0, start
    base = models.fingerprint_of(encoder)
    told = False
    for step, folder in checkpoints:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tensors of a head")  # said once, below
            vector = TaskVector.from_checkpoints(encoder.source, folder, label=folder.name)
        heads = vector.info.get("beyond", {}).get("tuned", [])
        if heads and not told:
            told = True
            log.warning(
                "the checkpoints' own head (%s) is left out: outputs are those of the task's frozen head, and losses are "
                "not those of the training",
                listed(heads),
            )
        deltas = vector.fitted(encoder, tangent=True, base=base).deltas
        yield (
            step,
            {
                name: theta + deltas[name].to(theta) if name in deltas else theta
                for name, theta in start.items()
            },
        )
