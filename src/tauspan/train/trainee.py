"""The two things that can be trained, behind one face: theta of a copy, or tau of the tangent model."""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tauspan import models
from tauspan.linear import Linearized, linearize
from tauspan.models import Batch, Classifier
from tauspan.params import Params
from tauspan.report import versions
from tauspan.train.settings import Settings
from tauspan.vector import TaskVector


class Trainee(Protocol):
    """What the loop needs: a module to call, its trainable tensors by name, and what decay pulls them to."""

    parameters: dict[str, Tensor]

    def __call__(self, batch: Batch) -> Tensor:
        """Logits of shape (N, K)."""

    def anchor(self) -> Params | None:
        """The values that weight decay pulls to; None stands for zero."""

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """What was learned so far."""


class StandardTrainee:
    """Ordinary fine-tuning of a copy, in eval mode: both regimes train the same function."""

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        models.require_deterministic(classifier)
        names = models.select(classifier, settings.params)
        self._base = classifier
        self._toward = settings.decay_toward
        self._model = copy.deepcopy(classifier)
        self._model.requires_grad_(False)
        self._model.eval()
        known = models.named_unique(models.core(self._model)[0])
        origin = models.named_unique(models.core(classifier)[0])
        self.parameters = {name: known[name].requires_grad_() for name in names}
        self._theta0 = {name: origin[name].detach() for name in names}

    def __call__(self, batch: Batch) -> Tensor:
        """Logits of shape (N, K)."""
        logits: Tensor = self._model(batch)
        return logits

    def anchor(self) -> Params | None:
        """What weight decay pulls to; None stands for zero."""
        return self._theta0 if self._toward == "base" else None

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """The difference theta - theta0, formed in float64 and rounded once."""
        deltas = {}
        for name, theta in self.parameters.items():
            wide = torch.promote_types(theta.dtype, torch.float32)
            delta = theta.detach().double() - self._theta0[name].double()
            deltas[name] = delta.to(wide).cpu()
        facts = {"base_id": self._base.encoder.source, "versions": versions(), **info}
        return TaskVector(deltas, models.fingerprint_of(self._base), "standard", label, facts)


class LinearTrainee:
    """Fine-tuning of tau in the tangent model."""

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        self._model: Linearized = linearize(classifier, settings.params, settings.point)
        self._toward = settings.decay_toward
        self.parameters = self._model.tau

    def __call__(self, batch: Batch) -> Tensor:
        """Logits of shape (N, K)."""
        logits: Tensor = self._model(batch)
        return logits

    def anchor(self) -> Params | None:
        """What weight decay pulls to; None stands for zero."""
        return None if self._toward == "base" else {n: -theta for n, theta in self._model.theta0().items()}

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """The tangent model's own parameters."""
        return self._model.task_vector(label, **info)


def trainee(classifier: Classifier, settings: Settings) -> Trainee:
    """The trainee of the settings' regime."""
    kind = LinearTrainee if settings.regime == "linear" else StandardTrainee
    return kind(classifier, settings)


def decay(parameters: Params, anchor: Params, amount: float) -> None:
    """Decoupled weight decay toward an anchor: p <- p - amount (p - c)."""
    names = list(parameters)
    with torch.no_grad():
        torch._foreach_lerp_(
            [parameters[n] for n in names], [anchor[n].to(parameters[n]) for n in names], amount
        )


def as_parameters(tensors: Params) -> list[nn.Parameter]:
    """The tensors as the optimiser takes them."""
    return [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]
