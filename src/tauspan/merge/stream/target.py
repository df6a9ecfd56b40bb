"""Where a merge may write: never over its inputs, and only over results of merges; and whether it is finished."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import RecipeError, StoreError, TauspanError, UsageError, listed
from tauspan.core.report import provenance
from tauspan.merge.sources.source import Source
from tauspan.merge.stream.card import FILE as CARD
from tauspan.merge.stream.card import Card, pinned
from tauspan.merge.stream.opened import Opened, leaves
from tauspan.merge.stream.plan import MARK
from tauspan.merge.stream.result import MergeResult
from tauspan.merge.stream.stream import work_folder
from tauspan.store import locked, read_header
from tauspan.vector import FILE


def finished(out: Path, opened: Opened, block: int) -> MergeResult | None:
    """The result of this merge if it is at `out` already; None if nothing is there.

    A work folder that a process left, because it was killed just after the end, is removed.

    Raises:
        StoreError: the result of another merge is there.
    """
    if not out.exists() or (work_folder(out) / out.name).exists():
        return None
    recipe = opened.recipe
    if out.is_file():
        same, digest = _recipe_in(out) == recipe.as_dict(), None
    else:
        try:
            card = Card.read(out)
        except (StoreError, RecipeError):
            return None  # not the result of a merge: the writer raises the error
        now = pinned(recipe.resolved(), opened.points).as_dict()
        inputs = [json.loads(json.dumps(dict(source.identity))) for source in opened.points]
        whole = all((out / file).exists() for file in card.files)
        same = whole and card.recipe.as_dict() == now and list(card.inputs) == inputs and card.block == block
        digest = card.digest
    made = (out if out.is_file() else out / CARD).stat().st_mtime_ns
    files = {stored.file for source in opened.points for stored in source.tensors.values()}
    same = same and all(file.stat().st_mtime_ns <= made for file in files)
    if not same:
        raise StoreError(
            f"{out} is there already, and not as the result of this merge: the recipe, the block size or an input is "
            "another, or an input changed since. Choose another output, or say `overwrite` (--overwrite)."
        )
    _clear(work_folder(out))
    return MergeResult(
        out=out, method=opened.method.name, digest=digest, finished=True, provenance=provenance(recipe=recipe.as_dict())
    )  # fmt: skip


def _recipe_in(file: Path) -> Mapping[str, Any] | None:
    """The recipe in the header of a vector or of a merged single file."""
    try:
        metadata = read_header(file).metadata
        if MARK in metadata:
            return dict(json.loads(metadata[MARK])["recipe"])
        return dict(json.loads(metadata["tauspan"])["info"]["merge"]["recipe"])
    except (TauspanError, ValueError, KeyError, TypeError):
        return None


def _clear(folder: Path) -> None:
    """Remove a work folder that no living process holds."""
    if folder.is_dir():
        with locked(folder) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


def require_target(out: Path, sources: Iterable[Source], overwrite: bool) -> None:
    """Raise unless the result may be put at `out`.

    Args:
        out: the merge's output.
        sources: all that the merge reads.
        overwrite: replace what is there.

    Raises:
        UsageError: `out` is an input, is inside one or holds one; links are followed.
        StoreError: something is there and `overwrite` is false, or it is not the result of a merge and nothing else.
    """
    target = out.resolve()
    for source in sources:
        for place in _places(source):
            if target == place or place in target.parents or target in place.parents:
                raise UsageError(
                    f"the output {out} and the input {source.path} lie in one another, and a merge never writes over "
                    "what it reads. Choose another output."
                )
    store.require_free(out, overwrite)
    if out.exists():
        _require_own(out)


def _places(source: Source) -> Iterator[Path]:
    """The resolved paths of everything that a source reads."""
    for leaf in leaves(source):
        yield leaf.path.resolve()
        yield from {stored.file.resolve() for stored in leaf.tensors.values()}


def _require_own(out: Path) -> None:
    """Raise unless `out` is a vector's file, empty, or holds what a merge wrote and nothing else."""
    repair = "Move it away by hand, or choose another output."
    if out.is_file():
        if not _is_vector(out):
            raise StoreError(
                f"{out} is no task vector and no merge that tauspan wrote, so it is not overwritten. {repair}"
            )
        return
    found = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_symlink() or not file.is_dir()}
    foreign = sorted(found - _written(out))
    if foreign:
        raise StoreError(
            f"{out} holds files that no merge wrote there ({listed(foreign)}), so it is not overwritten. {repair}"
        )


def _written(out: Path) -> set[str]:
    """The files of a directory that a merge, or `TaskVector.save`, wrote."""
    try:
        return set(Card.read(out).files)
    except (StoreError, RecipeError):
        return {FILE} if _is_vector(out / FILE) else set()


def _is_vector(file: Path) -> bool:
    try:
        metadata = read_header(file).metadata
        return "tauspan" in metadata or "tauspan.merge" in metadata
    except TauspanError:  # damaged, or no safetensors at all
        return False
