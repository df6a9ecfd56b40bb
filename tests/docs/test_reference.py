"""The reference pages say what the code says, and the pages name only verbs and options that exist."""

import argparse
import re
import runpy
import shlex
from pathlib import Path

import pytest

from helpers.pages import blocks
from tauspan.cli.main import parser

ROOT = Path(__file__).resolve().parents[2]
MADE = runpy.run_path(str(ROOT / "docs" / "make_reference.py"), run_name="made")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_pages_are_what_the_code_makes() -> None:
    for file, text in MADE["pages"]().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: run `python docs/make_reference.py`"


def test_no_page_is_left_of_what_is_gone() -> None:
    assert set((ROOT / "docs" / "reference" / "api").glob("*.md")) <= set(MADE["pages"]())


def _verbs(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_verb_on_the_pages_exists(page: Path) -> None:
    verbs = _verbs(parser())
    text = page.read_text(encoding="utf-8")
    for verb, action in re.findall(r"`tauspan ([a-z][a-z-]*)(?: ([a-z]+(?:-[a-z]+)*)\b(?![./:=]))?", text):
        assert verb in verbs, f"tauspan {verb}"
        inner = _verbs(verbs[verb])
        assert not (inner and action) or action in inner, f"tauspan {verb} {action}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_the_pages_can_be_parsed(page: Path) -> None:
    """In the quick set, and also of blocks that are not run."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind != "sh":
            continue
        for line in re.sub(r"\\\n\s*", " ", block.code).splitlines():
            if line.startswith("tauspan "):
                parser().parse_args(shlex.split(line.partition(" > ")[0])[1:])
