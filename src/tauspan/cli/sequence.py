"""The verbs of few labels and of tasks one after another.

The library is imported only when a verb runs.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.fields import add_fields, read_fields
from tauspan.cli.shared import Verb, add_device, encoder_of, say, show, task_of
from tauspan.core.choices import SPLITS
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.sequence.options import Options
from tauspan.train.settings import Settings

if TYPE_CHECKING:
    from tauspan.tasks import Task

METHODS = ("leverage", "dpp", "volume", "repeated-dpp", "uniform")
PROTOCOLS = ("finetuned", "sequential", "sum", "superposed", "joint", "masked", "pseudo", "stored")
_UNITS = {
    **dict.fromkeys((".csv", ".tsv", ".parquet"), "row "),
    **dict.fromkeys((".txt", ".json", ".jsonl", ".ndjson"), "line "),
}
"""What the name of a row counts, by the kind of its file."""
_TOLD = ("lr", "epochs", "max_steps", "batch_size")


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    chosen = verb(
        verbs,
        "label",
        "which rows of an unlabelled pool to label, with their weights and a certificate",
        label,
    )
    chosen.add_argument("model", help=commands.MODEL)
    chosen.add_argument(
        "pool",
        help="a file of rows or a folder of images without labels; or a task, whose training rows are the pool",
    )
    chosen.add_argument("labels", type=int, help="the most rows to label")
    chosen.add_argument(
        "--method", choices=METHODS, default="volume", help="how rows are drawn (default: %(default)s)"
    )
    chosen.add_argument(
        "--functions",
        type=int,
        metavar="M",
        help="eigenfunctions that the rows determine (default: half of the labels)",
    )
    chosen.add_argument(
        "--least", type=float, default=0.0, metavar="EIGENVALUE",
        help="draw again until the least eigenvalue of the weighted Gram matrix is at least this (default: %(default)s)",
    )  # fmt: skip
    chosen.add_argument("--rows", type=int, metavar="N", help="a pool of the first N rows (default: all)")
    chosen.add_argument(
        "--text",
        default="text",
        metavar="COLUMN",
        help="the column of texts in a file (default: %(default)s)",
    )
    chosen.add_argument(
        "--clean", action="store_true", help="leave out rows without a text, and say how many"
    )
    commands.add_dialect(chosen)
    chosen.add_argument("--out", help="a .csv or .json for rows and weights (default: only shown)")
    chosen.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    learnt = verb(
        verbs,
        "sequence",
        "learn tasks one after another by several protocols: accuracy, forgetting, memory",
        sequence,
    )
    learnt.add_argument("model", help=commands.MODEL)
    learnt.add_argument("tasks", nargs="+", metavar="TASK", help=commands.TASK)
    learnt.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS[1:]), metavar="PROTOCOL",
        help=f"some of {', '.join(PROTOCOLS)} (default: all but finetuned)",
    )  # fmt: skip
    add_fields(learnt, Options)
    learnt.add_argument(
        "--rows", type=int, metavar="N", help="at most so many rows of each split (default: all)"
    )
    learnt.add_argument("--split", choices=SPLITS, default="test", help="measured on (default: %(default)s)")
    learnt.add_argument("--out", help="folder for report.json, report.md and figures (default: only shown)")
    add_fields(
        learnt, Settings, skip=[one.name for one in dataclasses.fields(Settings) if one.name not in _TOLD]
    )
    for one in (chosen, learnt):
        one.add_argument("--params", default="all", help=f"{commands.PARAMS} (default: %(default)s)")
        add_fields(
            one,
            Reading,
            skip=("point", "batch_size") if one is learnt else ("point",),
            defaults={"batch_size": 32},
        )
        add_device(one)


def label(options: argparse.Namespace) -> None:
    """Choose rows of a pool, and write them with their weights."""
    from tauspan.kernel import design, pool_kernel
    from tauspan.kernel.approximate.design import require_suffix
    from tauspan.store import require_free

    if options.out:
        require_suffix(Path(options.out))
        require_free(Path(options.out), options.overwrite)
    if options.rows is not None and options.rows < 1:
        raise UsageError(f"--rows {options.rows}: a pool has at least 1 row.")
    names, rows, pool = _pool(options)
    kernel = pool_kernel(
        encoder_of(options),
        pool,
        params=options.params,
        reading=Reading(options.batch_size, options.max_tokens),
    )
    kernel.dense()
    found = design(
        kernel, options.labels, options.method, functions=options.functions, least=options.least,
        seed=options.seed or 0,
    )  # fmt: skip
    show(found.report(), options)
    if options.out and commands.first():
        texts = {"text": list(rows)} if isinstance(rows[0], str) else {}
        found.save(options.out, told={"name": names, **texts}, overwrite=options.overwrite)
        say(f"Wrote {options.out}: {len(found.chosen)} rows, the first is {names[found.chosen[0]]}.", options)


def _pool(options: argparse.Namespace) -> "tuple[list[str], Sequence[Any], Any]":
    """The names of the rows, the rows, and what holds them: a task, or the rows again."""
    from tauspan.tasks.tables import Dialect, suffix
    from tauspan.tasks.unlabelled import rows_of

    path, most = Path(options.pool), options.rows
    if path.exists() and not (path / "card.json").exists():
        dialect = Dialect(options.encoding, commands.delimiter(options), options.quotes)
        names, rows = rows_of(path, options.text, dialect, options.clean)
        unit = _UNITS.get(suffix(path), "") if path.is_file() else ""
        some = range(min(most or len(names), len(names)))
        fewer_rows = [rows[place] for place in some]
        return [f"{unit}{names[place]}" for place in some], fewer_rows, fewer_rows
    task = task_of(options.pool)
    size = min(most or len(task.split("train")), len(task.split("train")))
    whole = dict(task.splits)
    fewer: Task = dataclasses.replace(task, splits={**whole, "train": whole["train"].take(list(range(size)))})
    return [f"row {place}" for place in range(size)], fewer.split("train").inputs, fewer


def sequence(options: argparse.Namespace) -> None:
    """Learn the tasks one after another, and report."""
    from tauspan.sequence import continual

    if options.out and Path(options.out).is_file():
        raise UsageError(f"--out {options.out} is a file, and a folder is written. Name another place.")
    settings = read_fields(options, Settings, regime="standard", seed=options.seed or 0)
    found = continual(
        encoder_of(options), [task_of(name, options.rows) for name in options.tasks], options.protocols,
        read_fields(options, Options), seed=options.seed or 0, settings=settings, params=options.params,
        split=options.split, reading=Reading(options.batch_size, options.max_tokens),
    )  # fmt: skip
    commands.write_report(found.report(), options)
