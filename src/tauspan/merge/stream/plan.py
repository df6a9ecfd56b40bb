"""`plan`: everything about a merge that the headers decide, before any value is read."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from tauspan.core.errors import UsageError, listed
from tauspan.core.report import Cell, Report, Table, in_words, provenance, versions
from tauspan.merge.checks.checks import check
from tauspan.merge.checks.origins import fingerprint_of
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.engine.memory import require_count
from tauspan.merge.engine.own import source_hash
from tauspan.merge.engine.settings import depths
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Spec
from tauspan.merge.methods.scope import specs_of
from tauspan.merge.sources.problems import folded, require_none
from tauspan.merge.sources.source import Source
from tauspan.merge.stream.job import Job, merges
from tauspan.store.headers import Stored
from tauspan.store.writer import MODEL, Entry, Layout, layout
from tauspan.vector import FILE, header

_STATUS = Path("/proc/self/status")
_MODEL = {"format": "pt"}  # transformers refuses files without it
MODEL_FILE = f"{MODEL}.safetensors"


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
    def block_bytes(self) -> int:
        """Memory of the blocks: of each worker models + 2 + the method's temporaries."""
        pieces = len(self.job.models) + 2 + self.job.method.temporaries
        return self.workers * self.entries * pieces * self.job.arithmetic.itemsize

    @property
    def memory(self) -> int | None:
        """Estimate of anonymous memory: what this process has now, measured, and the blocks; None where none is told."""
        now = anonymous()
        return None if now is None else now + self.block_bytes

    def report(self) -> Report:
        """The plan as tables."""
        method = self.job.method
        told: dict[str, Cell] = {
            "method": f"{method.title}: {method.formula}",
            "models": listed(model.label for model in self.job.models),
            "base": "" if self.job.base is None else str(self.job.base.path),
            "tensors merged": len(self.specs),
            "tensors copied": len(self.copied),
            "bytes to read": self.bytes_read,
            "bytes to write": self.layout.nbytes,
            "memory, bytes, estimated": self.memory,
            "workers": self.workers,
        }
        words = {what: in_words(int(told[f"bytes to {what}"] or 0)) for what in ("read", "write")}
        rows: dict[str, Cell] = {
            **{what: value for what, value in told.items() if "bytes" not in what},
            "to read": words["read"],
            "to write": words["write"],
        }
        if self.memory is not None:
            rows["memory, estimated"] = (
                f"{in_words(self.memory)}: this process now, and the blocks of its workers"
            )
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
        facts = provenance(plan=self.key, **self.job.facts)
        return Report("merge plan", tables, facts, result=told, warnings=self.warnings)


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
    shapes, copied, entries, taking = {}, [], [], job.taking()
    for name, stored in job.reference.tensors.items():
        merged = merges(stored) and bool(job.holding(name))
        merged = merged and len(taking.get(name, job.models)) >= job.method.fewest
        if merged:
            shapes[name] = stored.shape
        elif job.output == "model":
            copied.append(name)
        if merged or job.output == "model":
            entries.append(Entry(name, _dtype(job, stored), stored.shape))
    labels = tuple(model.label for model in job.models)
    specs = specs_of(job.method, shapes, job.settings.at, places, labels, taking)
    made = laid_out(job, entries, _known_base(job) or "0" * 64)
    warnings = (*job.notes, *folded(problems), *_unmerged(job, taking))
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


def _unmerged(job: Job, taking: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is said of tensors that too few models have for the method."""
    few = [
        name
        for name, own in taking.items()
        if len(own) < job.method.fewest and merges(job.reference.tensors[name])
    ]
    if not few:
        return []
    return [
        f"{listed(map(repr, few), 3)}: too few models have it for {job.method.name!r}, which merges at least "
        f"{job.method.fewest}, so it is that of {job.reference.label!r}."
    ]


def anonymous() -> int | None:
    """Bytes of anonymous memory that this process has; None where the system does not say."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), None)


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def laid_out(job: Job, entries: Sequence[Entry], base: str) -> Layout:
    """The output's files; a vector's header holds the fingerprint of the base, which takes 64 letters."""
    if job.output == "model":
        metadata = {**job.metadata, **_MODEL}
        return layout(
            entries, job.shard_bytes, metadata, MODEL_FILE if job.single else None, job.stem, job.parts
        )
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
