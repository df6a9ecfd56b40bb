"""Read rows from files, folders and tables; nothing in them is changed."""

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tauspan.core.errors import DataError, UsageError, listed
from tauspan.models.extras import require_extra
from tauspan.objectives.conversations import conversation
from tauspan.tasks.folders import image_folder, require_inside
from tauspan.tasks.images import Column, Images
from tauspan.tasks.parquet import (
    holds_images,
    parquet_classes,
    parquet_schema,
    parquet_table,
    require_columns,
)
from tauspan.tasks.rows import Rows
from tauspan.tasks.split import SPLITS
from tauspan.tasks.tables import SUFFIXES, Dialect, read_columns, suffix

_ALSO = {
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
}  # other names of the validation split


@dataclass(frozen=True)
class TableOptions:
    """Which columns of a table are read, and how its file is written.

    Args:
        text: the column of the inputs.
        label: the column of the labels.
        split: the column that says which split a row belongs to; None where files are splits.
        dialect: how files of lines are written.
        messages: the inputs are conversations, lists of messages.
    """

    text: str = "text"
    label: str = "label"
    split: str | None = None
    dialect: Dialect = field(default_factory=Dialect)
    messages: bool = False


def read_rows(path: Path, reading: TableOptions | None = None) -> list[Rows]:
    """The rows of a CSV, TSV, JSON, parquet or npz file, of a folder of such tables, or of a folder of images.

    In a parquet file the column of inputs may hold images: encoded bytes, or structs with `bytes` as the hub has them.
    A folder with tables is one split in several files, read in the order of their names. Any other folder has a
    subfolder of images for each class.

    Raises:
        DataError: the path does not exist, cannot be read or lacks a column.
    """
    reading = reading or TableOptions()
    if saved_by_datasets(path):
        raise DataError(
            f"{path} is what `save_to_disk` of the `datasets` library wrote. Its splits together are read by "
            "`Task.from_hub(DIR)`; of one alone make a parquet file: `datasets.load_from_disk(DIR).to_parquet(FILE)`."
        )
    if path.is_dir():
        shards = _shards(path)
        return _tables(shards, reading, path) if shards else [image_folder(path)]
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    return [_npz(path)] if path.suffix == ".npz" else _tables([path], reading, path)


