"""`Plan`: everything about a merge that its recipe and the headers of its inputs decide, before a value is read."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from tauspan import store
from tauspan.core.errors import UsageError, listed
from tauspan.core.report import Cell, Report, Table, in_words, provenance, versions
from tauspan.merge.checks.checks import check
from tauspan.merge.checks.origins import fingerprint_of
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.engine.own import source_hash
from tauspan.merge.engine.settings import depths
from tauspan.merge.lora.adapters import Products
from tauspan.merge.lora.lowrank import LowRank
from tauspan.merge.methods import METHODS, sums
from tauspan.merge.methods.method import Method, Spec
from tauspan.merge.methods.scope import specs_of
from tauspan.merge.recipe.parts import size
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.sources.opening import FileSource
from tauspan.merge.sources.problems import folded, require_none
from tauspan.merge.sources.source import Source
from tauspan.merge.stream import output
from tauspan.merge.stream.opened import Opened, leaves, merges, open_recipe
from tauspan.store import MODEL, Access, Entry, Layout, Stored, layout
from tauspan.vector import FILE, header

MARK = "tauspan.merge"
"""The key under which the header of a merged single file holds its recipe."""
_FORMAT = "tauspan-merge-file/1"
_STATUS = Path("/proc/self/status")
# Their result is sum_t c_t tau_t with one c_t for each tensor, so that factors can be kept.
LINEAR = (sums.LINEAR, sums.TASK_ARITHMETIC, sums.LINES, sums.PASSTHROUGH)


@dataclass(frozen=True)
class Plan:
    """What will be read, computed and written: a model, a task vector or an adapter.

    Args:
        opened: the recipe with its inputs.
        specs: the tensors that are merged, in the output's order.
        copied: names of those that are taken over as they are: integers, and what no model changes.
        layout: the output's files; None for an adapter, whose ranks are known only when it is merged.
        together: the sum of all adapters among the inputs of an adapter, for ranks and layouts.
        key: a hash of all that decides the output's bytes and the journal's lines.
        block: entries of a block.
        workers: threads.
        single: whether a model is one file, whatever its size.
        warnings: what is odd and yet no error.
    """

    opened: Opened
    specs: tuple[Spec, ...]
    copied: tuple[str, ...]
    layout: Layout | None
    together: LowRank
    key: str
    block: int
    workers: int
    single: bool
    warnings: tuple[str, ...]

    @property
    def recipe(self) -> MergeRecipe:
        """What is asked for."""
        return self.opened.recipe

    @property
    def method(self) -> Method:
        """The row of the table, or the user's own."""
        return self.opened.method

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs' tensors, each counted once; a method that measures first reads them again."""
        return sum(map(_nbytes, self.opened.read))

    @property
    def entries(self) -> int:
        """Entries of the largest piece that a worker holds at once."""
        grain = self.method.grain
        shapes = [spec.shape for spec in self.specs] or [torch.Size([0])]
        largest = max(map(prod, shapes))
        if grain == "tensor":
            return largest
        rows = [prod(shape[1:] if len(shape) > 1 else shape) for shape in shapes] if grain == "row" else []
        return min(max(self.block, *rows, 0), largest)

    @property
    def block_bytes(self) -> int:
        """Memory of the blocks: for each worker models + 2 + the method's temporaries."""
        pieces = len(self.opened.models) + 2 + self.method.temporaries
        return self.workers * self.entries * pieces * self.opened.arithmetic.itemsize

    @property
    def memory(self) -> int | None:
        """Estimate of anonymous memory: what this process has now, measured, and the blocks; None where unknown."""
        now = anonymous()
        return None if now is None else now + self.block_bytes

    @property
    def facts(self) -> dict[str, Any]:
        """What is kept with the result: the complete recipe."""
        return {"recipe": self.recipe.as_dict()}

    @property
    def factored(self) -> bool:
        """Whether an adapter keeps its inputs' factors, side by side; else displacements are cut by SVD."""
        only = all(isinstance(model, Products) for model in self.opened.models)
        return only and self.method in LINEAR

    def ranks(self) -> dict[str, int]:
        """For each matrix, the highest rank that an adapter can have there."""
        most, rank = {}, self.recipe.rank
        for spec in self.specs:
            if len(spec.shape) > 1:
                whole = min(spec.shape[0], spec.shape[1:].numel())
                own = self.together.rank(spec.name) if self.factored else whole
                most[spec.name] = own if rank is None else min(own, rank)
        return most

    def report(self) -> Report:
        """The plan as tables."""
        models = listed(self.opened.labels)
        base = "" if self.opened.base is None else str(self.opened.base.path)
        method = f"{self.method.title}: {self.method.formula}"
        told: dict[str, Cell] = {"method": method, "models": models, "base": base}
        told["tensors merged"] = len(self.specs)
        if self.layout is None:
            told |= {**self._of_adapter(), "workers": self.workers}
            return Report("merge plan", [_listing(told)], provenance(**self.facts), result=told)
        told["tensors copied"] = len(self.copied)
        sizes: dict[str, int] = {"to read": self.bytes_read, "to write": self.layout.nbytes}
        rows: dict[str, Cell] = {**told, "workers": self.workers}
        rows |= {what: in_words(count) for what, count in sizes.items()}
        memory = self.memory
        if memory is not None:
            rows["memory, estimated"] = f"{in_words(memory)}: this process now, and the blocks of its workers"
        told |= {f"bytes {what}": count for what, count in sizes.items()}
        told |= {"memory, bytes, estimated": memory, "workers": self.workers}
        read: list[dict[str, Cell]] = [
            {"reads": one.label, "path": str(one.path), "size": in_words(_nbytes(one))}
            for one in self.opened.read
        ]
        files: list[dict[str, Cell]] = [
            {"writes": one.file, "size": in_words(one.nbytes)} for one in self.layout.shards
        ]
        tables = [_listing(rows), Table("inputs", read), Table("outputs", files)]
        facts = provenance(plan=self.key, **self.facts)
        return Report("merge plan", tables, facts, result=told, warnings=self.warnings)

    def _of_adapter(self) -> dict[str, Cell]:
        ranks, shapes = self.ranks(), {spec.name: spec.shape for spec in self.specs}
        how = "factors side by side" if self.factored else "displacements"
        return {
            "how": f"{how}, {'exactly' if self.factored and self.recipe.rank is None else 'cut by SVD'}",
            "rank at most": max(ranks.values(), default=0),
            "entries to write at most": sum(
                rank * (shapes[name][0] + shapes[name][1:].numel()) for name, rank in ranks.items()
            ),
        }


