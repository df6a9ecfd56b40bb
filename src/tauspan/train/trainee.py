"""What is trained, with one interface: theta of a copy, or tau of the tangent model."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tauspan import models
from tauspan.core.choices import CacheKind, Precision
from tauspan.core.computing import Engine, way
from tauspan.core.errors import UsageError
from tauspan.core.params import Params
from tauspan.core.report import versions
from tauspan.models import Batch, Classifier, Encoder, Head
from tauspan.models.intact import Intact
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.engine.call import Call
from tauspan.tangent.engine.checkpointing import checkpointed
from tauspan.tangent.engine.determinism import require_function
from tauspan.train.settings import Settings
from tauspan.vector import TaskVector


class Trainee(Protocol):
    """A model to call, its trainable tensors by name, and the values to which weight decay pulls them."""

    parameters: dict[str, Tensor]

    @property
    def engine(self) -> Engine | None:
        """What computed the last tangents, or what is tried first; None in the standard regime."""

    def __call__(self, batch: Batch, task: int = 0) -> Tensor:
        """Logits of shape (N, K) under the head of one task."""

    def reached(self, batch: Batch, task: int, reach: float) -> tuple[Tensor, Tensor]:
        """Features, shape (N, d), and logits of one task of the ordinary model at theta0 + reach tau."""

    def change(self, batch: Batch, head: Head) -> Tensor:
        """How far the logits under some head have moved from the base's, shape (N, K), with its graph."""

    def kept_change(self, batch: Batch, head: Head) -> Callable[[], Tensor]:
        """`change` of one batch for many steps, from what depends on theta0 alone and is computed now."""

    def displacement(self) -> dict[str, Tensor]:
        """The displacement from the base by parameter, with its graph."""

    def cache(
        self, batches: Sequence[Batch], kind: CacheKind | Literal["auto"], folder: Path | None
    ) -> Sequence[Callable[[], Tensor]]:
        """The logits of each batch at the current parameters, computed from a cache."""

    def anchor(self) -> Params | None:
        """The values to which weight decay pulls; None means zero."""

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """The task vector at the current parameters."""