def saved_by_datasets(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library, as several splits or as one table."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def by_split(path: Path, reading: TableOptions) -> dict[str, list[Rows]]:
    """The rows of a table by the value of its column `reading.split`.

    Raises:
        DataError: a value that names no split.
    """
    assert reading.split is not None  # noqa: S101 - the caller asked for it
    found: dict[str, list[Rows]] = {}
    for rows in read_rows(path, reading):
        places: dict[str, list[int]] = {}
        for row, value in enumerate(rows.splits or ()):
            name = _ALSO.get(str(value), str(value))
            if name not in SPLITS:
                known = ", ".join([*SPLITS, *_ALSO])
                raise DataError(
                    f"{rows.place(row)}: the column {reading.split!r} says {value!r}, and the splits are {known}."
                )
            places.setdefault(name, []).append(row)
        for name in places:
            found.setdefault(name, []).append(rows.take(places[name]))
    return found


def _shards(folder: Path) -> list[Path]:
    """The tables in a folder, sorted; none where it holds no table."""
    inside = folder.resolve()
    files = sorted(
        file
        for file in folder.iterdir()
        if not file.name.startswith((".", "_")) and suffix(file) in SUFFIXES and file.is_file()
    )
    kinds = {suffix(file) for file in files} - {".txt"}
    if not kinds:
        return []
    if len(kinds) > 1:
        raise DataError(
            f"{folder} holds tables of several forms ({', '.join(sorted(kinds))}): name the file that is meant, or keep "
            "one form there."
        )
    if any(child.is_dir() and not child.name.startswith((".", "_")) for child in folder.iterdir()):
        raise DataError(
            f"{folder} holds tables and folders: name the file, or the folder of images, that is meant."
        )
    shards = [file for file in files if suffix(file) in kinds]
    for file in shards:
        require_inside(file, inside)
    _require_one_split(folder, shards)
    return shards


def _require_one_split(folder: Path, shards: Sequence[Path]) -> None:
    """Raise if files have the names of different splits, since they are not shards of one split."""
    names = {word for file in shards for word in (*SPLITS, *_ALSO) if file.name.lower().startswith(word)}
    if len({_ALSO.get(name, name) for name in names}) > 1:
        raise DataError(
            f"{folder} holds files of several splits ({', '.join(sorted(names))}). Give the file or folder of each."
        )


def _tables(files: Sequence[Path], reading: TableOptions, where: Path) -> list[Rows]:
    """The rows of the tables that make up one split; files of images are joined to one table, which stays on disk."""
    if suffix(files[0]) in (".parquet", ".pq") and holds_images(files[0], reading.text):
        return [image_rows(parquet_table(files), reading.text, reading.label, str(where), reading.split)]
    return [_table(file, reading) for file in files]


def _table(file: Path, reading: TableOptions) -> Rows:
    own = (
        parquet_classes(parquet_schema(file), reading.label) if suffix(file) in (".parquet", ".pq") else None
    )
    wanted = dict.fromkeys([reading.text, reading.label, *([reading.split] if reading.split else [])])
    columns = read_columns(file, list(wanted), reading.dialect)
    cells = columns.values[reading.text]
    if reading.messages:
        inputs = [_messages(item, file, row, columns.lines) for row, item in enumerate(cells)]
    else:
        inputs = [as_text(item, reading.text, file, row) for row, item in enumerate(cells)]
    splits = columns.values[reading.split] if reading.split else None
    return Rows(inputs, columns.values[reading.label], str(file), columns.lines, own, splits=splits)


def _messages(item: Any, file: Path, row: int, lines: Sequence[int] | None) -> str | None:
    """A cell as a conversation; a missing one gives None."""
    if item is None or (isinstance(item, str) and not item.strip()):
        return None
    return conversation(item, f"{file}, row {row}" + ("" if lines is None else f" (line {lines[row]})"))


def as_text(item: Any, column: str, file: Path, row: int) -> Any:
    """A cell as text: numbers and booleans are written as in a CSV file; NaN and a missing value give None."""
    if item is None or isinstance(item, str):
        return item
    if isinstance(item, bool | int | float):
        return None if item != item else str(item)
    raise DataError(
        f"{file}, row {row}: the column {column!r} holds a {type(item).__name__} ({str(item)[:40]}), which is no "
        "text. Name the column that holds texts, or make one."
    )


def _npz(file: Path) -> Rows:
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            images, labels = list(arrays["image"]), arrays["label"].tolist()
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as npz with `image` and `label`: {error}") from error
    if not isinstance(labels, list) or len(images) != len(labels):
        count = len(labels) if isinstance(labels, list) else "no"
        raise DataError(
            f"{file} holds {len(images)} images and {count} labels: write one label for each image."
        )
    return Rows(images, labels, str(file))


def image_rows(
    table: Any, image: str, label: str, where: str, split: str | None = None, inside: Path | None = None
) -> Rows:
    """The images and labels of a table of the `datasets` library, with its class names where it has some.

    Args:
        table: a table of the `datasets` library.
        image: the column of images.
        label: the column of labels.
        where: the table, for errors.
        split: the column that says each row's split, if one does.
        inside: the folder that the library made the table of, whose files cells may name; None follows no path.
    """
    datasets = require_extra("datasets", "data", f"reading {where}")
    require_columns(where, [image, label, *([split] if split else [])], list(table.column_names))
    rows = table.select_columns([image])
    if isinstance(table.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    names = getattr(table.features[label], "names", None)
    splits = list(table[split]) if split else None
    return Rows(
        Images(Column(rows, image, where, inside)), list(table[label]), where, names=names, splits=splits
    )


def require_apart(name: str, files: Mapping[str, Path], split: str | None) -> None:
    """Raise if both a column and files define the splits; warn if one file is used for two splits."""
    if split is not None and len(files) > 1:
        raise UsageError(
            f"task {name!r}: the column {split!r} says which split a row belongs to, and so does the file for "
            f"{listed(key for key in files if key != 'train')}. Give one of the two."
        )
    seen: dict[Path, str] = {}
    for key, file in files.items():
        first = seen.setdefault(file.resolve(), key)
        if first != key:
            warnings.warn(
                f"task {name!r} reads {file} as {first} and as {key}: both have the same rows, so accuracies on {key} "
                f"are accuracies on {first}. Leave `{key}` out, and some rows are held out for it; or name the column "
                "that tells the splits apart with `split`.",
                stacklevel=3,
            )