def _listing(told: Mapping[str, Cell]) -> Table:
    return Table("plan", [{"what": what, "value": value} for what, value in told.items()])


@contextmanager
def planned(
    recipe: MergeRecipe,
    *,
    access: Access = "pread",
    workers: int | None = None,
    block: int = BLOCK,
    single: bool = False,
) -> Iterator[Plan]:
    """The plan of a recipe's merge, with its inputs open; they are closed at the end.

    Adapters merged into an adapter by a linear method keep their factors, side by side, and are cut only if their ranks
    add up to more than `rank`. Anything else is merged densely, tensor by tensor, and cut by SVD: O(m n min(m, n)) for an
    m x n matrix. Files do not say which matrix belongs to an embedding or to a layer that stores its weight transposed:
    the adapters among the inputs say it, and every other matrix is taken for a linear layer's.

    Args:
        recipe: what is asked for.
        access: how files are read; see `open_source`.
        workers: threads; None takes the processors that this process may use.
        block: entries that are read, merged and written at once; memory grows with it, values do not change.
        single: whether a model is to be one file.

    Raises:
        RecipeError: the recipe does not fit its inputs.
        UsageError: too few or too many models, displacements asked for where there is nothing to start from, one file
            for a model that has a configuration, or no rank for an adapter that needs one.
        MismatchError, BaseMismatchError, StoreError: the models do not fit together; see `checks.check`.
    """
    opened = open_recipe(recipe, access)
    try:
        yield plan_opened(opened, block, workers, single and recipe.output == "model")
    finally:
        opened.close()


