"""A recipe beside a report asks for what the report says was done and tried."""

import json
from pathlib import Path

import pytest

from tauspan.experiments.run import Recipe
from tauspan.experiments.run.made import Made

RESULTS = Path(__file__).parents[2] / "docs" / "results"
FILES = sorted(RESULTS.glob("*/recipe.yaml"))


@pytest.mark.parametrize("file", FILES, ids=[file.parent.name for file in FILES])
def test_a_recipe_asks_for_what_its_report_did(file: Path) -> None:
    report = json.loads((file.parent / "report.json").read_text())
    told, recipe = report["provenance"]["recipe"], Recipe.read(file)
    asked = json.loads(json.dumps(recipe.as_dict()))
    for key in ("model", "tasks", "regimes", "seeds", "rows", "max_tokens"):
        assert asked[key] == told[key], key
    assert told["finetune"].items() <= asked["finetune"].items()
    for key in ("ways", "rules", "merged", "grid", "xi", "xi_rows", "floor"):
        assert asked["made"].get(key) == told["made"].get(key), key
    made = recipe.part(Made)
    assert made is not None
    for way, runs in report["result"]["made"].items():
        regime = "standard" if "standard" in way else "linear"
        tried = tuple(float(one) for one in runs[0]["tried"])
        rates = made.rates.get(way, made.rates[regime])
        assert not tried or made.weights.get(way, rates) == tried, way
