"""Build the documentation site, offline.

`python docs/make_site.py` (or `make docs`) gathers the pages in out/docs, builds them into out/site with Zensical, and
puts llms.txt beside them. The pages are the Markdown files of this folder as they are; the first page is README.md.
A link out of the folder leads to a copy of the file. A warning is a failure, and so is a page that asks another host for
something.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
WORK = ROOT / "out" / "docs"
PAGES = WORK / "pages"
SITE = ROOT / "out" / "site"
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^\s*(```|~~~)")
SHOWN = {".md", ".png", ".json", ".svg", ".ipynb"}  # what a browser shows; other files are copied as text
FOREIGN = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//(?!localhost)[^>]*>", re.IGNORECASE
)


def place(source: Path) -> Path:
    """Where a file of the repository lies in the site's pages."""
    if source == ROOT / "README.md":
        return Path("index.md")
    inside = source.is_relative_to(DOCS)
    path = source.relative_to(DOCS) if inside else Path("repository") / source.relative_to(ROOT)
    return path if path.suffix in SHOWN else path.with_name(path.name + ".txt")


def prose(text: str, change: Callable[[str], str]) -> str:
    """The text with its lines changed, but for those between fences."""
    fenced, lines = False, []
    for line in text.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else change(line))
    return "\n".join(lines)


def linked(page: Path, text: str) -> Iterator[Path]:
    """The files of the repository that a page links to."""
    found: list[str] = []
    prose(text, lambda line: (found.extend(match[1] for match in LINK.findall(line)), line)[1])
    for target in found:
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z]+:", path):
            yield (page.parent / path).resolve()


def moved(page: Path, text: str) -> str:
    """The page with the links that it needs at its place in the site; a link to a folder becomes plain text."""

    def change(match: re.Match[str]) -> str:
        path, mark, anchor = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = (page.parent / path).resolve()
        there = os.path.relpath(place(target), place(page).parent)
        return f"{match[1]}{there}{mark}{anchor}{match[3]}"

    def line(text: str) -> str:
        folders = re.sub(
            r"\[([^\]]*)\]\(([^)#\s]+)\)",
            lambda m: m[1] if not re.match(r"[a-z]+:", m[2]) and (page.parent / m[2]).is_dir() else m[0],
            text,
        )
        return LINK.sub(change, folders)

    return prose(text, line)


def four(text: str) -> str:
    """The text with everything inside list items indented by four spaces, as Python-Markdown reads it."""
    depth: list[int] = []  # the indents of the items that are open
    lines = []
    for line in text.split("\n"):
        bare = line.lstrip(" ")
        indent = len(line) - len(bare)
        if bare:
            while depth and indent < depth[-1]:
                depth.pop()
        item = re.match(r"(?:\d+\.|[-*]) +", bare)
        inner = indent - (depth[-1] if depth else 0)
        opens = item is not None and (bool(depth) or indent == 0)
        if (
            opens
            and not depth
            and lines
            and lines[-1].strip()
            and not re.match(r"(?:\d+\.|[-*]) |    ", lines[-1])
        ):
            lines.append("")
        lines.append(" " * (4 * len(depth) + inner) + bare if bare else "")
        if opens and item is not None:
            depth.append(indent + len(item[0]))
    return "\n".join(lines)


def gather() -> None:
    """Copy the pages, and all that they link to, into the folder that is built."""
    shutil.rmtree(WORK, ignore_errors=True)
    waiting = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    done: set[Path] = set()
    while waiting:
        source = waiting.pop()
        if source in done or not source.is_file():
            continue
        done.add(source)
        target = PAGES / place(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, target)
            continue
        text = re.sub(r"<!--.*?-->\n*", "", source.read_text(encoding="utf-8"), flags=re.DOTALL)
        waiting += linked(source, text)
        target.write_text(four(moved(source, text)), encoding="utf-8")
    shutil.copyfile(DOCS / "zensical.toml", WORK / "zensical.toml")
    for source in (ROOT / "src").rglob("*.py"):  # the tool knows sessions under this title alone
        target = WORK / "src" / source.relative_to(ROOT / "src")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(
            re.sub(r"^( +)Example:$", r"\1Examples:", text, flags=re.MULTILINE), encoding="utf-8"
        )


def listed(entries: list) -> Iterator[str | tuple[str, list]]:
    """The pages of a navigation, and its sections."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for title, inner in entry.items():
            yield inner if isinstance(inner, str) else (title, inner)


def summary() -> str:
    """llms.txt: every page with its title and its first sentence."""
    settings = tomllib.loads((WORK / "zensical.toml").read_text(encoding="utf-8"))["project"]
    lines = [f"# {settings['site_name']}", "", f"> {settings['site_description']}.", ""]

    def add(entries: list) -> None:
        for entry in listed(entries):
            if isinstance(entry, tuple):
                lines.extend(["", f"## {entry[0]}", ""])
                add(entry[1])
                continue
            text = (PAGES / entry).read_text(encoding="utf-8")
            title = text.partition("\n")[0].lstrip("# ").replace("`", "")
            first = re.search(r"\n\n([A-Z`][^\n]*(?:\n[^\n|#-][^\n]*)*)", text)
            said = re.split(r"(?<=\.)\s", " ".join(first[1].split()))[0] if first else ""
            said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", said).replace(":::", "")
            lines.append(f"- [{title}]({entry})" + (f": {said}" if said else ""))

    add(settings["nav"])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def build() -> int:
    """Build the site; return 1 if there was a warning."""
    gather()
    shutil.rmtree(SITE, ignore_errors=True)
    program = Path(sys.executable).with_name("zensical")
    command = [str(program), "build", "--clean", "--strict", "-f", "zensical.toml"]
    done = subprocess.run(
        command, cwd=WORK, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    print(done.stdout, end="")
    if done.returncode or "No issues found" not in done.stdout or "griffe:" in done.stdout:
        return 1
    shutil.move(WORK / "site", SITE)
    (SITE / "llms.txt").write_text(summary(), encoding="utf-8")
    for page in sorted(PAGES.rglob("*.md")):  # what llms.txt links to
        copy = SITE / page.relative_to(PAGES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
    asked = [f"{page.relative_to(SITE)}: {found}" for page in sorted(SITE.rglob("*.html"))
             for found in FOREIGN.findall(page.read_text(encoding="utf-8"))]  # fmt: skip
    print("\n".join(asked[:10]) or f"wrote {SITE.relative_to(ROOT)}: {len(list(SITE.rglob('*.html')))} pages")
    return 1 if asked else 0


if __name__ == "__main__":
    sys.exit(build())
