"""Pictures are drawn from reports with missing numbers too: their places stay empty."""

from pathlib import Path
from typing import Any

import pytest

from tauspan.core.report import Report
from tauspan.experiments import figures


def bars(column: str) -> dict[str, Any]:
    row = {"zero shot": 0.5, "single": 0.0, "added": 0.25, "added norm.": None}
    whole = {"zero shot": 0.5, "single": 0.5, "added": 0.5, "added norm.": 1.0}
    means = {"standard": {"a": row, "mean": {**row, "single": None}}, "mine": {"a": whole, "mean": whole}}
    return {
        "kind": "bars", "group": "addition", "title": column, "column": column, "means": means, "caption": "one model",
        "joint": [0.5, None],
    }  # fmt: skip


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_number_leaves_its_place_empty(missing: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [{"alpha": 0.0, "a": None if missing else 0.5}, {"alpha": 1.0, "a": 0.5}]
    curve = {"kind": "alpha", "title": "t", "best": 1.0, "points": points}
    report = Report("r", [], series=[bars("added"), bars("added norm."), curve])
    drawn = figures.draw(report, tmp_path)
    assert len(drawn) == 2
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
