"""The verb that reproduces the paper: its options, and what it does.

The library is imported only when the verb runs.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tauspan.cli.shared import Verb, add_device, say, show
from tauspan.core.errors import UsageError
from tauspan.core.launch import launch

if TYPE_CHECKING:
    from tauspan.experiments.reproduce import Plan


def add(verbs: Any, verb: Verb) -> None:
    """Add the verb to a parser; `verb(into, name, does, function)` makes its parser."""
    made = verb(
        verbs, "reproduce", "the paper's tables and figures: `list` them, or carry one out", reproduce
    )
    made.set_defaults(resumes=lambda options: not options.plan and options.name != "list")
    made.add_argument("name", metavar="NAME", help="list, or one of its names")
    made.add_argument(
        "--model",
        help="ViT-B-32, ViT-B-16, ViT-L-14, minilm, a directory or a hub id (default: the recipe's)",
    )
    made.add_argument(
        "--variant", choices=("paper", "corrected"), help="hyper-parameters (default: the recipe's)"
    )
    made.add_argument(
        "--seeds", type=int, metavar="N", help="how many, from --seed on (default: the recipe's)"
    )
    made.add_argument(
        "--data", metavar="ROOT", help="folder with one sub-folder per data set (default: the hub)"
    )
    made.add_argument("--out", help="output folder (default: out/reproduce/NAME-VARIANT)")
    made.add_argument(
        "--workers", type=int, default=1, metavar="N", help="fine-tunings and evaluations at the same time"
    )
    made.add_argument("--tasks", metavar="A,B", help="only these of its tasks (default: all)")
    made.add_argument(
        "--rows", type=int, metavar="N", help="use at most so many rows of each split (default: all)"
    )
    made.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="end every fine-tuning after so many steps (default: the recipe's)",
    )
    made.add_argument(
        "--plan",
        action="store_true",
        help="say what would be fetched, trained and paid, and time a step if the model is here; do nothing else",
    )
    made.add_argument(
        "--allow-leaks", action="store_true", help="go on where a data set has rows in two of its splits"
    )
    add_device(made)
    made.add_argument("--yes", action="store_true", help="download without asking")


def reproduce(options: argparse.Namespace) -> None:
    """List the experiments, plan one, or run it."""
    if options.name == "list":
        _list(options)
        return
    from tauspan.experiments import reproduce as paper

    if not launch().first:  # of several processes only the first one prints
        options.quiet, options.json = True, False
    changes = paper.Changes(
        model=options.model, seeds=_seeds(options), data=options.data, rows=_positive(options, "rows"),
        max_steps=_positive(options, "max_steps"),
        tasks=tuple(filter(None, (options.tasks or "").split(","))),
    )  # fmt: skip
    workers = _positive(options, "workers") or 1
    planned = paper.plan(
        options.name, options.variant, changes, options.out,
        workers=workers, measure=True, device=options.device,
    )  # fmt: skip
    if options.plan:
        show(planned.report(), options)
        return
    if not options.json:
        show(planned.report(), options)
    _agree(planned, options)
    show(paper.reproduce(planned, allow_leaks=options.allow_leaks), options)
    say(f"Wrote {planned.out}/report.json, report.md and figures; each part lies below it.", options)


def _list(options: argparse.Namespace) -> None:
    from tauspan.core.report import Report, Table, provenance
    from tauspan.experiments.reproduce.experiment import listing

    note = "carry one out: tauspan reproduce NAME; first see what it takes: tauspan reproduce NAME --plan"
    show(
        Report("What can be reproduced", [Table("What can be reproduced", listing(), note)], provenance()),
        options,
    )


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    """The seeds that the options give; an empty tuple leaves the choice to the recipe."""
    count = _positive(options, "seeds")
    if count is None:
        return () if options.seed is None else (options.seed,)
    first = options.seed or 0
    return tuple(range(first, first + count))


def _positive(options: argparse.Namespace, name: str) -> int | None:
    value: int | None = getattr(options, name)
    if value is not None and value < 1:
        raise UsageError(f"--{name.replace('_', '-')} {value}: it must be at least 1.")
    return value


def _agree(planned: "Plan", options: argparse.Namespace) -> None:
    """Continue only if nothing has to be downloaded, or the user agrees.

    Raises:
        UsageError: something has to be downloaded and the user did not agree.
    """
    missing = planned.missing_gb()
    if not missing or options.yes:
        return
    asked = f"This may download {missing:.1f} GB."
    if sys.stdin.isatty() and not options.json:
        sys.stderr.write(f"{asked} Go on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise UsageError(
        f"{asked} Say --yes to go on, give the data sets with --data ROOT, or look first with --plan."
    )
