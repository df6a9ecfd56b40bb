"""The splits of a data set on the hub, or in a local directory, through the `datasets` library."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tauspan.core.errors import DataError, listed, nearest
from tauspan.models.extras import require_extra
from tauspan.tasks.parquet import require_columns
from tauspan.tasks.readers import image_rows, saved_by_datasets
from tauspan.tasks.rows import Rows


def hub_rows(
    source: str,
    text: str,
    label: str,
    config: str | None,
    revision: str | None,
    splits: Mapping[str, str | None],
) -> dict[str, list[Rows]]:
    """The rows of a task's splits; no remote code is run.

    Args:
        source: a hub id, a local directory, or what `save_to_disk` of the library wrote.
        text: the column of texts or images.
        label: the column of classes.
        config: the name of the configuration, for a data set with several.
        revision: a commit, tag or branch.
        splits: the names of the splits `train`, `test` and `validation` in the data set; if `validation` is None, the
            split with that name is used, if it exists and has no other role.

    Raises:
        DataError: the data set cannot be loaded, or lacks a split or a column; it says which it has.
    """
    datasets = require_extra("datasets", "data", f"the data set {source!r}")
    saved = saved_by_datasets(Path(source))
    try:
        found = (
            datasets.load_from_disk(source)
            if saved
            else datasets.load_dataset(source, config, revision=revision)
        )
    except Exception as error:  # the library raises many kinds: offline, unknown, gated, malformed
        raise DataError(f"the data set {source!r} could not be loaded: {error}") from error
    if isinstance(found, datasets.Dataset):  # a single saved table has no split name
        found = {"train": found}
    chosen = {split: name for split, name in splits.items() if name is not None}
    if splits.get("validation") is None and "validation" in found and "validation" not in chosen.values():
        chosen["validation"] = "validation"
    for split, name in chosen.items():
        if name not in found:
            raise DataError(
                f"{source!r} has no split {name!r} to take as {split}; it has {listed(found)}. Name one of them: "
                f'{split}="{next(iter(found))}". {nearest(name, found)}'
            )
    _require_apart(source, chosen)
    folder = (
        Path(source).resolve() if Path(source).is_dir() else Path(datasets.config.HF_CACHE_HOME).resolve()
    )
    return {
        split: [_rows(found[name], text, label, f"{source}:{name}", folder)] for split, name in chosen.items()
    }


def _require_apart(source: str, chosen: Mapping[str, str]) -> None:
    """Raise if one split is used twice, for instance for training and test."""
    for split, name in chosen.items():
        other = next((one for one in chosen if one != split and chosen[one] == name), None)
        if other is not None:
            raise DataError(
                f"{source!r}: the split {name!r} is taken as {split} and as {other}, so they would have the same rows. "
                "Name another for one of them."
            )


def _rows(table: Any, text: str, label: str, where: str, folder: Path) -> Rows:
    datasets = require_extra("datasets", "data", f"reading {where}")
    require_columns(where, [text, label], list(table.column_names))
    table = table.with_format(None)  # a saved table may hide columns and return tensors
    kind = table.features[text]
    if isinstance(kind, datasets.Image):
        return image_rows(table, text, label, where, inside=folder)
    if isinstance(kind, datasets.Audio | datasets.Video):
        raise DataError(
            f"{where}: the column {text!r} holds {type(kind).__name__.lower()}, and texts and images are read. Make "
            "features of it, and a task with `Task.from_tensors`."
        )
    names = getattr(table.features[label], "names", None)
    inputs = [_input(item, text, where, row) for row, item in enumerate(table[text])]
    return Rows(inputs, list(table[label]), where, names=names)


def _input(item: Any, column: str, where: str, row: int) -> Any:
    """A cell as a text (numbers as in a CSV file), or as an array if it holds lists of numbers."""
    if item is None or isinstance(item, str):
        return item
    if isinstance(item, bool | int | float):
        return None if item != item else str(item)
    array = _numbers(item) if isinstance(item, Sequence | np.ndarray) else None
    if array is None:
        raise DataError(
            f"{where}, row {row}: the column {column!r} holds a {type(item).__name__} ({str(item)[:40]}), which is "
            "neither a text nor an array of numbers. Name another column, or make one."
        )
    return array


def _numbers(item: Any) -> Any:
    try:
        array = np.asarray(item)
    except ValueError:  # lists of different lengths
        return None
    return array if array.dtype.kind in "biuf" else None
