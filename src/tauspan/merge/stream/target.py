"""Where a merge may write: never over what it reads, and over nothing that a merge did not write."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tauspan import store
from tauspan.core.errors import RecipeError, StoreError, TauspanError, UsageError, listed
from tauspan.merge.sources.inputs import Source
from tauspan.merge.stream.assembly import leaves
from tauspan.merge.stream.card import Card
from tauspan.store.headers import read_header
from tauspan.vector import FILE


def require_target(out: Path, sources: Iterable[Source], overwrite: bool) -> None:
    """Raise unless the result may be put at `out`.

    Args:
        out: the merge's output.
        sources: all that the merge reads.
        overwrite: replace what lies there.

    Raises:
        UsageError: `out` is an input, lies in one or holds one; links are followed.
        StoreError: something lies there and `overwrite` is false, or it is not the result of a merge and nothing else.
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
    """The real places of everything that a source reads."""
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
