"""Do vectors add on outputs? R^2 of the main effects over all subsets: weight disentanglement beyond pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from tauspan.core.choices import EditRegime
from tauspan.core.errors import UsageError
from tauspan.core.measure import progress
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.search.subsets import MOST
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class TaskEffects:
    """What the vectors do on one task's rows, over all subsets of them.

    Args:
        task: whose rows.
        r2: the share of the variance of outputs over subsets that main effects explain; None where nothing moves.
        own: the share of the task's own vector in the sum of squared main effects; None where nothing moves.
        cosines: between the main effects of two vectors, by pair.
        size: rms of each vector's main effect over rows and outputs.
    """

    task: str
    r2: float | None
    own: float | None
    cosines: Mapping[tuple[str, str], float] = field(repr=False)
    size: Mapping[str, float] = field(repr=False)

    @property
    def mean_cosine(self) -> float:
        """The mean of the absolute cosines."""
        return sum(map(abs, self.cosines.values())) / len(self.cosines)


@dataclass(frozen=True, kw_only=True)
class Factorisation(Result):
    """How far outputs over subsets of vectors are a sum of one part per vector, task by task.

    Args:
        regime: of the edits.
        split: whose rows.
        scale: the coefficient of each vector of a subset.
        effects: one for each task.
    """

    regime: EditRegime
    split: str
    scale: float
    effects: Sequence[TaskEffects]

    @property
    def r2(self) -> float:
        """The mean over tasks whose outputs move."""
        return _mean([one.r2 for one in self.effects])

    @property
    def own(self) -> float:
        """The mean over tasks of the share that the own vector has."""
        return _mean([one.own for one in self.effects])

    @property
    def verdict(self) -> str:
        """How additive outputs are, and how much of what moves is a task's own."""
        least = min((one for one in self.effects if one.r2 is not None), key=lambda one: one.r2 or 0.0)
        return (
            f"Sums of effects explain {self.r2:.1%} of what subsets do (least on {least.task}: {least.r2:.1%}); "
            f"{self.own:.1%} of it is of a task's own vector."
        )

    def report(self) -> Report:
        """A row for each task."""
        rows: list[dict[str, Cell]] = [
            {
                "rows of": one.task, "R2": one.r2, "own vector's share": one.own,
                "mean |cos| of effects": one.mean_cosine,
                **{f"size of {name}": value for name, value in one.size.items()},
            }
            for one in self.effects
        ]  # fmt: skip
        note = (
            f"over all {2 ** len(self.effects)} subsets at coefficient {self.scale:g}, on {self.split}; size: rms of a "
            "vector's main effect on logits"
        )
        title = f"Effects of vectors on outputs, {self.regime}"
        return Report(
            title,
            [Table(title, rows, note)],
            dict(self.provenance),
            warnings=self.warnings,
            verdict=self.verdict,
        )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def factorisation(
    model: EditedModel, vectors: Mapping[Task, TaskVector], scale: float, split: str
) -> Factorisation:
    """Main effects of all vectors on each task's rows; the model's directions are named after the tasks."""
    tasks, names = list(vectors), [task.name for task in vectors]
    if not 2 <= len(names) <= MOST:
        raise UsageError(
            f"{len(names)} vectors: effects over all subsets are measured of 2 to {MOST}. Leave some out, or look at "
            "pairs: `maps`."
        )
    model.read(dict.fromkeys(tasks, names), split)
    with progress(f"effects, {model.regime}", len(tasks)) as advance:
        found = []
        for task in tasks:
            found.append(_effects(model, task, names, scale, split))
            advance(1, task.name)
    if all(one.r2 is None for one in found):
        raise UsageError(
            f"no vector moves the outputs of any task at coefficient {scale:g}: give another one."
        )
    facts = facts_of(model, vectors.values(), split=split, scale=scale)
    return Factorisation(regime=model.regime, split=split, scale=scale, effects=found, provenance=facts)


def _effects(model: EditedModel, task: Task, names: Sequence[str], scale: float, split: str) -> TaskEffects:
    """Two passes over the subsets keep one sum per vector in memory, and not all outputs."""
    design = list(product((-1, 1), repeat=len(names)))

    def outputs(signs: Sequence[int]) -> Tensor:
        chosen = {name: scale for name, sign in zip(names, signs, strict=True) if sign > 0}
        z = model.logits(task, split, chosen).double()
        return z - z.mean(-1, keepdim=True) if task.classes else z

    first = outputs(design[0])
    total, squares = torch.zeros_like(first), torch.zeros((), dtype=torch.float64)
    sums = [torch.zeros_like(first) for _ in names]
    for signs in design[
        1:
    ]:  # the first one adds nothing: it is subtracted from all, since it would cost digits
        z = outputs(signs) - first
        total += z
        squares += z.square().sum()
        for part, sign in zip(sums, signs, strict=True):
            part.add_(z, alpha=sign)
    count = len(design)
    variance = float(squares - total.square().sum() / count)
    halves = [part / count for part in sums]  # half of what a vector adds, averaged over the others
    explained = [float(half.square().sum()) * count for half in halves]
    moved = variance > 0
    return TaskEffects(
        task.name,
        sum(explained) / variance if moved else None,
        explained[names.index(task.name)] / sum(explained) if sum(explained) > 0 else None,
        {
            (one, two): _cosine(halves[i], halves[j])
            for i, one in enumerate(names)
            for j, two in enumerate(names)
            if i < j
        },
        {name: float(2 * half.square().mean().sqrt()) for name, half in zip(names, halves, strict=True)},
    )


def _cosine(one: Tensor, two: Tensor) -> float:
    sizes = float(one.norm() * two.norm())
    return float((one * two).sum()) / sizes if sizes else 0.0
