"""`plan`: everything about a merge that the headers decide, before any value is read."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, TypeAlias

import torch

from tauspan.errors import UsageError, listed
from tauspan.merge.account import Rounding
from tauspan.merge.assembly import Options
from tauspan.merge.checks import check
from tauspan.merge.engine import BLOCK
from tauspan.merge.headers import Stored
from tauspan.merge.inputs import Source
from tauspan.merge.memory import require_count
from tauspan.merge.method import Method, Need
from tauspan.merge.origins import fingerprint_of
from tauspan.merge.own import source_hash
from tauspan.merge.problems import require_none
from tauspan.merge.scope import Spec, specs_of
from tauspan.merge.settings import depths
from tauspan.merge.table import METHODS
from tauspan.merge.writer import Entry, Layout, layout
from tauspan.report import Cell, Report, Table, in_words, provenance, versions
from tauspan.vector import FILE, header

Output: TypeAlias = Literal["model", "vector", "adapter"]
SHARD = 5 * 10**9  # bytes
_SPEED = 10**9  # bytes a second, read and written, that the estimate assumes
_FIXED = 300 << 20  # bytes of anonymous memory that Python and torch take
_MODEL = {"format": "pt"}  # transformers refuses files without it


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

    def holding(self, name: str) -> list[Stored]:
        """Where the models store a tensor of the output; a model without it counts as unchanged there."""
        found = (stored_of(model, name, self.base) for model in self.models)
        return [stored for stored in found if stored is not None]


def stored_of(source: Source, name: str, base: Source | None) -> Stored | None:
    """Where a source keeps a tensor of the output: under its name, or under one that it or the base ties to it."""
    own = source.tensors.get(source.aliases.get(name, name))
    if own is not None or base is None:
        return own
    tied = (alias for alias, kept in base.aliases.items() if kept == name)
    return next((source.tensors[alias] for alias in tied if alias in source.tensors), None)


@dataclass(frozen=True)
class Plan:
    """What will be read, computed and written.

    Args:
        job: the merge.
        specs: the tensors that are merged, in the output's order.
        copied: names of those that are taken over as they are: integers, and what no model changes.
        layout: the output's files.
        key: a hash of all that decides the output's bytes and the journal's lines.
        block: entries of a block.
        workers: threads.
        warnings: what is odd and yet no error.
    """

    job: Job
    specs: tuple[Spec, ...]
    copied: tuple[str, ...]
    layout: Layout
    key: str
    block: int
    workers: int
    warnings: tuple[str, ...]

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs' tensors, each counted once; a method that measures first reads them again."""
        return sum(map(_nbytes, self.job.sources))

    @property
    def entries(self) -> int:
        """Entries of the largest piece that a worker holds at once."""
        grain = self.job.method.grain
        sizes = [prod(spec.shape) for spec in self.specs] or [0]
        rows = [prod(spec.shape[1:]) if len(spec.shape) > 1 else prod(spec.shape) for spec in self.specs] or [
            0
        ]
        largest = (
            max(sizes) if grain == "tensor" else max(self.block, *rows) if grain == "row" else self.block
        )
        return min(largest, max(sizes))

    @property
    def peak_bytes(self) -> int:
        """Bound of anonymous memory: a fixed part and, a worker, models + 2 + the method's temporaries."""
        pieces = len(self.job.models) + 2 + self.job.method.temporaries
        return _FIXED + self.workers * self.entries * pieces * self.job.arithmetic.itemsize

    @property
    def seconds(self) -> float:
        """Estimate: all inputs read and the output written at 1 GB/s."""
        return (self.bytes_read + self.layout.nbytes) / _SPEED

    def report(self) -> Report:
        """The plan as tables."""
        method = self.job.method
        facts: dict[str, Cell] = {
            "method": f"{method.title}: {method.formula}",
            "models": listed(model.label for model in self.job.models),
            "base": "" if self.job.base is None else str(self.job.base.path),
            "tensors merged": len(self.specs),
            "tensors copied": len(self.copied),
            "bytes to read": self.bytes_read,
            "bytes to write": self.layout.nbytes,
            "memory at most, bytes": self.peak_bytes,
            "seconds at 1 GB/s": round(self.seconds, 1),
            "workers": self.workers,
        }
        words = {what: in_words(int(facts[f"bytes to {what}"] or 0)) for what in ("read", "write")}
        rows: dict[str, Cell] = {
            **{what: value for what, value in facts.items() if "bytes" not in what and "seconds" not in what},
            "to read": words["read"],
            "to write": words["write"],
            "memory": f"at most {in_words(self.peak_bytes)}",
            "time": f"about {self.seconds:.1f} s, at 1 GB/s",
        }
        read: list[dict[str, Cell]] = [
            {"reads": one.label, "path": str(one.path), "size": in_words(_nbytes(one))}
            for one in self.job.sources
        ]
        tables = [
            Table("plan", [{"what": what, "value": value} for what, value in rows.items()]),
            Table("inputs", read),
            Table(
                "outputs", [{"writes": one.file, "size": in_words(one.nbytes)} for one in self.layout.shards]
            ),
        ]
        if self.warnings:
            tables.append(Table("warnings", [{"warning": warning} for warning in self.warnings]))
        return Report("merge plan", tables, provenance(plan=self.key, **self.job.facts), result=facts)


