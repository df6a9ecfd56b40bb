"""Write the reference pages that come from the code: the command line, errors, operations, the public packages.

`python docs/make_reference.py` writes command-line.md, errors.md, operations.md and api/*.md in docs/reference, which
tests/docs/test_reference.py compares.
"""

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tauspan.cli.main import parser
from tauspan.core import errors
from tauspan.tangent.engine import attention, decompositions, elementwise, norms, products, rules, table

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

OPERATIONS = """\
# Operations and their tangents

Made by `python docs/make_reference.py` from the rule table, `src/tauspan/tangent/engine/table.py`: which way the tangent
of each operation of torch takes. The names are those of torch's functions: `add` is `torch.add`, `Tensor.add` and `+`;
`fft_rfft` is `torch.fft.rfft`, `linalg_inv` is `torch.linalg.inv`; `get mT` is the attribute `.mT`. A function that torch
writes in Python (`F.normalize`, `nn.MultiheadAttention`) is opened, so that each operation inside takes its own way.

Each way is exact, for complex numbers too, and the engine is compared with ordinary autograd on the module's own inputs
([how](../explanation/engine.md)). J^T g needs no rule: it is the ordinary backward.
"""
OTHERS = """\
## Any other operation

The generic mechanism takes it too, and says so in one warning: torch's forward mode or, where torch has none, its
backward derived once more. So does an `autograd.Function` of your own. `linearize(module, strict=True)` refuses such an
operation instead. Where neither way exists, ordinary backward passes compute the tangents of the whole module.
"""
REFUSED = """\
## What is refused

- Complex parameters: a `ModelError` with their names. Name the others (`params=[...]`), or keep real and imaginary parts
  as real parameters: `torch.view_as_complex` in the forward or, without a change of the module,
  `torch.nn.utils.parametrize.register_parametrization` with `torch.complex(real, imag)`.
- What ordinary autograd cannot derive (`torch.special.zeta`, `igamma`, `unique`), or derives as NaN (eigenvectors of
  equal eigenvalues): a `ModelError` with the reason. Leave out the parameters that reach it (`params=[...]`).
- A module that gives two answers to one question (active dropout, noise): a `ModelError` with the layer. Eval mode, or
  the random numbers as an input.
- NaN or infinity in the output: a `NonFiniteError` with the row. Leave it out.
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


def operations() -> str:
    """The page of operations: those with a rule, by rule; those by forward mode; those that other engines take."""
    named: dict[str, list[str]] = {}
    for name, rule in table.RULES.items():
        named.setdefault((rule.__doc__ or "").strip().splitlines()[0], []).append(name)
    ruled = [f"| {cell(said)} | {listed(names)} |" for said, names in named.items()]
    return "\n".join([
        OPERATIONS, "## A rule of their own", "", "| rule | operations |", "|---|---|", *ruled, "",
        "## By the generic mechanism", "", "Torch's forward mode of the one operation is as good as a rule.", "",
        f"{listed(table.BY_FORWARD_MODE)}.", "", OTHERS,
        "## No tangent", "",
        "Constants, or steps, as for ordinary autograd; so is what runs under `torch.no_grad`, and a number",
        f"that is read off a tensor ({listed(table.READS)}).", "", f"{listed(table.WITHOUT_TANGENT)}.", "",
        "## To the next engine", "",
        "`torch.func.jvp`, or else ordinary backward passes, take over with one warning where the module", "",
        "- writes into a tensor that others may see, or that did not depend on parameters before:",
        f"  {listed(table.WRITES)}, `out=`, in-place operations such as `index_add_`;",
        f"- takes derivatives inside its forward ({listed(table.DERIVES)}), or uses `torch.func.vmap`;",
        f"- calls an operation in a form that its rule does not cover: {'; '.join(uncovered())}.", "",
        REFUSED,
    ])  # fmt: skip


def listed(names: Iterable[str]) -> str:
    """Names of operations in order, as code."""
    return ", ".join(f"`{name}`" for name in sorted(names))


def uncovered() -> list[str]:
    """What the rules refuse, in the words of their errors."""
    said = []
    for module in (rules, elementwise, products, norms, attention, decompositions):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                text = ast.unparse(node.exc.args[0])
                said.append(re.sub(r"\{(\w+)(?:!r)?\}", "...", text.removeprefix("f").strip("\"'")))
    return said


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
    made[REFERENCE / "operations.md"] = operations()
    return made | {REFERENCE / "api" / f"{package}.md": api(package, face) for package in known}


if __name__ == "__main__":
    for file, text in pages().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
