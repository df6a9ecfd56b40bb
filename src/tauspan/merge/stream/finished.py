"""A merge that is finished already: what `resume` finds where nothing is left to do."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauspan.core.errors import RecipeError, StoreError, TauspanError
from tauspan.core.report import Report, Table, provenance
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.stream.assembly import Assembly
from tauspan.merge.stream.card import FILE as CARD
from tauspan.merge.stream.card import Card, pinned
from tauspan.merge.stream.journal import work_folder
from tauspan.store import locked
from tauspan.store.headers import read_header

MARK = "tauspan.merge"
"""The key under which the header of a merged single file holds its recipe."""
FORMAT = "tauspan-merge-file/1"


def finished(out: Path, recipe: MergeRecipe, assembly: Assembly, block: int) -> Report | None:
    """The report of a merge whose result is at `out` already; None if nothing is there.

    What a process that was killed just after the end left beside it is removed.

    Raises:
        StoreError: the result of another merge is there.
    """
    if not out.exists() or (work_folder(out) / out.name).exists():
        return None
    sources = [*([] if assembly.base is None else [assembly.base]), *assembly.models]
    if out.is_file():
        same, digest = _written(out) == recipe.as_dict(), None
    else:
        try:
            card = Card.read(out)
        except (StoreError, RecipeError):
            return None  # no merge's result: the writer says so
        now = pinned(recipe.resolved(), sources).as_dict()
        inputs = [json.loads(json.dumps(dict(source.identity))) for source in sources]
        whole = all((out / file).exists() for file in card.files)
        same = whole and card.recipe.as_dict() == now and list(card.inputs) == inputs and card.block == block
        digest = card.digest
    made = (out if out.is_file() else out / CARD).stat().st_mtime_ns
    files = {stored.file for source in sources for stored in source.tensors.values()}
    same = same and all(file.stat().st_mtime_ns <= made for file in files)
    if not same:
        raise StoreError(
            f"{out} is there already, and not as the result of this merge: the recipe, the block size or an input is "
            "another, or an input changed since. Choose another output, or say `overwrite` (--overwrite)."
        )
    _clear(work_folder(out))
    result: dict[str, Any] = {"out": str(out), "finished": True}
    result |= {} if digest is None else {"digest": digest}
    table = Table(
        "finished", [{"what": "merge", "value": f"{out} is the finished result; nothing was left to do"}]
    )
    return Report(
        f"merge by {assembly.method.name}", [table], provenance(recipe=recipe.as_dict()), result=result
    )


def _written(file: Path) -> Mapping[str, Any] | None:
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
