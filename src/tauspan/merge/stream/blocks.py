"""Blocks of stored models: read, merged, rounded and written, on several threads."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, NonFiniteError
from tauspan.merge.engine.engine import Account, Engine, account, ordered_pool, restore, rounded
from tauspan.merge.methods.method import Block, Spec
from tauspan.merge.methods.scope import pieces, shaped, stacked
from tauspan.merge.sources.source import Source
from tauspan.merge.stream.opened import Opened
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.result import WrittenTensor
from tauspan.store import Writer


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
    """Reads blocks of the models that a plan has opened; several threads may call it at once."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._labels = opened.labels

    def __call__(self, spec: Spec, start: int, stop: int) -> StoredBlock:
        """The block of all models, as the method takes it.

        Raises:
            NonFiniteError: a model holds NaN there, or an infinity that not all of them hold.
        """
        opened, grain = self.opened, self.opened.method.grain
        base = opened.base
        anchor = None if base is None else base.read(spec.name, start, stop)
        point = None if anchor is None else anchor.to(opened.arithmetic)
        models = spec.of(opened.models)
        values = torch.empty(len(models), stop - start, dtype=opened.arithmetic)
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
            if point is not None and (opened.method.space == "delta") != (model.kind == "delta"):
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
            for need, given in opened.statistics.items()
            if spec.name in given[0].tensors
        }
        return StoredBlock(
            shaped(values, spec.shape, grain), None if point is None else shaped(point, spec.shape, grain),
            spec.name, start, spec.shape, spec.options, spec.of(self._labels), opened.recipe.seed, spec.depth, known,
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
        own = self.opened.stored(source, name)
        return None if own is None else source.read(own.name, start, stop)

    def _statistic(self, source: Source, spec: Spec, start: int, stop: int, need: str) -> Tensor:
        if need == "gram":
            whole = source.tensors[spec.name].shape
            return source.read(spec.name, 0, whole.numel()).view(whole).to(self.opened.arithmetic)
        return shaped(source.read(spec.name, start, stop), spec.shape, self.opened.method.grain)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.opened.arithmetic)

    def require_finite(self, name: str, start: int, stop: int, still: Tensor | None = None) -> None:
        """Raise `NonFiniteError` for the first source that holds NaN or infinity here, except where `still` is set."""
        for source in self.opened.points:
            own = self.raw(source, name, start, stop)
            if own is None or not own.is_floating_point():
                continue
            bad = ~torch.isfinite(own)
            bad = bad if still is None else bad & ~still
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                stored = self.opened.stored(source, name)
                raise NonFiniteError(
                    f"tensor {name!r} of {source.label!r} holds {float(own[first])} at entry {start + first} "
                    f"({stored.file if stored else source.path}). A model that diverged or a damaged file: leave it out "
                    "or make it again; `tauspan doctor --values` shows all such tensors."
                )


Piece = tuple[Spec, int, int]
Done = tuple[bytes, Account]


