"""Superposed task vectors: each is fitted while the rows of other tasks stay, so that their sum is right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, UsageError, listed, nearest
from tauspan.core.measure import Cost, measured
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.core.results import Result
from tauspan.kernel.operator.closed_form import require_certified, task_vectors
from tauspan.kernel.operator.ghosts import Ghosts
from tauspan.kernel.operator.interference import Interference, rms
from tauspan.kernel.operator.superposing import Rows, Setting, setting_of
from tauspan.kernel.rows.tiles import Backend
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.regression import RidgeChoice
from tauspan.kernel.solvers.solution import DualSolution
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True, kw_only=True, eq=False)
class Superposed(Result):
    """Task vectors that were made to be added, with the solutions they are made of.

    Args:
        vectors: by task; ordinary vectors of regime `linear`.
        solutions: by task, alpha over the rows of all tasks; tau_t = J^T alpha_t.
        ridge: the pull to the base, the same for all.
        joint_residual: |(K + ridge) sum_t alpha_t - r| / |r|, how far the sum of the vectors is from the optimum of all
            tasks together: rounding, if all rows count 1. None where they do not, and the sum is another optimum.
        choice: how leave-one-out chose the ridge; None where it was given.
        setting: what was solved, for tasks and rows that come or go.
        cost: seconds and memory of everything, kernels included.
    """

    vectors: Mapping[Task, TaskVector]
    solutions: Mapping[str, DualSolution]
    ridge: float
    joint_residual: float | None
    choice: RidgeChoice | None = None
    setting: Setting = field(repr=False)
    cost: Cost = field(default_factory=Cost, repr=False)

    def __repr__(self) -> str:
        told = "" if self.joint_residual is None else f", sum = joint optimum to {self.joint_residual:.1e}"
        return f"Superposed({', '.join(self.solutions)}, ridge {self.ridge:g}{told})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that have a vector."""
        return tuple(self.solutions)

    def interference(self) -> Interference:
        """What each vector does on the training rows of each task that are there, from the kernel.

        Raises:
            UsageError: there is one task only.
        """
        there = {pair: change[self.setting.present(pair[0])] for pair, change in self._changes.items()}
        return Interference(tasks=self.tasks, changes=there, provenance=dict(self.provenance))

    @cached_property
    def _changes(self) -> dict[tuple[str, str], Tensor]:
        """By (on, by), K alpha of one task's solution on the rows of another, shape (N_on, O_on)."""
        union = self.setting.union
        moved = {by: union.split(union.matvec(one.alpha)) for by, one in self.solutions.items()}
        return {
            (on, by): moved[by][on].view(union.kernels[on].samples, -1) for on in self.tasks for by in moved
        }

    def joined(self, task: Task) -> "Superposed":
        """The vectors with one more task; only the kernel of its rows is computed.

        Raises:
            DataError: a task of that name is there.
        """
        if task.name in self.setting.names:
            raise DataError(
                f"there is a task {task.name!r} already; remove it first: `.without({task.name!r})`."
            )
        return solved(self.setting.joined(task))

    def without(self, *names: str) -> "Superposed":
        """The vectors as if some tasks (or controls) had never been there; no kernel is computed.

        Raises:
            UsageError: a task that is not there, or all of them.
        """
        for name in names:
            self._require(name)
        if not set(self.setting.tasks) - set(names):
            raise UsageError(f"without {listed(names)} no task has a vector: keep at least one.")
        return solved(self.setting.without(names))

    def without_rows(self, task: str, rows: Sequence[int]) -> "Superposed":
        """The vectors as if some training rows of a task had never been there, in its own fit and in all others.

        Args:
            task: a task or control.
            rows: by their number in the training split.

        Raises:
            UsageError: a task that is not there, a row that is not there any more, or all rows.
        """
        self._require(task)
        was = self.setting
        present = set(was.present(task))
        absent = sorted(set(rows) - present)
        if absent or not rows:
            raise UsageError(
                f"rows {listed(map(str, absent)) or '[]'} of {task!r}: name rows that are there, which are "
                f"{len(present)} of 0 to {was.union.kernels[task].samples - 1}."
            )
        if len(set(rows)) == len(present):
            raise UsageError(f"all rows of {task!r} would leave: remove the task, `.without({task!r})`.")
        gone = {**was.gone, task: (*was.gone.get(task, ()), *sorted(set(rows)))}
        return solved(replace(was, gone=gone))

    def with_ghosts(self, ghosts: Ghosts | float) -> "Superposed":
        """The vectors with other ghosts of the same rows: weights, how many, which; no kernel is computed.

        The ridge is asked for anew, as in `superpose`.

        Raises:
            UsageError: ghosts of other inputs than those that are there, or a weight of a task that is not there.
        """
        asked = ghosts if isinstance(ghosts, Ghosts) else Ghosts(float(ghosts))
        asked.require_known(self.setting.names)
        if asked.inputs is not self.setting.ghosts.inputs:
            raise UsageError("ghosts of other inputs have a kernel of their own: call `superpose` with them.")
        return solved(replace(self.setting, ghosts=asked))

    def _require(self, name: str) -> None:
        if name not in self.setting.names:
            raise UsageError(f"there is no task {name!r}. {nearest(name, self.setting.names)}")

    def report(self) -> Report:
        """For each task, how well its rows are fitted and how far the vectors of others move them."""
        rows: list[dict[str, Cell]] = []
        for on in self.tasks:
            present = self.setting.present(on)
            own = self._changes[on, on][present]
            wanted = self.setting.residuals[on].view_as(self._changes[on, on])[present]
            others = sum(
                (self._changes[on, by][present] for by in self.tasks if by != on), torch.zeros_like(own)
            )
            rows.append({
                "task": on,
                "rows": len(present),
                "missed": rms(wanted - own) / (rms(wanted) or 1.0),
                "missed by the sum": rms(wanted - own - others) / (rms(wanted) or 1.0),
                "moved by others": rms(others) / (rms(own) or 1.0),
            })  # fmt: skip
        told = (
            "The vectors are optima of losses that weigh rows differently, and their sum is that of none."
            if self.joint_residual is None
            else f"Their sum is the optimum of all tasks together (relative residual {self.joint_residual:.1e})."
        )
        note = (
            "missed: |wanted - J tau| / |wanted| on training rows, of the own vector and of the sum of all; moved by "
            f"others: root mean square of the others' change over the own. Ridge {self.ridge:g}. {told}"
        )
        return Report(
            "Superposed task vectors", [Table("Superposed task vectors", rows, note)], dict(self.provenance)
        )


