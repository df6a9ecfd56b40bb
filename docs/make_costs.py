"""Fill in the tables of docs/results/costs.md from the files of benchmarks/results: `python docs/make_costs.py`.

The page's text is written by hand. Each of its tables stands between `<!-- table: NAME -->` and `<!-- end -->`, and NAME
is one of `TABLES`. So no figure of a table is typed.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "costs.md"
RESULTS = ROOT / "benchmarks" / "results"

# What no implementation can fall below on a CPU, by the end of a row's name; the page says why.
FLOORS = {
    "tangent step / ordinary": "5/3",
    "compiled step / ordinary": "5/3",
    "tangent inference / ordinary": "3",
    "step from the primal state / ordinary": "4/3",
    "tsv_m / its SVDs": "1",
    "iso_c / its SVDs": "1",
}


@dataclass(frozen=True)
class Source:
    """A table of a file.

    Args:
        file: in benchmarks/results, without its ending.
        title: of the table, where a report holds several.
        only: a pattern that the first column must contain.
    """

    file: str
    title: str | None = None
    only: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """The rows as the benchmark wrote them."""
        content = json.loads((RESULTS / f"{self.file}.json").read_text(encoding="utf-8"))
        rows = content["rows"] if self.title is None else next(
            table["rows"] for table in content["tables"] if table["title"] == self.title
        )  # fmt: skip
        return [row for row in rows if re.search(self.only, str(next(iter(row.values()))))]


TABLES = {
    "steps": Source("amd-epyc-float32", "steps", " / "),
    "memory": Source("amd-epyc-float32", "memory", " / "),
    "caches": Source("amd-epyc-float32", "caches"),
    "search": Source("amd-epyc-float32", "search"),
    "pipeline": Source("amd-epyc-float32", "pipeline"),
    "contributions": Source("contributions-intel-xeon"),
    "guided": Source("guided-amd-epyc"),
    "penalties": Source("drift-costs-intel-xeon"),
    "growth": Source("growth"),
    "kernel": Source("kernel-amd-epyc"),
    "landmarks": Source("scale-amd-epyc"),
    "features": Source("features-amd-epyc"),
    "classes": Source("classes-amd-epyc"),
    "merging": Source("merging-amd-epyc", "speed"),
    "many": Source("merging-many-intel-xeon"),
    "sketches": Source("sketches-amd-epyc"),
    "predicted": Source("predicted-amd-epyc"),
}


def number(value: object) -> str:
    """A cell: three significant digits, and nothing for None.

    Example:
        >>> number(0.87631), number(1.7), number(1234.5), number(None), number(12), number(True)
        ('0.876', '1.70', '1,234', '', '12', 'yes')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return str(value)


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of a table; one with a smallest and a largest value has them in one column, and its floor beside its goal."""
    if not {"low", "high"} <= set(row):
        return {name: number(value) for name, value in row.items()}
    once = row["low"] == row["high"]
    floor = next((floor for end, floor in FLOORS.items() if row["what"].endswith(end)), "")
    unit = row.get("unit", "ratio")
    return {
        "what": row["what"] if unit == "ratio" else f"{row['what']} [{unit}]",
        "median": number(row["value"]),
        "range": "once" if once else f"{number(row['low'])} to {number(row['high'])}",
        "goal": number(row["goal"]), "floor": floor, "met": number(row["met"]),
    }  # fmt: skip


def table(name: str) -> str:
    """One of `TABLES` as Markdown, without the columns that are empty."""
    rows = [shown(row) for row in TABLES[name].rows()]
    columns = [name for name in rows[0] if any(row.get(name) for row in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(
        lines + ["| " + " | ".join(row.get(name, "") for name in columns) + " |" for row in rows]
    )


def goals() -> str:
    """How many goals are met, in a sentence."""
    met = [row["met"] for one in TABLES.values() for row in one.rows() if row.get("met") is not None]
    return f"Of {len(met)} goals {sum(met)} are met."


def filled(text: str) -> str:
    """The page with every table made anew; the table `goals` is the sentence of that name."""

    def made(found: re.Match[str]) -> str:
        inside = goals() if found[2] == "goals" else table(found[2])
        return f"{found[1]}\n{inside}\n\n{found[3]}"

    return re.sub(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", made, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