def plan(job: Job, *, block: int = BLOCK, workers: int | None = None) -> Plan:
    """Check a merge and lay out its result, from headers alone.

    Args:
        job: the merge.
        block: entries that are read, merged and written at once; memory grows with it, values do not change.
        workers: threads; None takes the processors that this process may use.

    Raises:
        UsageError: too few or too many models, or displacements asked for where there is nothing to start from.
        MismatchError, BaseMismatchError, StoreError: the models do not fit together; see `checks.check`.
    """
    require_count(job.method, len(job.models))
    require_start(job)
    problems = check(job.base, job.models, allow=job.allow)
    require_none(problems)
    places = depths(job.reference.tensors)
    shapes, copied, entries = {}, [], []
    for name, stored in job.reference.tensors.items():
        merged = stored.dtype.is_floating_point and bool(job.holding(name))
        if merged:
            shapes[name] = stored.shape
        elif job.output == "model":
            copied.append(name)
        if merged or job.output == "model":
            entries.append(Entry(name, _dtype(job, stored), stored.shape))
    labels = tuple(model.label for model in job.models)
    specs = specs_of(job.method, shapes, job.settings.at, places, labels)
    made = laid_out(job, entries, _known_base(job) or "0" * 64)
    warnings = tuple(problem.message for problem in problems)
    return Plan(
        job,
        tuple(specs),
        tuple(copied),
        made,
        _key(job, specs, block),
        block,
        workers or processors(),
        warnings,
    )


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def laid_out(job: Job, entries: Sequence[Entry], base: str) -> Layout:
    """The output's files; a vector's header holds the fingerprint of the base, which takes 64 letters."""
    if job.output == "model":
        return layout(entries, job.shard_bytes, _MODEL)
    regimes = [model.identity["regime"] for model in job.models if "regime" in model.identity]
    info: dict[str, Any] = {
        "merge": {**job.facts, "method": job.method.name, "of": [one.label for one in job.models]}
    }
    points = {model.identity["point"] for model in job.models if "point" in model.identity}
    if len(points) == 1:
        info["point"] = points.pop()
    metadata = header(base, regimes[0] if regimes else "standard", job.method.name, info)
    return layout(entries, job.shard_bytes, metadata, FILE)


def settled(plan: Plan) -> Plan:
    """The plan with the base's fingerprint in a vector's header; where no model brings it, all of the base is read."""
    if plan.job.base is None or plan.job.output == "model" or _known_base(plan.job):
        return plan
    entries = list(plan.layout.entries.values())
    return replace(plan, layout=laid_out(plan.job, entries, fingerprint_of(plan.job.base)))


def _known_base(job: Job) -> str | None:
    return next((model.identity["base"] for model in job.models if "base" in model.identity), None)


def _dtype(job: Job, stored: Stored) -> torch.dtype:
    if not stored.dtype.is_floating_point:
        return stored.dtype
    return job.out_dtype or (torch.float32 if job.output == "vector" else stored.dtype)


def require_start(job: Job) -> None:
    """Raise `UsageError` for points where displacements are needed, and for displacements where a point is."""
    kinds = {model.kind for model in job.models}
    if job.base is not None and job.base.kind == "point":
        return
    if job.base is not None:
        raise UsageError(f"the base {job.base.path} is a displacement, and must be a model.")
    needed = job.method.space == "delta" or job.output != "model" or "base" in job.method.needs
    if needed and "point" in kinds:
        raise UsageError(
            f"the method {job.method.name!r} ({job.output} as output) needs displacements, and without a base "
            f"{job.models[0].label!r} is only a point. Name the pre-trained model: `base_model`."
        )
    if job.output == "vector" and _known_base(job) is None:
        raise UsageError(
            f"no model says which base its displacement starts from ({job.models[0].label!r}, ...), and a vector's file "
            "must: name `base_model`."
        )
    if job.output == "model" and "delta" in kinds:
        raise UsageError(
            "displacements alone make no model: name `base_model`, or ask for a vector (`output: vector`) or, of adapters"
            " and LoRA files, for another (`output: adapter`)."
        )


def _key(job: Job, specs: Sequence[Spec], block: int) -> str:
    """A hash of what decides the output: options, inputs (with the time of their last change) and version."""
    content = {
        "method": job.method.name,
        "code": None if METHODS.get(job.method.name) is job.method else source_hash(job.method),
        "options": [[spec.name, dict(spec.options)] for spec in specs],
        "dtypes": [str(job.out_dtype), str(job.arithmetic), job.rounding],
        "output": [job.output, job.shard_bytes, job.seed],
        "sources": [[source.label, source.identity, _changed(source)] for source in job.sources],
        "facts": job.facts,
        "block": block,
        "version": versions().get("tauspan"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _nbytes(source: Source) -> int:
    return sum(stored.nbytes for stored in source.tensors.values())


def _changed(source: Source) -> list[int]:
    files = dict.fromkeys(stored.file for stored in source.tensors.values())
    return [file.stat().st_mtime_ns for file in files]
