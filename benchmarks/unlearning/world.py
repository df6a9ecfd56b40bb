"""`World`: what is to be forgotten and what is to be kept with one seed, the model before, and the ways to forget."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.unlearning import measures
from benchmarks.unlearning.methods import Edited, Loss, descended, negated, preference, random_vector
from benchmarks.unlearning.plan import Plan

import tauspan as ts
from tauspan.models import Encoder, fingerprint_of
from tauspan.objectives import NextToken
from tauspan.tasks import Task
from tauspan.vector import TaskVector

Numbers: TypeAlias = dict[str, Any]
Methods: TypeAlias = Mapping[str, Callable[[Any], Edited]]


class World(ABC):
    """One seed of a question.

    Args:
        encoder: the pre-trained model.
        plan: of the study.
        seed: of rows and their order.
        out: where vectors go.
        forget: what is to be forgotten.
        guard: what is to be kept, for the choices on validation.
    """

    def __init__(
        self, encoder: Encoder, plan: Plan, seed: int, out: Path, forget: Task, guard: Task
    ) -> None:  # fmt: skip
        self.encoder, self.plan, self.seed, self.out = encoder, plan, seed, out
        self.forget, self.guard, self.base = forget, guard, fingerprint_of(encoder)

    @property
    @abstractmethod
    def before(self) -> Encoder:
        """The model that is to forget."""

    @abstractmethod
    def numbers(self, edited: Edited) -> Numbers:
        """All measures of a model, in values that JSON has."""

    @functools.cache  # noqa: B019 - a world lives as long as its seed
    def vector(self, regime: str) -> TaskVector:
        """The vector of what is to be forgotten, from the model before."""
        settings = self.plan.vector(regime, self.seed)
        return ts.finetune(self.before, self.forget, settings, out=self.out / regime, resume=True).task_vector

    def descent(self, title: str, loss: Loss, task: Task) -> Edited:
        """A descent from the model before."""
        rows = task.split("train")
        return descended(self.before, loss, rows, self.forget, self.guard, self.plan, self.seed, title)

    def preference(self) -> Edited:
        """NPO against the model before."""
        rows, language = self.forget.split("train"), self.encoder.language
        reference = measures.losses(self.before, self.encoder, rows).float()
        counts = (NextToken().targets(rows.inputs, rows.labels, language, None) >= 0).sum(1)
        return self.descent("NPO", preference(reference, counts, self.plan.beta), self.forget)


def negation(regime: str) -> Callable[[World], Edited]:
    """The vector of what is to be forgotten, subtracted."""
    return lambda one: negated(one.before, one.vector(regime), one.forget, one.guard, one.plan)


def random_edit(one: World) -> Edited:
    """A random vector of the same norms, subtracted."""
    vector = random_vector(one.vector("standard"), one.seed)
    return negated(one.before, vector, one.forget, one.guard, one.plan)
