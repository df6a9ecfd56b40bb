"""The rows that diagnostics are computed on: each task's batches, labels and kernel under its own head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError, listed, nearest
from tauspan.core.reading import Reading
from tauspan.core.report import Table
from tauspan.kernel import TangentKernel
from tauspan.kernel.rows.tiles import Backend
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled

Reduced: TypeAlias = Literal["contrast", "sum", "all"]
SplitName: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Settings:
    """What decides the rows and the kernel of every task.

    Args:
        rows: at most so many of each task, drawn by a permutation keyed by `seed`; 2 or more.
        split: whose rows.
        outputs: `"contrast"` of the logits, one of the directions that decide a class, at the cost of one output; `"sum"`
            over sqrt(C), as cheap, which sees the mean logit alone; or `"all"`. See `tauspan.kernel.rows.selector`.
        reading: batches, and where texts are cut.
        backend: of the kernels.
        seed: of the draw.
    """

    rows: int = 64
    split: SplitName = "train"
    outputs: Reduced = "contrast"
    reading: Reading = Reading(batch_size=32)
    backend: Backend = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise UsageError(f"rows={self.rows}: a kernel says something about 2 rows or more.")
        for name, value, known in (
            ("outputs", self.outputs, get_args(Reduced)), ("split", self.split, get_args(SplitName)),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"{name}={value!r}. {nearest(str(value), known)}")


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a task.

    Args:
        task: the task.
        classifier: the encoder under the task's frozen head.
        batches: the rows as the model is called with.
        labels: their classes, shape (N,).
        kernel: their tangent kernel.
        outputs: of the kernel.
        held_out: as many rows of another split.
    """

    task: Task
    classifier: Classifier
    batches: Sequence[Batch]
    labels: Tensor
    kernel: TangentKernel
    outputs: Reduced
    held_out: Sequence[Batch]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def targets(self) -> Tensor:
        """One-hot labels less 1/C, shape (N, C)."""
        classes = len(self.task.label_names)
        return F.one_hot(self.labels, classes).double() - 1 / classes

    def kernel_with(
        self, x: Sequence[Batch] | None = None, *, outputs: Reduced | None = None, at: Encoder | None = None
    ) -> TangentKernel:
        """The same kernel with one thing changed: other rows on the left, other outputs, or another point."""
        classifier = self.classifier if at is None else Classifier(at, self.classifier.head)
        names = list(self.kernel.tangent.theta0())
        left, right = (self.batches, None) if x is None else (x, self.batches)
        return TangentKernel(
            classifier,
            left,
            right,
            params=names,
            outputs=outputs or self.outputs,
            backend=self.kernel.backend,
        )


def rows_of_tasks(
    encoder: Encoder, tasks: Iterable[Task], params: str | Sequence[str], settings: Settings
) -> list[Rows]:
    """Each task's rows and kernel, not computed yet.

    Raises:
        UsageError: no task, two of one name, a choice of parameters that picks nothing.
        DataError: a task of another modality than the encoder's.
    """
    tasks = list(tasks)
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names):
        raise UsageError(f"tasks {listed(names) or 'none'}: give at least one, and none twice.")
    found = []
    for task in tasks:
        other = "test" if settings.split == "validation" else "validation"
        drawn = task.subset(seed=settings.seed, **{settings.split: settings.rows, other: settings.rows})
        if len(drawn.split(settings.split)) < 2:
            raise UsageError(
                f"{settings.split} of {task.name!r} has one row, and a kernel needs two or more."
            )
        head = build_head(task, encoder, max_tokens=settings.reading.max_tokens)
        classifier = Classifier(encoder, head)
        parts, unseen = (
            labelled(
                encoder,
                drawn.split(name),
                task.tokens(settings.reading.max_tokens),
                settings.reading.batch_size,
            )
            for name in (settings.split, other)
        )
        batches, labels = [batch for batch, _ in parts], torch.cat([some for _, some in parts])
        kernel = TangentKernel(
            classifier, batches, params=params, outputs=settings.outputs, backend=settings.backend
        )
        found.append(
            Rows(task, classifier, batches, labels, kernel, settings.outputs, [batch for batch, _ in unseen])
        )
    return found


@dataclass(frozen=True)
class Findings:
    """A part of a report."""

    tables: Sequence[Table]
    series: Sequence[dict[str, Any]]
    result: dict[str, Any]


def cell(value: float) -> float | None:
    """A number for a table or JSON; nothing where it is not finite."""
    return float(value) if abs(value) < float("inf") else None


def matrix_table(title: str, names: Sequence[str], values: Tensor, note: str) -> Table:
    """A task x task table."""
    rows = [
        {"": name, **{other: cell(value) for other, value in zip(names, line, strict=True)}}
        for name, line in zip(names, values.tolist(), strict=True)
    ]
    return Table(title, rows, note)


def heat(title: str, group: str, names: Sequence[str], values: Tensor) -> dict[str, Any]:
    """The series of a task x task picture."""
    lines = [[cell(value) for value in line] for line in values.tolist()]
    return {"kind": "heat", "group": group, "title": title, "tasks": list(names), "values": lines}
