"""Studies of labels, vocabularies and grafts: they run at toy size, and committed tables are those of committed runs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import graft, labels, perplexity, vocabulary

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def alike(one: Any, other: Any) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(one, float) and isinstance(other, float | int):
        return one == pytest.approx(other, rel=1e-9, abs=1e-12)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("made", "file"),
    [
        (vocabulary.table, "vocabulary-intel-xeon"),
        (vocabulary.table, "vocabulary-linear-intel-xeon"),
        (perplexity.table, "perplexity-intel-xeon"),
    ],
)
def test_a_committed_table_is_that_of_its_runs(made: Any, file: str) -> None:
    kept = json.loads((RESULTS / f"{file}.json").read_text())
    assert alike(made(kept["runs"]), kept["rows"])


def call(monkeypatch: pytest.MonkeyPatch, module: Any, *options: Any) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, options)])
    module.main()


def test_polynomials_need_fewer_values_of_a_determinantal_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--legendre", "--functions", 8, "--ratios", 1, "--repeats", 20, "--out", tmp_path]
    call(monkeypatch, labels, *options)
    assert "| 8 | 8 | dpp |" in capsys.readouterr().out
    rows = {row["rows"]: row["mean"] for row in json.loads(next(tmp_path.glob("*.json")).read_text())["rows"]}
    assert rows["dpp"] < rows["uniform"]


@pytest.mark.slow
def test_a_graft_is_measured_beside_a_copy_and_a_merge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = ["--rows", 500, "--width", 8, "--rounds", 1, "--work", tmp_path, "--out", tmp_path / "f.json"]
    call(monkeypatch, graft, *options)
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert list(rows) == ["copy", "start", "merge", "graft", "stream"]
    assert all(row["seconds"] > 0 for row in rows.values())
