"""`Job`: a merge with its inputs opened, and which of their tensors belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

from tauspan.merge.engine.engine import Rounding
from tauspan.merge.methods.method import Method, Need
from tauspan.merge.sources.source import Source, computed, counts
from tauspan.merge.stream.assembly import Options
from tauspan.store.headers import Stored
from tauspan.store.writer import MODEL

Output: TypeAlias = Literal["model", "vector", "adapter"]
SHARD = 5 * 10**9  # bytes


@dataclass(frozen=True)
class Job:
    """A merge with its inputs opened.

    Args:
        method: the row of the table.
        settings: the options, tensor by tensor.
        base: theta0; None where there is none.
        models: what is merged: models, or displacements.
        statistics: by need, one source a model.
        out_dtype: of the result's floating-point tensors; None keeps the base's own, and float32 for a vector.
        arithmetic: torch.float32 or torch.float64.
        rounding: to the output's dtype.
        seed: of random masks and of stochastic rounding.
        shard_bytes: largest file of a model.
        output: a model, or the merged displacement as a task vector or (`adapter_merge.plan_adapter`) an adapter.
        allow: leniencies of `checks.check`.
        notes: what the caller has to warn of.
        stem: how the names of a model's files begin.
        parts: folders of a model that have files of their own; see `writer.layout`.
        metadata: what a model's headers say, text by text.
        single: whether a model is one file, whatever its size.
        facts: what the caller wants kept with the result, for example the recipe; part of the plan's key.
    """

    method: Method
    settings: Options
    base: Source | None
    models: tuple[Source, ...]
    statistics: Mapping[Need, tuple[Source, ...]] = field(default_factory=dict)
    out_dtype: torch.dtype | None = None
    arithmetic: torch.dtype = torch.float32
    rounding: Rounding = "nearest"
    seed: int = 0
    shard_bytes: int = SHARD
    output: Output = "model"
    allow: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stem: str = MODEL
    parts: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    single: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> Source:
        """The source whose names, shapes, dtypes and order the output has: the base, or else the first model."""
        return self.models[0] if self.base is None else self.base

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is read: base, models and statistics."""
        base = () if self.base is None else (self.base,)
        return (*base, *self.models, *(one for given in self.statistics.values() for one in given))

    def taking(self) -> dict[str, tuple[int, ...]]:
        """By tensor, the places of the models that take part, where these are not all.

        A slice may have fewer models than another. Where there is a base, a model that lacks a tensor counts as unchanged
        there; without one, the tensor is merged from the models that have it.
        """
        found = {}
        for name in self.reference.tensors:
            scope = range(self.settings.count(name))
            own = tuple(place for place in scope if self.base is not None or self._has(place, name))
            if len(own) < len(self.models):
                found[name] = own
        return found

    def _has(self, place: int, name: str) -> bool:
        model = self.models[place]
        return model.kind == "delta" or self.stored(model, name) is not None

    def holding(self, name: str) -> list[Stored]:
        """Where the models store a tensor of the output."""
        found = (self.stored(model, name) for model in self.models)
        return [stored for stored in found if stored is not None]

    def stored(self, source: Source, name: str) -> Stored | None:
        """Where a source keeps a tensor of the output; None if it lacks it, or has it in another shape.

        The checks let another shape pass only where it is allowed.
        """
        own, wanted = stored_of(source, name, self.reference), self.reference.tensors.get(name)
        return own if own is None or wanted is None or own.shape == wanted.shape else None

    def taken(self, name: str) -> bool:
        """Whether the output has the reference's own tensor, whatever the models store: counters and constants."""
        stored = self.reference.tensors[name]
        return computed(stored) or counts(stored) or ("buffers" in self.allow and not merges(stored))


def merges(stored: Stored) -> bool:
    """Whether a tensor is merged, and not copied: weights are, whole numbers and what a model computes again are not."""
    return stored.dtype.is_floating_point and not computed(stored)


def stored_of(source: Source, name: str, reference: Source) -> Stored | None:
    """Where a source keeps a tensor of the output: under its name, or one that it or the reference says is the same."""
    own = source.tensors.get(source.aliases.get(name, name))
    if own is not None:
        return own
    others = (alias for alias, kept in reference.aliases.items() if kept == name)
    return next((source.tensors[alias] for alias in others if alias in source.tensors), None)
