"""The verb that writes the desk, a page on which coefficients are moved: its options, and what it does.

The library is imported only when a verb runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.fields import add_fields
from tauspan.cli.shared import (
    PAIR,
    Verb,
    add_passes,
    add_regime,
    encoder_of,
    first,
    pairs_of,
    reading,
    say,
    show,
    task_of,
)
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading

if TYPE_CHECKING:
    from tauspan.editing import Desk


def add(verbs: Any, verb: Verb) -> None:
    """Add the verb to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    made = verb(
        verbs,
        "desk",
        "write a page with a slider for each vector, on which every accuracy follows exactly",
        desk,
    )
    made.add_argument(
        "model", metavar="RUN | MODEL", help=f"the folder of a finished run; or {commands.MODEL}"
    )
    made.add_argument("pairs", nargs="*", metavar="TASK=VECTOR", help=PAIR)
    made.add_argument(
        "-o", "--out", metavar="FILE", help="the page (default: desk.html, of a run inside its folder)"
    )
    made.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    made.add_argument(
        "--range", nargs=2, type=float, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="of every coefficient; below 0 a task can be forgotten (default: 0 1)",
    )  # fmt: skip
    made.add_argument(
        "--rows", type=int, metavar="N",
        help="at most so many rows of each split on the page; coefficients are chosen on all (default: all of them)",
    )  # fmt: skip
    made.add_argument("--no-examples", action="store_true", help="neither texts nor thumbnails of the rows")
    made.add_argument("--exact", action="store_true", help="numbers as float32, which take twice the room")
    made.add_argument("--title", help="of the page (default: the model and the regime)")
    made.add_argument(
        "--control", action="append", default=[], metavar="TASK",
        help="a further task without a vector, to be kept; repeatable (default: none)",
    )  # fmt: skip
    made.add_argument("--floor", type=float, default=0.95, help="share of a control's accuracy to keep")
    add_regime(made)
    add_fields(made, Reading, skip=("batch_size", "point"))
    add_passes(made)


def desk(options: argparse.Namespace) -> None:
    """Write the page of a run, or of a model with its vectors."""
    page, place = _of_pairs(options) if options.pairs else _of_run(options)
    if first():
        page.save(place, overwrite=options.overwrite)
    show(page.report(), options)
    say(f"Wrote {place}, {page.size / 1e6:.2f} MB: open it in a browser.", options)


def _of_pairs(options: argparse.Namespace) -> "tuple[Desk, Path]":
    from tauspan.editing import Editor

    place = _free(options, Path("desk.html"))
    vectors = pairs_of(options.pairs, None, options.model)
    files: dict[str, str | Path] = dict(
        zip((task.name for task in vectors), (pair.partition("=")[2] for pair in options.pairs), strict=True)
    )
    editor = Editor(encoder_of(options), vectors, options.regime, reading=reading(options))
    page = editor.desk(
        range=tuple(options.range), rows=options.rows, examples=not options.no_examples, exact=options.exact,
        title=options.title, controls=[task_of(name) for name in options.control], floor=options.floor, files=files,
        seed=options.seed or 0,
    )  # fmt: skip
    return page, place


def _of_run(options: argparse.Namespace) -> "tuple[Desk, Path]":
    from tauspan.experiments.run.desk import NAME
    from tauspan.experiments.run.desk import Desk as Section
    from tauspan.experiments.run.finished import finished_run, is_run, require_vectors

    if not is_run(options.model):
        raise UsageError(
            f"{options.model!r} alone is no finished run: give its folder, or a model with TASK=VECTOR for each vector."
        )
    if options.control or options.max_tokens or options.point:
        raise UsageError(
            "--control, --max-tokens and --point of a run are those of its recipe: leave them out, or give MODEL and "
            "TASK=VECTOR."
        )
    place = _free(options, Path(options.model) / NAME)
    run = finished_run(options.model, options.device)
    section = Section(
        True, options.regime, tuple(options.range), options.rows, not options.no_examples, options.exact
    )
    regime, seed = section.edits(run), run.recipe.seeds[0] if options.seed is None else options.seed
    require_vectors(run, regime, seed)
    return section.page(run, regime, seed, options.title or run.recipe.title), place


def _free(options: argparse.Namespace, default: Path) -> Path:
    """Where the page is written; an error if something is there, before any work is done."""
    from tauspan.store import require_free

    place = Path(options.out) if options.out else default
    require_free(place, options.overwrite)
    return place
