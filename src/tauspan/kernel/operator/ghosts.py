"""`Ghosts`: which rows of other tasks a vector must not move, and how much that counts."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, nearest
from tauspan.kernel.approximate.lowrank import pivoted_cholesky
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.solvers.kernels import ScaledKernel

Choose = Literal["random", "pivoted"]


@checked
@dataclass(frozen=True, eq=False)
class Ghosts:
    """Which rows of other tasks a vector must not move, and how much that counts.

    The labels of these rows are never read: the wanted change of their logits is 0.

    Args:
        weight: what sum |J_s tau|^2 over the rows of another task s counts beside the sum over a task's own rows: one
            number, or a number for each task by its name; a task that is not named counts 1. With 0 nothing is asked.
        rows: take only so many rows of each task, each of which counts N_s / rows times. None takes all.
        choose: which ones: `"random"`, or `"pivoted"`, those that leave least of the kernel unexplained (randomly
            pivoted Cholesky).
        inputs: rows of another kind, without labels, as the model reads them; they are read under each task's head
            instead of the task's own rows. `rows` and `choose` do not apply to them.
        seed: of the choice.

    Raises:
        UsageError: a number below 0, no row, no inputs.
    """

    weight: float | Mapping[str, float] = 1.0
    rows: int | None = None
    choose: Choose = "random"
    inputs: Sequence[Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for whose, value in self.weight.items() if isinstance(self.weight, Mapping) else [("", self.weight)]:
            if not 0 <= value < math.inf:
                raise UsageError(
                    f"weight{f' of {whose!r}' if whose else ''} is {value}: it must be 0 or more."
                )
        if self.rows is not None and self.rows < 1:
            raise UsageError(
                f"rows={self.rows}: at least 1, or None for all; weight=0 asks nothing of other tasks."
            )
        if self.choose not in get_args(Choose):
            raise UsageError(f"choose={self.choose!r}. {nearest(str(self.choose), get_args(Choose))}")
        if self.inputs is not None and not len(self.inputs):
            raise UsageError("inputs are empty: give rows, or None for the tasks' own.")
        if self.inputs is not None and self.rows is not None:
            raise UsageError(
                f"rows={self.rows} chooses among the tasks' own rows, and inputs replace them: give one."
            )

    def weight_of(self, task: str) -> float:
        """What the rows of a task count."""
        return float(self.weight.get(task, 1.0) if isinstance(self.weight, Mapping) else self.weight)

    def require_known(self, tasks: Sequence[str]) -> None:
        """Raise `UsageError` for the weight of a task that is not there."""
        for name in self.weight if isinstance(self.weight, Mapping) else ():
            if name not in tasks:
                raise UsageError(f"weight names no task {name!r}. {nearest(name, tasks)}")

    def chosen(self, kernel: TangentKernel, present: Sequence[int]) -> list[int]:
        """The rows that are taken among those that are there."""
        if self.rows is None or self.rows >= len(present):
            return list(present)
        if self.choose == "random":
            return sorted(random.Random(self.seed).sample(present, self.rows))
        there = torch.zeros(kernel.samples, kernel.outputs, dtype=torch.float64)
        there[list(present)] = 1.0
        seen = ScaledKernel(kernel, there.flatten())  # an entry of 0 is never drawn
        entries = pivoted_cholesky(seen, self.rows * kernel.outputs, self.seed).landmarks
        order = dict.fromkeys(
            entry // kernel.outputs for entry in entries
        )  # each row once, in the order of choice
        return sorted([*order][: self.rows])

    def words(self) -> dict[str, Any]:
        """For provenance."""
        weight = dict(self.weight) if isinstance(self.weight, Mapping) else self.weight
        if self.inputs is not None:
            return {"weight": weight, "inputs": len(self.inputs)}
        which = {} if self.rows is None else {"rows": self.rows, "choose": self.choose, "seed": self.seed}
        return {"weight": weight, **which}