def plan_opened(opened: Opened, block: int = BLOCK, workers: int | None = None, single: bool = False) -> Plan:
    """The plan of a recipe whose inputs are open; arguments and errors are those of `planned`."""
    workers = workers or processors()
    recipe, method = opened.recipe, opened.method
    if single and opened.folder is not None:
        raise UsageError(
            f"the output is one file, and {opened.folder} is a model with files beside its weights: name a directory, "
            "without the suffix."
        )
    notes = (*recipe.notes, *opened.notes, *output.notes(opened))
    method.require_count(len(opened.models))
    _require_start(opened)
    adapter = recipe.output == "adapter"
    lows = [model.low for model in opened.models if isinstance(model, Products)] if adapter else []
    problems = check(opened.base, opened.models, allow=recipe.allow)
    if len(lows) < len(opened.models) or opened.base is not None:
        require_none(problems)
    together = sum(lows[1:], lows[0]) if lows else LowRank({})  # raises if adapters do not fit together
    taking = {} if adapter else opened.taking()
    shapes, copied = _factors(opened) if adapter else _merged(opened, taking)
    places = depths(shapes if adapter and opened.base is None else opened.reference.tensors)
    specs = tuple(specs_of(method, shapes, opened.settings.at, places, opened.labels, taking))
    layout = None if adapter else _laid_out(opened, _entries(opened, shapes, copied), None, single)
    warnings = (*notes, *folded(problems), *_unmerged(opened, taking))
    key = _key(opened, specs, block)
    made = Plan(opened, specs, copied, layout, together, key, block, workers, single, warnings)
    if adapter and recipe.rank is None and not made.factored:
        raise UsageError(
            f"the method {method.name!r} does not keep these inputs' ranks, so the adapter's must be stated: `rank`."
        )
    return made


def _merged(
    opened: Opened, taking: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, torch.Size], tuple[str, ...]]:
    """The shapes of what is merged into a model or a vector, and what a model takes over as it is."""
    shapes, fewest = {}, opened.method.fewest
    for name, stored in opened.reference.tensors.items():
        if merges(stored) and opened.held(name) and len(taking.get(name, opened.models)) >= fewest:
            shapes[name] = stored.shape
    others = opened.reference.tensors if opened.recipe.output == "model" else ()
    return shapes, tuple(name for name in others if name not in shapes)


def _factors(opened: Opened) -> tuple[dict[str, torch.Size], tuple[str, ...]]:
    """The shapes of what is merged into an adapter: tensors of the displacements or, with a base, of the models."""
    if opened.base is None:
        every = [item for model in opened.models for item in model.tensors.items()]
    else:
        every = [item for item in opened.base.tensors.items() if opened.held(item[0])]
    return {name: stored.shape for name, stored in every if stored.dtype.is_floating_point}, ()


def _entries(opened: Opened, shapes: Mapping[str, torch.Size], copied: Sequence[str]) -> list[Entry]:
    """The tensors of the output, in the reference's order."""
    wanted, every = {*shapes, *copied}, opened.reference.tensors
    return [Entry(name, _dtype(opened, one), one.shape) for name, one in every.items() if name in wanted]


def _dtype(opened: Opened, stored: Stored) -> torch.dtype:
    if not stored.dtype.is_floating_point:
        return stored.dtype
    if opened.recipe.out_dtype is not None:
        chosen: torch.dtype = getattr(torch, opened.recipe.out_dtype)
        return chosen
    return torch.float32 if opened.recipe.output == "vector" else stored.dtype


