"""Blocks of stored models: the values a method sees, with the stored ones they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from tauspan.core.errors import NonFiniteError
from tauspan.merge.engine.memory import stacked
from tauspan.merge.methods.method import Block
from tauspan.merge.methods.scope import Spec, shaped
from tauspan.merge.sources.inputs import Source
from tauspan.merge.stream.job import Job


@dataclass(frozen=True)
class StoredBlock(Block):
    """A block with its entries as they are stored.

    Args:
        stored: of each model, shape (n,), in its own dtype; None for a displacement, or what a model lacks.
        anchor: of the base; None where there is none.
        still: where all of them hold one infinity, as masks do; the method sees zeros there. None for nowhere.
    """

    stored: tuple[Tensor | None, ...] = ()
    anchor: Tensor | None = None
    still: Tensor | None = None


class Reader:
    """Reads blocks for one job; several threads may call it at once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._labels = tuple(model.label for model in job.models)

    def __call__(self, spec: Spec, start: int, stop: int) -> StoredBlock:
        """The block of all models, as the method takes it.

        Raises:
            NonFiniteError: a model holds NaN there, or an infinity that not all of them hold.
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
        still = None
        if not isfinite(values.sum()):
            still = self._still(anchor, stored)
            self.require_finite(spec.name, start, stop, still)
            if still is not None:
                values[:, still] = 0
                point = None if point is None else point.masked_fill(still, 0)
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
            tuple(stored), anchor, still,
        )  # fmt: skip

    @staticmethod
    def _still(anchor: Tensor | None, stored: Sequence[Tensor | None]) -> Tensor | None:
        """Where base and models all hold the same infinity; None for nowhere."""
        points = [one.float() for one in (anchor, *stored) if one is not None]
        if not points:
            return None
        first, *rest = points
        still = torch.isinf(first)
        for other in rest:
            still &= other == first
        return still if bool(still.any()) else None

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

    def require_finite(self, name: str, start: int, stop: int, still: Tensor | None = None) -> None:
        """Raise `NonFiniteError` for the first source that holds NaN or infinity among these entries but `still`."""
        sources = [*([] if self.job.base is None else [self.job.base]), *self.job.models]
        for source in sources:
            own = self.raw(source, name, start, stop)
            if own is None or not own.is_floating_point():
                continue
            bad = ~torch.isfinite(own)
            bad = bad if still is None else bad & ~still
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                stored = self.job.stored(source, name)
                raise NonFiniteError(
                    f"tensor {name!r} of {source.label!r} holds {float(own[first])} at entry {start + first} "
                    f"({stored.file if stored else source.path}). A model that diverged or a damaged file: leave it out "
                    "or make it again; `tauspan doctor --values` shows all such tensors."
                )
