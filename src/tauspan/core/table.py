"""`Table`: rows of plain values, laid out for terminals and Markdown so that no word is broken on eighty columns."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

Cell = str | int | float | bool | None
WIDE = 80  # characters of a line
_UNBOUNDED = 1 << 16
_ROOMS = (_UNBOUNDED, *range(72, 11, -4))  # widths of a folded text that are tried, in characters
_LONG = (
    16  # a word with more characters may be broken after a slash or a dot, before each cell gets its own line
)


@dataclass(frozen=True)
class Table:
    """Rows of one kind; every row has the same columns in the same order.

    Example:
        >>> print(Table("accuracy", [{"task": "a", "accuracy": 0.5}], "one seed").to_markdown())
        ## accuracy
        <BLANKLINE>
        | task | accuracy |
        |---|---|
        | a | 0.500 |
        <BLANKLINE>
        one seed
    """

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
        """The table as GitHub Markdown, under its title.

        Lines have at most 80 characters where words allow: of a wider table, repeated values of the first column become
        headings, then columns go to several tables under the same first column, and rows with a cell too long even for
        that become lists.
        """
        parts = [f"## {self.title}"]
        if self.columns:
            parts += ["", *_markdown(self.columns, self.rows)]
        return "\n".join([*parts, *(["", prose(self.note)] if self.note else [])])

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Any]:
        """For a terminal, under its title: if it is too wide, texts are folded, or each cell gets its own line."""
        from rich.text import Text

        wide = options.update(max_width=_UNBOUNDED)
        forms = (_grid(self, room, breaks) for breaks in (False, True) for room in _ROOMS)
        fitting = (form for form in forms if console.measure(form, options=wide).minimum <= options.max_width)
        yield Text(self.title, style="bold")
        yield next(fitting, None) or _stacked(self, options.max_width)
        if self.note:
            yield Text(self.note)


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


def _is_spread(cell: Cell) -> bool:
    return isinstance(cell, str) and "±" in cell


# -- text --------------------------------------------------------------------------------------------------------


def prose(text: str, width: int = WIDE, first: str = "", later: str = "") -> str:
    r"""A paragraph of Markdown on lines of at most `width` characters, none of which begins like a list or a heading.

    Args:
        text: words; a longer word keeps a line of its own.
        width: of a line.
        first: what the first line begins with.
        later: what the other lines begin with.

    Example:
        >>> prose("a shared coefficient - the same for all", 24)
        'a shared coefficient -\nthe same for all'
    """
    words: list[str] = []
    for word in text.split():
        if words and re.match(r"[-+*#>|=~]|\d+[.)]$", word):
            words[-1] += f" {word}"
        else:
            words.append(word)
    lines = [first]
    for place, word in enumerate(words):
        gap = "" if place == 0 or not lines[-1].strip() else " "
        if place and len(lines[-1]) + len(gap) + len(word) > width:
            lines.append(later + word)
        else:
            lines[-1] += gap + word
    return "\n".join(lines)


def _pieces(word: str, breaks: bool) -> list[str]:
    """A word in the pieces between which a line may end: whole, or cut after slashes and dots."""
    if not breaks or len(word) <= _LONG:
        return [word]
    return re.findall(r"[^/.\\]*[/.\\]+|[^/.\\]+", word)


def _wrapped(text: str, width: int, breaks: bool, hard: bool = False) -> str:
    """A text on lines of at most `width` characters; a longer piece has a line of its own, or is cut if `hard`."""
    lines = [""]
    for number, word in enumerate(text.split(" ")):
        for place, piece in enumerate(_pieces(word, breaks and len(word) > width)):
            gap = " " if number and not place and lines[-1] else ""
            if lines[-1] and len(lines[-1]) + len(gap) + len(piece) > width:
                lines.append(piece)
            else:
                lines[-1] += gap + piece
            while hard and len(lines[-1]) > width:
                lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(lines)


# -- terminals ---------------------------------------------------------------------------------------------------


def _grid(table: Table, room: int, breaks: bool) -> Any:
    """The table with texts folded to `room` characters, and numbers to half of it, or to their longest piece."""
    from rich.console import Group
    from rich.text import Text

    columns = table.columns
    first = [shown(row.get(columns[0])) for row in table.rows] if columns else []
    dense = any(_is_spread(cell) for row in table.rows for cell in row.values())
    if not dense or len(set(first)) == len(first):
        return _columns(table.rows, _layout(columns, table.rows, room, breaks), breaks, dense)
    layout = _layout(columns[1:], table.rows, room, breaks)
    parts: list[Any] = [_columns([], layout, breaks, dense)]
    for name, rows in groupby(table.rows, key=lambda row: row.get(columns[0])):
        heading = shown(name) if isinstance(name, str) else f"{columns[0]} {shown(name)}"
        parts += [Text(heading, style="bold"), _columns(list(rows), layout, breaks, dense, header=False)]
    return Group(*parts)


def _layout(
    columns: Sequence[str], rows: Sequence[dict[str, Cell]], room: int, breaks: bool
) -> dict[str, tuple[int, bool]]:
    """For each column its width, and whether it holds numbers. A width never cuts a word."""
    from rich.cells import cell_len

    layout: dict[str, tuple[int, bool]] = {}
    for name in columns:
        cells = [row.get(name) for row in rows]
        numbers = all(not isinstance(cell, str) or _is_spread(cell) for cell in cells)
        texts = [name, *map(_folded, cells)]
        words = [piece for text in texts for word in text.split() for piece in _pieces(word, breaks)]
        longest, widest = max(map(cell_len, texts)), max(map(cell_len, words), default=0)
        layout[name] = max(min(longest, room // 2 if numbers else room), widest), numbers
    return layout


def _columns(
    rows: Sequence[dict[str, Cell]],
    layout: dict[str, tuple[int, bool]],
    breaks: bool,
    dense: bool,
    header: bool = True,
) -> Any:
    """Rows in columns of a known layout; columns of spreads stand without space around them."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        padding=(0, 0 if dense else 1),
        show_edge=not dense,
        show_header=header,
    )
    for name, (width, numbers) in layout.items():
        heading = Text(_wrapped(name, width, breaks))
        grid.add_column(heading, justify="right" if numbers else "left", width=width)
    for row in rows:
        grid.add_row(*(Text(_wrapped(_folded(row.get(name)), layout[name][0], breaks)) for name in layout))
    return grid


