"""`Report`: tables of plain values with their provenance, rendered to the terminal, Markdown, JSON and PNG."""

import dataclasses
import datetime
import functools
import importlib.util
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from tauspan.core.computing import Way, way
from tauspan.core.errors import MissingExtraError, UsageError, listed
from tauspan.core.notices import heard, once
from tauspan.core.table import Cell, Table, prose, shown

if TYPE_CHECKING:
    from rich.console import Group

    from tauspan.core.figures import Figures, Picture

__all__ = [
    "WARNINGS", "Cell", "Report", "Table", "bulleted", "in_words", "noted", "provenance", "shown", "versions",
]  # fmt: skip

P = ParamSpec("P")
WARNINGS = "Warnings: what was let pass"


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
        verdict: what the numbers say, in a sentence or two, before all tables; empty where nothing is said.

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
    verdict: str = ""

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
        if self.verdict:
            content = {"title": self.title, "verdict": self.verdict, **content}
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Report":
        """The report that `to_json` wrote."""
        content = json.loads(text)
        tables = [Table(t["title"], t["rows"], t["note"]) for t in content["tables"]]
        warned = tuple(content.get("warnings", ()))
        return Report(
            content["title"], tables, content["provenance"], content["series"], content["result"], warned,
            content.get("verdict", ""),
        )  # fmt: skip

    def to_markdown(self) -> str:
        """The verdict and the tables as GitHub Markdown, provenance last; see `Table.to_markdown`."""
        lines = [f"# {self.title}", "", *([prose(self.verdict), ""] if self.verdict else [])]
        for table in self.tables:
            lines += [table.to_markdown(), ""]
        if self.warnings:
            lines += [bulleted(self.warnings), ""]
        lines += ["## Provenance", ""]
        lines += [f"- {key}: {_inline(value)}" for key, value in self.provenance.items()]
        return "\n".join(lines) + "\n"

    def renderable(self) -> "Group":
        """The verdict and the tables for a terminal, as an object that `rich.print` shows.

        In a table with spreads, `0.5` is written `.5`, and a first column with repeated values becomes headings between
        the rows. So a table of seven tasks and six columns fits into 80 characters, with one line per row.
        """
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(self.verdict), ""] if self.verdict else []
        for table in self.tables:
            parts += [table, ""]
        if self.warnings:
            parts += [Table(WARNINGS, [{"": text} for text in self.warnings]), ""]
        return Group(*parts)

    def plot(self, kinds: "Mapping[str, Picture] | None" = None) -> "Figures":
        """Draw the series: a figure of matplotlib for each `group`, by its name; in a notebook they are shown.

        Nothing is written: `tauspan.experiments.figures.draw` does that, and `figure.savefig` for one of them.

        Args:
            kinds: how to draw more kinds of series than those of `tauspan.experiments.figures.PICTURES`.

        Raises:
            MissingExtraError: matplotlib is not installed.
            UsageError: a series of a kind that nothing draws.

        Cost: about a tenth of a second for each panel.

        Example:
            >>> curve = [{"alpha": 0.0, "a": 0.5}, {"alpha": 1.0, "a": 0.75}]
            >>> series = [{"kind": "alpha", "title": "addition", "best": 1.0, "points": curve}]
            >>> Report("demo", [], series=series).plot()
            Figures(alpha)
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtraError(
                "drawing figures needs matplotlib. Install it: pip install 'tauspan[plot]'."
            )
        from tauspan.core.figures import PICTURES, plotted

        known = {**PICTURES, **(kinds or {})}
        strange = list(dict.fromkeys(str(one["kind"]) for one in self.series if one["kind"] not in known))
        if strange:
            raise UsageError(
                f"{self.title!r} has series of kind {listed(strange)}, and known are {listed(sorted(known))}: give "
                "`kinds={kind: Picture(...)}`, which says how they are drawn."
            )
        return plotted(self.series, known)


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


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(42), duration(260), duration(10000)
        ('42 seconds', '4.3 minutes', '2.8 hours')
    """
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


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