def _unmerged(opened: Opened, taking: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A note about tensors that too few models have for the method."""
    fewest, every = opened.method.fewest, opened.reference.tensors
    few = [name for name, own in taking.items() if len(own) < fewest and merges(every[name])]
    if not few:
        return []
    return [
        f"{listed(map(repr, few), 3)}: too few models have it for {opened.method.name!r}, which merges at least "
        f"{fewest}, so it is that of {opened.reference.label!r}."
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


def _laid_out(opened: Opened, entries: Sequence[Entry], base: str | None, single: bool) -> Layout:
    """The output's files; a vector's header holds the fingerprint of the base, which takes 64 letters."""
    recipe, limit = opened.recipe, size(opened.recipe.shard_size)
    if recipe.output == "model":
        file = f"{MODEL}.safetensors" if single else None
        return layout(entries, limit, _metadata(opened, single), file, stem_of(opened), output.parts(opened))
    identities = [model.identity for model in opened.models]
    regimes = [one["regime"] for one in identities if "regime" in one]
    made = {"recipe": recipe.as_dict(), "method": opened.method.name, "of": list(opened.labels)}
    info: dict[str, Any] = {"merge": made}
    points = {one["point"] for one in identities if "point" in one}
    if len(points) == 1:
        info["point"] = points.pop()
    known = opened.known_base() or base or "0" * 64
    metadata = header(known, regimes[0] if regimes else "standard", opened.method.name, info)
    return layout(entries, limit, metadata, FILE)


def stem_of(opened: Opened) -> str:
    """How the names of a model's files begin: as the reference's, where a library knows that name."""
    first = next(iter(leaves(opened.home)[0].tensors.values()), None)
    name = "" if first is None else first.file.name
    return next((stem for stem in store.STEMS if name.startswith((f"{stem}.", f"{stem}-"))), MODEL)


def _metadata(opened: Opened, single: bool) -> dict[str, str]:
    """What the reference's header says, without hashes of its values; in a single file with the recipe."""
    home = leaves(opened.home)[0]
    given = home.metadata if isinstance(home, FileSource) else {}
    kept = {key: value for key, value in given.items() if "hash" not in key.lower()}
    made = {MARK: json.dumps({"format": _FORMAT, "recipe": opened.recipe.as_dict()})} if single else {}
    return {**kept, **made, "format": "pt"}  # transformers refuses files without a format


def settled(plan: Plan) -> Plan:
    """The plan with the base's fingerprint in a vector's header; where no model brings it, all of the base is read."""
    opened, base = plan.opened, plan.opened.base
    if base is None or plan.layout is None or plan.recipe.output == "model" or opened.known_base():
        return plan
    entries = list(plan.layout.entries.values())
    return replace(plan, layout=_laid_out(opened, entries, fingerprint_of(base), False))


def _require_start(opened: Opened) -> None:
    """Raise `UsageError` if displacements are needed and there are points, or the other way round."""
    kinds, base, method = {model.kind for model in opened.models}, opened.base, opened.method
    made, first = opened.recipe.output, opened.models[0].label
    if base is not None and base.kind == "point":
        return
    if base is not None:
        raise UsageError(f"the base {base.path} is a displacement, and must be a model.")
    needed = method.space == "delta" or made != "model" or "base" in method.needs
    if needed and "point" in kinds:
        raise UsageError(
            f"the method {method.name!r} ({made} as output) needs displacements, and without a base {first!r} is only a "
            "point. Name the pre-trained model: `base_model`."
        )
    if made == "vector" and opened.known_base() is None:
        raise UsageError(
            f"no model says which base its displacement starts from ({first!r}, ...), and a vector's file must: name "
            "`base_model`."
        )
    if made == "model" and "delta" in kinds:
        raise UsageError(
            "displacements alone make no model: name `base_model`, or ask for a vector (`output: vector`) or, of adapters"
            " and LoRA files, for another (`output: adapter`)."
        )


def _key(opened: Opened, specs: Sequence[Spec], block: int) -> str:
    """A hash of what decides the output: options, inputs (with the time of their last change) and version."""
    method = opened.method
    content = {
        "recipe": opened.recipe.as_dict(),
        "code": None if METHODS.get(method.name) is method else source_hash(method),
        "options": [[spec.name, dict(spec.options)] for spec in specs],
        "sources": [[source.label, source.identity, _changed(source)] for source in opened.read],
        "block": block,
        "version": versions().get("tauspan"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _nbytes(source: Source) -> int:
    return sum(stored.nbytes for stored in source.tensors.values())


def _changed(source: Source) -> list[int]:
    files = dict.fromkeys(stored.file for stored in source.tensors.values())
    return [file.stat().st_mtime_ns for file in files]
