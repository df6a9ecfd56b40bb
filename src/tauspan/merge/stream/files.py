"""`merge_files`: a recipe carried out, from files to files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.notices import tell
from tauspan.merge.engine.engine import BLOCK
from tauspan.merge.recipe.reading import Series, recipe_of
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.stream import card, output
from tauspan.merge.stream.adapter import write_adapter
from tauspan.merge.stream.planning import planned
from tauspan.merge.stream.result import MergeResult
from tauspan.merge.stream.stream import execute
from tauspan.merge.stream.target import finished, require_target
from tauspan.store import Access


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
) -> MergeResult:
    """Merge models in files into a model, a task vector or an adapter, in memory bounded by blocks.

    Args:
        recipe: a `MergeRecipe`, its YAML file, ours or mergekit's, or a mapping of what such a file holds. A file of
            several documents is several merges, carried out in order: see `reading.Series`.
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
        UsageError: `resume` for an adapter; one of `out` and an input is inside the other.
        RecipeError: the recipe does not fit together.
        MismatchError, StoreError, ModelError, NonFiniteError: see `plan.planned` and `stream.execute`.

    Example:
        >>> import tempfile, torch
        >>> from tauspan import store
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in (("a", 1.0), ("b", 3.0)):
        ...     store.write_tensors(folder / f"{name}.safetensors", {"w": torch.full((2,), value)})
        >>> recipe = {"method": "linear", "models": [folder / "a.safetensors", folder / "b.safetensors"]}
        >>> result = merge_files(recipe, folder / "out")
        >>> result.loss, store.Checkpoint(folder / "out")["w"]
        (0.0, tensor([2., 2.]))
    """
    if isinstance(recipe, str | Path):
        series = Series.read(recipe)
        if len(series.merges) > 1:
            results = [
                merge_files(
                    one, place, resume=resume, overwrite=overwrite, workers=workers, access=access, block=block,
                    )
                for place, one in series.placed(Path(out))
            ]  # fmt: skip
            return results[-1]
        recipe = next(iter(series.merges.values()))
    chosen, out = recipe_of(recipe), Path(out)
    single = out.suffix == ".safetensors"
    with planned(chosen, access=access, workers=workers, block=block, single=single) as plan:
        done = finished(out, plan.opened, block) if resume else None
        if done is not None:
            return done
        if resume and chosen.output == "adapter":
            raise UsageError(
                f"{out}: an adapter is made at once, so there is nothing to resume: merge it anew."
            )
        require_target(out, plan.opened.sources, overwrite)
        for note in plan.warnings:
            tell(note)
        if plan.layout is None:
            return write_adapter(plan, out, overwrite)
        kinds = {entry.dtype for entry in plan.layout.entries.values() if entry.dtype.is_floating_point}

        def finish(folder: Path, result: MergeResult) -> None:
            if folder.is_dir():
                if chosen.output == "model":
                    output.finish(folder, plan.opened, kinds)
                card.write(folder, plan.opened, result, block)

        return execute(plan, out, finish=finish, resume=resume, overwrite=overwrite)
