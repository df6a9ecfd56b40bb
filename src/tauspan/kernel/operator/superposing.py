"""The linear systems of superposed vectors: whose rows there are, what is wanted of them, and what they count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from tauspan.core.reading import Reading
from tauspan.kernel.approximate.lowrank import preconditioner
from tauspan.kernel.operator.closed_form import loss_problem, require_closed
from tauspan.kernel.operator.ghosts import Ghosts
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.operator.union import UnionKernel
from tauspan.kernel.rows.tiles import Backend
from tauspan.kernel.solvers.cg import solve_cg
from tauspan.kernel.solvers.kernels import ScaledKernel
from tauspan.kernel.solvers.regression import RidgeChoice, choose_ridge
from tauspan.kernel.solvers.solution import DENSE, DualSolution, cholesky, matrix_of
from tauspan.models import Classifier, Encoder
from tauspan.tasks import Split, Task, build_head
from tauspan.tasks.batches import encoded

_INPUTS = " / inputs"  # behind the name of a task: rows without labels under its head


@dataclass(frozen=True)
class Rows:
    """How the rows of a task become a kernel; see `closed_form`."""

    encoder: Encoder
    gap: float | None
    params: str | Sequence[str]
    reading: Reading
    backend: Backend

    def kernel(self, task: Task) -> tuple[TangentKernel, Tensor]:
        """The kernel of the training rows, and the wanted change of their outputs, shape (N C)."""
        require_closed(task, "squared")
        problem = loss_problem(self.encoder, task, False, self.gap, self.params, self.reading, self.backend)
        return problem.kernel, problem.residual().double().flatten()

    def of_inputs(self, task: Task, inputs: Sequence[Any]) -> TangentKernel:
        """The kernel of rows without labels under the head of a task."""
        head = build_head(task, self.encoder, max_tokens=self.reading.max_tokens)
        rows = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
        size, cut = self.reading.batch_size, task.tokens(self.reading.max_tokens)
        batches = [
            encoded(
                self.encoder, rows.take(list(range(begin, min(begin + size, len(rows))))), task.objective, cut
            )
            for begin in range(0, len(rows), size)
        ]
        return TangentKernel(
            Classifier(self.encoder, head), batches, params=self.params, backend=self.backend
        )


@dataclass(frozen=True, eq=False)
class Setting:
    """What is solved: whose rows there are, what is wanted of them, and what counts how much.

    Args:
        made: how rows become kernels.
        tasks: the names of those that get a vector, with them.
        controls: the names of those whose rows must not move and that get none.
        union: the kernel of all rows.
        residuals: by task, the wanted change of its outputs, shape (N C).
        ghosts: which rows of other tasks count, and how much.
        gone: by task, rows that were removed.
        ridge: a number, or `"loo"`.
        tolerance: of conjugate gradients.
        max_steps: of conjugate gradients.
    """

    made: Rows
    tasks: Mapping[str, Task]
    controls: tuple[str, ...]
    union: UnionKernel
    residuals: Mapping[str, Tensor]
    ghosts: Ghosts
    ridge: float | Literal["loo"]
    tolerance: float
    max_steps: int
    gone: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def present(self, name: str) -> list[int]:
        """The rows of a task that were not removed."""
        gone = set(self.gone.get(name, ()))
        return [row for row in range(self.union.kernels[name].samples) if row not in gone]

    @cached_property
    def _taken(self) -> dict[str, list[int]]:
        """The rows of each kernel that are ghosts for other tasks; none of those that other inputs stand for."""
        generic = self.ghosts.inputs is not None
        return {
            name: self.ghosts.chosen(kernel, self.present(name)) if name.endswith(_INPUTS) == generic else []
            for name, kernel in self.union.kernels.items()
        }

    def weights(self, target: str) -> Tensor:
        """What each entry counts in the loss of one task, shape (n)."""
        found = torch.zeros(self.union.shape[0], dtype=torch.float64)
        for name, span in self.union.spans.items():
            owner, rows, weight = name.removesuffix(_INPUTS), self._taken[name], 1.0
            if name == target:
                rows = self.present(name)
            elif owner == target or not rows:
                continue
            else:
                weight = self.ghosts.weight_of(owner) * len(self.present(owner)) / len(rows)
            found[span].view(-1, self.union.kernels[name].outputs)[rows] = weight
        return found

    def wanted(self, target: str) -> Tensor:
        """The wanted change of all outputs in the loss of one task, shape (n): 0 on the rows of others."""
        found = torch.zeros(self.union.shape[0], dtype=torch.float64)
        found[self.union.spans[target]] = self.residuals[target]
        return found

    @property
    def names(self) -> list[str]:
        """Tasks and controls."""
        return [*self.tasks, *self.controls]

    def joined(self, task: Task, *, control: bool = False) -> "Setting":
        """With the rows of one more task; only what is new is computed."""
        kernel, residual = self.made.kernel(task)
        union = self.union.joined(task.name, kernel)
        if self.ghosts.inputs is not None:
            union = union.joined(task.name + _INPUTS, self.made.of_inputs(task, self.ghosts.inputs))
        if control:
            return replace(self, union=union, controls=(*self.controls, task.name))
        return replace(
            self,
            union=union,
            tasks={**self.tasks, task.name: task},
            residuals={**self.residuals, task.name: residual},
        )

    def without(self, names: Sequence[str]) -> "Setting":
        """Without the rows of some tasks or controls; nothing is computed."""
        return replace(
            self,
            tasks={name: task for name, task in self.tasks.items() if name not in names},
            controls=tuple(name for name in self.controls if name not in names),
            union=self.union.without([*names, *(name + _INPUTS for name in names)]),
            residuals={name: one for name, one in self.residuals.items() if name not in names},
            gone={name: rows for name, rows in self.gone.items() if name not in names},
        )

    # -- solving ---------------------------------------------------------------------------------------------

    def chosen_ridge(self) -> tuple[float, RidgeChoice | None]:
        """The ridge, and how leave-one-out chose it from the own rows of all tasks together."""
        if self.ridge != "loo":
            return float(self.ridge), None
        counted = torch.zeros(self.union.shape[0], dtype=torch.float64)
        for name in self.names:
            kernel = self.union.kernels[name]
            counted[self.union.spans[name]].view(-1, kernel.outputs)[self.present(name)] = 1.0
        together = sum(map(self.wanted, self.tasks), torch.zeros_like(counted))
        choice = choose_ridge(ScaledKernel(self.union, counted), together * counted)
        return choice.ridge, choice

    def solutions(self, ridge: float) -> dict[str, DualSolution]:
        """By task, alpha = D (D K D + ridge)^-1 D r; tasks of one weighting share a factorisation."""
        alike: dict[bytes, list[str]] = {}
        weights = {name: self.weights(name) for name in self.tasks}
        for name, weight in weights.items():
            alike.setdefault(weight.numpy().tobytes(), []).append(name)
        found: dict[str, DualSolution] = {}
        for names in alike.values():
            solve = self._direct if self.union.shape[0] <= DENSE else self._iterated
            found |= solve(weights[names[0]], names, ridge)
        return {name: found[name] for name in self.tasks}

    def _direct(self, weight: Tensor, names: Sequence[str], ridge: float) -> dict[str, DualSolution]:
        """By Cholesky over the entries that count."""
        kept = weight.nonzero().flatten()
        root = weight[kept].sqrt()
        matrix = root[:, None] * matrix_of(self.union)[kept[:, None], kept[None]] * root
        wanted = torch.stack([root * self.wanted(name)[kept] for name in names], 1)
        solved = torch.cholesky_solve(wanted, cholesky(matrix, ridge))
        missed = (matrix @ solved + ridge * solved - wanted).norm(dim=0) / wanted.norm(dim=0).clamp(
            min=1e-300
        )
        found = {}
        for place, name in enumerate(names):
            alpha = torch.zeros_like(weight)
            alpha[kept] = root * solved[:, place]
            found[name] = DualSolution(
                alpha, "ridge by Cholesky", ridge, True, True, relative_residual=float(missed[place])
            )
        return found

    def _iterated(self, weight: Tensor, names: Sequence[str], ridge: float) -> dict[str, DualSolution]:
        """By conjugate gradients, without the matrix."""
        root = weight.sqrt()
        kernel = ScaledKernel(self.union, root)
        near = preconditioner(kernel)
        found = {}
        for name in names:
            one = solve_cg(
                kernel,
                root * self.wanted(name),
                ridge,
                near,
                tolerance=self.tolerance,
                max_steps=self.max_steps,
            )
            found[name] = replace(one, alpha=root * one.alpha)
        return found

    def joint_residual(self, solutions: Mapping[str, DualSolution], ridge: float) -> float | None:
        """|(K + ridge) sum_t alpha_t - r| / |r| where every row counts 1 for every task; else None."""
        weights = [self.weights(name) for name in self.tasks]
        counted = weights[0]
        if not all(torch.equal(one, counted) for one in weights) or bool(
            ((counted != 0) & (counted != 1)).any()
        ):
            return None
        alpha = torch.stack([solutions[name].alpha for name in self.tasks]).sum(0)
        wanted = torch.stack([self.wanted(name) for name in self.tasks]).sum(0)
        left = counted * (self.union.matvec(alpha) + ridge * alpha - wanted)
        return float(left.norm()) / (float((counted * wanted).norm()) or 1.0)


def setting_of(
    made: Rows,
    tasks: Sequence[Task],
    controls: Sequence[Task],
    ghosts: Ghosts,
    ridge: float | Literal["loo"],
    tolerance: float,
    max_steps: int,
) -> Setting:
    """The setting of some tasks and controls; arguments as for `superpose`."""
    first, *others = tasks
    kernel, residual = made.kernel(first)
    kernels = {first.name: kernel}
    if ghosts.inputs is not None:
        kernels[first.name + _INPUTS] = made.of_inputs(first, ghosts.inputs)
    found = Setting(
        made,
        {first.name: first},
        (),
        UnionKernel(kernels),
        {first.name: residual},
        ghosts,
        ridge,
        tolerance,
        max_steps,
    )
    for task in others:
        found = found.joined(task)
    for task in controls:
        found = found.joined(task, control=True)
    return found
