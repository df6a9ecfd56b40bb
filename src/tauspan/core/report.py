"""`Report`: tables of plain values with their provenance, rendered to the terminal, Markdown, JSON and PNG."""

import dataclasses
import datetime
import functools
import json
import math
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from tauspan.core.computing import Way, way
from tauspan.core.notices import heard, once

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group

P = ParamSpec("P")
Cell = str | int | float | bool | None
WARNINGS = "Warnings: what was let pass"
_UNBOUNDED = 1 << 16
_ROOMS = (_UNBOUNDED, *range(72, 19, -4))  # widths of a folded text that are tried, in characters


@dataclass(frozen=True)
class Table:
    """Rows of one kind; every row has the same columns in the same order."""

    title: str
    rows: Sequence[dict[str, Cell]]
    note: str = ""

    @property
    def columns(self) -> list[str]:
        """Column names, in the order of the rows, including columns that only some rows have."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __repr__(self) -> str:
        return f"Table({self.title!r}, {len(self.rows)} rows)"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_markdown(self) -> str:
        """The table as GitHub Markdown, under its title."""
        columns = self.columns
        lines = [f"## {self.title}", ""]
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        for row in self.rows:
            cells = (shown(row.get(name)).replace("|", "\\|") for name in columns)
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


@dataclass(frozen=True)
class Report:
    """The result of a run: tables, series for the figures, and provenance.

    Accuracies and shares are fractions between 0 and 1; they are shown with three decimals.

    Args:
        title: of the report.
        tables: what people read.
        provenance: where the numbers come from.
        series: points for the figures.
        result: the numbers for programs.
        warnings: warnings of the work, and what a lenient option allowed, one sentence each.

    Example:
        >>> Report("demo", [Table("accuracy", [{"task": "a", "accuracy": 0.5}])]).to_markdown().splitlines()[0]
        '# demo'
    """

    title: str
    tables: Sequence[Table]
    provenance: dict[str, Any] = field(default_factory=dict)
    series: Sequence[dict[str, Any]] = ()
    result: dict[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"Report({self.title!r}: {', '.join(table.title for table in self.tables)})"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_json(self) -> str:
        """The whole report as JSON text."""
        content = {
            "title": self.title,
            "result": self.result,
            "warnings": list(self.warnings),
            "tables": [{"title": t.title, "note": t.note, "rows": list(t.rows)} for t in self.tables],
            "series": list(self.series),
            "provenance": self.provenance,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote."""
        content = json.loads(text)
        tables = [Table(t["title"], t["rows"], t["note"]) for t in content["tables"]]
        warned = tuple(content.get("warnings", ()))
        return Report(
            content["title"], tables, content["provenance"], content["series"], content["result"], warned
        )

    def to_markdown(self) -> str:
        """The tables as GitHub Markdown, provenance last."""
        lines = [f"# {self.title}", ""]
        for table in self.tables:
            lines += [table.to_markdown(), ""]
        if self.warnings:
            lines += [bulleted(self.warnings), ""]
        lines += ["## Provenance", ""]
        lines += [f"- {key}: {_inline(value)}" for key, value in self.provenance.items()]
        return "\n".join(lines) + "\n"

    def renderable(self) -> "Group":
        """The tables for a terminal, as an object that `rich.print` shows.

        In a table with spreads, `0.5` is written `.5`, and a first column with repeated values becomes headings between
        the rows. So a table of seven tasks and six columns fits into 80 characters, with one line per row.
        """
        from rich.console import Group

        parts: list[Any] = []
        for table in self.tables:
            parts += [_Fitted(table), ""]
        if self.warnings:
            parts += [_Fitted(Table(WARNINGS, [{"": text} for text in self.warnings])), ""]
        return Group(*parts)


@dataclass(frozen=True)
class _Fitted:
    """A table that never cuts a cell: if it is too wide, texts are folded, or each cell gets its own line."""

    table: Table

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Any]:
        from rich.text import Text

        wide = options.update(max_width=_UNBOUNDED)
        forms = (_grid(self.table, room) for room in _ROOMS)
        fitting = (form for form in forms if console.measure(form, options=wide).minimum <= options.max_width)
        yield Text(self.table.title, style="bold")
        yield next(fitting, None) or _stacked(self.table)
        if self.table.note:
            yield Text(self.table.note)


