"""Columns of CSV, TSV, JSON and parquet files, in the variants that people and programs write."""

import csv
import gzip
import io
import itertools
import json
import re
import shlex
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from tauspan.core.errors import DataError, UsageError, listed, nearest
from tauspan.tasks.parquet import parquet_columns, require_columns

Quotes = Literal["doubled", "escaped", "none"]
SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32",
          b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # fmt: skip
_OTHERS = {".xlsx": "a spreadsheet: export it as CSV", ".xls": "a spreadsheet: export it as CSV",
           ".ods": "a spreadsheet: export it as CSV", ".zip": "an archive: unpack it", ".tar": "an archive: unpack it",
           ".bz2": "compressed: unpack it, or compress it with gzip", ".xz": "compressed: unpack it, or compress it "
           "with gzip", ".zst": "compressed: unpack it, or compress it with gzip", ".arrow": "an Arrow file: write it as "
           "parquet", ".feather": "an Arrow file: write it as parquet", ".pkl": "a pickle, which can run code: write the "
           "rows as CSV or parquet", ".pickle": "a pickle, which can run code: write the rows as CSV or parquet",
           ".pt": "a pickle, which can run code: write the rows as npz"}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """How a text file with a row on each line is written; what is None is detected from the file.

    Args:
        encoding: such as `"cp1252"`; None takes a byte order mark's (UTF-8, UTF-16, UTF-32), else UTF-8.
        delimiter: one character; None takes that of comma, semicolon, tab and bar under which the first line has the
            columns asked for.
        quotes: `"doubled"` (a quote inside a quoted field is two), `"escaped"` (a backslash is before it) or
            `"none"` (quotes are characters like others).
    """

    encoding: str | None = None
    delimiter: str | None = None
    quotes: Quotes = "doubled"

    def __post_init__(self) -> None:
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise UsageError(f"delimiter={self.delimiter!r}: it is one character, such as ';' or a tab.")
        if self.quotes not in ("doubled", "escaped", "none"):
            raise UsageError(
                f"quotes={self.quotes!r}. {nearest(self.quotes, ('doubled', 'escaped', 'none'))}"
            )


@dataclass(frozen=True)
class Columns:
    """The columns asked for, and the line where each row begins (None where the file has no lines)."""

    values: Mapping[str, list[Any]]
    lines: list[int] | None = None


def read_columns(file: Path, wanted: Sequence[str], dialect: Dialect, bare: bool = False) -> Columns:
    """The wanted columns of a CSV, TSV, JSON or parquet file; `.gz` is unpacked.

    With `bare`, a row of JSON may be a text instead of an object: the value of the first column.

    Raises:
        DataError: the file cannot be read, or lacks a column; it names the line where there is one.
    """
    kind = suffix(file)
    if kind in _OTHERS:
        raise DataError(f"{file} is {_OTHERS[kind]}.")
    if kind in (".parquet", ".pq"):
        return Columns(parquet_columns(file, wanted))
    if kind in (".json", ".jsonl", ".ndjson"):
        return _json(file, wanted, dialect, bare)
    return _csv(file, wanted, dialect)


def suffix(file: Path) -> str:
    """The suffix of a file's name in lower case, without `.gz`; it names the format."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


# -- files of lines ------------------------------------------------------------------------------------------


@contextmanager
def opened(file: Path, dialect: Dialect, form: str) -> Iterator[IO[str]]:
    """Open a file as text; errors name the file and the encoding."""
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    encoding = dialect.encoding
    try:
        with opener(file, "rb") as raw:
            start = raw.read(4)
        encoding = encoding or _marked(file, start, form)
        with opener(file, "rt", newline="", encoding=encoding) as handle:
            yield handle
    except LookupError as error:
        raise UsageError(
            f"encoding={encoding!r}: {error}. Python's names are meant, such as cp1252."
        ) from error
    except UnicodeError as error:
        where = _undecodable(file, opener, encoding or "")
        raise DataError(
            f'{file} cannot be read as {form}: {where} is no {encoding}. Name its encoding: encoding="cp1252" '
            '(--encoding cp1252) is common on Windows, encoding="latin-1" in older files.'
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as {form}: {error}") from error


def _marked(file: Path, start: bytes, form: str) -> str:
    """The encoding that a byte order mark says, else UTF-8."""
    found = next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), None)
    if found is None and b"\0" in start:
        guess = "utf-16-be" if start[0] == 0 else "utf-16-le"
        raise DataError(
            f"{file} cannot be read as {form}: its first line holds NUL characters. It may be UTF-16 without a mark: "
            f'pass encoding="{guess}" (--encoding {guess}).'
        )
    return found or "utf-8"


def _undecodable(file: Path, opener: Any, encoding: str) -> str:
    """The first line that cannot be decoded, in words; for UTF-16 and UTF-32 the message names no line."""
    if encoding.startswith(("utf-16", "utf-32")):
        return "its content"
    with opener(file, "rb") as raw:
        for number, line in enumerate(raw, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return f"line {number}"
    return "its content"


@contextmanager
def _long_fields() -> Iterator[None]:
    """Inside the block CSV fields may have any length; Python's limit is meant for quotes that are never closed."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(file: Path, wanted: Sequence[str], dialect: Dialect) -> Columns:
    with opened(file, dialect, "CSV") as handle, _long_fields():
        first, above = handle.readline(), 0
        while first and not first.strip():  # blank lines above the header are skipped
            first, above = handle.readline(), above + 1
        said = re.fullmatch(r'"?sep=(.)"?\s*', first)  # `sep=;`, which Excel reads and writes above a header
        if said:
            first, above = handle.readline(), above + 1
        delimiter = (
            dialect.delimiter or (said and said[1]) or _delimiter(first, wanted, suffix(file), dialect)
        )
        records = _records(file, itertools.chain([first], handle), delimiter, dialect, above)
        _, header = next(records, (1, []))
        _require_header(file, wanted, header, first)
        require_columns(file, wanted, header)
        kept = [header.index(column) for column in wanted]
        values: list[list[Any]] = [[] for _ in wanted]
        lines = []
        for line, row in records:
            if len(row) < 2 and len(header) > 1 and not "".join(row).strip():
                continue  # a blank line is no row
            if len(row) != len(header):
                raise DataError(
                    f"{file}, line {line}: {len(row)} fields, the header has {len(header)}. A text that holds a "
                    f"{delimiter!r} or a line's end stands in double quotes."
                )
            lines.append(line)
            for column, place in zip(values, kept, strict=True):
                column.append(row[place])
    return Columns(dict(zip(wanted, values, strict=True)), lines)


