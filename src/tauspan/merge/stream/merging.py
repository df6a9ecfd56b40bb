"""The work of a stream: blocks read, merged, rounded and written on several threads."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import MismatchError, NonFiniteError
from tauspan.merge.engine.account import Account, account, restore, rounded
from tauspan.merge.engine.engine import Engine
from tauspan.merge.engine.pool import ordered_pool
from tauspan.merge.methods.method import Block
from tauspan.merge.methods.scope import Spec, pieces
from tauspan.merge.stream.journal import Finished
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.reading import Reader, StoredBlock
from tauspan.store.writer import Writer

Piece = tuple[Spec, int, int]
Done = tuple[bytes, Account]


class Merging:
    """Merges a plan's tensors into a writer's files.

    Args:
        plan: what is merged.
        writer: the output's files, open.
    """

    def __init__(self, plan: Plan, writer: Writer) -> None:
        self.plan, self.job, self.writer = plan, plan.job, writer
        self.read = Reader(plan.job)
        self.specs = {spec.name: spec for spec in plan.specs}

    def run(self, names: Sequence[str]) -> Iterator[Finished]:
        """The tensors, finished in the order of their names."""
        with ordered_pool(self.plan.workers) as run:
            engine = Engine(self.job.method, self.plan.specs, self.read, self.plan.block, run)
            if any(name in self.specs for name in names):
                engine.measure()
            yield from self._gathered(run(lambda portion: self._portion(engine, portion), self._cut(names)))

    def _cut(self, names: Sequence[str]) -> Iterator[list[Piece]]:
        """The work in portions: a tensor where the method measures each first, else about a block."""
        method = self.job.method
        whole = method.prepare is not None and method.over == "tensor"
        portion: list[Piece] = []
        filled = 0
        for name in names:
            spec = self.specs.get(name) or Spec(name, self.job.reference.tensors[name].shape, {})
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

    def _gathered(self, portions: Iterable[list[tuple[Spec, int, Done]]]) -> Iterator[Finished]:
        """Tensors put together from their pieces, which come in order."""
        digest, total = hashlib.sha256(), Account()
        for portion in portions:
            for spec, stop, (own, part) in portion:
                digest.update(own)
                total += part
                if stop == prod(spec.shape):
                    yield Finished(spec.name, digest.hexdigest(), total)
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
        result = result.to(self.job.arithmetic).contiguous()
        base = None if block.base is None else block.base.reshape(-1)
        delta = self.job.method.space == "delta"
        moved = result if delta or base is None else result - base
        dtype = self.writer.layout.entries[spec.name].dtype
        key = (self.job.seed, spec.name)
        if self.job.output == "vector":
            stored = rounded(moved, dtype, self.job.rounding, key, start)
            part = account(stored, moved, None, None)
        else:
            exact = result + base if delta and base is not None else result.clone()
            stored = rounded(exact, dtype, self.job.rounding, key, start)
            part = self._restored(stored, block, result, moved)
        if not (isfinite(part.moved) and isfinite(part.lost)):
            self._explain(spec, start, stop, stored)
        return self._put(spec.name, start, stored), replace(part, kept=self._spread(spec, kept))

    def _spread(self, spec: Spec, kept: tuple[int, ...]) -> tuple[int, ...]:
        """Counts of the models that take part as counts of all."""
        if spec.models is None or not kept:
            return kept
        counts = dict(zip(spec.models, kept, strict=True))
        return tuple(counts.get(place, 0) for place in range(len(self.job.models)))

    def _restored(self, stored: Tensor, block: Block, result: Tensor, moved: Tensor) -> Account:
        """Put back what is exactly a model's or the base's, in place, and account for the rest."""
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
        source = self.job.reference
        own = source.read(spec.name, start, stop)
        for model in () if self.job.taken(spec.name) else self.job.models:
            other = self.read.raw(model, spec.name, start, stop)
            if model is not source and other is not None and not torch.equal(own, other):
                there = int((own != other).nonzero()[0])
                place = self.job.stored(model, spec.name)
                raise MismatchError(
                    f"tensor {spec.name!r} ({own.dtype}) holds {own[there].item()} at entry {start + there} in "
                    f"{source.tensors[spec.name].file} and {other[there].item()} in "
                    f"{place.file if place else model.path}: integers are not merged, and must be equal. Take models of "
                    f"one base, or keep those of {source.label!r}: `--allow buffers`."
                )
        if own.is_floating_point():
            own = own.to(self.writer.layout.entries[spec.name].dtype)
            if not self.job.taken(spec.name) and bool(torch.isnan(own).any()):
                self._explain(spec, start, stop, own)
        return self._put(spec.name, start, own), Account(len(own))

    def _put(self, name: str, start: int, stored: Tensor) -> bytes:
        return hashlib.sha256(self.writer.write(name, start, stored)).digest()

    def _explain(self, spec: Spec, start: int, stop: int, stored: Tensor) -> None:
        """Raise for values that are not finite, if there are any: the sum of their squares may have been too large."""
        self.read.require_finite(spec.name, start, stop)
        bad = ~torch.isfinite(stored)
        if bool(bad.any()):
            place, dtype = start + int(bad.nonzero()[0]), str(stored.dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"tensor {spec.name!r} merged by {self.job.method.name!r} is not finite in {dtype} at entry {place}, "
                f"though all inputs are; {dtype} ends at {torch.finfo(stored.dtype).max:g}. Take smaller weights, or "
                "an output dtype with a wider range: bfloat16 or float32."
            )
