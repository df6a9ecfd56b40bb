"""What one task's vector does on another task's rows, before any merge.

With tau_t = J_t^T alpha_t the outputs on the rows of t' move by J_t' tau_t = K_t't alpha_t, exactly. Tasks may have heads
of their own: J_t is the Jacobian of the encoder under the head of t, in parameters that all tasks share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError, listed, nearest
from tauspan.core.params import Params
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result, ratio
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.vector import TaskVector

Changes = Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True)
class ClassChange:
    """How far the vector of one task moves the outputs on the rows of one class of another task.

    Args:
        on: the task of the rows.
        by: the task of the vector.
        label: the class of the rows, from 0.
        change: root mean square of J tau over these rows and all outputs, in units of the outputs.
        over_own: `change` over that of the task's own vector on all its rows; None where that is 0.
    """

    on: str
    by: str
    label: int
    change: float
    over_own: float | None


@dataclass(frozen=True)
class PredictedAccuracy:
    """Accuracies of the tangent model on the rows of one task, between 0 and 1.

    Args:
        on: the task.
        base: without any vector.
        alone: with its own vector.
        with_other: with its own vector and that of one other task, by that task.
        together: with the vectors of all tasks.
        rows: how many there are; 0 where that is not known.
        changed: by another task, how many rows are right with the own vector and wrong with both, and the reverse.
    """

    on: str
    base: float
    alone: float
    with_other: Mapping[str, float]
    together: float
    rows: int = 0
    changed: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Interference(Result):
    """How far each task's vector moves the outputs on each task's rows.

    Args:
        tasks: their names, two or more.
        changes: by (on, by): J tau of the vector of `by` on the rows of `on`, shape (N_on, O_on).

    Raises:
        UsageError: one task only, or a pair that is missing.

    Example:
        >>> moved = {("a", "a"): 2.0, ("a", "b"): 1.0, ("b", "a"): 0.0, ("b", "b"): 1.0}
        >>> changes = {pair: torch.full((3, 2), x) for pair, x in moved.items()}
        >>> Interference(tasks=("a", "b"), changes=changes).table().tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """

    tasks: tuple[str, ...]
    changes: Changes

    def __post_init__(self) -> None:
        require_several(self.tasks)
        missing = [f"{by} on {on}" for on in self.tasks for by in self.tasks if (on, by) not in self.changes]
        if missing:
            raise UsageError(f"the changes of {listed(missing)} are missing: give every pair of tasks.")

    def __repr__(self) -> str:
        return f"Interference({', '.join(self.tasks)})"

    def table(self, over: Literal["by", "on"] = "by") -> Tensor:
        """Root mean squares of the changes over that of an own change, shape (T, T), row `on`, column `by`.

        `"by"` divides by what the vector does on its own rows: its reach, 1 on the diagonal. `"on"` divides by what the
        task's own vector does there: how much of the task is drowned. A vector that moves nothing gives NaN.
        """
        if over not in ("by", "on"):
            raise UsageError(f"over={over!r}. {nearest(str(over), ('by', 'on'))}")
        sizes = torch.tensor(
            [[rms(self.changes[on, by]) for by in self.tasks] for on in self.tasks], dtype=torch.float64
        )
        own = sizes.diagonal()
        return sizes / (own[None, :] if over == "by" else own[:, None])

    def by_class(self, labels: Mapping[str, Tensor]) -> list[ClassChange]:
        """The change on the rows of each class, for each pair of different tasks.

        Args:
            labels: the classes of the rows, shape (N_on,), by task.

        Raises:
            DataError: another number of labels than rows.
        """
        changes = []
        for on in self.tasks:
            of = labels_of(labels, on, len(self.changes[on, on]))
            own = rms(self.changes[on, on])
            for by in self.tasks:
                for label in sorted(set(of.tolist())) if by != on else ():
                    change = rms(self.changes[on, by][of == label])
                    changes.append(ClassChange(on, by, label, change, ratio(change, own)))
        return changes

    def accuracies(
        self, start: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> list[PredictedAccuracy]:
        """Predicted accuracy on each task, at coefficients of 1.

        Args:
            start: logits at the base, shape (N_on, O_on), by task.
            labels: the classes of the rows, shape (N_on,), by task.

        Raises:
            DataError: another number of labels than rows.
        """
        predicted = []
        for on in self.tasks:
            of, base = labels_of(labels, on, len(self.changes[on, on])), start[on].double()
            total = alone = base + self.changes[on, on]
            pairs, changed, right = {}, {}, alone.argmax(-1) == of
            for by in self.tasks:
                if by != on:
                    both = alone + self.changes[on, by]
                    still = both.argmax(-1) == of
                    pairs[by] = accuracy(both, of)
                    changed[by] = int((right & ~still).sum()), int((still & ~right).sum())
                    total = total + self.changes[on, by]
            predicted.append(
                PredictedAccuracy(
                    on, accuracy(base, of), accuracy(alone, of), pairs, accuracy(total, of), len(of), changed
                )
            )
        return predicted

    def report(self) -> Report:
        """The table of `table()`, a row for each task whose outputs move, a column for each vector."""
        lines = zip(self.tasks, self.table().tolist(), strict=True)
        rows: list[dict[str, Cell]] = [
            {"on": on, **{by: finite_or_none(value) for by, value in zip(self.tasks, line, strict=True)}}
            for on, line in lines
        ]
        note = "Root mean square of J tau on the row's task over that on the vector's own rows."
        return Report("Interference", [Table("Interference", rows, note)], dict(self.provenance))


@checked
def interference(
    kernels: Mapping[str, TangentKernel], vectors: Mapping[str, TaskVector | Params]
) -> Interference:
    """K_t't alpha_t for all pairs, as J_t' tau_t: for vectors of any origin, on any rows.

    Args:
        kernels: by task: the rows on which the change is measured, under the task's head.
        vectors: by task: tau_t; of alpha_t it is `kernel.pullback(alpha_t)`.

    Raises:
        UsageError: one task only, or the two mappings name different tasks.
        MismatchError: a vector holds other tensors than the kernels' parameters.

    Cost:
        A pass over each task's rows with T tangents; no kernel entry.

    Example:
        >>> from torch import nn
        >>> net, eye = nn.Linear(2, 1, bias=False), torch.eye(2)  # one weight for each input
        >>> kernels = {"a": TangentKernel(net, eye[:1]), "b": TangentKernel(net, eye[1:])}
        >>> taus = {name: kernel.pullback(torch.ones(1)) for name, kernel in kernels.items()}
        >>> interference(kernels, taus).table().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    names = agreeing(kernels, vectors, "vectors")
    taus = {
        name: kernels[name].tangent.direction(one) if isinstance(one, TaskVector) else one
        for name, one in vectors.items()
    }
    changes = {}
    for on in names:
        kernel = kernels[on]
        for by in names:
            params.require_same(
                kernel.tangent.theta0(), taus[by], f"the kernel of {on!r}", f"the vector of {by!r}"
            )
        moved = kernel.left.push([taus[by] for by in names])
        for by, one in zip(names, moved, strict=True):
            changes[on, by] = one.view(kernel.samples, -1)
    return Interference(tasks=names, changes=changes, provenance=provenance())


