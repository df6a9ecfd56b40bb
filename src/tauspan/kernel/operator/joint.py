"""One block solve for all tasks together: the solution that accounts for interference."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.kernel.operator.interference import Changes, accuracy, agreeing, labels_of
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.solvers.regression import solve_ridge
from tauspan.kernel.solvers.solution import DualSolution, vector_for


@dataclass(frozen=True, eq=False)
class Joint:
    """Each task's own optimum, their plain sum, and the optimum of all tasks together, on the training rows.

    Args:
        tasks: their names.
        alone: by task, the alpha_t of (K_tt + ridge) alpha_t = r_t.
        together: by task, its rows' part of the alpha of (K + ridge) alpha = r over the rows of all tasks. The sum of
            J_t^T of these row parts is the optimum of the summed losses. A single row part is no task vector: it leaves
            to the others what they happen to do for its task. `superpose` gives vectors with the same sum, each of which
            is the optimum of its own task while the others' rows stay.
        solution: the block solve, with its residual.
        residuals: by task, y_t - f0_t, shape (N_t, O_t).
        changes: by (kind, task): what a solution adds to the outputs on the rows of the task, shape (N_t, O_t). The kinds
            are "alone", a model for each task, and "added" and "together", one model for all.
    """

    tasks: tuple[str, ...]
    alone: Mapping[str, Tensor]
    together: Mapping[str, Tensor]
    solution: DualSolution
    residuals: Mapping[str, Tensor]
    changes: Changes

    def losses(self) -> dict[tuple[str, str], float]:
        """The mean squared residual by (kind, task)."""
        return {
            (kind, task): float((self.residuals[task] - change).square().mean())
            for (kind, task), change in self.changes.items()
        }

    def accuracies(
        self, start: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> dict[tuple[str, str], float]:
        """The accuracy by (kind, task), from logits at the base (N_t, O_t) and classes (N_t,) by task."""
        return {
            (kind, task): accuracy(start[task].double() + change, labels_of(labels, task, len(change)))
            for (kind, task), change in self.changes.items()
        }


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
        >>> solved = joint(kernels, {"a": torch.ones(1), "b": torch.ones(1)}, 1.0)
        >>> [round(float(solved.changes[kind, "a"]), 3) for kind in ("alone", "added", "together")]  # a sum overshoots
        [0.5, 1.0, 0.667]
    """
    names = agreeing(kernels, residuals, "residuals")
    union = UnionKernel(kernels)
    flat = {name: vector_for(kernels[name], residuals[name], f"the residual of {name!r}") for name in names}
    alone = {name: solve_ridge(union.own(name), flat[name], ridge).alpha for name in names}
    solution = solve_ridge(union, torch.cat([flat[name] for name in names]), ridge)
    stacked = torch.cat([alone[name] for name in names])
    moved = {"added": union.matvec(stacked), "together": union.matvec(solution.alpha)}
    changes = {
        (kind, name): part.view(kernels[name].samples, -1)
        for kind, whole in moved.items()
        for name, part in union.split(whole).items()
    }
    changes |= {
        ("alone", name): union.own(name).matvec(alone[name]).view(kernels[name].samples, -1) for name in names
    }
    shaped = {name: flat[name].view(kernels[name].samples, -1) for name in names}
    return Joint(names, alone, union.split(solution.alpha), solution, shaped, changes)
