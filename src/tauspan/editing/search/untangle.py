"""Vectors that others made, combined so that each keeps what it does on its own task and does little on the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tauspan.core.choices import EditRegime
from tauspan.core.errors import UsageError
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.tangent import TangentModel
from tauspan.editing.search.unknowns import Unknowns
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class UntangledTask:
    """One task on the rows that were read; root mean squares of changes of logits over that of its own vector.

    Args:
        task: its name.
        kept: how far the own change is from what it was, |J (tau' - tau)| / |J tau|.
        others_before: what the sum of the other vectors changes, before.
        others_after: the same, after.
    """

    task: str
    kept: float
    others_before: float
    others_after: float

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "task": self.task, "own change off by": self.kept, "moved by others before": self.others_before,
            "after": self.others_after,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Untangled(Result):
    """New vectors for the same tasks, each a combination of the given ones.

    Args:
        vectors: by task, to be added instead of the given ones.
        coefficients: by task, what each given vector (or each layer group of it) counts in the new one.
        tasks: what changed, by task.
        regime: of the given vectors.
        split: whose inputs were read.
    """

    vectors: Mapping[Task, TaskVector] = field(repr=False)
    coefficients: Mapping[str, Mapping[str, float]] = field(repr=False)
    tasks: Sequence[UntangledTask]
    regime: EditRegime
    split: str

    def report(self) -> Report:
        """A row for each task."""
        note = (
            f"Root mean squares of J tau over that of the task's own vector, on the inputs of {self.split}; "
            f"{sum(map(len, self.coefficients.values()))} coefficients. No label was read."
        )
        rows = [one.cells() for one in self.tasks]
        return Report("Untangled vectors", [Table("Untangled vectors", rows, note)], dict(self.provenance))


def untangled(
    model: TangentModel, free: Unknowns, vectors: Mapping[Task, TaskVector], regime: EditRegime, per: str,
    weight: float, ridge: float, split: str,
) -> Untangled:  # fmt: skip
    """By task s, the combination c of all directions that minimises an own and a foreign change of logits.

    c_s = (G_s + weight sum_{t != s} G_t + mu)^-1 G_s e_s, with G_t[u, v] the mean over rows of t of <J tau_u, J tau_v>,
    logits of classes centred, and e_s the given vector of s. mu is `ridge` times the mean of the diagonal.
    """
    tasks = list(vectors)
    model.read(dict.fromkeys(tasks, free.directions.names), split)
    moved = {task.name: _changes(model, free, task, split) for task in tasks}
    grams = {name: torch.einsum("unc,vnc->uv", one, one) / one.shape[1] for name, one in moved.items()}
    eye = torch.eye(len(free.names), dtype=torch.float64)
    own = {name: _indicator(free, name) for name in moved}
    found: dict[str, Tensor] = {}
    for name, mine in grams.items():
        system = mine + weight * sum(
            (other for one, other in grams.items() if one != name), torch.zeros_like(mine)
        )
        shift = ridge * float(system.diagonal().mean())
        found[name] = torch.linalg.lstsq(
            system + shift * eye, (mine @ own[name])[:, None], driver="gelsd"
        ).solution[:, 0]
    made = {}
    for task in tasks:
        values = free.at(found[task.name].tolist())
        vector = free.directions.combined(values, f"{task.name} (untangled)")
        how = {
            "per": per, "weight": weight, "ridge": ridge, "split": split, "of": [one.name for one in tasks],
        }  # fmt: skip
        info = {key: value for key, value in vector.info.items() if key != "tasks"}
        made[task] = replace(vector, info={**info, "task": task.name, "untangled": how})
    rows = [_row(name, one, found, own) for name, one in moved.items()]
    coefficients = {name: dict(zip(free.names, one.tolist(), strict=True)) for name, one in found.items()}
    return Untangled(
        vectors=made, coefficients=coefficients,
        tasks=rows, regime=regime, split=split, provenance=facts_of(model, vectors.values(), split=split),
    )  # fmt: skip


def require_several(vectors: Mapping[Task, TaskVector]) -> None:
    """Raises `UsageError` for a single vector, which has nothing to be told apart from."""
    if len(vectors) < 2:
        raise UsageError("one vector moves no other task: give the vectors of two tasks or more.")


def _changes(model: TangentModel, free: Unknowns, task: Task, split: str) -> Tensor:
    """J tau of each direction on the rows, shape (D, N, C), float64; of classes less each row's mean."""
    if task.objective.headless:
        raise UsageError(
            f"{task.name!r} has no logits ({task.objective.word}), and what vectors change is measured on logits: name "
            "words as classes (`encoder.language.head`), or solve for coefficients (`coefficients`)."
        )
    part = free.of(model.passed(task, split)).folded()
    if part.head is not None:
        raise UsageError(
            f"the head of {task.name!r} normalises after the linearisation point, so its logits are not affine: take "
            "reading=Reading(point='logits')."
        )
    tangents = part.tangents.double()
    return tangents - tangents.mean(-1, keepdim=True) if task.classes else tangents


def _indicator(free: Unknowns, name: str) -> Tensor:
    """1 at the directions of one vector."""
    mine = set(free.directions.of(name))
    return torch.tensor([float(direction in mine) for direction in free.names], dtype=torch.float64)


def _row(name: str, moved: Tensor, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> UntangledTask:
    def size(coefficients: Tensor) -> float:
        return float(torch.einsum("d,dnc->nc", coefficients, moved).square().mean().sqrt())

    before = size(own[name])
    others = [one for one in found if one != name]
    none = torch.zeros_like(own[name])
    return UntangledTask(
        name,
        size(found[name] - own[name]) / (before or 1.0),
        size(sum((own[one] for one in others), none)) / (before or 1.0),
        size(sum((found[one] for one in others), none)) / (before or 1.0),
    )