def require_several(tasks: Sequence[str]) -> None:
    """Raises `UsageError` unless there are two tasks or more."""
    if len(tasks) < 2:
        raise UsageError(
            f"{len(tasks)} task ({listed(tasks)}): interference is between tasks, so give at least two."
        )


def rms(values: Tensor) -> float:
    """The root mean square over rows and outputs."""
    return float(values.double().square().mean().sqrt())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is that of the label."""
    return float((logits.argmax(-1) == labels).double().mean())


def finite_or_none(value: float) -> float | None:
    """A number for a table or JSON; None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def labels_of(labels: Mapping[str, Tensor], task: str, rows: int) -> Tensor:
    """The labels of a task; raises `DataError` unless there is one for each row."""
    if task not in labels or len(labels[task]) != rows:
        count = len(labels[task]) if task in labels else "no"
        raise DataError(f"task {task!r} has {rows} rows and {count} labels: give one for each row.")
    return labels[task]


def agreeing(
    kernels: Mapping[str, TangentKernel], others: Mapping[str, object], what: str
) -> tuple[str, ...]:
    """The tasks' names; raises unless both mappings have them."""
    require_several(list(kernels))
    if kernels.keys() != others.keys():
        raise UsageError(f"kernels of {listed(kernels)} and {what} of {listed(others)}: name the same tasks.")
    return tuple(kernels)
