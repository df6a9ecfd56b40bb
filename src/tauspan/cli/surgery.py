"""The verbs of surgery on checkpoints: their options, and what each does.

The library is imported only when a verb runs.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli.fields import add_fields, read_fields
from tauspan.cli.shared import MODEL, Verb, say, show
from tauspan.core.errors import DataError, UsageError
from tauspan.surgery.options import Filling, Running

if TYPE_CHECKING:
    from tauspan.surgery import Surgery


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    inner = verbs.add_parser("vocabulary", help="give a model another tokenizer").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    grafted = verb(inner, "graft", "OUT = MODEL with the vocabulary of TOKENIZER", graft)
    grafted.add_argument("model", help=MODEL)
    grafted.add_argument(
        "tokenizer", help="a directory with tokenizer.json, of a tokenizer or of a model, or the file"
    )
    grafted.add_argument(
        "--embed", metavar="ENCODER",
        help="what gives vectors of texts for local, global and hybrid (default: the model, if it embeds sentences)",
    )  # fmt: skip
    grafted.add_argument(
        "--text", metavar="FILE", help="texts, one a line, for cw2v and for tokens a word (default: none)"
    )
    add_fields(grafted, Filling, skip=("seed",))
    deep = verb(verbs, "layers", "OUT = MODEL with other layers; widths stay", layers)
    deep.add_argument("model", help=MODEL)
    deep.add_argument(
        "map",
        help="first:L, stages:N,N,... (layer s N times), interpolate:L, or linear:L (of two layers B and A)",
    )
    deep.add_argument(
        "--stack",
        help="a part of the name of the layers, where there are several stacks (default: the text's)",
    )
    for made in (grafted, deep):
        made.add_argument(
            "--vector", action="append", default=[], metavar="V",
            help="a task vector of MODEL, which is written to OUT/vectors for the new model; repeatable (default: none)",
        )  # fmt: skip
        made.add_argument("-o", "--out", help="the directory to write; needed without --plan (default: none)")
        made.add_argument("--plan", action="store_true", help="say what would be made, write nothing")
        add_fields(made, Running)
        made.set_defaults(resumes=_unfinished)
    moved = verb(inner, "move", "OUT = VECTOR of MODEL for GRAFTED, what graft made of that model", move)
    moved.add_argument(
        "vector", help="a vector's file or folder, the directory of a PEFT adapter, or a file of statistics"
    )
    moved.add_argument("model", help=f"what it starts from: {MODEL}")
    moved.add_argument("grafted", help="the directory that `vocabulary graft` wrote")
    moved.add_argument(
        "-o", "--out", required=True, help="the vector file, or for an adapter the directory, to write"
    )
    moved.add_argument("--overwrite", action="store_true", help="replace what is there")
    asked = verb(
        inner,
        "compare",
        "how GRAFTED reads texts beside MODEL: perplexity for each word, or the cosine of features",
        compare,
    )
    asked.add_argument("model", help=MODEL)
    asked.add_argument(
        "grafted", help="the directory that `vocabulary graft` wrote, or any model that reads texts"
    )
    asked.add_argument("--text", metavar="FILE", required=True, help="texts, one a line")
    asked.add_argument("--max-tokens", type=int, default=256, help="longer texts are left out (default: 256)")
    asked.add_argument("--batch-size", type=int, default=16, help="texts that are read at once (default: 16)")


def graft(options: argparse.Namespace) -> None:
    """Write a model with another vocabulary, or show what that would be."""
    from tauspan.surgery import graft as grafted
    from tauspan.surgery import planned_graft
    from tauspan.surgery.carrying import checked_base

    filling, running = read_fields(options, Filling, seed=options.seed or 0), read_fields(options, Running)
    texts = _texts(options.text)
    if options.plan:
        checked_base(options.model, options.vector)
        with planned_graft(
            options.model, options.tokenizer, filling, embed=options.embed, texts=texts, running=running
        ) as planned:
            show(planned.report(), options)
        return
    _tell(
        grafted(
            options.model, options.tokenizer, _out(options), filling, embed=options.embed, texts=texts,
            vectors=options.vector, running=running,
        ), options,
    )  # fmt: skip


def layers(options: argparse.Namespace) -> None:
    """Write a model with other layers, or show what that would be."""
    from tauspan.surgery import change_depth, planned_depth
    from tauspan.surgery.carrying import checked_base

    running = read_fields(options, Running)
    if options.plan:
        checked_base(options.model, options.vector)
        with planned_depth(options.model, options.map, stack=options.stack, running=running) as (plan, _, _):
            show(plan.report(), options)
        return
    _tell(
        change_depth(
            options.model, options.map, _out(options), stack=options.stack, vectors=options.vector, running=running
        ), options,
    )  # fmt: skip


def compare(options: argparse.Namespace) -> None:
    """Show how two models read the same texts."""
    from tauspan.surgery import compare as compared

    found = compared(
        options.model,
        options.grafted,
        _texts(options.text),
        max_tokens=options.max_tokens,
        batch_size=options.batch_size,
    )
    show(found.report(), options)


def move(options: argparse.Namespace) -> None:
    """Write a vector, an adapter or statistics for a grafted model."""
    from tauspan.surgery import move as moved

    place = moved(options.vector, options.model, options.grafted, options.out, overwrite=options.overwrite)
    if options.json:
        sys.stdout.write(json.dumps({"moved": str(place)}) + "\n")
    say(f"wrote {place}", options)


def _tell(done: "Surgery", options: argparse.Namespace) -> None:
    """Print the report and what was written."""
    report = done.report()
    if done.merge.finished:
        show(report if options.json else dataclasses.replace(report, tables=[]), options)
        say(f"{done.out} is finished already: nothing was left to do", options)
        return
    show(report, options)
    for file in done.vectors:
        say(f"wrote {file}", options)
    say(f"wrote {done.out}, digest {str(done.merge.digest)[:12]}", options)


def _out(options: argparse.Namespace) -> str:
    if options.out is None:
        raise UsageError("an output is needed: -o OUT; or --plan, which writes nothing.")
    return str(options.out)


def _texts(file: str | None) -> list[str]:
    """The lines of a file that are not empty."""
    if file is None:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read as text: {error}. Name a file of UTF-8, one text a line."
        ) from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise DataError(f"{file} has no text: every line is empty. Give a file with one text a line.")
    return found


def _unfinished(options: argparse.Namespace) -> bool:
    """Whether an interrupted run left files with which `--resume` can continue."""
    from tauspan.merge.stream.stream import work_folder

    return options.out is not None and work_folder(Path(options.out)).is_dir()
