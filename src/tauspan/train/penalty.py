"""`Penalty`: a term that is added to the loss of each step, such as how far a vector moves the rows of other tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.train.rows import Part
from tauspan.train.settings import Settings
from tauspan.train.trainee import Trainee

Term: TypeAlias = Callable[[int], Tensor]


@dataclass(frozen=True)
class Training:
    """What a penalty sees of a run.

    Args:
        base: the encoder that was given, at theta0.
        encoder: the encoder that is trained, at theta0: the same one, or in a small space of it.
        trainee: what is trained; its `parameters` are tau, or theta.
        settings: of the run.
        tasks: whose rows are trained on.
        steps: how many there will be.
    """

    base: Encoder
    encoder: Encoder
    trainee: Trainee
    settings: Settings
    tasks: Sequence[Task]
    steps: int

    def tau(self) -> dict[str, Tensor]:
        """The displacement now, with its graph: tau of the tangent model, or theta - theta0."""
        return self.trainee.displacement()


class Guide(Protocol):
    """What takes part in the loss of the rows themselves; the loss is taken at theta0 + reach tau."""

    def reach(self, step: int) -> float:
        """How far along the vector the loss of a step is taken; a function of the step's number alone."""

    def loss(self, reach: float, part: Part, features: Tensor) -> Tensor:
        """What is added to the loss of some training rows, summed over them, from their features, shape (n, d)."""

    def measured(self) -> Mapping[str, Any]:
        """Numbers about the finished vector, for its `info`."""


class Penalty(ABC):
    """A term that is added to the loss of each optimiser step, in any regime. A new one is a subclass.

    The loss of a step is the mean over the step's rows plus `term(step)`; clipping, decay and schedule see the sum.
    """

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Everything that decides the term, as plain values; they go into the vector's key and its `info`."""

    @abstractmethod
    def begun(self, run: Training) -> Term:
        """The term of a run that begins, or goes on: a function of the number of the step, from 0.

        The function must depend on the step's number alone, and not on how often it was called, so that a run that was
        interrupted goes on as if it had not been.

        Raises:
            UsageError: the penalty does not fit the run.
        """

    def guide(self, run: Training) -> Guide | None:
        """What takes part in the loss of the step's own rows; by default nothing."""
        return None

    def measured(self, run: Training) -> Mapping[str, Any]:
        """Numbers about the finished vector, for its `info`; by default none."""
        return {}
