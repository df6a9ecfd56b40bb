"""Reports: the same content in JSON, Markdown and on a terminal; and the pictures of it."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tauspan.core.measure import Cost
from tauspan.core.report import Report, Table, in_words, provenance, shown, versions
from tauspan.experiments.figures import draw
from tauspan.experiments.run import Addition
from tauspan.tasks.data.suite import NAMES

COLUMNS = ("zero shot", "single", "added", "added norm.", "alpha 1", "alpha 1 norm.")
ROWS: list[dict[str, Any]] = [
    {"task": "a|b", "accuracy": 0.5, "rows": 12, "kept": True},
    {"task": "déjà", "accuracy": None, "rows": 3, "kept": False, "note": "late"},
]
POINTS = [{"alpha": a / 4, "one": a / 4, "mean normalised": 1.0} for a in range(5)]
SERIES = [{"kind": "alpha", "title": "addition, linear", "best": 0.5, "points": POINTS}]
SMALL = Report("small", [Table("first", ROWS, "a note")], {"seed": 1, "base": "b"}, SERIES, {"alpha": 0.5})


def terminal(report: Report, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(report.renderable())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_report_is_the_same_after_json() -> None:
    again = Report.from_json(SMALL.to_json())
    assert again == SMALL
    assert again.to_json() == SMALL.to_json()
    assert "déjà" in SMALL.to_json()
    assert SMALL.to_json().endswith("}\n")


def test_columns_are_those_of_all_rows_in_their_order() -> None:
    assert SMALL.tables[0].columns == ["task", "accuracy", "rows", "kept", "note"]
    assert Table("none", []).columns == []


def test_markdown_holds_every_cell_and_the_provenance() -> None:
    assert SMALL.to_markdown() == (
        "# small\n\n## first\n\n| task | accuracy | rows | kept | note |\n|---|---|---|---|---|\n"
        "| a\\|b | 0.500 | 12 | yes |  |\n| déjà |  | 3 | no | late |\n\na note\n\n"
        "## Provenance\n\n- seed: `1`\n- base: b\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (12, "12"),
        (0.97249, "0.972"),
        (1.0, "1.000"),
        ("a", "a"),
    ],
)
def test_a_cell_is_shown_as_people_read_it(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_terminal_shows_cells_and_notes() -> None:
    text = terminal(SMALL)
    for word in ("first", "a|b", "0.500", "déjà", "late", "a note"):
        assert word in text


@pytest.mark.parametrize("spread", [False, True])
def test_task_names_and_numbers_stay_whole_on_eighty_columns(spread: bool) -> None:
    cell = "0.812 ± 0.021" if spread else 0.812
    rows: list[dict[str, Any]] = [
        {"regime": "standard", "task": name, **dict.fromkeys(COLUMNS, cell)} for name in NAMES
    ]
    text = terminal(Report("wide", [Table("Addition", rows, "note")]))
    for word in (*NAMES, "standard", ".812±.021" if spread else "0.812"):
        assert word in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def lines_of(rows: list[dict[str, Any]], width: int) -> list[str]:
    return [line.rstrip() for line in terminal(Report("r", [Table("t", rows)]), width).splitlines()]


def test_a_row_with_a_spread_takes_one_line_under_the_heading_of_its_regime() -> None:
    means = dict(zip(COLUMNS, ("0.512 ± 0.000", *["0.812 ± 0.021"] * 4, "0.900 ± 0.110"), strict=True))
    rows: list[dict[str, Any]] = [
        {"regime": regime, "task": name, **means} for regime in ("posthoc", "linear") for name in NAMES
    ]
    cells = ".512±.000 .812±.021 .812±.021 .812±.021 .812±.021 .900±.110"
    expected = [line for regime in ("posthoc", "linear")
                for line in (regime, *(f"{name:20} {cells}" for name in NAMES))]  # fmt: skip
    assert lines_of(rows, 80)[-1 - len(expected) : -1] == expected


def test_a_mean_of_one_and_more_breaks_before_its_spread_only_where_it_must() -> None:
    rows = [{"task": "x" * 20, **dict.fromkeys(COLUMNS, "0.812 ± 0.021"), "added norm.": "10.04 ± 0.031"}]
    narrow, wide = lines_of(rows, 80)[-3:-1], lines_of(rows, 100)[-2]
    assert narrow[0].split() == ["x" * 20, *[".812±.021"] * 3, "10.04", *[".812±.021"] * 2]
    assert narrow[1].split() == ["±.031"]
    assert wide.split() == ["x" * 20, *[".812±.021"] * 3, "10.04", "±.031", *[".812±.021"] * 2]


def test_a_first_column_that_never_repeats_stays_a_column() -> None:
    rows = [{"task": name, "added": "0.812 ± 0.021"} for name in ("a", "b")]
    assert lines_of(rows, 80)[-3:-1] == ["a    .812±.021", "b    .812±.021"]


def test_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    rows: list[dict[str, Any]] = [{"vector": "out/[bold]x[/bold]", "[red]": "[/]"}]
    text = terminal(Report("r", [Table("[i]t", rows, "[0, 1]")]))
    for word in ("out/[bold]x[/bold]", "[red]", "[/]", "[i]t", "[0, 1]"):
        assert word in text


def test_provenance_names_versions_machine_and_time() -> None:
    facts = provenance(base="b")
    assert list(facts) == ["base", "versions", "machine", "written"]
    assert {"python", "tauspan", "torch"} <= set(versions())
    json.dumps(facts)


def test_what_a_notebook_shows_is_one_line_or_markdown() -> None:
    assert repr(SMALL) == "Report('small': first)"
    assert SMALL._repr_markdown_() == SMALL.to_markdown()
    assert repr(SMALL.tables[0]) == "Table('first', 2 rows)"
    assert SMALL.tables[0]._repr_markdown_().startswith("## first")


def test_a_cost_begins_at_nothing() -> None:
    assert Cost() == Cost(0.0, 0.0)


def test_a_report_of_one_search_is_drawn(tmp_path: Path) -> None:
    made = draw(SMALL, tmp_path)
    assert made == [tmp_path / f"alpha.{form}" for form in ("png", "svg", "pdf")]
    heads = [picture.read_bytes()[:5] for picture in made]
    assert heads == [b"\x89PNG\r", b"<?xml", b"%PDF-"]
    assert draw(Report("empty", []), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_a_report_of_a_run_is_drawn_with_bars_and_one_picture_a_group(tmp_path: Path) -> None:
    means = {regime: {"one": dict.fromkeys(COLUMNS, 0.5)} for regime in ("standard", "linear")}
    series = [{**SERIES[0], "group": group} for group in ("alpha-addition", "alpha-addition", "other")]
    numbers = {"addition": means, "seeds": "one seed"}
    report = Report("run", [], {}, [*series, *map(dict, Addition().pictures(numbers))], numbers)
    made = draw(report, tmp_path, formats=("png",))
    assert [file.name for file in made] == ["alpha-addition.png", "other.png", "addition.png"]
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in made}


def test_a_cell_is_never_cut() -> None:
    name = "encoder.layers.0.attention.output.LayerNorm.weight"
    rows: list[dict[str, Any]] = [
        {"tensor": name, "path": "/a/" * 20, **dict.fromkeys(("entries", "changed"), 10**9)}
    ]
    note = "a note that is longer than a line of the terminal, " * 3
    for width, lines in ((200, 3), (80, None), (40, None)):
        text = terminal(Report("r", [Table("t", rows, note)]), width)
        assert max(map(len, text.splitlines())) <= width
        assert (str(10**9) in text, text.split()[-1]) == (True, "terminal,")
        if lines:
            assert name in text
        assert Counter(text) >= Counter(name + "/a/" * 20)  # however it is folded


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (5 * 10**9, "5 GB"), (10**16, "1e+04 TB")],
)
def test_sizes_are_words(size: int, words: str) -> None:
    assert in_words(size) == words
