"""Blocks of stored models: the values a method sees, with the stored ones they come from."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from tauspan.errors import NonFiniteError
from tauspan.merge.inputs import Source
from tauspan.merge.memory import stacked
from tauspan.merge.method import Block
from tauspan.merge.plan import Job
from tauspan.merge.scope import Spec, shaped


@dataclass(frozen=True)
class StoredBlock(Block):
    """A block with its entries as they are stored.

    Args:
        stored: of each model, shape (n,), in its own dtype; None for a displacement, or what a model lacks.
        anchor: of the base; None where there is none.
    """

    stored: tuple[Tensor | None, ...] = ()
    anchor: Tensor | None = None


class Reader:
    """Reads blocks for one job; several threads may call it at once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._labels = tuple(model.label for model in job.models)

    def __call__(self, spec: Spec, start: int, stop: int) -> StoredBlock:
        """The block of all models, as the method takes it.

        Raises:
            NonFiniteError: a model holds NaN or infinity there.
        """
        job, grain = self.job, self.job.method.grain
        base = job.base
        anchor = None if base is None else base.read(spec.name, start, stop)
        point = None if anchor is None else anchor.to(job.arithmetic)
        models = spec.of(job.models)
        values = torch.empty(len(models), stop - start, dtype=job.arithmetic)
        stored = []
        for into, model in zip(values, models, strict=True):
            own = self.raw(model, spec.name, start, stop)
            stored.append(own if model.kind == "point" else None)
            if own is not None:
                into.copy_(own)
            elif model.kind == "point" and point is not None:
                into.copy_(point)
            else:
                into.zero_()
            if point is not None and (job.method.space == "delta") != (model.kind == "delta"):
                into.sub_(point) if model.kind == "point" else into.add_(point)
        if not isfinite(values.sum()):
            self.require_finite(spec.name, start, stop)
        known: dict[str, Tensor] = {
            need: stacked(
                need, [self._statistic(one, spec, start, stop, need) for one in spec.of(given)], self._cast
            )
            for need, given in job.statistics.items()
            if spec.name in given[0].tensors
        }
        return StoredBlock(
            shaped(values, spec.shape, grain), None if point is None else shaped(point, spec.shape, grain),
            spec.name, start, spec.shape, spec.options, spec.of(self._labels), job.seed, spec.depth, known,
            tuple(stored), anchor,
        )  # fmt: skip

    def raw(self, source: Source, name: str, start: int, stop: int) -> Tensor | None:
        """The entries as a source stores them; None if it lacks the tensor."""
        own = self.job.stored(source, name)
        return None if own is None else source.read(own.name, start, stop)

    def _statistic(self, source: Source, spec: Spec, start: int, stop: int, need: str) -> Tensor:
        if need == "gram":
            whole = source.tensors[spec.name].shape
            return source.read(spec.name, 0, whole.numel()).view(whole).to(self.job.arithmetic)
        return shaped(source.read(spec.name, start, stop), spec.shape, self.job.method.grain)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.job.arithmetic)

    def require_finite(self, name: str, start: int, stop: int) -> None:
        """Raise `NonFiniteError` for the first source that holds NaN or infinity among these entries."""
        sources = [*([] if self.job.base is None else [self.job.base]), *self.job.models]
        for source in sources:
            own = self.raw(source, name, start, stop)
            if own is None or not own.is_floating_point():
                continue
            bad = ~torch.isfinite(own)
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                stored = self.job.stored(source, name)
                raise NonFiniteError(
                    f"tensor {name!r} of {source.label!r} holds {float(own[first])} at entry {start + first} "
                    f"({stored.file if stored else source.path}). A model that diverged or a damaged file: leave it out "
                    "or make it again; `tauspan doctor --values` shows all such tensors."
                )
