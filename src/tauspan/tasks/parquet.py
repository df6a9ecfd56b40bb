"""Parquet files: columns of any type as Python values, and tables of images that stay on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauspan.errors import DataError, listed, nearest
from tauspan.models.extras import require_extra


def require_columns(file: Path | str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless a table has each wanted column once."""
    for column in wanted:
        if known.count(column) > 1:
            raise DataError(
                f"{file} has {known.count(column)} columns called {column!r}: rename all but the one that is meant."
            )
        if column not in known:
            near = nearest(column, known)
            hint = f" {near}" if near.startswith("Did") else ""
            raise DataError(f"{file} has no column {column!r}; it has {listed(known, 12) or 'none'}.{hint}")


def parquet_columns(file: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a parquet file as Python values, whatever their type."""
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    require_columns(file, wanted, list(parquet_schema(file).names))
    try:
        table = parquet.ParquetFile(file).read(columns=list(wanted))
        return {column: table.column(column).to_pylist() for column in wanted}
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error


def parquet_schema(file: Path) -> Any:
    """The schema of a parquet file: names, types, and what its writer added."""
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    try:
        return parquet.read_schema(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error


def parquet_classes(schema: Any, label: str) -> list[str] | None:
    """The class names that the `datasets` library wrote into a file, whose labels are indices into them."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        found = content["info"]["features"][label]
    except (ValueError, KeyError, TypeError):
        return None
    names = found.get("names") if isinstance(found, dict) and found.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else None


def holds_images(schema: Any, column: str) -> bool:
    """Whether a column holds encoded images: bytes, or structs with `bytes`, as the hub has them."""
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    text = str(kind)
    return "binary" in text or (text.startswith("struct") and "bytes" in [field.name for field in kind])


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
