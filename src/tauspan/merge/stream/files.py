"""`merge_files`: a recipe carried out, from files to files."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any

import torch

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.notices import tell
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.merge.checks.checks import check
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.lora.adapters import AdapterSource, save_adapter
from tauspan.merge.lora.lora_files import LoraFile, save_lora
from tauspan.merge.recipe.parts import size
from tauspan.merge.recipe.reading import Series
from tauspan.merge.recipe.recipe import MergeRecipe, recipe_of
from tauspan.merge.sources.opening import Files
from tauspan.merge.sources.problems import folded
from tauspan.merge.sources.respelt import spelt_in_memory
from tauspan.merge.sources.source import model_folder
from tauspan.merge.stream import card, output
from tauspan.merge.stream.adapter_merge import AdapterPlan, plan_adapter
from tauspan.merge.stream.assembly import Assembly, assemble, leaves
from tauspan.merge.stream.job import Job
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.plan import plan as lay_out
from tauspan.merge.stream.stream import execute
from tauspan.merge.stream.target import FORMAT, MARK, finished, require_target
from tauspan.store.values import Access
from tauspan.store.writer import MODEL


@checked
def merge_files(
    recipe: MergeRecipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    access: Access = "pread",
    block: int = BLOCK,
) -> Report:
    r"""Merge models in files into a model, a task vector or an adapter, in memory bounded by blocks.

    Args:
        recipe: a `MergeRecipe`, its YAML file, ours or mergekit's, or a mapping of what such a file holds. A file of
            several documents is several merges, carried out in order: see `series.Series`.
        out: a directory; for a task vector, or where the inputs are single files, a `.safetensors` file too. It appears
            when it is whole.
        resume: go on with what a killed run of the same merge left, or say that the merge is finished; an adapter is made
            at once, and cannot be resumed.
        overwrite: replace what an earlier merge wrote to `out`, and nothing else; see `target.require_target`.
        workers: threads; None takes the processors that this process may use. The result does not depend on it.
        access: how files are read; see `open_source`.
        block: entries that are read, merged and written at once.

    Returns:
        What rounding (of an adapter: the SVD) kept of the merged displacement, the result's digest, and in
        `warnings` all that was let pass, which is logged too and is in the card. For several merges it is the last one's.

    Raises:
        UsageError: `resume` for an adapter; `out` and an input lie in one another.
        RecipeError: the recipe does not fit together.
        MismatchError, StoreError, ModelError, NonFiniteError: see `plan.plan` and `stream.execute`.

    Example:
        >>> import tempfile, torch
        >>> from tauspan import store
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in (("a", 1.0), ("b", 3.0)):
        ...     store.write_tensors(folder / f"{name}.safetensors", {"w": torch.full((2,), value)})
        >>> text = f"method: linear\nmodels: [{{model: {folder}/a.safetensors}}, {{model: {folder}/b.safetensors}}]"
        >>> done = merge_files(MergeRecipe.parse(text), folder / "out")
        >>> store.Checkpoint(folder / "out")["w"]
        tensor([2., 2.])
    """
    if isinstance(recipe, str | Path):
        series = Series.read(recipe)
        if len(series.merges) > 1:
            reports = [
                merge_files(
                    one, place, resume=resume, overwrite=overwrite, workers=workers, access=access, block=block,
                    )
                for place, one in series.placed(Path(out))
            ]  # fmt: skip
            return reports[-1]
        recipe = next(iter(series.merges.values()))
    chosen, out = recipe_of(recipe), Path(out)
    single = out.suffix == ".safetensors"
    with planned(chosen, access=access, workers=workers, block=block, single=single) as (assembly, plan):
        done = finished(out, chosen, assembly, block) if resume else None
        if done is not None:
            return done
        if resume and chosen.output == "adapter":
            raise UsageError(
                f"{out}: an adapter is made at once, so there is nothing to resume: merge it anew."
            )
        require_target(out, assembly.sources, overwrite)
        for note in plan.warnings:
            tell(note)
        if isinstance(plan, Warned):
            return _adapter(plan, chosen, assembly, out, overwrite)
        kinds = {entry.dtype for entry in plan.layout.entries.values() if entry.dtype.is_floating_point}

        def finish(folder: Path, report: Report) -> None:
            if folder.is_dir():
                if chosen.output == "model":
                    output.finish(folder, chosen, assembly, kinds)
                card.write(folder, chosen, assembly, report, block, out.name)

        return execute(
            plan,
            out,
            finish=finish,
            resume=resume,
            overwrite=overwrite,
        )


@dataclass(frozen=True)
class Warned(AdapterPlan):
    """The plan of an adapter, with what is odd about its inputs and yet no error."""

    warnings: tuple[str, ...] = ()


@contextmanager
def planned(
    recipe: MergeRecipe,
    *,
    access: Access = "pread",
    workers: int | None = None,
    block: int = BLOCK,
    single: bool = False,
) -> Iterator[tuple[Assembly, Plan | Warned]]:
    """The opened inputs of a recipe and the plan of its merge; the files are closed at the end.

    `single` asks for a model in one file.

    Raises:
        UsageError: one file of a model that has a configuration.
        As `assembly.assemble`, and `plan.plan` or `adapter_merge.plan_adapter`.
    """
    assembly = assemble(recipe, access)
    try:
        job = _job(recipe, assembly, single)
        if recipe.output == "adapter":
            made = plan_adapter(job, recipe.rank, block=block, workers=workers)
            problems = check(job.base, job.models, allow=job.allow)
            yield assembly, Warned(**vars(made), warnings=(*job.notes, *folded(problems)))
        else:
            yield assembly, lay_out(job, block=block, workers=workers)
    finally:
        assembly.close()


def _job(recipe: MergeRecipe, assembly: Assembly, single: bool) -> Job:
    folder = model_folder(assembly.home.path)
    if single and recipe.output == "model" and folder is not None:
        raise UsageError(
            f"the output is one file, and {folder} is a model with files beside its weights: name a directory, without "
            "the suffix."
        )
    notes = (*recipe.notes, *assembly.notes, *output.notes(recipe, assembly))
    return Job(
        assembly.method, assembly.settings, assembly.base, assembly.models, assembly.statistics,
        out_dtype=None if recipe.out_dtype is None else getattr(torch, recipe.out_dtype),
        arithmetic=getattr(torch, recipe.dtype), rounding=recipe.rounding, seed=recipe.seed,
        shard_bytes=size(recipe.shard_size), output=recipe.output, allow=recipe.allow, notes=notes,
        stem=_stem(assembly), parts=output.parts(assembly), metadata=_metadata(recipe, assembly, single),
        single=single and recipe.output == "model", facts={"recipe": recipe.as_dict()},
    )  # fmt: skip


def _stem(assembly: Assembly) -> str:
    """How the weights' files are called: as the reference's, where a library knows that name."""
    first = next(iter(leaves(assembly.home)[0].tensors.values()), None)
    name = "" if first is None else first.file.name
    return next((stem for stem in store.STEMS if name.startswith((f"{stem}.", f"{stem}-"))), MODEL)


def _metadata(recipe: MergeRecipe, assembly: Assembly, single: bool) -> dict[str, str]:
    """What the reference's header says, without hashes of its values; in a single file with the recipe."""
    home = leaves(assembly.home)[0]
    given = home.metadata if isinstance(home, Files) else {}
    kept = {key: value for key, value in given.items() if "hash" not in key.lower()}
    made = {"format": FORMAT, "recipe": recipe.as_dict()}
    return {**kept, **({MARK: json.dumps(made)} if single else {})}


