"""`merge_files`: a recipe carried out, from files to files."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tauspan import store
from tauspan.merge import card, output
from tauspan.merge.adapter_merge import merge_into_adapter
from tauspan.merge.adapters import WEIGHTS, AdapterSource, save_adapter
from tauspan.merge.assembly import Assembly, assemble
from tauspan.merge.engine import BLOCK
from tauspan.merge.plan import Job, Plan
from tauspan.merge.plan import plan as lay_out
from tauspan.merge.recipe import MergeRecipe, size
from tauspan.merge.stream import execute
from tauspan.merge.values import Access
from tauspan.report import Cell, Report, Table, provenance


def merge_files(
    recipe: MergeRecipe | str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    access: Access = "mmap",
    block: int = BLOCK,
    show_progress: bool = True,
) -> Report:
    r"""Merge models in files into a model, a task vector or an adapter, in memory bounded by blocks.

    Args:
        recipe: a `MergeRecipe`, or its YAML file, ours or mergekit's.
        out: a directory; for a task vector a `.safetensors` file too. It appears when it is whole.
        resume: go on with what a killed run of the same merge left.
        overwrite: replace what lies at `out`.
        workers: threads; None takes the processors that this process may use. The result does not depend on it.
        access: how files are read; see `open_source`.
        block: entries that are read, merged and written at once.
        show_progress: a bar on a terminal.

    Returns:
        What rounding kept of the merged displacement, and the result's digest.

    Raises:
        RecipeError: the recipe does not fit together.
        MismatchError, StoreError, ModelError, NonFiniteError: see `plan.plan` and `stream.execute`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in (("a", 1.0), ("b", 3.0)):
        ...     store.write_tensors(folder / f"{name}.safetensors", {"w": torch.full((2,), value)})
        >>> text = f"method: linear\nmodels: [{{model: {folder}/a.safetensors}}, {{model: {folder}/b.safetensors}}]"
        >>> done = merge_files(MergeRecipe.parse(text), folder / "out", show_progress=False)
        >>> store.Checkpoint(folder / "out")["w"]
        tensor([2., 2.])
    """
    chosen = recipe if isinstance(recipe, MergeRecipe) else MergeRecipe.read(recipe)
    if chosen.output == "adapter":
        return _adapter(chosen, Path(out), access, overwrite)
    with planned(chosen, access=access, workers=workers, block=block) as (assembly, plan):
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
    recipe: MergeRecipe, *, access: Access = "mmap", workers: int | None = None, block: int = BLOCK
) -> Iterator[tuple[Assembly, Plan]]:
    """The opened inputs of a recipe and the plan of its merge; the files are closed at the end.

    Raises:
        As `assembly.assemble` and `plan.plan`.
    """
    assembly = assemble(recipe, access)
    try:
        yield assembly, lay_out(_job(recipe, assembly), block=block, workers=workers)
    finally:
        assembly.close()


def _job(recipe: MergeRecipe, assembly: Assembly) -> Job:
    return Job(
        assembly.method, assembly.settings, assembly.base, assembly.models, assembly.statistics,
        out_dtype=None if recipe.out_dtype is None else getattr(torch, recipe.out_dtype),
        arithmetic=getattr(torch, recipe.dtype), rounding=recipe.rounding, seed=recipe.seed,
        shard_bytes=size(recipe.shard_size), output="model" if recipe.output == "model" else "vector",
        allow=recipe.allow, facts={"recipe": recipe.as_dict()},
    )  # fmt: skip


def _adapter(recipe: MergeRecipe, out: Path, access: Access, overwrite: bool) -> Report:
    """The merge as an adapter: factors side by side where that is exact, else by SVD; the report says what was cut."""
    store.require_free(out, overwrite)
    assembly = assemble(recipe, access)
    try:
        job = _job(recipe, assembly)
        low = merge_into_adapter(job, recipe.rank)
        like = next((model for model in assembly.models if isinstance(model, AdapterSource)), None)
        save_adapter(low, out, like=like, overwrite=overwrite)
    finally:
        assembly.close()
    rows: list[dict[str, Cell]] = [
        {"tensor": name, "rank": low.rank(name), "left out": low.lost.get(name, 0.0)} for name in low.terms
    ]
    with (out / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    table = Table("adapter", rows, "left out: the Frobenius norm of what the SVD took away.")
    result = {"out": str(out), "digest": digest, "tensors": len(rows)}
    return Report(f"merge by {job.method.name}", [table], provenance(**job.facts), result=result)