class StandardTrainee:
    """Ordinary fine-tuning of a copy, in eval mode: both regimes train the same function."""

    def __init__(self, encoder: Encoder, heads: Sequence[Head], settings: Settings) -> None:
        classifier = Classifier(encoder, heads[0])
        models.require_deterministic(classifier)
        names = models.select(classifier, settings.params)
        self._base = classifier
        self._toward = settings.decay_toward
        self._precision = settings.precision
        self._device = next(encoder.parameters()).device
        self._heads = heads
        self._model = models.working_copy(classifier)
        self._model.requires_grad_(False)
        self._model.eval()
        self._intact = Intact(self._model)
        self._checked = way(check=settings.check).check == "off"
        known = models.named_unique(models.core(self._model)[0])
        origin = models.named_unique(models.core(classifier)[0])
        self.parameters = {name: known[name].requires_grad_() for name in names}
        self._blocks = blocks_of(self._model, names) if settings.checkpointing else ()
        self._theta0 = {name: origin[name].detach() for name in names}

    @property
    def engine(self) -> None:
        """None: there are no tangents."""

    def __call__(self, batch: Batch, task: int = 0) -> Tensor:
        """Logits of shape (N, K) under the head of one task."""
        self._model.head = self._heads[task]
        if not self._checked:
            self._require_function(batch)
        with self._intact(), checkpointed(self._blocks):
            return precisely(self._precision, self._device, lambda: self._model(batch))

    def reached(self, batch: Batch, task: int, reach: float) -> tuple[Tensor, Tensor]:
        """Features and logits at theta0 + reach (theta - theta0)."""
        self._model.head = self._heads[task]
        moved = {
            f"backbone.{name}": torch.lerp(self._theta0[name], theta, reach)
            for name, theta in self.parameters.items()
        }

        def features() -> Tensor:
            found: Tensor = functional_call(self._model.encoder, moved, (batch,))
            return found

        with self._intact():
            found = precisely(self._precision, self._device, features)
            return found, precisely(self._precision, self._device, lambda: self._model.head(found))

    def change(self, batch: Batch, head: Head) -> Tensor:
        """f(x; theta) - f(x; theta0) under some head."""
        return self.kept_change(batch, head)()

    def kept_change(self, batch: Batch, head: Head) -> Callable[[], Tensor]:
        """`change` of one batch; only the base's logits can be kept."""
        with torch.no_grad():
            base = precisely(
                self._precision, self._device, lambda: Classifier(self._base.encoder, head)(batch)
            )

        def moved() -> Tensor:
            self._model.head = head
            with self._intact(), checkpointed(self._blocks):
                return precisely(self._precision, self._device, lambda: self._model(batch)) - base

        return moved

    def displacement(self) -> dict[str, Tensor]:
        """The displacement theta - theta0."""
        return {name: theta - self._theta0[name] for name, theta in self.parameters.items()}

    def _require_function(self, batch: Batch) -> None:
        """Raise if the model gives another output when it is called again; find the tensors it keeps between calls."""
        call = Call(self._model, (batch,), {}, self.parameters, "encoder.backbone.", self._intact).sample()
        with torch.no_grad():
            call.intact.find_memos(call.bare)
            require_function(call, call.plain())
        self._checked = True

    def cache(
        self, batches: Sequence[Batch], kind: CacheKind | Literal["auto"], folder: Path | None
    ) -> NoReturn:
        """Not available, since theta changes; `Settings` refuses a cache."""
        raise UsageError("ordinary fine-tuning moves theta, so nothing can be kept.")

    def anchor(self) -> Params | None:
        """The values to which weight decay pulls; None means zero."""
        return self._theta0 if self._toward == "base" else None

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """The difference theta - theta0, computed in float64 and rounded once."""
        deltas = {}
        for name, theta in self.parameters.items():
            wide = torch.promote_types(theta.dtype, torch.float32)
            delta = theta.detach().double() - self._theta0[name].double()
            deltas[name] = delta.to(wide).cpu()
        facts = {**self._base.encoder.facts, "versions": versions(), **info}
        stored = models.names_of(self._base).to_files(deltas)
        base, space = models.fingerprint_of(self._base), models.space_of(self._base)
        return TaskVector(stored, base, "standard", label, facts, space)