class Merging:
    """Merges a plan's tensors into a writer's files.

    Args:
        plan: what is merged.
        writer: the output's files, open.
    """

    def __init__(self, plan: Plan, writer: Writer) -> None:
        self.plan, self.opened, self.writer = plan, plan.opened, writer
        self.recipe, self.read = plan.recipe, Reader(plan.opened)
        self.specs = {spec.name: spec for spec in plan.specs}

    def run(self, names: Sequence[str]) -> Iterator[WrittenTensor]:
        """The tensors, finished in the order of their names."""
        with ordered_pool(self.plan.workers) as run:
            engine = Engine(self.opened.method, self.plan.specs, self.read, self.plan.block, run)
            if any(name in self.specs for name in names):
                engine.measure()
            yield from self._gathered(run(lambda portion: self._portion(engine, portion), self._cut(names)))

    def _cut(self, names: Sequence[str]) -> Iterator[list[Piece]]:
        """The work in portions: whole tensors if the method measures each of them first, else about a block."""
        method = self.opened.method
        whole = method.prepare is not None and method.over == "tensor"
        portion: list[Piece] = []
        filled = 0
        for name in names:
            spec = self.specs.get(name) or Spec(name, self.opened.reference.tensors[name].shape, {})
            grain = method.grain if name in self.specs else "entry"
            cuts = pieces(spec.shape, grain, self.plan.block) or [(0, 0)]
            for start, stop in cuts:
                portion.append((spec, start, stop))
                filled += stop - start
                last = stop == prod(spec.shape)
                if filled >= self.plan.block and (last or not whole):
                    yield portion
                    portion, filled = [], 0
        if portion:
            yield portion

    def _gathered(self, portions: Iterable[list[tuple[Spec, int, Done]]]) -> Iterator[WrittenTensor]:
        """Tensors put together from their pieces, which come in order."""
        digest, total = hashlib.sha256(), Account()
        for portion in portions:
            for spec, stop, (own, part) in portion:
                digest.update(own)
                total += part
                if stop == prod(spec.shape):
                    yield WrittenTensor(spec.name, digest.hexdigest(), total)
                    digest, total = hashlib.sha256(), Account()

    def _portion(self, engine: Engine, portion: list[Piece]) -> list[tuple[Spec, int, Done]]:
        done = []
        ready: Any = None
        current: Spec | None = None
        for spec, start, stop in portion:
            if start == stop:
                done.append((spec, stop, (b"", Account())))
                continue
            if spec.name not in self.specs:
                done.append((spec, stop, self._copy(spec, start, stop)))
                continue
            if spec is not current:
                ready, current = engine.ready(spec), spec
            done.append((spec, stop, self._merge(engine, spec, start, stop, ready)))
        return done

    def _merge(self, engine: Engine, spec: Spec, start: int, stop: int, ready: Any) -> Done:
        block, result, kept = engine.piece(spec, start, stop, ready)
        result = result.to(self.opened.arithmetic).contiguous()
        base = None if block.base is None else block.base.reshape(-1)
        delta = self.opened.method.space == "delta"
        moved = result if delta or base is None else result - base
        dtype = self.writer.layout.entries[spec.name].dtype
        key = (self.recipe.seed, spec.name)
        if self.recipe.output == "vector":
            stored = rounded(moved, dtype, self.recipe.rounding, key, start)
            part = account(stored, moved, None, None)
        else:
            exact = result + base if delta and base is not None else result.clone()
            stored = rounded(exact, dtype, self.recipe.rounding, key, start)
            part = self._restored(stored, block, result, moved)
        if not (isfinite(part.moved) and isfinite(part.lost)):
            self._explain(spec, start, stop, stored)
        return self._put(spec.name, start, stored), replace(part, kept=self._spread(spec, kept))

    def _spread(self, spec: Spec, kept: tuple[int, ...]) -> tuple[int, ...]:
        """The counts of the models that take part, as counts of all models: 0 for the others."""
        if spec.models is None or not kept:
            return kept
        counts = dict(zip(spec.models, kept, strict=True))
        return tuple(counts.get(place, 0) for place in range(len(self.opened.models)))

    def _restored(self, stored: Tensor, block: Block, result: Tensor, moved: Tensor) -> Account:
        """Restore entries that equal a model's or the base's stored value, in place, and account for all others."""
        if not isinstance(block, StoredBlock):
            raise TypeError(f"the stream's reader gives stored blocks, not {type(block).__name__}")
        merged = result.numpy()
        values = block.values.reshape(len(block.stored), -1).numpy()
        for own, seen in reversed(list(zip(block.stored, values, strict=True))):
            if own is not None:
                restore(stored, own, np.equal(seen, merged))
        if block.anchor is not None:
            restore(stored, block.anchor, np.equal(moved.numpy(), 0))
        base = None if block.base is None else block.base.reshape(-1)
        if block.still is None:
            return account(stored, moved, base, block.anchor)
        anchor = None if block.anchor is None else block.anchor.masked_fill(block.still, 0)
        return account(stored.masked_fill(block.still, 0), moved, base, anchor)

    def _copy(self, spec: Spec, start: int, stop: int) -> Done:
        """Entries that are not merged: the same in all models that have them, or the reference's own."""
        source = self.opened.reference
        own = source.read(spec.name, start, stop)
        for model in () if self.opened.taken(spec.name) else self.opened.models:
            other = self.read.raw(model, spec.name, start, stop)
            if model is not source and other is not None and not torch.equal(own, other):
                there = int((own != other).nonzero()[0])
                place = self.opened.stored(model, spec.name)
                raise MismatchError(
                    f"tensor {spec.name!r} ({own.dtype}) holds {own[there].item()} at entry {start + there} in "
                    f"{source.tensors[spec.name].file} and {other[there].item()} in "
                    f"{place.file if place else model.path}: integers are not merged, and must be equal. Take models of "
                    f"one base, or keep those of {source.label!r}: `--allow buffers`."
                )
        if own.is_floating_point():
            own = own.to(self.writer.layout.entries[spec.name].dtype)
            if not self.opened.taken(spec.name) and bool(torch.isnan(own).any()):
                self._explain(spec, start, stop, own)
        return self._put(spec.name, start, own), Account(len(own))

    def _put(self, name: str, start: int, stored: Tensor) -> bytes:
        return hashlib.sha256(self.writer.write(name, start, stored)).digest()

    def _explain(self, spec: Spec, start: int, stop: int, stored: Tensor) -> None:
        """Raise if a value is not finite; if all are, only the sum of their squares was too large."""
        self.read.require_finite(spec.name, start, stop)
        bad = ~torch.isfinite(stored)
        if bool(bad.any()):
            place, dtype = start + int(bad.nonzero()[0]), str(stored.dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"tensor {spec.name!r} merged by {self.opened.method.name!r} is not finite in {dtype} at entry {place}, "
                f"though all inputs are; {dtype} ends at {torch.finfo(stored.dtype).max:g}. Take smaller weights, or "
                "an output dtype with a wider range: bfloat16 or float32."
            )
