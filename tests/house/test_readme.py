"""README: its example prints what it says, its verbs exist, its links lead somewhere."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tauspan.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/formats.md"]


def _verbs(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def _named(text: str) -> set[tuple[str, str]]:
    """`tauspan VERB [ACTION]` in code spans and at the start of lines."""
    found = re.findall(r"(?:`|^)tauspan ([a-z-]+)(?: ([a-z]+(?:-[a-z]+)*)\b(?![./:=]))?", text, re.MULTILINE)
    return {(verb, action) for verb, action in found}


@pytest.mark.slow
def test_the_first_example_prints_what_the_page_says() -> None:
    blocks = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", README, re.DOTALL)
    assert blocks is not None
    code, printed = blocks.groups()
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums in one order on every machine
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=280, env=one_thread
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


def test_every_verb_on_the_page_exists_and_every_verb_is_on_the_page() -> None:
    verbs = _verbs(parser())
    named = _named(README)
    assert {verb for verb, _ in named} == set(verbs)
    for verb, inner in ((name, _verbs(made)) for name, made in verbs.items()):
        if inner:
            assert {action for first, action in named if first == verb and action} == set(inner)


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), f"{name} links to {target}"
