"""How far each vector moves the logits of each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.maps.drift import Drift
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.tasks import Task
from tauspan.vector import TaskVector


@dataclass(frozen=True, kw_only=True)
class Disturbance(Result):
    """The drift of each vector on the rows of each task, at coefficient 1; off the diagonal it is interference.

    Args:
        regime: of the edits.
        split: whose rows.
        drift: by the task whose rows are read, then by the task whose vector edits; relative to the size of the
            pre-trained model's centred logits, as in `tauspan.disentanglement`.
    """

    regime: EditRegime
    split: str
    drift: Mapping[str, Mapping[str, float]]

    @property
    def worst(self) -> tuple[str, str, float]:
        """The task that is disturbed most by another task's vector, that task, and the drift."""
        pairs = [
            (row, of, value) for row, line in self.drift.items() for of, value in line.items() if row != of
        ]
        return max(pairs, key=lambda pair: pair[2])

    def report(self) -> Report:
        """A row for each task, a column for each vector."""
        rows: list[dict[str, Cell]] = [{"rows of": name, **line} for name, line in self.drift.items()]
        note = "columns: the vector that edits. Mean distance of centred logits from the pre-trained ones over their "
        note += f"mean size, on {self.split}"
        title = f"Drift of each vector on each task, {self.regime}"
        result = {"regime": self.regime, "drift": {name: dict(line) for name, line in self.drift.items()}}
        return Report(title, [Table(title, rows, note)], dict(self.provenance), (), result, self.warnings)


def disturbance(model: EditedModel, vectors: Mapping[Task, TaskVector], split: str) -> Disturbance:
    """Each vector alone on each task's rows; the model's directions are named after the tasks."""
    tasks: Sequence[Task] = list(vectors)
    names = [task.name for task in tasks]
    model.read(dict.fromkeys(tasks, names), split)
    drift = {task.name: {name: _drift(model, task, split, name) for name in names} for task in tasks}
    facts = facts_of(model, vectors.values(), split=split)
    return Disturbance(regime=model.regime, split=split, drift=drift, provenance=facts)


def _drift(model: EditedModel, task: Task, split: str, name: str) -> float:
    return Drift(
        task.name, lambda a: model.logits(task, split, {name: a}), affine=False, objective=task.objective
    )(1.0)