def _require_header(file: Path, wanted: Sequence[str], header: Sequence[str], first: str) -> None:
    """Raise, with advice, if another character separates the columns or the first line names none of them."""
    if len(header) == 1 and wanted[0] not in header and wanted[0] in header[0]:
        other = next(
            (one for one in header[0].replace(wanted[0], "") if not one.isalnum() and one not in "_ "), None
        ) or next((one for one in " _" if set(wanted) <= set(header[0].split(one))), None)
        if other is not None:
            raise DataError(
                f"{file} has the one column {header[0]!r}. If {other!r} parts its columns, pass delimiter={other!r} "
                f"(--delimiter {shlex.quote(other)})."
            )
    close = any(nearest(column, header).startswith("Did") for column in wanted)
    if header and not set(wanted) & set(header) and not close:
        options = "text=..., label=...; --text, --label" if len(wanted) > 1 else "text=...; --text"
        raise DataError(
            f"{file} has no column {wanted[0]!r}: its first line is {first.strip()[:80]!r}. If that is a row already, "
            f"write a first line that names the columns, such as {','.join(wanted)!r}; else say which columns are meant "
            f"({options})."
        )


def _delimiter(first: str, wanted: Sequence[str], kind: str, dialect: Dialect) -> str:
    """The delimiter that gives the first line the wanted columns; the format's usual one if none or several do."""
    usual = "\t" if kind in (".tsv", ".tab") else ","
    fitting = [one for one in _DELIMITERS if set(wanted) <= set(_fields(first, one, dialect))]
    return fitting[0] if len(fitting) == 1 else usual


def _options(delimiter: str, dialect: Dialect) -> dict[str, Any]:
    escaped, none = dialect.quotes == "escaped", dialect.quotes == "none"
    return {
        "delimiter": delimiter, "strict": True, "doublequote": not escaped, "escapechar": "\\" if escaped else None,
        "quoting": csv.QUOTE_NONE if none else csv.QUOTE_MINIMAL,
    }  # fmt: skip


def _fields(line: str, delimiter: str, dialect: Dialect) -> list[str]:
    try:
        return next(csv.reader([line], **_options(delimiter, dialect)), [])
    except csv.Error:
        return []


def _records(
    file: Path, lines: Iterator[str], delimiter: str, dialect: Dialect, above: int
) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line where it begins; `above` lines were read before."""
    reader = csv.reader(lines, **_options(delimiter, dialect))
    while True:
        begun = above + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{file} cannot be read as CSV: in the record that begins at line {begun}, {error}. A quote in a "
                'quoted field is written twice; pass quotes="escaped" (--quotes escaped) if a backslash precedes it, or '
                'quotes="none" (--quotes none) if quotes are characters like others.'
            ) from error
        if row is None:
            return
        yield begun, row


def _json(file: Path, wanted: Sequence[str], dialect: Dialect, bare: bool) -> Columns:
    """The columns of a file that holds an object on each line, a list of objects, or an object of columns."""
    with opened(file, dialect, "JSON") as handle:
        text = handle.read()
    whole = None if suffix(file) in (".jsonl", ".ndjson") else _parsed(text)
    if whole is None:
        return _json_lines(file, text, wanted, bare)
    if isinstance(whole, dict) and all(isinstance(column, dict | list) for column in whole.values()):
        require_columns(file, wanted, list(whole))
        chosen = {column: whole[column] for column in wanted}
        values = {name: list(c.values() if isinstance(c, dict) else c) for name, c in chosen.items()}
        if len({len(column) for column in values.values()}) > 1:
            raise DataError(f"{file}: the columns {listed(wanted)} have different lengths.")
        return Columns(values)
    if isinstance(whole, list):
        return Columns(_objects(file, [(f"row {row}", item) for row, item in enumerate(whole)], wanted, bare))
    return _json_lines(file, text, wanted, bare)


def _json_lines(file: Path, text: str, wanted: Sequence[str], bare: bool) -> Columns:
    found, lines = [], []
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                found.append((f"line {number}", json.loads(line, object_pairs_hook=_once)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file} cannot be read as JSON: line {number}: {error}") from error
            lines.append(number)
    return Columns(_objects(file, found, wanted, bare), lines)


def _parsed(text: str) -> Any:
    """The value of a text that is a single JSON document; None if it is not."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return made


def _objects(
    file: Path, found: Sequence[tuple[str, Any]], wanted: Sequence[str], bare: bool
) -> dict[str, list[Any]]:
    if bare:
        found = [(place, {wanted[0]: item} if isinstance(item, str) else item) for place, item in found]
    for place, item in found:
        if not isinstance(item, dict):
            raise DataError(f"{file}, {place}: a row is an object with keys, not {type(item).__name__}.")
    known = list(dict.fromkeys(key for _, item in found for key in item))
    require_columns(file, wanted, known)
    return {column: [item.get(column) for _, item in found] for column in wanted}
