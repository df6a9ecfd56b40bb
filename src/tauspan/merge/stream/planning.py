"""How a `Plan` is made of a recipe and the headers of its inputs."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tauspan import store
from tauspan.core.errors import UsageError, listed
from tauspan.core.report import versions
from tauspan.merge.checks.checks import check
from tauspan.merge.checks.origins import fingerprint_of
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.engine.own import source_hash
from tauspan.merge.engine.settings import depths
from tauspan.merge.lora.adapters import Products
from tauspan.merge.lora.lowrank import LowRank
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.method import Spec
from tauspan.merge.methods.scope import specs_of
from tauspan.merge.recipe.parts import size
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.sources.opening import FileSource
from tauspan.merge.sources.problems import folded, require_none
from tauspan.merge.sources.source import Source
from tauspan.merge.stream import output
from tauspan.merge.stream.opened import Opened, leaves, merges, open_recipe
from tauspan.merge.stream.plan import MARK, Plan
from tauspan.store import MODEL, Access, Entry, Layout, Stored, layout
from tauspan.vector import FILE, header

_FORMAT = "tauspan-merge-file/1"


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


_NAME_BASE = "Name the pre-trained model: `base_model`"


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
        repair = "Give each slice a `base`, with `model` and `layer_range`" if opened.stacked else _NAME_BASE
        raise UsageError(
            f"the method {method.name!r} ({made} as output) needs displacements, and without a base {first!r} is only a "
            f"point. {repair}."
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


def _changed(source: Source) -> list[int]:
    files = dict.fromkeys(stored.file for stored in source.tensors.values())
    return [file.stat().st_mtime_ns for file in files]
