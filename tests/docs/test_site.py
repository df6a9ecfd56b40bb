"""`make docs` builds the site without a warning; it needs the extra `docs`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("zensical")


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM.exists(), reason="zensical is not installed: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning_and_asks_nobody() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_site.py"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "out" / "site"
    assert "<h1" in (site / "index.html").read_text(encoding="utf-8")
    listed = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text(encoding="utf-8"))
    assert len(listed) > 40
    assert all((site / page).is_file() for page in listed)
