"""Rows without labels: a text file, CSV, JSON lines, or a folder of images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauspan.core.errors import DataError, listed
from tauspan.tasks.images import Files, Images
from tauspan.tasks.tables import Dialect, read_columns

_PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")


def rows_of(path: str | Path, text: str = "text") -> tuple[list[str], Sequence[Any]]:
    """What each row is called, and the rows.

    Args:
        path: `.txt`: each line is a row; `.csv` and `.tsv`: the column `text`, read as a task's files are; `.jsonl`: its
            key `text`, or each line a text; a folder: its images, sorted by name, those in folders inside it too; or
            one image.
        text: the column or key.

    Raises:
        DataError: not there, of another kind, without that column, or without a row.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if _is_picture(file, path))
        return _some(names, path), Images(Files(path, names))
    if not path.is_file():
        raise DataError(f"{path} is not there. Name a .txt, .csv or .jsonl file, or a folder of images.")
    if _is_picture(path, path.parent):
        return [path.name], Images(Files(path.parent, [path.name]))
    readers = {".txt": _lines, ".csv": _table, ".tsv": _table, ".jsonl": _objects}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} is not read: rows come from {listed(readers)} files, an image, or a folder of images."
        )
    try:
        found = reader(path, text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    numbers, texts = zip(*_some(found, path), strict=True)
    return [str(number) for number in numbers], list(texts)


def _some(rows: list[Any], path: Path) -> list[Any]:
    if not rows:
        raise DataError(f"{path} holds no row to predict.")
    return rows


def _is_picture(file: Path, top: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in file.relative_to(top).parts)
    return file.is_file() and file.suffix.lower() in _PICTURES and not hidden


def _lines(path: Path, text: str) -> list[tuple[int, str]]:
    """Blank lines are no rows; the others keep their numbers."""
    with path.open(
        encoding="utf-8-sig"
    ) as lines:  # which end where files of lines end, and not at every separator
        return [(number, line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip()]


def _table(path: Path, text: str) -> list[tuple[int, str]]:
    columns = read_columns(path, [text], Dialect())
    return [(number, str(value)) for number, value in enumerate(columns.values[text], 1)]


def _objects(path: Path, text: str) -> list[tuple[int, str]]:
    found = []
    for number, line in _lines(path, text):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is not JSON: {error}.") from error
        value = value.get(text) if isinstance(value, dict) else value
        if not isinstance(value, str):
            raise DataError(f"{path}, line {number}, has no text under {text!r}. Name the key: --text.")
        found.append((number, value))
    return found