def _grid(table: Table, room: int) -> Any:
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as Grid
    from rich.text import Text

    columns = table.columns
    first = [shown(row.get(columns[0])) for row in table.rows] if columns else []
    dense = any(_is_spread(cell) for row in table.rows for cell in row.values())
    headings = dense and len(set(first)) < len(first)
    grid = Grid(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        padding=(0, 0 if dense else 1),
        show_edge=not dense,
    )
    for name in columns[headings:]:
        cells = [row.get(name) for row in table.rows]
        numbers = all(not isinstance(cell, str) or _is_spread(cell) for cell in cells)
        texts = [name, *map(_folded, cells)]
        words = [word for text in texts for word in text.split()]
        longest = max(map(cell_len, texts))
        grid.add_column(
            Text(name),
            justify="right" if numbers else "left",
            overflow="fold",
            min_width=max(map(len, words), default=0) if numbers else None,
            width=None if numbers or name == "" else min(longest, room),
        )
    for place, row in enumerate(table.rows):
        if headings and (place == 0 or first[place] != first[place - 1]):
            grid.add_row(Text(first[place], style="bold"))
        grid.add_row(*(Text(_folded(row.get(name))) for name in columns[headings:]))
    return grid


def _stacked(table: Table) -> Any:
    """The table with one line per cell."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for place, row in enumerate(table.rows):
        if place:
            grid.add_row()
        for name in table.columns:
            grid.add_row(Text(name), Text(shown(row.get(name))))
    return grid


def _is_spread(cell: Cell) -> bool:
    return isinstance(cell, str) and "±" in cell


def _folded(cell: Cell) -> str:
    """A cell as `shown`; a mean with its spread takes nine characters, and from 1 on may break before the sign."""
    if not _is_spread(cell):
        return shown(cell)
    short = re.sub(r"\b0\.", ".", shown(cell)).replace(" ± ", "±")
    return short if len(short) <= len(".772±.012") else short.replace("±", " ±")


def shown(value: Cell) -> str:
    """A cell as text: three decimals, and nothing for None.

    Example:
        >>> shown(0.97249), shown(None), shown("a"), shown(12)
        ('0.972', '', 'a', '12')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class _Warned(Protocol):
    """A frozen dataclass with a field `warnings`."""

    @property
    def warnings(self) -> Sequence[str]:
        """The warnings of the work, one sentence each."""


R = TypeVar("R", bound=_Warned)


def noted(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its warnings are added to the report or result that it returns."""

    @functools.wraps(function)
    def listening(*args: P.args, **kwargs: P.kwargs) -> R:
        with heard() as warned:
            answer: Any = function(*args, **kwargs)
        noted_answer: R = dataclasses.replace(answer, warnings=once(answer.warnings, warned))
        return noted_answer

    return listening


def bulleted(warnings: Sequence[str]) -> str:
    """Warnings as a section of Markdown."""
    return "\n".join([f"## {WARNINGS}", "", *(f"- {text}" for text in warnings)])


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else f"`{json.dumps(value, ensure_ascii=False)}`"


def in_words(size: int) -> str:
    """A number of bytes in words, in powers of 1000.

    Example:
        >>> in_words(512), in_words(7496), in_words(4_980_000_000)
        ('512 bytes', '7.5 kB', '4.98 GB')
    """
    if size < 1000:
        return f"{size} bytes"
    power = min(int(math.log10(size)) // 3, 4)
    return f"{size / 1000**power:.3g} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def versions() -> dict[str, str]:
    """The versions of the packages that results depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("tauspan", "torch", "transformers", "safetensors", "numpy", "scipy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(**facts: Any) -> dict[str, Any]:
    """The given facts with the versions, the machine and the time (UTC)."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    chosen = {name: value for name, value in vars(way()).items() if value != getattr(Way(), name)}
    return {**facts, **chosen, "versions": versions(), "machine": platform.machine(), "written": now}
