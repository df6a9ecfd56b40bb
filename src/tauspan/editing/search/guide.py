"""What chooses alpha of an ordinary sum in place of an evaluation at each point: the tangent model, or fewer rows."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from tauspan.core.choices import GUIDANCES, Guidance
from tauspan.core.errors import UsageError, nearest
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.ordinary import OrdinaryModel
from tauspan.editing.model.several import EditedModels
from tauspan.editing.search.grid import Grid, points_of
from tauspan.tasks import Task


class Chooser(Protocol):
    """What a search over alpha asks of a model."""

    @property
    def regime(self) -> str:
        """How its vectors edit."""

    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Read a split ahead."""

    def metric(self, task: Task, split: str, coefficients: Coefs) -> float:
        """The metric of one task on one split."""


class Guide(Chooser, Protocol):
    """Chooses alpha in place of an ordinary model."""

    @property
    def remark(self) -> str:
        """What a reader must know of the choice."""


class TangentGuide:
    """The tangent model of ordinary vectors, bent so that it meets the ordinary model at alpha = 1.

    f(x; theta0 + alpha v) is taken as f(x; theta0) + alpha J(x) v + alpha^2 c(x) with
    c(x) = f(x; theta0 + v) - f(x; theta0) - J(x) v: the value and the slope at 0 are exact, and the value at 1. The true
    second derivative would be exact at 0 alone, where nobody edits, and it would cost a pass of nested tangents.

    Args:
        tangent: the tangent model of the vectors.
        ordinary: the ordinary model, for c; None leaves c out.

    Cost:
        What the tangent model costs, and with `ordinary` one evaluation for each task and set of vectors.
    """

    def __init__(self, tangent: EditedModel, ordinary: EditedModel | None) -> None:
        self.tangent, self.ordinary = tangent, ordinary
        self.regime: str = tangent.regime
        self._bends: dict[tuple[Task, str, frozenset[str]], Tensor] = {}

    @property
    def remark(self) -> str:
        """Whose choice it is."""
        bent = "" if self.ordinary is None else ", bent to meet the ordinary one at alpha = 1,"
        return f" of the tangent model ({self.regime}){bent} which stands for the ordinary one"

    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Read a split ahead; see `EditedModel.read`."""
        if self.ordinary is not None:
            for task in needs:
                if task.objective.headless:
                    raise UsageError(
                        f"{task.name!r} has no logits ({task.objective.word}), which guided='curved' and 'checked' read. "
                        "Take guided='tangent'."
                    )
        self.tangent.read(needs, split)

    def metric(self, task: Task, split: str, coefficients: Coefs) -> float:
        """The metric of one task on one split, at one alpha for all vectors that are named."""
        used = {name: value for name, value in coefficients.items() if value}
        if self.ordinary is None or not used:
            return self.tangent.metric(task, split, used)
        key, (alpha,) = (task, split, frozenset(used)), set(used.values())
        if key not in self._bends:
            one = dict.fromkeys(used, 1.0)
            self._bends[key] = self.ordinary.logits(task, split, one) - self.tangent.logits(task, split, one)
        logits = self.tangent.logits(task, split, used) + alpha**2 * self._bends[key]
        return task.objective.value(logits, self.tangent.targets(task, split))


_STRIDE = 4  # every fourth point is evaluated on all rows


class RowGuide:
    """The ordinary model, asked at each point only about rows whose class may differ there.

    All rows are read at every fourth point of the grid. Between two neighbours a row is read only if its class is another
    one at each, at the middle point first, and then between those of the three points where it changes. A row whose
    class is the same at both is taken to keep it between: the choice is the grid's unless such rows decide it.

    Args:
        model: the ordinary model.
        whole: the coefficients of the sum at alpha = 1.
        grid: the candidates; those of an `"auto"` grid beyond its start are evaluated on all rows.

    Cost:
        6 evaluations of the paper's 21, and two or three for each row and change of its class.
    """

    def __init__(self, model: OrdinaryModel, whole: Coefs, grid: Grid) -> None:
        self.model, self.whole, self.regime = model, dict(whole), str(model.regime)
        self.points = sorted(set(points_of(grid)))
        self.read_rows, self.all_rows = (
            0,
            0,
        )  # rows that were read, and those that evaluations of the grid would read
        self._classes: dict[tuple[Task, str], Tensor] = {}

    @property
    def remark(self) -> str:
        """How much was read."""
        return f", from {self.read_rows} of the {self.all_rows} rows that all points have"

    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Find the classes of all rows at all points; of tasks without classes nothing is read ahead."""
        tasks = [task for task in needs if task.classes and task.objective.inputs == 1]
        last = len(self.points) - 1
        for task in tasks:
            size = len(task.split(split))
            self._classes[task, split] = torch.full((last + 1, size), -1, dtype=torch.int)
            self.all_rows += size * (last + 1)
        ends = sorted({*range(0, last, _STRIDE), last})
        for place in ends:
            for task in tasks:
                self._fill(task, split, place, torch.ones(len(task.split(split)), dtype=torch.bool))
        spans = list(pairwise(ends))
        while spans:  # level by level, so that each point's weights are set once for all tasks
            spans = [half for span in spans for half in self._halved(tasks, split, *span)]

    def _halved(self, tasks: Sequence[Task], split: str, low: int, high: int) -> list[tuple[int, int]]:
        """Fill the middle of two points whose classes are known."""
        if high - low < 2:
            return []
        middle = (low + high) // 2
        for task in tasks:
            table = self._classes[task, split]
            table[middle] = table[low]
            self._fill(task, split, middle, table[low] != table[high])
        return [(low, middle), (middle, high)]

    def _fill(self, task: Task, split: str, place: int, rows: Tensor) -> None:
        if not rows.any():
            return
        at = self._at(self.points[place])
        found = (
            self.model.classes(task, split, at)
            if rows.all()
            else self.model.classes_of(task, split, at, rows)
        )
        self._classes[task, split][place, rows] = found.to(torch.int)
        self.read_rows += int(rows.sum())

    def metric(self, task: Task, split: str, coefficients: Coefs) -> float:
        """The metric of one task on one split."""
        table = self._classes.get((task, split))
        place = next((at for at, alpha in enumerate(self.points) if coefficients == self._at(alpha)), None)
        if table is None or place is None:
            return self.model.metric(task, split, coefficients)
        right = table[place] == self.model.targets(task, split)
        return task.objective.summary(float(right.double().mean()))

    def _at(self, alpha: float) -> dict[str, float]:
        return {name: alpha * value for name, value in self.whole.items()}


def guide_of(
    models: EditedModels,
    model: EditedModel,
    tasks: Sequence[Task],
    guided: bool | Guidance,
    whole: Coefs,
    grid: Grid,
) -> Guide:
    """What chooses in place of an ordinary model.

    Raises:
        UsageError: no such guide, or a tangent regime.
    """
    if guided is not True and guided not in GUIDANCES:
        raise UsageError(f"guided={guided!r}. {nearest(str(guided), GUIDANCES)}")
    if not isinstance(model, OrdinaryModel):
        raise UsageError(
            f"guided={guided!r} in the regime {model.regime!r}: every coefficient comes from one pass already. "
            "Leave it out."
        )
    if guided == "rows":
        return RowGuide(model, whole, grid)
    tangent = models.tangent(model.directions, tasks, models.ahead)
    return TangentGuide(tangent, model if guided in ("curved", "checked") else None)
