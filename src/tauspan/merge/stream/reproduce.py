"""A merge made again from its card, and compared bit for bit."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.errors import MismatchError, UsageError, listed
from tauspan.core.report import versions
from tauspan.merge.methods.method import Method
from tauspan.merge.recipe.recipe import MergeRecipe, relocated
from tauspan.merge.sources.opening import open_source
from tauspan.merge.sources.source import Source, same_values
from tauspan.merge.stream.card import Card
from tauspan.merge.stream.files import merge_files
from tauspan.merge.stream.opened import open_recipe
from tauspan.merge.stream.result import MergeResult
from tauspan.store import Access


def reproduce(
    path: str | Path,
    out: str | Path | None = None,
    *,
    own: Method | None = None,
    workers: int | None = None,
    access: Access = "pread",
) -> MergeResult:
    """Make a merge again from its card, and compare.

    Args:
        path: a merged directory, whose tensors are compared too, or a card alone.
        out: where the new result goes; None removes it after the comparison.
        own: the method, where the card names code of the user's.
        workers: threads.
        access: how files are read.

    Returns:
        The new merge's result.

    Raises:
        MismatchError: the results differ; the message names inputs, versions and tensors that do.
        UsageError: another verb made it, which no recipe describes.
        StoreError: no card, or an input is no longer where it was.
    """
    card = Card.read(path)
    other = next((one["made by"] for one in card.inputs if "made by" in one), None)
    if other is not None:
        raise UsageError(
            f"{path} was made by `tauspan {other['verb']}`, and only merges are made again from a card. Run that verb "
            f"again with the options that the card lists under `made by`, and compare the digests: {card.digest[:12]}."
        )
    recipe = relocated(card.recipe, card.places, Path(path))
    recipe = recipe if own is None else recipe.with_method(own)
    if out is not None:
        store.require_free(Path(out), False)
    with tempfile.TemporaryDirectory(dir=Path(out or path).resolve().parent, prefix=".reproduced.") as folder:
        target = Path(out) if out is not None else Path(folder) / "again"
        result = merge_files(recipe, target, workers=workers, access=access, block=card.block)
        differ = _differing(Path(path), target) if Path(path).is_dir() else []
    if str(result.digest) == card.digest and not differ:
        return result
    again = f"the merge made again has digest {str(result.digest)[:12]}"
    if str(result.digest) == card.digest:
        raise MismatchError(
            f"{again}, as the card says, and other tensors than {path}: {listed(differ)}. The files of {path} were "
            "altered after the merge. `tauspan reproduce-card CARD OUT` makes them anew."
        )
    raise MismatchError(
        f"{again}, and the card of {path} says {card.digest[:12]}. {_why(card, recipe_inputs(recipe, access), differ)}"
    )


def recipe_inputs(recipe: MergeRecipe, access: Access) -> list[dict[str, Any]]:
    """The identities of a recipe's inputs as they are now: the base first, if there is one."""
    opened = open_recipe(recipe, access)
    try:
        return opened.identities()
    finally:
        opened.close()


def _why(card: Card, now: Sequence[Mapping[str, Any]], differ: Sequence[str]) -> str:
    """Why the digest differs: other inputs, other versions, or what neither headers nor versions show."""
    changed = [
        str(mine.get("path", place))
        for place, (mine, then) in enumerate(zip(now, card.inputs, strict=False))
        if {**mine, "path": None} != {**then, "path": None}
    ]
    current = versions()
    other = [
        f"{name} {card.versions.get(name)} then, {current.get(name)} now"
        for name in sorted({*card.versions, *current})
        if card.versions.get(name) != current.get(name)
    ]
    found = [f"Inputs that changed: {listed(changed)}."] if changed else []
    found += [f"Versions that changed: {listed(other)}."] if other else []
    if not found:
        found = [
            "Names, shapes and sizes of the inputs and the versions are the same, and the card keeps no hash of values: "
            "an input's values changed, or the program did."
        ]
    found += [f"Tensors that differ: {listed(differ)}."] if differ else []
    return " ".join(found)


def _differing(first: Path, second: Path) -> list[str]:
    """Names of tensors whose bits, dtypes or shapes differ between two directories."""
    mine, other = open_source(first), open_source(second)
    try:
        names = [*mine.tensors, *(name for name in other.tensors if name not in mine.tensors)]
        return [name for name in names if not _same(mine, other, name)]
    finally:
        mine.close()
        other.close()


def _same(mine: Source, other: Source, name: str) -> bool:
    if name not in mine.tensors or name not in other.tensors:
        return False
    first, second = mine.tensors[name], other.tensors[name]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return same_values(mine, name, other, name)
