"""`EditedModel`: f at theta0 and any coefficients of some directions. Its classes are in `ordinary` and `tangent`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from tauspan import models
from tauspan.core.choices import EditRegime, Point
from tauspan.core.measure import underway
from tauspan.core.reading import Reading
from tauspan.editing.model.directions import Directions, require_numbers
from tauspan.editing.model.outputs import Targets
from tauspan.editing.model.regime import point_of
from tauspan.models import Encoder, Head
from tauspan.models.language import Language
from tauspan.objectives import Objective
from tauspan.tangent.contributions import Advance, silent
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import Batches, batches
from tauspan.tasks.reference import TaskTargets
from tauspan.vector import TaskVector, confined

Coefs = Mapping[str, float]  # by direction; a direction that is not named counts as 0


_Asked: TypeAlias = tuple[Task, str, tuple[tuple[str, float], ...]]


def _used(coefficients: Coefs) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((name, value) for name, value in coefficients.items() if value))


class EditedModel(ABC):
    """The logits of f at theta0 + sum_d a_d direction_d on the rows of tasks, for any coefficients a.

    Every task is read under its frozen head, which comes from the pre-trained encoder. A regime is one final class:
    it says how logits follow from coefficients, and whether they are affine in them.

    Args:
        encoder: the pre-trained encoder at theta0; it is never changed.
        directions: task vectors by name, whole or cut into groups of tensors; without any, the model is f(x; theta0).
        regime: how the vectors edit.
        reading: batches, where texts are cut, and the linearisation point.
        ahead: read a split in all directions at once, so that later questions need no pass of their own.

    Raises:
        BaseMismatchError: a vector starts from another model.
        UsageError: vectors that were made at different linearisation points.
    """

    regimes: ClassVar[tuple[EditRegime, ...]]
    tangent: ClassVar[bool]  # the vectors move only parameters that J(x) tau depends on

    def __init__(
        self,
        encoder: Encoder,
        directions: Directions,
        regime: EditRegime,
        reading: Reading,
        ahead: bool = False,
    ) -> None:
        self.directions, self.regime, self.reading = directions, regime, reading
        self.encoder = confined(encoder, directions.vectors.values())
        self.ahead = ahead
        self.point = point_of(list(directions.vectors.values()), reading.point)
        self.fingerprint = models.fingerprint_of(encoder)
        for vector in directions.vectors.values():
            self.fitted(vector)
        self._heads: dict[Task, Head] = {}
        self._prepared: dict[tuple[Task, str], Batches] = {}
        self._targets: dict[tuple[Task, str], Tensor] = {}
        self._classes: dict[_Asked, Tensor] = {}
        self._scores: dict[_Asked, Tensor] = {}
        self._begin()

    # -- what regimes define ---------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """Set up what the regime keeps between questions."""

    @abstractmethod
    def affine(self, task: Task) -> bool:
        """Whether the task's logits are affine in the coefficients."""

    @abstractmethod
    def _logits(self, task: Task, split: str, used: Coefs, about: str, advance: Advance) -> Tensor:
        """The logits, checked to be finite; `about` says in words whose they are."""

    @abstractmethod
    def _language(self, used: Coefs) -> Language | None:
        """What makes losses of the outputs of a language model at these coefficients."""

    @abstractmethod
    def read(self, needs: Mapping[Task, Sequence[str]], split: str) -> None:
        """Read a split ahead, in one pass for each task: which directions it needs."""

    @staticmethod
    @abstractmethod
    def applied(module: nn.Module, vector: TaskVector, scale: float, point: Point) -> nn.Module:
        """A module edited by scale * vector, for `tauspan.apply`; `module` is never changed."""

    # -- what all of them give -------------------------------------------------------------------------------

    def logits(self, task: Task, split: str, coefficients: Coefs, advance: Advance = silent) -> Tensor:
        """Logits (N, K) of one task on one split.

        Raises:
            UsageError: a coefficient is no finite number.
            NonFiniteError: a row's logits are NaN or infinite.
        """
        require_numbers(coefficients)
        used = {name: value for name, value in coefficients.items() if value}
        at = " + ".join(f"{value:g} x {name!r}" for name, value in used.items()) or "theta0"
        about = f"the logits of {task.name!r} on {split} at {at}"
        return self._logits(task, split, used, about, advance)

    def classes(self, task: Task, split: str, coefficients: Coefs) -> Tensor:
        """The class of the largest logit of each row, shape (N,); computed once for each choice of coefficients."""
        key = (task, split, _used(coefficients))
        if key not in self._classes:
            self._classes[key] = self.logits(task, split, dict(key[2])).argmax(-1).int()
        return self._classes[key]

    def scores(self, task: Task, split: str, coefficients: Coefs) -> Tensor:
        """What the task's metric is made of, for each row, shape (N,), float64: of classes, whether the row is right."""
        labels = self.targets(task, split)
        if task.classes:  # whose classes take a quarter of the memory
            return (self.classes(task, split, coefficients) == labels).double()
        key = (task, split, _used(coefficients))
        if key not in self._scores:
            at = dict(key[2])
            self._scores[key] = self.objective(task, at).scores(self.logits(task, split, at), labels)
        return self._scores[key]

    def metric(self, task: Task, split: str, coefficients: Coefs) -> float:
        """The metric of one task on one split: accuracy, where its rows have classes."""
        return task.objective.summary(float(self.scores(task, split, coefficients).mean()))

    def loss(self, task: Task, split: str, coefficients: Coefs, targets: Targets = "label") -> float:
        """Mean loss of one task on one split, to its targets or to those of a model that has forgotten, in float64."""
        logits, labels = self.logits(task, split, coefficients).double(), self.targets(task, split)
        if targets == "wrong":
            labels = task.objective.forgotten(labels, logits.shape[-1])
        return float(self.objective(task, coefficients).losses(logits, labels).mean())

    def objective(self, task: Task, coefficients: Coefs | None = None) -> Objective:
        """The task's objective, with what it reads of the model at these coefficients."""
        if not task.objective.headless:
            return task.objective
        return task.objective.bound(self._language(dict(_used(coefficients or {}))))

    def targets(self, task: Task, split: str) -> Tensor:
        """What the losses of a split's rows read."""
        if (task, split) not in self._targets:
            task.objective.bound(self.encoder.language)  # raises for a model that the objective cannot read
            self._targets[task, split] = TaskTargets(task, self.encoder, self.reading.max_tokens)(split)
        return self._targets[task, split]

    def head(self, task: Task) -> Head:
        """The task's frozen head."""
        if task not in self._heads:
            self._heads[task] = build_head(task, self.encoder, max_tokens=self.reading.max_tokens)
        return self._heads[task]

    def make_heads(self, tasks: Sequence[Task]) -> None:
        """Make the heads of these tasks now, and say so while it lasts."""
        with underway("heads"):
            for task in tasks:
                self.head(task)

    def fitted(self, vector: TaskVector) -> TaskVector:
        """A vector as the encoder takes it in this regime: under the names of its memory."""
        return vector.fitted(self.encoder, tangent=self.tangent, base=self.fingerprint)

    def batches(self, task: Task, split: str) -> Batches:
        """The split's batches, encoded once."""
        if (task, split) not in self._prepared:
            rows, tokens = task.split(split), task.tokens(self.reading.max_tokens)
            self._prepared[task, split] = batches(
                self.encoder, rows, tokens, self.reading.batch_size, task.objective
            )
        return self._prepared[task, split]
