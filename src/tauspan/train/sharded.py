"""Fine-tuning of models that one device cannot hold: all tensors are in shards, and one block is whole at a time."""

import copy
import gc
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from tauspan import models, store
from tauspan.core.choices import CacheKind
from tauspan.core.computing import Engine
from tauspan.core.errors import ModelError, NonFiniteError, UsageError
from tauspan.core.notices import tell
from tauspan.core.params import Params
from tauspan.core.processes import World
from tauspan.core.report import versions
from tauspan.models import Batch, Classifier, Encoder, Head
from tauspan.tangent.engine.dual import NoRuleError
from tauspan.train.cells import Shards, held
from tauspan.train.settings import Settings
from tauspan.train.trainee import Trainee, precisely
from tauspan.vector import TaskVector, header


class ShardedTrainee:
    """Training on shards, in both regimes: a trainee that is also its own layout.

    Its parameters are plain tensors: this process's parts, in the memory from which FSDP gathers.

    Raises:
        UsageError: a cache, checkpointing, or autocast, which would keep a copy of every weight until the backward.
        ModelError: an operation without a tangent rule.
    """

    together = True

    def __init__(self, encoder: Encoder, heads: Sequence[Head], settings: Settings, processes: World) -> None:
        if settings.cache != "none":
            raise UsageError(
                f"cache={settings.cache!r}: what a cache keeps is not sharded. Take cache='none'."
            )
        if settings.checkpointing:
            raise UsageError(
                "checkpointing=True: blocks in shards keep their activations. Leave it out, or take more processes, "
                "which share the rows."
            )
        if settings.precision == "bfloat16":
            raise UsageError(
                "precision='bfloat16' keeps a copy of every weight until the backward, so sharding would save little. "
                "Load the model in bfloat16, or take precision='tf32'."
            )
        whole = Classifier(encoder, heads[0])
        models.require_deterministic(whole)
        names = models.select(whole, settings.params)
        self.processes, self._settings = processes, settings
        self._base, self._origin = models.fingerprint_of(encoder), encoder.facts
        self._space = models.space_of(encoder)
        self._names = models.names_of(encoder)
        gc.collect()  # FSDP's hooks refer to one another, so the shards of an earlier run may still be in memory
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        self._shards = Shards(encoder, names, settings.regime, init_device_mesh(kind, (processes.size,)))
        self._heads = [copy.deepcopy(head).to(self._shards.device) for head in heads]
        parts = {name: held(self._shards.trained[name]) for name in names}
        self.parameters: dict[str, Tensor] = {name: nn.Parameter(part) for name, part in parts.items()}
        linear = settings.regime == "linear"
        if linear and settings.check != "off" and processes.first:
            tell(
                f"tangents of {encoder.source} in shards are not compared with ordinary autograd, which would need the "
                "model whole. Where one device holds it, call tauspan.linearize on it and run one small batch."
            )
        self._start = {} if linear else {name: part.clone() for name, part in parts.items()}
        self._point = "encoder" if settings.point == "encoder" and linear else "logits"

    def restore(self) -> None:
        """Put the encoder's own parameters back."""
        self._shards.restore(self._start)

    # -- a trainee -------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine | None:
        """What computes tangents; None in the standard regime."""
        return "onepass" if self._settings.regime == "linear" else None

    def __call__(self, batch: Batch, task: int = 0) -> Tensor:
        """Logits of shape (N, K) under the head of one task."""
        run = partial(self._shards, batch, self._heads[task], self._point == "logits")
        try:
            return precisely(self._settings.precision, self._shards.device, run)
        except (NoRuleError, NotImplementedError) as error:
            raise ModelError(
                f"{self._origin['base_id']} cannot be trained in shards in the tangent space: {error}, and the reference "
                "engine needs the model whole. Train it without sharding, or in the standard regime."
            ) from error

    def cache(
        self, batches: Sequence[Batch], kind: CacheKind | Literal["auto"], folder: Path | None
    ) -> NoReturn:
        """Not available: the constructor refuses a cache."""
        raise UsageError("what a cache keeps is not sharded.")

    def change(self, batch: Batch, head: Head) -> NoReturn:
        """Not available: `finetune` refuses a penalty in shards."""
        raise UsageError("a penalty needs tau whole: leave shard=True out.")

    kept_change = change

    def reached(self, batch: Batch, task: int, reach: float) -> NoReturn:
        """Not available, as `change`."""
        raise UsageError("a penalty needs tau whole: leave shard=True out.")

    def displacement(self) -> NoReturn:
        """Not available, as `change`."""
        raise UsageError("a penalty needs tau whole: leave shard=True out.")

    def anchor(self) -> Params | None:
        """The values to which weight decay pulls this process's parts; None means zero."""
        if self._settings.regime == "standard":
            return self._start if self._settings.decay_toward == "base" else None
        if self._settings.decay_toward == "base":
            return None
        return {name: -held(self._shards.theta[name]) for name in self.parameters}

    def task_vector(self, label: str, info: dict[str, Any]) -> TaskVector:
        """The task vector, gathered tensor by tensor into the memory of every process."""
        deltas = {name: self._shards.whole(name, part).cpu() for name, part in self._deltas().items()}
        stored = self._names.to_files(deltas)
        return TaskVector(stored, self._base, self._settings.regime, label, self._facts(info), self._space)

    def _facts(self, info: dict[str, Any]) -> dict[str, Any]:
        point = {"point": self._point} if self._settings.regime == "linear" else {}
        return {**self._origin, **point, "versions": versions(), **info}

    def _deltas(self) -> dict[str, Tensor]:
        """This process's parts of the vector; in the standard regime computed in float64 and rounded once."""
        if self._settings.regime == "linear":
            return {name: part.detach() for name, part in self.parameters.items()}
        return {
            name: (part.detach().double() - self._start[name].double()).to(
                torch.promote_types(part.dtype, torch.float32)
            )
            for name, part in self.parameters.items()
        }

    # -- its layout ------------------------------------------------------------------------------------------

    def exchange(self, parameters: Params, loss: Tensor) -> tuple[list[Tensor], Tensor]:
        """Sum the loss and compute the norm; FSDP has summed the gradients already."""
        gradients = []
        for name, parameter in parameters.items():
            shards = self._shards.trained[name]
            found, shards.grad = shards.grad, None
            parameter.grad = torch.zeros_like(parameter) if found is None else held(found)
            gradients.append(parameter.grad)
        squares = [gradient.double().square().sum() for gradient in gradients]
        square = torch.stack(squares).sum()
        self.processes.sum([square, loss])
        return gradients, square.sqrt()

    def write(self, file: Path, parts: Mapping[str, tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
        """Gather and write tensor by tensor, so that the first process holds one whole tensor at a time."""
        kinds = {key: (part.dtype, self._shards.shapes[name]) for key, (name, part) in parts.items()}
        whole = (self._shards.whole(name, part).cpu() for name, part in parts.values())
        if self.processes.first:
            store.stream_tensors(file, kinds, whole, metadata)
        else:
            for _ in whole:
                pass

    def part(self, whole: Tensor) -> Tensor:
        """The part of a whole tensor that this process holds."""
        return self._shards.part(whole)

    def finished(self, trainee: Trainee, label: str, info: dict[str, Any], file: Path | None) -> TaskVector:
        """The task vector; with a file it is mapped from that file, so that no process holds it in memory.

        Raises:
            NonFiniteError: NaN or infinity in the vector, raised in all processes.
        """
        if file is None:
            return self.task_vector(label, info)
        deltas = self._deltas()
        bad = torch.stack([(~torch.isfinite(part)).sum() for part in deltas.values()])
        self.processes.sum([bad])
        for name, count in zip(deltas, bad.tolist(), strict=True):
            if count:
                raise NonFiniteError(
                    f"tensor {name!r} of the vector {label!r} has {count} values that are not finite. Train it again "
                    "with a lower learning rate."
                )
        # several tensors in the file are one in memory, or the vector is a small space's: it is needed whole
        if self._names.moved or self._space is not None:
            vector = self.task_vector(label, info)
            if self.processes.first:
                vector.save_pretrained(file, overwrite=True)
            self.processes.wait()
            return vector
        facts = header(self._base, self._settings.regime, label, self._facts(info))
        stored = {own: (name, part) for name, part in deltas.items() for own in self._names.files_of([name])}
        self.write(file, stored, facts)
        self.processes.wait()
        return TaskVector.from_pretrained(file)
