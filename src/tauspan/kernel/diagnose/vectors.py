"""What task vectors do, by the tangent kernel: where they act, whether the tangent model holds, what they disturb."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tauspan.editing.model.edit import apply
from tauspan.kernel import Estimate, Interference, interference, logits_at_base
from tauspan.kernel.diagnose.energy import Chosen, Eigenfunctions, LocalEnergy, local_energy
from tauspan.kernel.diagnose.kernels import Advance
from tauspan.kernel.diagnose.lazy import Linearity, PosthocGap, lazy_coefficient, linearity, posthoc_gap
from tauspan.kernel.diagnose.motion import kernel_change, kernel_distance
from tauspan.kernel.diagnose.rows import TaskKernel
from tauspan.kernel.operator.interference import ClassChange, PredictedAccuracy
from tauspan.kernel.rows.data import rows_of
from tauspan.models import Encoder
from tauspan.vector import TaskVector


@dataclass(frozen=True, eq=False)
class TaskEnergy:
    """Local energy of a task's eigenfunctions.

    Args:
        task: its name.
        own: on its own rows (the support) against the rows of all other tasks (the control), under the task's head.
        held_out: on its own rows against own rows of another split, which shows what the support fits by chance.
    """

    task: str
    own: LocalEnergy
    held_out: LocalEnergy

    def facts(self) -> dict[str, Any]:
        """The means as plain numbers, for a file."""
        ratio = self.own.ratio
        return {
            "task": self.task, "chosen": list(self.own.chosen), "support": self.own.on_support.value,
            "held_out": self.held_out.on_control.value, "control": self.own.on_control.value, "ratio": ratio.value,
            "ratio_se": ratio.standard_error,
        }  # fmt: skip

    def series(self) -> dict[str, Any]:
        """The energy of every row, for a histogram."""
        return {
            "kind": "energy", "group": "energy", "title": self.task, "support": self.own.support.tolist(),
            "held_out": self.held_out.control.tolist(), "control": self.own.control.tolist(),
            "ratio": self.own.ratio.value,
        }  # fmt: skip


def task_energies(tasks: Sequence[TaskKernel], which: Chosen, advance: Advance) -> list[TaskEnergy]:
    """Local energy of each task's eigenfunctions on its own rows, held-out rows and the rows of all other tasks.

    Args:
        tasks: two or more.
        which: as in `Eigenfunctions.choose`; a count is cut to the number of eigenfunctions.
        advance: told of each finished task.
    """
    energies = []
    for mine in tasks:
        control = [batch for other in tasks if other is not mine for batch in other.batches]
        cross = mine.kernel_with([*mine.held_out, *control]).dense()
        advance(1, f"energy of {mine.name}")
        chosen = which
        if isinstance(which, int) and not isinstance(which, bool) and which > 0:
            chosen = min(which, len(Eigenfunctions.of(mine.kernel).values))
        both = local_energy(mine.kernel, cross, chosen, mine.targets)
        unseen = sum(map(rows_of, mine.held_out))
        own, held = (replace(both, control=some) for some in (both.control[unseen:], both.control[:unseen]))
        energies.append(TaskEnergy(mine.name, own, held))
    return energies


@dataclass(frozen=True, eq=False)
class TaskPath:
    """Lazy or rich: how far the tangent model holds along a task's vector.

    Args:
        task: its name.
        regime: that of the vector.
        norm: |tau|.
        curvature: q of `lazy_coefficient`.
        path: the model and its linearisation at several multiples of tau.
        gap: the model at theta0 + tau against its linearisation, as classifiers.
        distance: how far the kernel turns from theta0 to theta0 + tau; see `kernel_distance`.
        change: |K' - K| / |K|.
    """

    task: str
    regime: str
    norm: float
    curvature: Estimate
    path: Linearity
    gap: PosthocGap
    distance: Estimate
    change: Estimate

    def __repr__(self) -> str:
        return f"TaskPath({self.task}, {self.regime}, q {self.curvature.value:.3g}, {self.path!r})"


def task_paths(
    encoder: Encoder,
    tasks: Sequence[TaskKernel],
    vectors: Mapping[str, TaskVector],
    scales: Sequence[float],
    advance: Advance,
) -> list[TaskPath]:
    """Curvature, linearity error, post-hoc gap and motion of the kernel for each task; 1 is added to `scales`."""
    wanted = sorted({*map(float, scales), 1.0})
    paths = []
    for mine in tasks:
        vector, tangent = vectors[mine.name], mine.kernel.tangent
        path = linearity(tangent, vector, mine.batches, wanted)
        gap = posthoc_gap(path.start, path.tangent, path.moved[wanted.index(1.0)], mine.labels)
        curvature = lazy_coefficient(tangent, vector, mine.batches)
        advance(1, f"path of {mine.name}")
        edited = apply(encoder, vector.as_regime("standard"))
        after = mine.kernel_with(at=edited)  # type: ignore[arg-type]
        distance, change = kernel_distance(mine.kernel, after), kernel_change(mine.kernel, after)
        advance(1, f"kernel after {mine.name}")
        paths.append(
            TaskPath(mine.name, vector.regime, vector.norm(), curvature, path, gap, distance, change)
        )
    return paths


@dataclass(frozen=True, eq=False)
class TaskInterference:
    """What each task's vector does on each task's rows, in all logits.

    Args:
        between: J tau for all pairs of tasks.
        accuracies: what the tangent model predicts on each task at coefficients of 1.
        by_class: the changes on the rows of each class.
    """

    between: Interference
    accuracies: Sequence[PredictedAccuracy]
    by_class: Sequence[ClassChange]

    def __repr__(self) -> str:
        return f"TaskInterference({', '.join(self.between.tasks)})"


def task_interference(
    tasks: Sequence[TaskKernel], vectors: Mapping[str, TaskVector], advance: Advance
) -> TaskInterference:
    """J tau for all pairs, per class, and the accuracies that it predicts."""
    kernels = {mine.name: mine.kernel_with(outputs="all") for mine in tasks}
    between = interference(kernels, {name: vectors[name] for name in kernels})
    start = {name: logits_at_base(kernel) for name, kernel in kernels.items()}
    labels = {mine.name: mine.labels for mine in tasks}
    advance(1, "interference")
    return TaskInterference(between, between.accuracies(start, labels), between.by_class(labels))
