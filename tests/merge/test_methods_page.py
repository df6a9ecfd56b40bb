"""docs/methods.md says what the table of methods says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current():
    made = runpy.run_path(str(DOCS / "make_methods.py"))
    assert (DOCS / "methods.md").read_text() == made["page"](), "run `python docs/make_methods.py`"
