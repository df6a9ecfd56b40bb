"""What rows count in training: fixed weights, or the worst of several groups of rows (`WorstGroup`)."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.processes import World
from tauspan.objectives import Objective
from tauspan.train.rows import Part


@checked
@dataclass(frozen=True, eq=False)
class WorstGroup:
    """The loss of the worst group of rows instead of the mean over rows: max_g L_g = max over q of sum_g q_g L_g.

    L_g is the mean loss of group g, and q are numbers of 0 or more that sum to 1. They start equal, and before step t are

        q_g = exp(rate (L_g^1 + ... + L_g^(t-1))) / Z,   L_g^s = N / (|g| B) sum of the losses of rows of g in step s,

    an unbiased estimate of L_g from the B rows of step s, of N. These are the exponentiated-gradient weights of group
    DRO (Sagawa, Koh, Hashimoto and Liang, ICLR 2020, arXiv 1911.08731, algorithm 1), but that a step knows the losses of
    earlier steps alone, where algorithm 1 counts those of the step too: so one pass is enough, however the rows of a
    step are divided, and the gradient is unbiased given q.

    Args:
        groups: of each group its training rows, counted from 0, of several tasks in their order. A row may be in several
            groups; one in none does not count.
        rate: of q in a loss of 1 a step; 0 leaves groups equal, however many rows they have.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.sequence import WorstGroup
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(16) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> worst = WorstGroup([range(12), range(12, 16)])
        >>> run = ts.finetune(ts.load(torch.nn.Linear(4, 3)), task, weights=worst)
        >>> run.history[0]["groups"]["weight"]
        [0.5, 0.5]
    """

    groups: Sequence[Sequence[int]]
    rate: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(map(_numbers, self.groups)))
        if not self.groups or not all(self.groups):
            raise UsageError(
                f"groups of {[len(group) for group in self.groups]} rows: give one or more, none empty."
            )
        for place, group in enumerate(self.groups):
            if len(set(group)) < len(group):
                raise UsageError(f"group {place} has a row twice: name each row of a group once.")
        if not 0 <= self.rate < math.inf:
            raise UsageError(f"rate={self.rate}: it must be 0 or more.")


def _numbers(group: Sequence[int] | Tensor) -> tuple[int, ...]:
    """The rows of a group; an array of them is taken too, and a mask is not."""
    rows = group.tolist() if hasattr(group, "tolist") else list(group)
    if any(isinstance(row, bool) for row in rows):
        raise UsageError(
            f"a group is a mask of {len(rows)} truth values: name its rows, "
            "`torch.as_tensor(mask).nonzero().flatten().tolist()`."
        )
    if not all(isinstance(row, int) for row in rows):
        raise UsageError(
            f"a group names rows by {type(rows[0]).__name__}: give whole numbers, counted from 0."
        )
    return tuple(rows)


RowWeights = Sequence[float] | Tensor | WorstGroup


def counted(weights: Sequence[float] | Tensor, rows: int) -> Tensor:
    """The weights of so many rows, float64, checked.

    Raises:
        UsageError: another number of them, one that is negative or not finite, or nothing but 0.
    """
    found = torch.as_tensor(weights, dtype=torch.float64).detach().cpu().flatten()
    if len(found) != rows:
        raise UsageError(f"{len(found)} weights for {rows} training rows: give one for each row.")
    if not bool(((found >= 0) & found.isfinite()).all()) or not bool(found.any()):
        raise UsageError(
            f"weights from {float(found.min()):g} to {float(found.max()):g}: each is 0 or more, and not all are 0."
        )
    return found


def checksum(weights: Tensor) -> str:
    """A few digits by which weights are told apart."""
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]


class Weighing:
    """The weights of a run: fixed, or a function of the losses of the steps so far, which the history holds.

    Args:
        weights: as they were given.
        sizes: the number of training rows of each task.
    """

    def __init__(self, weights: RowWeights, sizes: Sequence[int]) -> None:
        self.starts, rows = [sum(sizes[:place]) for place in range(len(sizes))], sum(sizes)
        self.members: Tensor | None = None  # (groups, rows): N / |g| where the row is in the group, else 0
        if not isinstance(weights, WorstGroup):
            self.now = counted(weights, rows)
            return
        least, most = (edge(edge(group) for group in weights.groups) for edge in (min, max))
        if least < 0 or most >= rows:
            raise UsageError(
                f"groups name the rows {least} to {most} of {rows}: they are counted from 0 to {rows - 1}."
            )
        self.members, self.rate = torch.zeros(len(weights.groups), rows, dtype=torch.float64), weights.rate
        for place, group in enumerate(weights.groups):
            self.members[place, list(group)] = rows / len(group)
        self.losses = torch.zeros(len(weights.groups), dtype=torch.float64)  # summed over the steps
        self.seen = torch.zeros_like(self.losses)  # of the step that is under way
        self._turn()

    def facts(self) -> Mapping[str, Any]:
        """What the weights are, for a vector's key and its `info`."""
        if self.members is None:
            return {"kind": "rows", "checksum": checksum(self.now)}
        sizes = (self.members > 0).sum(1).tolist()
        return {
            "kind": WorstGroup.__name__,
            "rate": self.rate,
            "rows": sizes,
            "checksum": checksum(self.members),
        }

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Go on after the steps of a history; sums are made in the order of the steps, so they have the same bits."""
        for entry in history:
            if "groups" in entry:
                self.losses += torch.tensor(entry["groups"]["loss"], dtype=torch.float64)
        if self.members is not None:
            self._turn()

    def total(self, part: Part, objective: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
        """sum_n w_n l_n over the rows of a forward pass; where all count 1, by the same operation as without weights."""
        places = [self.starts[part[0]] + row for row in part[1]]
        weights = self.now[places]
        even = bool((weights == 1).all())
        if self.members is None:
            return objective.total(outputs, targets, None if even else weights.to(outputs.device))
        losses = objective.losses(outputs, targets)
        self.seen += self.members[:, places] @ losses.detach().double().cpu()
        return objective.total(outputs, targets) if even else (weights.to(losses) * losses).sum()

    def stepped(self, rows: int, processes: World, device: torch.device) -> dict[str, Any]:
        """Turn to the weights of the next step; what a step of so many rows adds to the history."""
        if self.members is None:
            return {}
        if processes.size > 1:  # NCCL does not exchange tensors on the CPU
            exchanged = self.seen.to(device)
            processes.sum([exchanged])
            self.seen.copy_(exchanged)
        found, used = self.seen / rows, self.shares()
        self.losses += found
        self.seen.zero_()
        self._turn()
        return {"groups": {"loss": found.tolist(), "weight": used.tolist()}}

    def shares(self) -> Tensor:
        """q, shape (groups,)."""
        return (self.rate * self.losses).softmax(0)

    def _turn(self) -> None:
        assert self.members is not None  # noqa: S101 - callers checked
        self.now = self.shares() @ self.members
