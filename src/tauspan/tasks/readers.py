"""Rows from CSV, parquet and npz files and image folders; nothing is repaired on the way."""

import csv
import gzip
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
from tauspan.tasks.split import Split

_MOST_CLASSES = 100_000  # a stray identifier in the label column must not fill the memory
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_rows(file: Path, names: Sequence[str], text: str = "text", label: str = "label") -> Split:
    """The rows of one CSV, parquet or npz file, or of an image folder."""
    if file.is_dir():
        return _image_folder(file, names)
    if not file.is_file():
        raise DataError(f"{file} does not exist.")
    if file.suffix == ".npz":
        return _npz(file, names)
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


def _image_folder(folder: Path, names: Sequence[str]) -> Split:
    image = require_extra("PIL.Image", "data", f"reading the images in {folder}")
    for found in classes(folder, ""):
        if found not in names:
            raise DataError(f"{folder / found} is the folder of no class. {nearest(found, names)}")
    inputs, labels = [], []
    for index, name in enumerate(names):
        for file in sorted((folder / name).glob("*")):
            if file.suffix.lower() in _IMAGE_SUFFIXES:
                try:
                    with image.open(file) as picture:
                        inputs.append(np.asarray(picture.convert("RGB")))
                except OSError as error:
                    raise DataError(f"{file} cannot be read as an image: {error}") from error
                labels.append(index)
    return Split(inputs, torch.tensor(labels, dtype=torch.long))


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
