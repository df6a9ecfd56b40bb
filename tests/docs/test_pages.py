"""Every Python block and every command of the tutorials and how-tos runs, in a folder of its own, page by page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import pages

ROOT = Path(__file__).resolve().parents[2]

PAGES = [
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]


SHORT = ("ten-minutes",)  # run in the slow set; all pages in the long one


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.stem in SHORT else [pytest.mark.long]) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_the_page_runs(page: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.pages", str(page)],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_says_what_it_is_and_why_it_is_not_run(page: Path) -> None:
    found = pages.blocks(page.read_text(encoding="utf-8"))
    assert any(block.runs or block.reason for block in found)
    for block in found:
        assert block.kind in ("python", "sh", "yaml", "text", "file", "setup"), (
            f"line {block.line}: {block.kind!r}"
        )
        assert not (block.kind == "text" and block.printed is None and block.name), f"line {block.line}"


def test_marks_and_outputs_are_read() -> None:
    shown = "```python\nprint(1)\n```\n\n```text\n1\n```\n"
    text = (
        f"<!-- not run: a GPU -->\n\n```sh\nrm x\n```\n\n{shown}\n<!-- file: a.yaml -->\n```yaml\na: 1\n```\n"
    )
    first, second, third = pages.blocks(text)
    assert (first.reason, first.runs) == ("a GPU", False)
    assert (second.code, second.printed, second.runs) == ("print(1)\n", "1\n", True)
    assert (third.kind, third.name, third.code) == ("file", "a.yaml", "a: 1\n")
