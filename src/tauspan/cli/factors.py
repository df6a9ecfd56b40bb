"""The verbs of drift factors: what a vector does to a task's rows, kept in a file that training reads instead of them.

The library is imported only when a verb runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.fields import add_fields
from tauspan.cli.shared import Verb, add_device, add_language, encoder_of, first, say, task_of
from tauspan.core.reading import Reading

if TYPE_CHECKING:
    from tauspan.drift import Factors

KINDS = ("expand", "reduce", "ekfac", "diagonal")


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    into = verbs.add_parser(
        "factors", help="make, merge and thin drift factors, which fine-tuning reads in place of other tasks' rows"
    ).add_subparsers(title="verbs", metavar="VERB", required=True)  # fmt: skip
    made = verb(
        into, "make", "curvature factors of a task: about E |J tau|^2 of any vector, without its rows", make
    )
    made.add_argument("model", help=commands.MODEL)
    made.add_argument("task", help=commands.TASK)
    made.add_argument("--kind", choices=KINDS, default="reduce", help="the form of the curvature")
    made.add_argument("--params", default="all", help=commands.PARAMS)
    add_fields(made, Reading, skip=("point",), defaults={"batch_size": 32})
    made.add_argument(
        "--rows", type=int, metavar="N", help="read at most so many training rows (default: all)"
    )
    add_device(made)
    add_language(made)
    joined = verb(into, "merge", "OUT = one set of factors in the place of several", merge)
    joined.add_argument("factors", nargs="+", metavar="FACTORS", help="files of factors of one model")
    thinned = verb(into, "thin", "OUT = Kronecker factors by their leading eigenvectors", thin)
    thinned.add_argument("factors", metavar="FACTORS", help="a file of factors")
    thinned.add_argument(
        "--energy", type=float, default=0.99, help="the share of each factor's trace that is kept"
    )
    for one in (made, joined, thinned):
        one.add_argument("-o", "--out", required=True, help="the file of factors to write")
        one.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def make(options: argparse.Namespace) -> None:
    """Compute the factors of a task's training rows."""
    from tauspan.drift import factors
    from tauspan.store import require_free

    require_free(Path(options.out), options.overwrite)
    found = factors(
        encoder_of(options), task_of(options.task), options.kind, rows=options.rows, seed=options.seed or 0,
        params=options.params, reading=Reading(options.batch_size, options.max_tokens),
    )  # fmt: skip
    _write(found, options)
    say(f"Next: tauspan finetune {options.model} TASK OUT --factors {options.out}", options)


def merge(options: argparse.Namespace) -> None:
    """Merge several sets of factors."""
    from tauspan.drift import Factors, merged

    _write(merged([Factors.load(path) for path in options.factors]), options)


def thin(options: argparse.Namespace) -> None:
    """Keep the leading eigenvectors of Kronecker factors."""
    from tauspan.drift import Factors, compressed

    _write(compressed(Factors.load(options.factors), options.energy), options)


def _write(found: "Factors", options: argparse.Namespace) -> None:
    if first():
        found.save(options.out, overwrite=options.overwrite)
    say(f"{found!r}\nWrote {options.out}, {found.bytes / 2**20:.1f} MiB.", options)
