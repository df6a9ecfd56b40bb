"""README: its example prints what it says, its commands run, its figures stand in the reports, and it stays short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pages import blocks

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = [*(ROOT / "docs" / "results").rglob("*.md")]


def test_it_is_one_screen() -> None:
    assert README.count("\n") <= 150


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_example_prints_what_the_page_says() -> None:
    example = next(block for block in blocks(README) if block.kind == "python")
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order on every machine
    done = subprocess.run(
        [sys.executable, "-c", example.code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=800,
        env=one_thread,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == example.printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run(tmp_path: Path) -> None:
    commands = next(block for block in blocks(README) if block.code.startswith("tauspan finetune"))
    page = tmp_path / "commands.md"
    page.write_text(f"```sh\n{commands.code}```\n", encoding="utf-8")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "helpers.pages", str(page)], cwd=tmp_path, capture_output=True, text=True, timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("section", "pages", "least"),
    [("What we found", ("addition", "study", "made-to-add"), 10), ("What it costs", ("costs",), 6)],
)
def test_figures_stand_on_the_pages_of_results(section: str, pages: tuple[str, ...], least: int) -> None:
    """Every number with its spread, and every ratio of costs."""
    found = README.partition(f"## {section}")[2].partition("\n## ")[0]
    figures = re.findall(r"\d\.\d{3} ± \d\.\d{3}|\d\.\d{3}|\d\.\d{2}", found)
    assert len(figures) >= least
    text = "\n".join((ROOT / "docs" / "results" / f"{page}.md").read_text("utf-8") for page in pages)
    assert [figure for figure in figures if figure not in text] == []


def test_figures_of_the_results_pages_stand_in_their_reports() -> None:
    """Numbers with a spread on the pages of results are those of the reports beside them."""
    pages = [ROOT / "docs" / "results" / f"{name}.md" for name in ("addition", "study")]
    reports = "\n".join(page.read_text(encoding="utf-8") for page in RESULTS if page.name == "report.md")
    reports = re.sub(
        r"\| (\d\.\d{3}) \| (\d\.\d{3}) ", r"\g<0> \1 ± \2 ", reports
    )  # in maps they are two columns
    figures = [one for page in pages for one in re.findall(r"\d\.\d{3} ± \d\.\d{3}", page.read_text("utf-8"))]
    assert len(figures) > 30
    assert [figure for figure in figures if figure not in reports] == []
