"""Relative links of all documents lead to files and anchors; on the package page there are none."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def _prose(text: str) -> str:
    """The text without comments, fenced blocks and code spans."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "code", text)


def _anchors(text: str) -> set[str]:
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    found: Counter[str] = Counter()
    anchors = set()
    for title in titles:
        made = re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")
        anchors.add(f"{made}-{found[made]}" if found[made] else made)
        found[made] += 1
    return anchors | set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(_prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"links to {target}"
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), f"links to {target}"


def _pages(entries: list) -> list[str]:
    found = []
    for entry in entries:
        for inner in [entry] if isinstance(entry, str) else entry.values():
            found += [inner] if isinstance(inner, str) else _pages(inner)
    return found


def test_every_page_is_in_the_navigation() -> None:
    settings = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"))
    listed = _pages(settings["project"]["nav"])
    assert len(listed) == len(set(listed))
    own = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    reports = {
        page for page in own if re.fullmatch(r"results/[\w-]+/\w+\.md", page)
    }  # led to from the results
    assert (
        set(listed) - {"index.md", "repository/CHANGELOG.md", "repository/CONTRIBUTING.md"} == own - reports
    )


def test_the_package_page_has_no_relative_link() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    made = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((ROOT / part["path"]).read_text(encoding="utf-8") for part in made["fragments"])
    for change in made["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert [target for target in LINK.findall(text) if not target.startswith("https://")] == []
    assert "![" not in text
    assert "arxiv.org" in text
