"""Rows without labels: a text file, a table, or a folder of images."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tauspan.core.errors import DataError, listed
from tauspan.tasks.images import Files, Images
from tauspan.tasks.readers import as_text
from tauspan.tasks.rows import fault_of
from tauspan.tasks.tables import SUFFIXES, Dialect, opened, read_columns, suffix

_PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
_Row: TypeAlias = tuple[str, str, Any]  # its name, its place in the file for errors, its text


def rows_of(
    path: str | Path, text: str = "text", dialect: Dialect | None = None, clean: bool = False
) -> tuple[list[str], Sequence[Any]]:
    """The names of the rows, and the rows; tables are read as in `Task.from_files`.

    Args:
        path: `.txt`: each line is a row; `.csv`, `.tsv`, `.parquet`: the column `text`; `.json` and `.jsonl`: the key
            `text`, or each line a text; those also as `.gz`; a folder: its images, sorted by name, those in folders
            inside it too; or one image.
        text: the column or key.
        dialect: how files of lines are written.
        clean: leave out rows without a text, and warn of how many, instead of raising.

    Raises:
        DataError: not there, of another kind, without that column, or without a row; a row without a text.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if _is_picture(file, path))
        return _some(names, path), Images(Files(path, names))
    if not path.is_file():
        raise DataError(f"{path} is not there. Name a .txt, .csv or .jsonl file, or a folder of images.")
    if _is_picture(path, path.parent):
        return [path.name], Images(Files(path.parent, [path.name]))
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise DataError(
            f"{path} is not read: rows come from {listed(SUFFIXES, 20)} files, an image, or a folder of images."
        )
    read = _lines if kind == ".txt" else _table
    found = _some(read(path, text, dialect or Dialect()), path)
    kept = _some(_complete(found, path, clean), path)
    return [name for name, _, _ in kept], [item for _, _, item in kept]


def _some(rows: list[Any], path: Path) -> list[Any]:
    if not rows:
        raise DataError(f"{path} holds no row: a text file has one on each line, a table one below its head.")
    return rows


def _is_picture(file: Path, top: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in file.relative_to(top).parts)
    return file.is_file() and file.suffix.lower() in _PICTURES and not hidden


def _lines(path: Path, text: str, dialect: Dialect) -> list[_Row]:
    """The lines of a text file, named by their line numbers; blank lines are skipped."""
    with opened(path, dialect, "lines of text") as lines:  # which splits lines as in tables
        return [
            (str(number), f"line {number}", line.rstrip("\r\n"))
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]


def _table(path: Path, text: str, dialect: Dialect) -> list[_Row]:
    """The rows of a table, named by their line numbers in JSON files, and counted from 1 in others."""
    columns = read_columns(path, [text], dialect, bare=True)
    lines, by_line = columns.lines, suffix(path) in (".json", ".jsonl", ".ndjson")
    found = []
    for row, value in enumerate(columns.values[text]):
        name = str(lines[row] if lines is not None and by_line else row + 1)
        place = f"line {lines[row]}" if lines is not None else f"row {name}"
        found.append((name, place, as_text(value, text, path, row)))
    return found


def _complete(rows: list[_Row], path: Path, clean: bool) -> list[_Row]:
    """The rows that have a text; the others are an error, or are counted and left out."""
    faults = [(place, fault) for _, place, item in rows if (fault := fault_of(item)) is not None]
    if not faults:
        return rows
    told = ", ".join(
        f"{count} {'row' if count == 1 else 'rows'} {what}"
        for what, count in Counter(fault for _, fault in faults).items()
    )
    if not clean:
        place, fault = faults[0]
        raise DataError(
            f"{path}, {place}, is a row {fault}; the file has {told}. Complete them or take them out, or pass clean=True "
            "(--clean), which leaves them out and says how many."
        )
    warnings.warn(f"{path}: left out {told}.", stacklevel=3)
    return [row for row in rows if fault_of(row[2]) is None]
