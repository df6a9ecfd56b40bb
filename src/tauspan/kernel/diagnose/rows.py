"""What diagnostics are computed on: rows of each task, with their labels and their kernel under the task's head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.choices import SplitName
from tauspan.core.errors import UsageError, listed, nearest
from tauspan.core.reading import Reading
from tauspan.core.report import Table
from tauspan.kernel import Backend, TangentKernel
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled

KernelOutputs: TypeAlias = Literal["contrast", "sum", "all"]


@dataclass(frozen=True)
class KernelSettings:
    """Which rows of every task are drawn, and which kernel of them is built.

    Args:
        rows: at most so many of each task, drawn by a permutation keyed by `seed`; 2 or more.
        split: the split that they are drawn from.
        outputs: `"contrast"` of the logits, one of the directions that decide a class, at the cost of one output; `"sum"`
            over sqrt(C), as cheap, which sees the mean logit alone; or `"all"`. See `TangentKernel`.
        reading: batches, and where texts are cut.
        backend: of the kernels.
        seed: of the draw.
    """

    rows: int = 64
    split: SplitName = "train"
    outputs: KernelOutputs = "contrast"
    reading: Reading = Reading(batch_size=32)
    backend: Backend = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise UsageError(f"rows={self.rows}: a kernel says something about 2 rows or more.")
        for name, value, known in (
            ("outputs", self.outputs, get_args(KernelOutputs)), ("split", self.split, get_args(SplitName)),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"{name}={value!r}. {nearest(str(value), known)}")


@dataclass(frozen=True, eq=False)
class TaskKernel:
    """Rows of a task with their tangent kernel.

    Args:
        task: the task.
        classifier: the encoder under the task's frozen head.
        batches: the rows, as the model is called with them.
        labels: their classes, shape (N,), or their numbers, shape (N, O).
        kernel: their tangent kernel.
        outputs: which outputs the kernel is about.
        held_out: as many rows of another split.
    """

    task: Task
    classifier: Classifier
    batches: Sequence[Batch]
    labels: Tensor
    kernel: TangentKernel
    outputs: KernelOutputs
    held_out: Sequence[Batch]

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def targets(self) -> Tensor:
        """One-hot labels less 1/C, shape (N, C); without classes the numbers less their mean, shape (N, O)."""
        if not self.task.classes:
            return self.labels.double() - self.labels.double().mean(0)
        classes = len(self.task.label_names)
        return F.one_hot(self.labels, classes).double() - 1 / classes

    def kernel_with(
        self,
        x: Sequence[Batch] | None = None,
        *,
        outputs: KernelOutputs | None = None,
        at: Encoder | None = None,
    ) -> TangentKernel:
        """The same kernel with one thing changed: other rows `x` on the left, other outputs, or another encoder."""
        classifier = self.classifier if at is None else Classifier(at, self.classifier.head)
        left, right = (self.batches, None) if x is None else (x, self.batches)
        return TangentKernel(
            classifier, left, right, params=list(self.kernel.tangent.theta0()),
            outputs=outputs or self.outputs, backend=self.kernel.backend,
        )  # fmt: skip


def task_kernels(
    encoder: Encoder, tasks: Iterable[Task], params: str | Sequence[str], settings: KernelSettings
) -> list[TaskKernel]:
    """Rows and kernel of each task; no entry is computed yet.

    Raises:
        UsageError: no task, two of one name, a choice of parameters that picks nothing.
        DataError: a task of another modality than the encoder's.
    """
    tasks = list(tasks)
    names, reading = [task.name for task in tasks], settings.reading
    if not tasks or len(set(names)) < len(names):
        raise UsageError(f"tasks {listed(names) or 'none'}: give at least one, and none twice.")
    kernels = []
    for task in tasks:
        if task.objective.headless:
            raise UsageError(
                f"task {task.name!r} is {task.objective.word}, and a kernel of all states of a text has too many "
                "outputs: give "
                "a task of classes or numbers on the same texts."
            )
        other = "test" if settings.split == "validation" else "validation"
        drawn = task.subset(seed=settings.seed, **{settings.split: settings.rows, other: settings.rows})
        if len(drawn.split(settings.split)) < 2:
            raise UsageError(
                f"{settings.split} of {task.name!r} has one row, and a kernel needs two or more."
            )
        head = build_head(task, encoder, max_tokens=reading.max_tokens)
        classifier = Classifier(encoder, head)
        parts, unseen = (
            labelled(encoder, drawn.split(name), task.tokens(reading.max_tokens), reading.batch_size)
            for name in (settings.split, other)
        )
        batches, labels = [batch for batch, _ in parts], torch.cat([some for _, some in parts])
        kernel = TangentKernel(
            classifier, batches, params=params, outputs=settings.outputs, backend=settings.backend
        )
        held_out = [batch for batch, _ in unseen]
        kernels.append(TaskKernel(task, classifier, batches, labels, kernel, settings.outputs, held_out))
    return kernels


@dataclass(frozen=True)
class Findings:
    """A part of a report: tables for people, series for pictures, and numbers for programs."""

    tables: Sequence[Table]
    series: Sequence[dict[str, Any]]
    result: dict[str, Any]
