"""Tables in terminals and Markdown: eighty columns, no broken word, and every cell once in each form."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tauspan.core.report import Report
from tauspan.core.table import WIDE, Table, prose, shown
from tauspan.merge import doctor
from tauspan.store import write_tensors

ROOT = Path(__file__).resolve().parents[2]


def terminal(*tables: Table, width: int = WIDE) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def words_of(table: Table) -> set[str]:
    """All words of a table, its headings included."""
    texts = [table.title, table.note, *table.columns]
    texts += [cell for row in table.rows for cell in row.values() if isinstance(cell, str)]
    return {word for text in texts for word in text.split()}


def compact(text: str) -> str:
    """A text as terminals write a mean with its spread: `0.5 ± 0.1` as `.5±.1`."""
    return re.sub(r"\b0\.", ".", re.sub(r"\s*±\s*", "±", text))


def require_whole(tables: Sequence[Table]) -> None:
    """Every line of both forms has at most 80 characters, and every word stands there whole."""
    for table in tables:
        forms = {"terminal": terminal(table), "Markdown": table.to_markdown()}
        for name, text in forms.items():
            assert max(map(len, text.splitlines())) <= WIDE, (name, table.title)
            headed = set(
                table.columns[0].split()
            )  # a first column that becomes headings has no name in terminals
            broken = {word for word in words_of(table) - headed if compact(word) not in compact(text)}
            assert broken == set(), (name, table.title)


WRITTEN = sorted((ROOT / "docs" / "results").glob("*/*.json"))


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_pages_of_results_are_what_their_numbers_give(file: Path) -> None:
    written = file.with_suffix(".md").read_text("utf-8")
    assert written == Report.from_json(file.read_text("utf-8")).to_markdown()


@pytest.mark.parametrize("name", ["demo", "text7", "text7-merging", "reproduce-text7", "when"])
def test_reports_of_runs_fit_eighty_columns(name: str) -> None:
    text = (ROOT / "docs" / "results" / name / "report.json").read_text("utf-8")
    require_whole(Report.from_json(text).tables)


def test_the_doctors_output_fits_eighty_columns_and_paths_break_at_slashes_alone(tmp_path: Path) -> None:
    folder = tmp_path / "experiments" / "2026-11"
    weight = "encoder.layers.0.attention.output.LayerNorm.weight"
    shapes = {
        "pre-trained": (4, 4),
        "fine-tuned-on-movie-sentiment": (4, 4),
        "fine-tuned-on-email-spam": (3, 3),
    }
    for name, shape in shapes.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / f"{name}.safetensors", {weight: torch.ones(*shape)})
    base, *models = (folder / f"{name}.safetensors" for name in shapes)
    report = doctor(models, base, values=True).report()
    assert report.verdict.startswith(
        "These models cannot be merged as they are: 1 error (shape in fine-tuned-on-"
    )
    shown_, written = (
        terminal(*report.tables), "\n\n".join(table.to_markdown() for table in report.tables)
    )  # fmt: skip
    assert max(map(len, shown_.splitlines())) <= WIDE
    for word in (weight, "fine-tuned-on-movie-sentiment.safetensors", "float32", "parameters", "vocabulary"):
        assert word in shown_ or word == "vocabulary"
        assert word in written or word == "vocabulary"
    long = [line for line in written.splitlines() if len(line) > WIDE]
    assert all(len(line.split()) <= 2 for line in long)  # a path alone


def test_a_wide_table_of_markdown_gets_headings_of_what_repeats() -> None:
    numbers = dict.fromkeys(("zero shot", "single", "added", "added norm.", "alpha 1"), 0.5)
    rows: list[dict[str, Any]] = [
        {"regime": regime, "task": task * 30, **numbers} for regime in ("standard", "linear") for task in "ab"
    ]
    lines = Table("t", rows).to_markdown().splitlines()
    assert [line for line in lines if line.startswith("**")] == ["**regime: standard**", "**regime: linear**"]
    assert sum(line.startswith("| task |") for line in lines) == 2


def test_more_columns_than_fit_are_several_tables_under_the_same_texts() -> None:
    rows: list[dict[str, Any]] = [
        {"pair": f"{one} and another", **{f"number {i}": i for i in range(16)}} for one in "ab"
    ]
    lines = Table("t", rows).to_markdown().splitlines()
    heads = [line for line in lines if line.startswith("| pair |")]
    assert len(heads) == 3
    assert [int(found) for line in heads for found in re.findall(r"number (\d+)", line)] == list(range(16))


def test_rows_with_long_texts_are_lists_in_markdown() -> None:
    message = "a sentence that is longer than a line of eighty characters - and goes on. " * 2
    text = Table("problems", [{"severity": "error", "tensor": None, "message": message}]).to_markdown()
    assert "- severity: error\n  - message: a sentence" in text
    assert "tensor" not in text
    assert not re.search(r"^\s+- and", text, re.MULTILINE)


def test_a_narrow_table_is_one_table() -> None:
    rows: list[dict[str, Any]] = [{"a": "x", "b": 1}, {"a": "x", "b": 2}]
    assert Table("t", rows).to_markdown() == "## t\n\n| a | b |\n|---|---|\n| x | 1 |\n| x | 2 |"
    assert Table("t", [], "none").to_markdown() == "## t\n\nnone"


@given(
    st.lists(
        st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=12), max_size=40
    )
)
@settings(max_examples=60, deadline=None)
def test_prose_keeps_its_words_and_makes_no_list(words: list[str]) -> None:
    text = " ".join(" ".join(words).split())
    wrapped = prose(text, 30)
    assert " ".join(wrapped.split()) == text
    for line in wrapped.splitlines()[1:]:
        assert not re.match(r"([-+*#>|=~]|\d+[.)](\s|$))", line)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["a", "movie_sentiment", "news_science_society and email_spam"]),
                "path": st.sampled_from(["x", "/a/folder/with/a/very/long/name/model-00001.safetensors", ""]),
                "value": st.sampled_from([None, 0.5, 12, 10**9, True]),
                "mean": st.sampled_from(["0.812 ± 0.021", "10.04 ± 0.031", ""]),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(40, 120),
)
@example(
    [{"name": "news_science_society and email_spam", "path": "x", "mean": "10.04 ± 0.031", "value": 10**9}],
    42,
)
@settings(max_examples=60, deadline=None)
def test_every_cell_is_in_every_form(rows: list[dict[str, Any]], width: int) -> None:
    table = Table("t", rows)
    text = terminal(table, width=width)
    assert max(map(len, text.splitlines())) <= width
    squeezed = compact("".join(text.split())).replace(" ", "")
    for row in rows:
        mean = compact(row["mean"]).replace("±", " ±").split()  # two words, between which a line may end
        for cell in (row["value"], *mean, *row["name"].split()):
            assert compact(shown(cell)) in squeezed
        assert shown(row["path"]) in table.to_markdown()