def _stacked(table: Table, width: int) -> Any:
    """The table with one line per cell."""
    from rich.table import Table as Grid
    from rich.text import Text

    room = max(1, width - 2 - max(map(len, table.columns)))
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for place, row in enumerate(table.rows):
        if place:
            grid.add_row()
        for name in table.columns:
            grid.add_row(Text(name), Text(_wrapped(shown(row.get(name)), room, True, hard=True)))
    return grid


def _folded(cell: Cell) -> str:
    """A cell as `shown`; a mean with its spread takes nine characters, and from 1 on may break before the sign."""
    if not _is_spread(cell):
        return shown(cell)
    short = re.sub(r"\b0\.", ".", shown(cell)).replace(" ± ", "±")
    return short if len(short) <= len(".772±.012") else short.replace("±", " ±")


# -- Markdown ----------------------------------------------------------------------------------------------------


def _markdown(columns: Sequence[str], rows: Sequence[dict[str, Cell]]) -> list[str]:
    """The lines of a table, or of several narrower ones."""
    whole = _lines(columns, rows)
    if _fits(whole) or len(columns) < 2:
        return whole
    if len(columns) == 2:  # facts by name
        first, second = columns
        return [f"- {_escaped(row.get(first))}: {_escaped(row.get(second))}" for row in rows]
    named = [shown(row.get(columns[0])) for row in rows]
    if len(set(named)) < len(named) and len(columns) > 2:
        lines: list[str] = []
        for name, some in groupby(rows, key=lambda row: shown(row.get(columns[0]))):
            lines += [*([""] if lines else []), f"**{columns[0]}: {name}**", ""]
            lines += _markdown(columns[1:], list(some))
        return lines
    return _apart(columns, rows)


def _apart(columns: Sequence[str], rows: Sequence[dict[str, Cell]]) -> list[str]:
    """Several tables under the same leading texts; a list for each row where a column does not fit beside them."""
    texts = [all(_is_text(row.get(name)) for row in rows) for name in columns]
    leading = max(1, texts.index(False) if False in texts else 1)
    for keys in range(min(leading, 2), 0, -1):
        blocks: list[list[str]] = [[]]
        for name in columns[keys:]:
            if blocks[-1] and not _fits(_lines([*columns[:keys], *blocks[-1], name], rows)):
                blocks.append([])
            blocks[-1].append(name)
        drawn = [_lines([*columns[:keys], *block], rows) for block in blocks]
        if all(map(_fits, drawn)):
            return [line for lines in drawn for line in ("", *lines)][1:]
    return [line for row in rows for line in _item(columns, row)]


def _item(columns: Sequence[str], row: dict[str, Cell]) -> list[str]:
    """A row as an item of a list: its first cell, then each other one that is there."""
    first, *rest = columns
    lines = [f"- {first}: {_escaped(row.get(first))}"]
    lines += [
        prose(f"{name}: {_escaped(row.get(name))}", first="  - ", later="    ")
        for name in rest
        if shown(row.get(name))
    ]
    return lines


def _lines(columns: Sequence[str], rows: Sequence[dict[str, Cell]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_escaped(row.get(name)) for name in columns) + " |")
    return lines


def _escaped(cell: Cell) -> str:
    return shown(cell).replace("|", "\\|")


def _is_text(cell: Cell) -> bool:
    """Whether a cell is words or empty; a number with its spread, which is a text to Python, is a number."""
    return cell is None or (isinstance(cell, str) and not re.match(r"[-+]?\d+\.\d", cell))


def _fits(lines: Sequence[str]) -> bool:
    return max(map(len, lines)) <= WIDE
