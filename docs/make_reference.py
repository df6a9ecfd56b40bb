"""Write the reference pages that come from the code: the command line, errors, the public packages.

`python docs/make_reference.py` writes command-line.md, errors.md and api/*.md in docs/reference, which
tests/docs/test_reference.py compares.
"""

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from tauspan.cli.main import parser
from tauspan.core import errors

DOCS = Path(__file__).resolve().parent
REFERENCE = DOCS / "reference"
COMMON = ("help", "verbose", "quiet", "json", "seed")  # options of every verb

COMMAND_LINE = """\
# Command line

Made by `python docs/make_reference.py` from the program's parser. Every verb takes `-h`, `--json` (the result as JSON on
stdout), `-q` (no progress, no tables; warnings stay), `-v` (say what is being done) and `--seed N` (0). Options are never
abbreviated. [Errors and exit codes](errors.md) are on a page of their own; files and recipes are described in
[formats](../formats.md).
"""

ERRORS = """\
# Errors and exit codes

Made by `python docs/make_reference.py` from `tauspan.core.errors`. Every error that tauspan raises on purpose is a
`tauspan.TauspanError`: `except tauspan.TauspanError` catches them all. A message names the object, both values where two
disagree, and the repair. The program prints it on stderr and ends with the class's exit code.
"""


def verbs(
    of: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb with its action, such as `edit add`, and its parser."""
    inner = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield " ".join(words), of
        return
    for name, made in inner[0].choices.items():
        yield from verbs(made, (*words, name))


def command_line() -> str:
    """The page of the command line: a table of the verbs, and a section for each."""
    found = list(verbs(parser()))
    lines = [COMMAND_LINE, "| verb | what it does |", "|---|---|"]
    lines += [
        f"| [`tauspan {name}`](#{anchor('tauspan ' + name)}) | {cell(made.description)} |"
        for name, made in found
    ]
    for name, made in found:
        lines += ["", f"## `tauspan {name}`", "", f"{sentence(made.description)}", ""]
        shown = [action for action in made._actions if action.dest not in COMMON]
        lines += ["| argument | meaning |", "|---|---|", *(row(made, action) for action in shown)]
    return "\n".join(lines) + "\n"


def row(made: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One argument as a row of a table."""
    formatter = made._get_formatter()
    several = {"*": "...", "+": "..."}.get(str(action.nargs), "")
    if action.option_strings:
        value = "" if action.nargs == 0 else f" {formatter._format_args(action, action.dest.upper())}"
        written = f"`{', '.join(action.option_strings)}{value}`"
    else:
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        written = f"`{metavar}{several}`" + (" (optional)" if action.nargs in ("?", "*") else "")
    choices = f"; one of {', '.join(f'`{one}`' for one in action.choices)}" if action.choices else ""
    again = "; may be repeated" if isinstance(action, argparse._AppendAction) else ""
    if action.choices:  # said in words
        written = re.sub(r" ?\{[^}]*\}", f" {action.dest.upper()}", written)
    return f"| {cell(written)} | {cell(formatter._expand_help(action))}{choices}{again} |"


def sentence(text: str | None) -> str:
    """The text with a capital and a full stop."""
    text = (text or "").strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".") if text else ""


def cell(text: str | None) -> str:
    """The text in a cell of a table."""
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|")


def anchor(title: str) -> str:
    """The anchor of a title."""
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def error_page() -> str:
    """The page of errors: a row for each class, in the order of exit codes, and the codes."""
    found = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TauspanError)
    ]
    found.sort(key=lambda kind: (kind.exit_code, len(kind.__mro__)))
    lines = [ERRORS, "| exit code | error | is also | when |", "|---|---|---|---|"]
    for kind in found:
        also = ", ".join(f"`{base.__name__}`" for base in kind.__bases__ if base is not Exception)
        when = cell((kind.__doc__ or "").strip().splitlines()[0])
        lines.append(f"| {kind.exit_code} | `{kind.__name__}` | {also} | {when} |")
    lines += [
        "",
        "0 is success, 130 an interruption by Ctrl-C (`KeyboardInterrupt`, never wrapped), and 1 also anything",
        "unexpected: a traceback with it is a bug.",
    ]
    return "\n".join(lines) + "\n"


def packages() -> list[str]:
    """The public packages, as docs/architecture.md lists them."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"`(tauspan[\w.]*)`", page.partition("**The border.**")[2].partition("\n\n")[0])


def api(package: str, face: set[str]) -> str:
    """The page of a package: its docstring, and an entry for each public name; `face` is what `tauspan` itself has."""
    module, top = importlib.import_module(package), importlib.import_module("tauspan")
    names = list(module.__all__)
    # several packages may have a name, such as `plan`, for functions of their own
    face = {name for name in face & set(names) if getattr(module, name) is getattr(top, name)}
    own = [name for name in names if package == "tauspan" or name not in face]
    lines = [f"# {package}", "", f"::: {package}", "    options:", "      members: false",
             "      show_root_heading: false", "      show_root_toc_entry: false", ""]  # fmt: skip
    if len(own) < len(names):
        shared = ", ".join(f"[`{name}`](tauspan.md#tauspan.{name})" for name in names if name in face)
        lines += [f"Also here, and described in [tauspan](tauspan.md): {shared}.", ""]
    for name in own:
        lines += [f"::: {package}.{name}", ""]
    return "\n".join(lines).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Each page by its path."""
    known = packages()
    face = set(importlib.import_module("tauspan").__all__)
    made = {REFERENCE / "command-line.md": command_line(), REFERENCE / "errors.md": error_page()}
    return made | {REFERENCE / "api" / f"{package}.md": api(package, face) for package in known}


if __name__ == "__main__":
    for file, text in pages().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
