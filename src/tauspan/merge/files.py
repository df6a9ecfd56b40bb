"""`merge_files`: a recipe carried out, from files to files."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import hypot
from pathlib import Path
from typing import Any

import torch

from tauspan.arguments import checked
from tauspan.errors import UsageError
from tauspan.merge import card, output
from tauspan.merge.adapter_merge import AdapterPlan, plan_adapter
from tauspan.merge.adapters import AdapterSource, save_adapter
from tauspan.merge.assembly import Assembly, assemble
from tauspan.merge.engine import BLOCK
from tauspan.merge.fields import size
from tauspan.merge.lora_files import LoraFile, save_lora
from tauspan.merge.plan import Job, Plan
from tauspan.merge.plan import plan as lay_out
from tauspan.merge.recipe import MergeRecipe, recipe_of
from tauspan.merge.respelt import spelt_in_memory
from tauspan.merge.stream import execute
from tauspan.merge.target import require_target
from tauspan.merge.values import Access
from tauspan.report import Cell, Report, Table, provenance


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
    show_progress: bool = True,
) -> Report:
    r"""Merge models in files into a model, a task vector or an adapter, in memory bounded by blocks.

    Args:
        recipe: a `MergeRecipe`, its YAML file, ours or mergekit's, or a mapping of what such a file holds.
        out: a directory; for a task vector a `.safetensors` file too. It appears when it is whole.
        resume: go on with what a killed run of the same merge left; an adapter is made at once, and cannot be resumed.
        overwrite: replace what an earlier merge wrote to `out`, and nothing else; see `target.require_target`.
        workers: threads; None takes the processors that this process may use. The result does not depend on it.
        access: how files are read; see `open_source`.
        block: entries that are read, merged and written at once.
        show_progress: a bar on a terminal.

    Returns:
        What rounding (of an adapter: the SVD) kept of the merged displacement, and the result's digest.

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
        >>> done = merge_files(MergeRecipe.parse(text), folder / "out", show_progress=False)
        >>> store.Checkpoint(folder / "out")["w"]
        tensor([2., 2.])
    """
    chosen = recipe_of(recipe)
    if resume and chosen.output == "adapter":
        raise UsageError(f"{out}: an adapter is made at once, so there is nothing to resume: merge it anew.")
    with planned(chosen, access=access, workers=workers, block=block) as (assembly, plan):
        require_target(Path(out), assembly.sources, overwrite)
        if isinstance(plan, AdapterPlan):
            return _adapter(plan, chosen, assembly, Path(out), overwrite)
        kinds = {entry.dtype for entry in plan.layout.entries.values() if entry.dtype.is_floating_point}

        def finish(folder: Path, report: Report) -> None:
            if folder.is_dir():
                if chosen.output == "model":
                    output.finish(folder, chosen, assembly, kinds)
                card.write(folder, chosen, assembly, report, block, Path(out).name)

        return execute(
            plan, out, finish=finish, resume=resume, overwrite=overwrite, show_progress=show_progress
        )


@contextmanager
def planned(
    recipe: MergeRecipe, *, access: Access = "pread", workers: int | None = None, block: int = BLOCK
) -> Iterator[tuple[Assembly, Plan | AdapterPlan]]:
    """The opened inputs of a recipe and the plan of its merge; the files are closed at the end.

    Raises:
        As `assembly.assemble`, and `plan.plan` or `adapter_merge.plan_adapter`.
    """
    assembly = assemble(recipe, access)
    try:
        job = _job(recipe, assembly)
        if recipe.output == "adapter":
            yield assembly, plan_adapter(job, recipe.rank, block=block, workers=workers)
        else:
            yield assembly, lay_out(job, block=block, workers=workers)
    finally:
        assembly.close()


def _job(recipe: MergeRecipe, assembly: Assembly) -> Job:
    return Job(
        assembly.method, assembly.settings, assembly.base, assembly.models, assembly.statistics,
        out_dtype=None if recipe.out_dtype is None else getattr(torch, recipe.out_dtype),
        arithmetic=getattr(torch, recipe.dtype), rounding=recipe.rounding, seed=recipe.seed,
        shard_bytes=size(recipe.shard_size), output=recipe.output,
        allow=recipe.allow, facts={"recipe": recipe.as_dict()},
    )  # fmt: skip


def _adapter(
    plan: AdapterPlan, recipe: MergeRecipe, assembly: Assembly, out: Path, overwrite: bool
) -> Report:
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
    report = Report(f"merge by {plan.job.method.name}", [table], facts, result=result)

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
