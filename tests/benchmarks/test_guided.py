"""The benchmark of guided searches: as many vectors as are asked for, and a row for each way."""

import json
from pathlib import Path

import pytest
from benchmarks import guided

from tauspan import suite


def test_more_vectors_than_tasks_take_the_first_tasks_again_with_other_rows() -> None:
    found = guided.drawn(["email_spam"], 8, 6, seed=3)
    names, seeds = [one.name for one, _ in found], [seed for _, seed in found]
    assert (names[0], names[-1]) == ("email_spam", "email_spam_2")
    assert set(names[:7]) == {one.name for one in suite()}
    assert seeds == [3] * 7 + [1003]
    first, again = (list(found[place][0].split("test").inputs) for place in (0, 7))
    assert len(first) == len(again) == 6
    assert first != again


def test_a_way_is_compared_with_the_grid() -> None:
    grid = {"alpha": 0.5, "kept": 0.9, "seconds": 10.0}
    seeds = [
        {"grid": grid, "rows": {**grid, "seconds": 4.0, "read": 0.25}},
        {"grid": grid, "rows": {"alpha": 0.6, "kept": 0.8, "seconds": 2.0, "read": 0.5}},
    ]
    found = guided.row("all", "rows", seeds)
    assert (found["same"], found["read"], found["seconds over grid's"]) == ("1 of 2", 0.5, pytest.approx(0.3))
    assert (found["lost"], found["lost most"]) == (pytest.approx(0.05), pytest.approx(0.1))


@pytest.mark.long
def test_each_way_has_a_row(tmp_path: Path) -> None:
    out = tmp_path / "guided.json"
    given = ["--tasks", "email_spam", "--rows", "16", "--steps", "1", "--seeds", "1", "--params", "last:1"]
    guided.main([*given, "--vectors", "2", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["chosen by"] for row in rows] == list(guided.WAYS)
    by = {row["chosen by"]: row for row in rows}
    assert by["rows"]["same"] == by["grid"]["same"] == "1 of 1"
    assert 6 / 21 <= by["rows"]["read"] < 1