class LinearTrainee:
    """Fine-tuning of tau in the tangent model."""

    def __init__(self, encoder: Encoder, heads: Sequence[Head], settings: Settings) -> None:
        self._heads = heads
        self._classifier = Classifier(encoder, heads[0])  # its head is changed from call to call
        if settings.checkpointing:
            blocks_of(self._classifier, models.select(self._classifier, settings.params))
        self._model: Linearized = linearize(
            self._classifier, settings.params, settings.point, engine=settings.engine, check=settings.check,
            checkpointing=settings.checkpointing,
        )  # fmt: skip
        if not self._model.tau:
            models.select(self._classifier, settings.params)  # raises an error that says what is frozen
        self._toward = settings.decay_toward
        self._precision = settings.precision
        self.parameters = self._model.tau
        self._device = next(iter(self.parameters.values())).device

    @property
    def engine(self) -> Engine:
        """What computed the last tangents; before the first ones, what is tried first."""
        return self._model.engine

    def __call__(self, batch: Batch, task: int = 0) -> Tensor:
        """Logits of shape (N, K) under the head of one task."""
        self._classifier.head = self._heads[task]
        return precisely(self._precision, self._device, lambda: self._logits(batch))

    def _logits(self, batch: Batch) -> Tensor:
        """The model's logits; the training loop checks them, and names the step and the rows."""
        value, tangent = self._model.parts(batch)
        return self._model.finish(value + tangent)

    def reached(self, batch: Batch, task: int, reach: float) -> NoReturn:
        """Not available: there is no ordinary model."""
        raise UsageError("the linear regime trains no ordinary model: set regime='standard'.")

    def change(self, batch: Batch, head: Head) -> Tensor:
        """J tau of the logits under some head; at the point `"encoder"` the change of the logits."""
        self._classifier.head = head

        def moved() -> Tensor:
            value, tangent = self._model.parts(batch)
            return self._model.finish(value + tangent) - self._model.finish(value)

        return precisely(self._precision, self._device, moved)

    def kept_change(self, batch: Batch, head: Head) -> Callable[[], Tensor]:
        """`change` of one batch from the tangent model's cache."""
        self._classifier.head = head
        with in_precision(self._precision, self._device):
            (cached,) = self._model.cache([batch], "auto")

        def moved() -> Tensor:
            self._classifier.head = head
            value, tangent = cached.tangent()
            return self._model.finish(value + tangent) - self._model.finish(value)

        return lambda: precisely(self._precision, self._device, moved)

    def displacement(self) -> dict[str, Tensor]:
        """The displacement tau."""
        return dict(self.parameters)

    def cache(
        self, batches: Sequence[Batch], kind: CacheKind | Literal["auto"], folder: Path | None
    ) -> Sequence[Callable[[], Tensor]]:
        """The logits of each batch at the current tau, computed from the tangent model's cache."""
        self._classifier.head = self._heads[0]
        with in_precision(self._precision, self._device):
            cached = self._model.cache(batches, kind, folder=folder)
        return [partial(self._from_cache, batch) for batch in cached]

    def _from_cache(self, batch: Callable[[], Tensor]) -> Tensor:
        self._classifier.head = self._heads[0]  # a penalty may have read another task's rows since
        return precisely(self._precision, self._device, batch)

    def anchor(self) -> Params | None:
        """The values to which weight decay pulls; None means zero."""
        return None if self._toward == "base" else {n: -theta for n, theta in self._model.theta0().items()}

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """The tangent model's tau as a task vector."""
        return self._model.task_vector(label, **info)


def blocks_of(classifier: Classifier, names: Sequence[str]) -> tuple[nn.Module, ...]:
    """The blocks whose activations are dropped and computed again.

    Raises:
        UsageError: the model has none.
    """
    try:
        return tuple(models.blocks(models.core(classifier)[0], names)[1].values())
    except UsageError as error:
        raise UsageError(f"checkpointing=True needs a stack of blocks: {error} Leave it out.") from error


@contextmanager
def in_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute matrix products in the chosen precision inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        with torch.autocast(device.type, torch.bfloat16, precision == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def precisely(precision: Precision, device: torch.device, run: Callable[[], Tensor]) -> Tensor:
    """The logits of `run`, with matrix products in the chosen precision."""
    with in_precision(precision, device):
        logits = run()
    return logits.float() if precision == "bfloat16" else logits


def in_space(encoder: Encoder, settings: Settings) -> tuple[Encoder, Settings]:
    """The encoder that moves, and the settings of its run: in a small space that decides what moves."""
    if settings.space is None:
        return encoder, settings
    moving = models.restrict(encoder, settings.space, settings.params)
    return moving, dataclasses.replace(settings, space=None, params="all")


def trainee(encoder: Encoder, heads: Sequence[Head], settings: Settings) -> Trainee:
    """The trainee of the settings' regime, for one task per head."""
    kind = LinearTrainee if settings.regime == "linear" else StandardTrainee
    return kind(encoder, heads, settings)


def decay(parameters: Params, anchor: Params, amount: float) -> None:
    """Decoupled weight decay toward an anchor: p <- p - amount (p - c)."""
    names = list(parameters)
    with torch.no_grad():
        torch._foreach_lerp_(
            [parameters[n] for n in names], [anchor[n].to(parameters[n]) for n in names], amount
        )


def as_parameters(tensors: Params) -> list[nn.Parameter]:
    """The tensors as parameters for the optimiser."""
    return [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]