@checked
def superpose(
    encoder: Encoder,
    tasks: Sequence[Task],
    ghosts: Ghosts | float = 1.0,
    ridge: float | Literal["loo"] = "loo",
    *,
    controls: Sequence[Task] = (),
    gap: float | None = None,
    params: str | Sequence[str] = "all",
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    tolerance: float = 1e-10,
    max_steps: int = 1000,
) -> Superposed:
    """Fit a vector for each task that leaves the rows of the other tasks where they are, in closed form.

    tau_t minimises 1/2 |J_t tau - r_t|^2 + 1/2 sum_{s != t} w_s |J_s tau|^2 + ridge/2 |tau|^2, with r_t what the squared
    loss of `closed_form` asks of the task's training rows. The rows of s are ghosts: their wanted change is 0, their
    labels are not read. With D^2 = W_t the diagonal of 1 on own entries and w_s on those of others, alpha_t =
    D (D K D + ridge)^-1 D r_t over the rows of all tasks, and tau_t = J^T alpha_t.

    - Weight 0 gives the vectors of `closed_form`.
    - Weight 1 makes the system the same for all tasks, so the sum of the vectors is the optimum of all tasks together,
      exactly; and the sum of any of them is the optimum in which the rest is asked to stay as pre-trained.
    - A large weight keeps to directions that other tasks do not see.

    So a vector that is subtracted is constrained too: forgetting does not move the rows of the controls.

    Args:
        encoder: what `tauspan.load` returned.
        tasks: one or more classification or regression tasks; each gets a vector. One needs controls.
        ghosts: a `Ghosts`, or its weight alone.
        ridge: a number, the same for all tasks, or `"loo"`: the least leave-one-out error of all tasks together.
        controls: tasks that get no vector, and whose training rows must not move either.
        gap: target distance of the right logit from the others; None is the scale of each head.
        params: which parameters move.
        reading: batches, and where texts are cut.
        backend: of the kernels.
        tolerance: of conjugate gradients, where the matrix would have more than 20,000 rows.
        max_steps: of conjugate gradients.

    Returns:
        A `Superposed`, whose `.vectors` go into an `Editor`.

    Raises:
        UsageError: nothing that could be ghosts, an impossible setting, or a task that has no closed form.
        DataError: two tasks of one name, or a task of one class.
        NonFiniteError: NaN or infinity in rows, logits or kernel.

    Cost:
        The kernel of the rows of all tasks (n = sum_t N_t C_t entries a side), n^3 / 3 FLOPs for each distinct weighting
        (one, if all rows count 1), one pass over all rows and a backward for each vector.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
        >>> tasks = [
        ...     ts.Task.from_tensors(name, ["no", "yes"], train=(x, y), validation=(x, y), test=(x, y))
        ...     for name, y in [("parity", y % 2), ("half", y // 2)]
        ... ]
        >>> found = ts.superpose(ts.load(torch.nn.Linear(4, 3)), tasks, ridge=0.1)
        >>> found.joint_residual < 1e-10, found.vectors[tasks[0]].regime
        (True, 'linear')
    """
    reading.require_no_point("superpose")
    ghosts = ghosts if isinstance(ghosts, Ghosts) else Ghosts(float(ghosts))
    everyone = [*tasks, *controls]
    names = [task.name for task in everyone]
    if not tasks or len(everyone) < 2:
        raise UsageError(
            f"{len(tasks)} tasks and {len(controls)} controls: give two tasks, or one and a control, whose rows are to "
            "stay; `closed_form` fits one alone."
        )
    if len(set(names)) < len(names):
        raise DataError(f"two of the tasks {listed(names)} have one name; give each its own.")
    ghosts.require_known(names)
    if ridge != "loo":
        require_ridge(ridge)
    rows = Rows(encoder, gap, params, reading, backend)
    with measured() as cost:
        found = solved(setting_of(rows, tasks, controls, ghosts, ridge, tolerance, max_steps))
    return replace(found, cost=cost)


def solved(setting: Setting) -> Superposed:
    """The vectors of a setting, each compared with its solution."""
    ridge, choice = setting.chosen_ridge()
    solutions = setting.solutions(ridge)
    alphas, named = [solution.alpha for solution in solutions.values()], []
    for name, solution in solutions.items():
        facts = {
            "objective": "squared", "rows": len(setting.present(name)), "ghosts": setting.ghosts.words(),
            "others": [one for one in setting.names if one != name], **solution.facts(),
        }  # fmt: skip
        named.append((name, {"task": name, "solver": facts}))
    made = task_vectors(setting.union, alphas, named)
    if setting.union.check != "off":
        require_certified(setting.union, alphas, made)
    vectors = {setting.tasks[name]: vector for name, vector in zip(solutions, made, strict=True)}
    return Superposed(
        vectors=vectors, solutions=solutions, ridge=ridge, choice=choice, setting=setting,
        joint_residual=setting.joint_residual(solutions, ridge), provenance=provenance(),
    )  # fmt: skip