def _adapter(plan: Warned, recipe: MergeRecipe, assembly: Assembly, out: Path, overwrite: bool) -> Report:
    """The merge as an adapter with its card; the report says what was cut."""
    low = plan.merged()
    rows: list[dict[str, Cell]] = [
        {"tensor": name, "rank": low.rank(name), "left out": low.lost.get(name, 0.0)} for name in low.terms
    ]
    lost = hypot(*low.lost.values())
    norm = hypot(low.norm(), lost)  # what an SVD cuts off is orthogonal to what it keeps
    result: dict[str, Any] = {
        "out": str(out), "tensors": len(rows), "norm": norm, "loss": lost / norm if norm else 0.0,
    }  # fmt: skip
    table = Table("adapter", rows, "left out: the Frobenius norm of what the SVD took away.")
    facts = provenance(block=plan.block, workers=plan.workers, **plan.job.facts)
    report = Report(f"merge by {plan.job.method.name}", [table], facts, result=result, warnings=plan.warnings)

    def finish(folder: Path) -> None:
        (weights,) = folder.glob("*.safetensors")
        with weights.open("rb") as file:
            result["digest"] = hashlib.file_digest(file, "sha256").hexdigest()
        card.write(folder, recipe, assembly, report, plan.block, out.name)

    files = [model for model in assembly.models if isinstance(model, LoraFile)]
    if files and len(files) == len(assembly.models):
        spelt = {name: own for model in files for name, own in model.spelt.items()}
        save_lora(low, out, files[0], spelt, overwrite=overwrite, finish=finish)
        return report
    like = next((model for model in assembly.models if isinstance(model, AdapterSource)), None)
    spelt = spelt_in_memory(low.terms, assembly.models, assembly.base)
    save_adapter(low, out, like=like, spelt=spelt, overwrite=overwrite, finish=finish)
    return report
