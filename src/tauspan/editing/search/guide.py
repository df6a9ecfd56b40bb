"""`Guide`: nearly what an ordinary sum scores at any alpha, from one tangent pass."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from tauspan.core.choices import GUIDANCES, Guidance
from tauspan.core.errors import UsageError, nearest
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.several import EditedModels
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


class Guide:
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
        self.regime = tangent.regime
        self._bends: dict[tuple[Task, str, frozenset[str]], Tensor] = {}

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


def guide_of(
    models: EditedModels, model: EditedModel, tasks: Sequence[Task], guided: bool | Guidance
) -> Guide:
    """What chooses in place of an ordinary model.

    Raises:
        UsageError: no such guide, or a tangent regime.
    """
    if guided is not True and guided not in GUIDANCES:
        raise UsageError(f"guided={guided!r}. {nearest(str(guided), GUIDANCES)}")
    if model.regime != "standard":
        raise UsageError(
            f"guided={guided!r} in the regime {model.regime!r}: every coefficient comes from one pass already. "
            "Leave it out."
        )
    tangent = models.tangent(model.directions, tasks, models.ahead)
    return Guide(tangent, model if guided in ("curved", "checked") else None)
