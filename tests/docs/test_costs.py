"""The page of costs shows what the benchmarks wrote."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made():
    return runpy.run_path(str(DOCS / "make_costs.py"))


def test_the_page_is_as_its_files_make_it(made):
    text = (DOCS / "results" / "costs.md").read_text(encoding="utf-8")
    assert text == made["filled"](text), "run `python docs/make_costs.py`"


def test_every_table_stands_on_the_page(made):
    text = (DOCS / "results" / "costs.md").read_text(encoding="utf-8")
    assert all(f"<!-- table: {name} -->" in text for name in made["TABLES"])


def test_cells_keep_three_digits(made):
    values = [0.87631, 1.7, 1234.5, None, 12, True, "a"]
    assert list(map(made["number"], values)) == ["0.876", "1.70", "1,234", "", "12", "yes", "a"]
