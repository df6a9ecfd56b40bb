"""What one task's vector does on another task's rows, before any merge, and the solution that accounts for it.

With tau_t = J_t^T alpha_t the outputs on the rows of t' move by J_t' tau_t = K_t't alpha_t, exactly. Tasks may have heads
of their own: J_t is the Jacobian of the encoder under the head of t, in parameters that all tasks share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tauspan.core import params
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError, listed, nearest
from tauspan.core.params import Params
from tauspan.core.report import Cell
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.solvers.regression import solve_ridge
from tauspan.kernel.solvers.solved import Solved, vector_for
from tauspan.vector import TaskVector

Changes = Mapping[tuple[str, str], Tensor]


@dataclass(frozen=True, eq=False)
class Interference:
    """How far each task's vector moves the outputs on each task's rows.

    Args:
        tasks: their names, two or more.
        changes: by (on, by): what the vector of `by` adds to the outputs on the rows of `on`, shape (N_on, O_on).

    Raises:
        UsageError: one task only, or a pair that is missing.

    Example:
        >>> moved = {("a", "a"): 2.0, ("a", "b"): 1.0, ("b", "a"): 0.0, ("b", "b"): 1.0}
        >>> found = Interference(("a", "b"), {pair: torch.full((3, 2), x) for pair, x in moved.items()})
        >>> found.table().tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """

    tasks: tuple[str, ...]
    changes: Changes

    def __post_init__(self) -> None:
        require_several(self.tasks)
        missing = [f"{by} on {on}" for on in self.tasks for by in self.tasks if (on, by) not in self.changes]
        if missing:
            raise UsageError(f"the changes of {listed(missing)} are missing: give every pair of tasks.")

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

    def by_class(self, labels: Mapping[str, Tensor]) -> list[dict[str, Cell]]:
        """For each pair of different tasks, the root mean square of the change on the rows of each class of `on`."""
        rows: list[dict[str, Cell]] = []
        for on in self.tasks:
            of = _labels(labels, on, len(self.changes[on, on]))
            own = rms(self.changes[on, on])
            for by in self.tasks:
                if by == on:
                    continue
                for label in sorted(set(of.tolist())):
                    found = rms(self.changes[on, by][of == label])
                    share = found / own if own else math.nan
                    rows.append({"on": on, "by": by, "class": label, "change": found, "over own": share})
        return rows

    def accuracies(self, start: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> list[dict[str, Cell]]:
        """Predicted accuracy on each task: at the base, with its own vector, with one other added, with all added.

        Args:
            start: logits at the base, shape (N_on, O_on), by task.
            labels: the rows' classes.
        """
        rows: list[dict[str, Cell]] = []
        for on in self.tasks:
            of, base = _labels(labels, on, len(self.changes[on, on])), start[on].double()
            alone = base + self.changes[on, on]
            row: dict[str, Cell] = {"on": on, "base": right(base, of), "alone": right(alone, of)}
            total = alone
            for by in self.tasks:
                other = self.changes[on, by]
                row[f"with {by}"] = None if by == on else right(alone + other, of)
                total = total if by == on else total + other
            rows.append({**row, "all": right(total, of)})
        return rows


@checked
def interference(
    kernels: Mapping[str, TangentKernel],
    vectors: Mapping[str, TaskVector | Params],
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
    names = _agreeing(kernels, vectors, "vectors")
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
    return Interference(names, changes)


@dataclass(frozen=True, eq=False)
class Joint:
    """Each task's own optimum, their plain sum, and the optimum of all tasks together, on the training rows.

    Args:
        tasks: their names.
        alone: by task, the alpha_t of (K_tt + ridge) alpha_t = r_t.
        together: by task, its part of the alpha of (K + ridge) alpha = r over the rows of all tasks. J_t^T of it are
            the corrected vectors: their plain sum is the optimum of the summed losses.
        solved: the block solve's certificate.
        changes: by ("alone" | "added" | "together", task): what that solution adds to the outputs on the task's rows.
    """

    tasks: tuple[str, ...]
    alone: Mapping[str, Tensor]
    together: Mapping[str, Tensor]
    solved: Solved
    changes: Changes

    def rows(
        self,
        residuals: Mapping[str, Tensor],
        start: Mapping[str, Tensor] | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> list[dict[str, Cell]]:
        """A row a task: mean squared residual, and accuracy where logits and labels are given, of every solution.

        `"alone"` is a model for each task, the others are one model for all.
        """
        found: list[dict[str, Cell]] = []
        for task in self.tasks:
            row: dict[str, Cell] = {"task": task}
            for kind in ("alone", "added", "together"):
                change = self.changes[kind, task]
                left = residuals[task].double().view_as(change) - change
                row[f"{kind} loss"] = float(left.square().mean())
                if start is not None and labels is not None:
                    of = _labels(labels, task, len(change))
                    row[f"{kind} accuracy"] = right(start[task].double() + change, of)
            found.append(row)
        return found


@checked
def joint(kernels: Mapping[str, TangentKernel], residuals: Mapping[str, Tensor], ridge: float) -> Joint:
    """Solve for each task alone, and for all at once by one block solve: the multi-task optimum.

    minimise sum_t 1/2 |f0_t + J_t tau - y_t|^2 + ridge/2 |tau|^2 over one tau, which is sum_t J_t^T alpha_t.

    Args:
        kernels: by task: its training rows under its head.
        residuals: by task: y_t - f0_t, shape (N_t, O_t) or (N_t O_t).
        ridge: 0 or more, the same in all solves.

    Raises:
        UsageError: one task only, mappings that name different tasks, a singular system, too many rows for a matrix
            (a `UnionKernel` can be solved with `solve_cg`).

    Cost:
        All blocks between the tasks and (sum_t N_t O_t)^3 / 3 FLOPs.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(1, 1, bias=False)
        >>> kernels = {name: TangentKernel(net, torch.ones(1, 1)) for name in ("a", "b")}
        >>> found = joint(kernels, {"a": torch.ones(1), "b": torch.ones(1)}, 1.0)
        >>> [round(float(found.changes[kind, "a"]), 3) for kind in ("alone", "added", "together")]  # a sum overshoots
        [0.5, 1.0, 0.667]
    """
    names = _agreeing(kernels, residuals, "residuals")
    union = UnionKernel(kernels)
    flat = {name: vector_for(kernels[name], residuals[name], f"the residual of {name!r}") for name in names}
    alone = {name: solve_ridge(union.own(name), flat[name], ridge).alpha for name in names}
    solved = solve_ridge(union, torch.cat([flat[name] for name in names]), ridge)
    stacked = torch.cat([alone[name] for name in names])
    moved = {"added": union.matvec(stacked), "together": union.matvec(solved.alpha)}
    changes = {
        (kind, name): part.view(kernels[name].samples, -1)
        for kind, whole in moved.items()
        for name, part in union.split(whole).items()
    }
    changes |= {
        ("alone", name): union.own(name).matvec(alone[name]).view(kernels[name].samples, -1) for name in names
    }
    return Joint(names, alone, union.split(solved.alpha), solved, changes)


def require_several(tasks: Sequence[str]) -> None:
    """Raises `UsageError` unless there are two tasks or more."""
    if len(tasks) < 2:
        raise UsageError(
            f"{len(tasks)} task ({listed(tasks)}): interference is between tasks, so give at least two."
        )


def rms(values: Tensor) -> float:
    """The root mean square over rows and outputs."""
    return float(values.double().square().mean().sqrt())


def right(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's."""
    return float((logits.argmax(-1) == labels).double().mean())


def _labels(labels: Mapping[str, Tensor], task: str, rows: int) -> Tensor:
    if task not in labels or len(labels[task]) != rows:
        found = len(labels[task]) if task in labels else "no"
        raise DataError(f"task {task!r} has {rows} rows and {found} labels: give one for each row.")
    return labels[task]


def _agreeing(
    kernels: Mapping[str, TangentKernel], others: Mapping[str, object], what: str
) -> tuple[str, ...]:
    """The tasks' names; raises unless both mappings have them."""
    require_several(list(kernels))
    if kernels.keys() != others.keys():
        raise UsageError(f"kernels of {listed(kernels)} and {what} of {listed(others)}: name the same tasks.")
    return tuple(kernels)
