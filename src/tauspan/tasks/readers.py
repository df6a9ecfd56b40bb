"""Rows from CSV, parquet and npz files, image folders and tables; nothing is repaired on the way."""

import csv
import gzip
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tauspan.errors import DataError, nearest
from tauspan.models.sources import require_extra
from tauspan.tasks.images import Column, Files, Images
from tauspan.tasks.split import Split

_MOST_CLASSES = 100_000  # a stray identifier in the label column must not fill the memory
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")


def read_rows(file: Path, names: Sequence[str], text: str = "text", label: str = "label") -> Split:
    """The rows of one CSV, parquet or npz file, or of an image folder; images stay encoded until they are looked at.

    In a parquet file `text` may name a column of images: encoded bytes, or structs with `bytes` as the hub has them.
    """
    if file.is_dir():
        return _image_folder(file, names)
    if not file.is_file():
        raise DataError(f"{file} does not exist.")
    if file.suffix == ".npz":
        return _npz(file, names)
    if file.suffix == ".parquet" and _holds_images(file, text):
        images, values, _ = image_rows(parquet_table([file]), text, label, str(file))
        return Split(images, labels_of(values, names, str(file)))
    columns = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    for column in (text, label):
        if column not in columns:
            raise DataError(f"{file} has no column {column!r}; it has {', '.join(columns) or 'none'}.")
    for row, value in enumerate(columns[text]):
        if value is None:
            raise DataError(f"{file}, row {row}: the column {text!r} is empty.")
    return Split(columns[text], labels_of(columns[label], names, str(file)))


def _npz(file: Path, names: Sequence[str]) -> Split:
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return Split(list(arrays["image"]), labels_of(arrays["label"].tolist(), names, str(file)))
    except DataError:
        raise
    except (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read as npz with `image` and `label`: {error}") from error


def _csv(file: Path) -> dict[str, list[Any]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", newline="", encoding="utf-8-sig") as handle:  # Excel writes the mark
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            rows = [(row, reader.line_num) for row in reader]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError(f"{file} cannot be read as CSV: {error}") from error
    for row, line in rows:
        if len(row) != len(header):
            raise DataError(f"{file}, line {line}: {len(row)} fields, the header has {len(header)}.")
    return {column: [row[place] for row, _ in rows] for place, column in enumerate(header)}


def _parquet(file: Path) -> dict[str, list[Any]]:
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    try:
        table = parquet.read_table(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def _holds_images(file: Path, column: str) -> bool:
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    try:
        schema = parquet.read_schema(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error
    return column in schema.names and not str(schema.field(column).type).endswith("string")


def parquet_table(files: Sequence[Path]) -> Any:
    """Parquet files as one table of the `datasets` library, mapped from its cache: rows cost no memory."""
    datasets = require_extra("datasets", "data", f"reading {files[0]}")
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # it is a copy from disk to disk
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files])
    except Exception as error:  # the library raises many kinds on damaged files
        raise DataError(f"{files[0]} cannot be read as parquet: {error.__cause__ or error}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def image_rows(
    table: Any, image: str, label: str, where: str
) -> tuple[Images, list[Any], Sequence[str] | None]:
    """The images, labels and class names (None if it has none) of a table of the `datasets` library."""
    datasets = require_extra("datasets", "data", f"reading {where}")
    for column in (image, label):
        if column not in table.column_names:
            known = ", ".join(table.column_names) or "none"
            raise DataError(
                f"{where} has no column {column!r}; it has {known}. {nearest(column, table.column_names)}"
            )
    rows = table.select_columns([image])
    if isinstance(table.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    names = getattr(table.features[label], "names", None)
    return Images(Column(rows, image, where)), list(table[label]), names


def _image_folder(folder: Path, names: Sequence[str]) -> Split:
    for found in classes(folder, ""):
        if found not in names:
            raise DataError(f"{folder / found} is the folder of no class. {nearest(found, names)}")
    inside = folder.resolve()
    files, labels = [], []
    for index, name in enumerate(names):
        for file in _images_in(folder / name, inside):
            files.append(f"{name}/{file}")
            labels.append(index)
    return Split(Images(Files(folder, files)), torch.tensor(labels, dtype=torch.long))


def _images_in(folder: Path, inside: Path) -> list[str]:
    """The image files of one class, sorted; a link that leads out of the folder is an error."""
    if not folder.is_dir():
        return []
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if Path(entry.name).suffix.lower() not in _IMAGE_SUFFIXES:
                continue
            if entry.is_symlink() or folder.is_symlink():
                require_inside(Path(entry.path), inside)
            if entry.is_file():
                found.append(entry.name)
    return sorted(found)


def require_inside(file: Path, folder: Path) -> None:
    """Raise if a path leads out of a folder, through links or dots; `folder` is resolved."""
    if not file.resolve().is_relative_to(folder):
        raise DataError(
            f"{file} leads out of {folder}, to {file.resolve()}: put a copy of the file there instead of the link."
        )


def classes(file: Path, label: str) -> list[str]:
    """The class names that a training file or image folder implies."""
    if file.is_dir():
        return sorted(folder.name for folder in file.iterdir() if folder.is_dir())
    columns = _parquet(file) if file.suffix == ".parquet" else _csv(file)
    values = {str(value) for value in columns.get(label, [])}
    if values and all(value.isdecimal() for value in values):
        most = max(map(int, values))
        if most >= _MOST_CLASSES:
            raise DataError(
                f"{file}: label {most} would mean {most + 1} classes; give `label_names` if it is meant."
            )
        return [str(index) for index in range(most + 1)]
    return sorted(values)


def labels_of(values: Sequence[Any], names: Sequence[str], where: str) -> Tensor:
    """Class indices from indices or names, or a `DataError` that names the row."""
    place = {name: index for index, name in enumerate(names)}
    labels = []
    for row, value in enumerate(values):
        if isinstance(value, str) and value in place:
            labels.append(place[value])
        elif str(value).removeprefix("-").isdecimal():
            labels.append(int(value))
        else:
            raise DataError(
                f"{where}, row {row}: {value!r} is neither a class index nor a class. {nearest(str(value), names)}"
            )
    return torch.tensor(labels, dtype=torch.long)
