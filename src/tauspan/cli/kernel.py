"""The verbs of the tangent kernel: their options, and what each does.

The library is imported only when a verb runs.
"""

import argparse
from typing import Any

from tauspan.cli import shared as commands
from tauspan.cli.fields import add_fields, read_fields
from tauspan.cli.shared import Verb
from tauspan.core.errors import UsageError
from tauspan.train.settings import Settings

# settings of a training that say nothing about how far it goes
_NO_MATTER = (
    "regime", "seed", "engine", "check", "point", "cache", "precision", "augment", "checkpointing", "decay_toward",
    "weight_decay", "clip", "label_smoothing",
)  # fmt: skip


def add(verbs: Any, verb: Verb) -> None:
    """Add the kernel's verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    seen = verb(
        verbs,
        "kernel",
        "what the tangent kernel says of tasks: spectra, ranks, alignment, between tasks",
        kernel,
    )
    seen.add_argument("model", help=commands.MODEL)
    seen.add_argument("tasks", nargs="+", metavar="TASK", help=commands.TASK)
    seen.add_argument("--params", default="all", help=commands.PARAMS)
    seen.add_argument(
        "--plan",
        action="store_true",
        help="say how long it will take and whether it fits; compute nothing else",
    )
    told = verb(
        verbs,
        "diagnose",
        "why an edit works: the kernel's diagnostics of tasks and their vectors",
        diagnose,
    )
    told.add_argument("model", help=commands.MODEL)
    told.add_argument("pairs", nargs="+", metavar="TASK=VECTOR", help=commands.PAIR)
    told.add_argument(
        "--eigenfunctions",
        default="10",
        metavar="WHICH",
        help="whose local energy is summed: the first N, or a share of the largest coefficient such as 0.1 "
        "(default: %(default)s)",
    )
    asked = verb(
        verbs,
        "outlook",
        "before any training: how far the tangent model will hold along each task's fine-tuning",
        outlook,
    )
    asked.add_argument("model", help=commands.MODEL)
    asked.add_argument("tasks", nargs="+", metavar="TASK", help=commands.TASK)
    add_fields(asked, Settings, skip=_NO_MATTER, defaults={"regime": "standard"})
    asked.add_argument(
        "--rows",
        type=int,
        default=64,
        help="at most so many training rows of each task (default: %(default)s)",
    )
    asked.add_argument("--out", help="folder for report.json, report.md and figures (default: only shown)")
    commands.add_device(asked)
    followed = verb(
        verbs,
        "trajectory",
        "how long the tangent model holds along the checkpoints of a fine-tuning",
        trajectory,
    )
    followed.add_argument("model", help=f"the pre-trained model that it began from: {commands.MODEL}")
    followed.add_argument("task", help=commands.TASK)
    followed.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="folders whose names end in their step, such as checkpoint-100, or the folder that holds them",
    )
    followed.add_argument("--params", default="all", help=commands.PARAMS)
    followed.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        help="the error, over how far the outputs moved, beyond which it has left (default: %(default)s)",
    )
    for made in (seen, told, followed):
        _add_rows(made)
    for made in (seen, told):
        made.add_argument(
            "--ridge", type=float, help="of the effective dimension (default: the mean eigenvalue)"
        )
        made.add_argument(
            "--backend",
            choices=("auto", "contraction", "products", "structured"),
            default="auto",
            help="how entries are computed; all give the same numbers",
        )


def _add_rows(made: argparse.ArgumentParser) -> None:
    """Add the options of which rows and outputs are looked at, and where the report goes."""
    made.add_argument(
        "--rows", type=int, default=64, help="at most so many rows of each task (default: %(default)s)"
    )
    made.add_argument("--split", choices=("train", "validation", "test"), default="train", help="which rows")
    made.add_argument(
        "--outputs",
        choices=("contrast", "sum", "all"),
        default="contrast",
        help="of the logits: one direction that decides classes, their mean, or all (default: %(default)s)",
    )
    made.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows of a forward pass")
    made.add_argument(
        "--max-tokens", type=int, metavar="N", help="where texts are cut (default: the task's own number)"
    )
    made.add_argument("--out", help="folder for report.json, report.md and figures (default: only shown)")
    commands.add_device(made)


def kernel(options: argparse.Namespace) -> None:
    """Report what the tangent kernels of some tasks say without any vector."""
    from tauspan.kernel.diagnose import kernel_plan, kernel_report

    tasks = [commands.task_of(name) for name in options.tasks]
    shared = {"params": options.params, **_shared(options)}
    if options.plan:
        del shared["ridge"]
        commands.show(kernel_plan(commands.encoder_of(options), tasks, **shared).report(), options)
        return
    found = kernel_report(commands.encoder_of(options), tasks, **shared)
    commands.write_report(found.report(), options)


def diagnose(options: argparse.Namespace) -> None:
    """Report what the tangent kernels say about some tasks and their vectors."""
    from tauspan.kernel.diagnose import diagnose as examine

    which, pairs = _which(options.eigenfunctions), commands.pairs_of(options.pairs, None, options.model)
    found = examine(commands.encoder_of(options), pairs, which=which, **_shared(options))
    commands.write_report(found.report(), options)


def outlook(options: argparse.Namespace) -> None:
    """Say how far the tangent model will hold, before any training."""
    from tauspan.kernel.diagnose import outlook as look

    settings = read_fields(options, Settings, regime="standard", seed=options.seed or 0)
    tasks = [commands.task_of(name) for name in options.tasks]
    found = look(commands.encoder_of(options), tasks, settings, rows=options.rows)
    commands.write_report(found.report(), options)


def trajectory(options: argparse.Namespace) -> None:
    """Report how long the tangent model holds along the checkpoints of a fine-tuning."""
    from tauspan.core.reading import Reading
    from tauspan.kernel.diagnose import checkpoint_trajectory

    found = checkpoint_trajectory(
        commands.encoder_of(options), commands.task_of(options.task), options.checkpoints, rows=options.rows,
        split=options.split, outputs=options.outputs, params=options.params, tolerance=options.tolerance,
        reading=Reading(options.batch_size, options.max_tokens), seed=options.seed or 0,
    )  # fmt: skip
    commands.write_report(found.report(), options)


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    from tauspan.core.reading import Reading

    return {
        "rows": options.rows, "split": options.split, "outputs": options.outputs, "ridge": options.ridge,
        "backend": options.backend, "reading": Reading(options.batch_size, options.max_tokens),
        "seed": options.seed or 0,
    }  # fmt: skip


def _which(text: str) -> int | float:
    """Read which eigenfunctions are meant: a whole number is a count, any other number a share."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UsageError(
        f"--eigenfunctions {text!r}: a whole number for the first so many, or a share such as 0.1."
    )
