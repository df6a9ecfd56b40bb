"""The notebooks hold the code of their sources, were run from top to bottom, and their code runs."""

import json
import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
MADE = runpy.run_path(str(FOLDER.parent / "make_notebooks.py"), run_name="made")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_is_its_source_with_outputs(source: Path) -> None:
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert cells == MADE["cells"](source.read_text(encoding="utf-8")), "run `python docs/make_notebooks.py`"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds == {"stream", "display_data", "execute_result"}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs(source: Path) -> None:
    """Words and kinds of outputs are the same; last digits may depend on the machine."""
    made = MADE["notebook"](source)
    kept = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    for now, then in zip(made["cells"], kept["cells"], strict=True):
        assert [_words(one) for one in now.get("outputs", [])] == [
            _words(one) for one in then.get("outputs", [])
        ]


def _words(output: dict) -> tuple[str, list[str]]:
    text = "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
    return output["output_type"], re.findall(r"[A-Za-z_]{3,}", re.sub(r"base [0-9a-f]+", "", text))
