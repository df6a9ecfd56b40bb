"""Parquet files: columns of any type as Python values, and tables of images that stay on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tauspan.core.errors import DataError, listed, nearest
from tauspan.models.extras import require_extra


def require_columns(file: Path | str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless a table has each wanted column once."""
    for column in wanted:
        if known.count(column) > 1:
            raise DataError(
                f"{file} has {known.count(column)} columns called {column!r}: rename all but the one that is meant."
            )
        if not known:
            raise DataError(f"{file} is empty: it needs a column {column!r}, and rows.")
        if column not in known:
            near = nearest(column, known)
            hint = f" {near}" if near.startswith("Did") else ""
            raise DataError(f"{file} has no column {column!r}; it has {listed(known, 12)}.{hint}")


def parquet_columns(file: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a parquet file as Python values, whatever their type; bytes are read as UTF-8 text."""
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    require_columns(file, wanted, list(parquet_schema(file).names))
    try:
        table = parquet.ParquetFile(file).read(columns=list(wanted))
        return {column: _values(table.column(column)) for column in wanted}
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error


def _values(column: Any) -> list[Any]:
    """A column as Python values; some writers (Spark, Impala) store texts as bytes, which are read as UTF-8."""
    made = column.cast("string") if "binary" in str(column.type) else column
    return list(made.to_pylist())


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


def holds_images(file: Path, column: str) -> bool:
    """Whether a column holds encoded images: bytes that are no text, or structs with `bytes`, as the hub has them."""
    schema = parquet_schema(file)
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    if str(kind).startswith("struct"):
        return "bytes" in [field.name for field in kind]
    return "binary" in str(kind) and not _is_text(_first(file, column))


def _first(file: Path, column: str) -> bytes:
    """The first value of a column of bytes; empty if there is none."""
    parquet = require_extra("pyarrow.parquet", "data", f"reading {file}")
    try:
        for batch in parquet.ParquetFile(file).iter_batches(64, columns=[column]):
            for value in batch.column(0).drop_null():
                return bytes(value.as_py())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from error
    return b""


def _is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8 without NUL; an image that can be read has other bytes, in its header or its pixels."""
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def parquet_table(files: Sequence[Path]) -> Any:
    """Parquet files as one table of the `datasets` library, mapped from its cache: rows cost no memory."""
    datasets = require_extra("datasets", "data", f"reading {files[0]}")
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # it only copies from disk to disk
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files])
    except Exception as error:  # the library raises many kinds on damaged files
        raise DataError(f"{files[0]} cannot be read as parquet: {error.__cause__ or error}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
