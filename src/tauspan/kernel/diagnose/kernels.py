"""Diagnostics of tasks that need no vector: spectra, alignment with labels, alignment between tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel import EigenPairs, Estimate, Modes, UnionKernel
from tauspan.kernel.diagnose.alignment import (
    LabelAlignment,
    centred_alignment,
    cross_task_alignment,
    kernel_target_alignment,
    label_gradient_alignment,
    principal_angles,
)
from tauspan.kernel.diagnose.rows import TaskKernel
from tauspan.kernel.diagnose.spectra import CumulativePower, EffectiveRanks, cumulative_power, effective_ranks
from tauspan.kernel.solvers.solution import rounding_floor

Advance = Callable[[int, str], None]


@dataclass(frozen=True, eq=False)
class TaskSpectrum:
    """The spectrum of a task's kernel, and how well the kernel fits the labels; all numbers are about these rows.

    Args:
        task: its name.
        rows: N.
        ranks: the effective ranks.
        power: how much of the one-hot labels is in the span of the leading eigenvectors.
        target_alignment: KTA with the one-hot labels less 1/C.
        centred_alignment: CKA with them; None where all rows have one class.
        label_alignment: label-gradient alignment; None for several outputs, or where all rows have one class.
    """

    task: str
    rows: int
    ranks: EffectiveRanks
    power: CumulativePower
    target_alignment: Estimate
    centred_alignment: Estimate | None
    label_alignment: LabelAlignment | None

    def __repr__(self) -> str:
        ranks = f"stable rank {self.ranks.stable.value:.3g}, KTA {self.target_alignment.value:.3g}"
        return f"TaskSpectrum({self.task}, {self.rows} rows, {ranks})"


def task_spectrum(task: TaskKernel, ridge: float | None = None) -> TaskSpectrum:
    """Effective ranks, power and alignment with the labels; `ridge` as in `effective_ranks`."""
    kernel, targets = task.kernel, task.targets
    several = bool((task.labels != task.labels[:1]).any())
    alike = several and task.task.classes and kernel.outputs == 1
    return TaskSpectrum(
        task.name,
        kernel.samples,
        effective_ranks(kernel, ridge),
        cumulative_power(kernel, targets),
        kernel_target_alignment(kernel, targets),
        centred_alignment(kernel, targets) if several else None,
        label_gradient_alignment(kernel, task.labels) if alike else None,
    )


@dataclass(frozen=True, eq=False)
class TaskPairs:
    """How close the tangent features of each pair of tasks are; exact on these rows.

    Args:
        tasks: T names.
        alignment: |K_st| / sqrt(|K_ss| |K_tt|) in Frobenius norms, shape (T, T).
        overlap: the mean squared cosine of the principal angles between leading tangent features, shape (T, T).
        leading: how many eigenvectors of each task are compared, where its kernel has as many.
    """

    tasks: Sequence[str]
    alignment: Tensor
    overlap: Tensor
    leading: int

    def __repr__(self) -> str:
        return f"TaskPairs({', '.join(self.tasks)})"


def task_pairs(tasks: Sequence[TaskKernel], leading: int, advance: Advance) -> TaskPairs | None:
    """Alignment and principal angles of every pair; None for one task.

    Raises:
        UsageError: fewer than one eigenvector.
    """
    if leading < 1:
        raise UsageError(f"angles={leading}: compare at least one eigenvector of each task.")
    if len(tasks) < 2:
        return None
    names = [task.name for task in tasks]
    union = UnionKernel({task.name: task.kernel for task in tasks})
    union.dense()
    advance(1, "between tasks")
    pairs = {name: _leading(union, name, leading) for name in names}
    aligned = torch.ones(len(names), len(names), dtype=torch.float64)
    cosines = torch.ones_like(aligned)
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            cross = union.between(first, second)
            own = union.between(first, first), union.between(second, second)
            aligned[i, j] = aligned[j, i] = cross_task_alignment(*own, cross).value
            angles = principal_angles(pairs[first], pairs[second], cross)
            cosines[i, j] = cosines[j, i] = float(angles.cos().square().mean())
    return TaskPairs(names, aligned, cosines, leading)


def _leading(union: UnionKernel, task: str, count: int) -> EigenPairs:
    """The leading eigenpairs of one task's matrix, at most `count`, whose eigenvalues are above rounding."""
    modes = Modes.of(union.own(task))
    values = modes.values.flip(0)
    keep = min(count, int((values > rounding_floor(values)).sum()))
    return EigenPairs(values[:keep], modes.vectors.flip(1)[:, :keep], True, "eigh of the matrix")
