"""The verbs that make the vectors of several tasks together, so that they can be added.

The library is imported only when a verb runs.
"""

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.fields import add_fields
from tauspan.cli.shared import (
    Verb,
    add_device,
    add_language,
    add_passes,
    add_regime,
    add_rows,
    encoder_of,
    first,
    pairs_of,
    reading,
    say,
    show,
    task_of,
)
from tauspan.core.choices import SPLITS
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading

if TYPE_CHECKING:
    from tauspan.kernel import Ghosts
    from tauspan.tasks import Task
    from tauspan.vector import TaskVector


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    made = verb(
        verbs, "superpose", "vectors of several tasks in closed form, made to be added: their sum is the joint optimum",
        superpose,
    )  # fmt: skip
    made.add_argument("model", help=commands.MODEL)
    made.add_argument("tasks", nargs="+", metavar="TASK", help="two or more tasks, or one and --control")
    made.add_argument(
        "--control", action="append", default=[], metavar="TASK", help="a task that is to stay; repeatable"
    )
    made.add_argument(
        "--ridge", default="loo", help="pull to the base: a number, or loo, which leave-one-out chooses"
    )
    made.add_argument(
        "--ghosts", action="append", metavar="WEIGHT",
        help="what the rows of the other tasks count, or TASK=WEIGHT what those of one of them do; repeatable (default: "
        "1, at which sums are exact)",
    )  # fmt: skip
    made.add_argument(
        "--ghost-rows",
        type=int,
        metavar="N",
        help="only so many rows of each other task, or of --reference (default: all)",
    )
    made.add_argument(
        "--choose", choices=("random", "pivoted"), default="random", help="which rows those are"
    )
    made.add_argument(
        "--reference", metavar="ROWS",
        help="rows that stay in the place of the other tasks' own, read under each task's head: a file of rows or a "
        "folder of images without labels, or a task, whose training rows they are (default: the tasks' own)",
    )  # fmt: skip
    made.add_argument("--params", default="all", help=commands.PARAMS)
    add_fields(made, Reading, skip=("point",), defaults={"batch_size": 32})
    made.add_argument(
        "--rows", type=int, metavar="N", help="fit at most so many rows of each task (default: all)"
    )
    add_device(made)
    add_language(made)
    untangled = verb(
        verbs, "untangle", "new vectors from given ones that move one another's tasks less, without training",
        untangle,
    )  # fmt: skip
    untangled.add_argument("model", help=commands.MODEL)
    untangled.add_argument("pairs", nargs="+", metavar="TASK=VECTOR", help=commands.PAIR)
    untangled.add_argument(
        "--per", choices=("task", "layer"), default="task", help="what has a coefficient of its own"
    )
    untangled.add_argument(
        "--weight", type=float, default=1.0, help="what the inputs of other tasks count (default: 1)"
    )
    untangled.add_argument(
        "--split", choices=SPLITS, default="validation", help="whose inputs are read; labels are not"
    )
    add_regime(untangled)
    add_rows(untangled)
    add_passes(untangled)
    for one in (made, untangled):
        one.add_argument(
            "--vectors", required=True, metavar="DIR", help="folder for the vectors, TASK.safetensors each"
        )


def superpose(options: argparse.Namespace) -> None:
    """Fit the vectors of several tasks while each leaves the rows of the others where they are."""
    from tauspan.kernel import superpose as fitted

    tasks = [_training(name, options) for name in options.tasks]
    controls = [_training(name, options) for name in options.control]
    _require_free([task.name for task in tasks], options)
    ghosts = _ghosts(options, [task.name for task in (*tasks, *controls)])
    found = fitted(
        encoder_of(options), tasks, ghosts, _ridge(options.ridge), controls=controls, params=options.params,
        reading=Reading(options.batch_size, options.max_tokens),
    )  # fmt: skip
    _write(found.vectors, options)
    show(found.report(), options)
    _next(found.vectors, options)


def untangle(options: argparse.Namespace) -> None:
    """Combine given vectors so that each keeps its own task and moves the others less."""
    from tauspan.editing import Editor

    pairs = pairs_of(options.pairs, options.rows, options.model)
    _require_free([task.name for task in pairs], options)
    editor = Editor(encoder_of(options), pairs, options.regime, reading=reading(options))
    found = editor.untangle(per=options.per, weight=options.weight, split=options.split)
    _write(found.vectors, options)
    show(found.report(), options)
    _next(found.vectors, options)


def _training(name: str, options: argparse.Namespace) -> "Task":
    """A task with as many training rows as were asked for, under the head of the whole task."""
    task = task_of(name)
    if options.rows is None:
        return task
    return commands.fewer(task.subset(train=options.rows, seed=options.seed or 0), task)


def _ghosts(options: argparse.Namespace, names: list[str]) -> "Ghosts":
    """Which rows of other tasks must not move, and what they count."""
    from tauspan.kernel import Ghosts

    given, own = 1.0, {}
    for text in options.ghosts or ():
        task, _, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            raise UsageError(
                f"--ghosts {text!r} is neither WEIGHT nor TASK=WEIGHT, such as 4 or spam=0.5."
            ) from None
        if task:
            own[task] = weight
        else:
            given = weight
    weights = {**dict.fromkeys(names, given), **own} if own else given
    seed = options.seed or 0
    if options.reference is None:
        return Ghosts(weights, options.ghost_rows, options.choose, seed=seed)
    if options.choose != "random":
        raise UsageError(
            f"--choose {options.choose} is for the tasks' own rows, and --reference names others: leave one of them out."
        )
    return Ghosts(weights, inputs=_reference(options.reference, options.ghost_rows, seed))


def _reference(name: str, count: int | None, seed: int) -> "Sequence[Any]":
    """Rows without labels, or the training inputs of a task; so many of them, by the seed."""
    from tauspan.tasks.images import Images
    from tauspan.tasks.unlabelled import rows_of

    path = Path(name)
    if path.exists() and not (path / "card.json").exists():
        _, rows = rows_of(path)
    else:
        rows = task_of(name).split("train").inputs
    if count is None or count >= len(rows):
        return rows
    if count < 1:
        raise UsageError(f"--ghost-rows {count}: at least 1; --ghosts 0 asks nothing of other rows.")
    some = sorted(random.Random(seed).sample(range(len(rows)), count))
    return rows.take(some) if isinstance(rows, Images) else [rows[place] for place in some]


def _ridge(text: str) -> Any:
    if text == "loo":
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--ridge {text!r} is neither a number nor loo.") from None


def _file(name: str, options: argparse.Namespace) -> Path:
    return Path(options.vectors) / f"{name}.safetensors"


def _require_free(names: list[str], options: argparse.Namespace) -> None:
    """Raise an error if a file exists already, before any work is done."""
    from tauspan.store import require_free

    for name in names:
        require_free(_file(name, options), False)


def _write(vectors: "Mapping[Task, TaskVector]", options: argparse.Namespace) -> None:
    if first():
        for task, vector in vectors.items():
            vector.save_pretrained(_file(task.name, options))


def _next(vectors: "Mapping[Task, TaskVector]", options: argparse.Namespace) -> None:
    """Print the command that adds them."""
    pairs = " ".join(f"{task.name}={_file(task.name, options)}" for task in vectors)
    say(
        f"Wrote {len(vectors)} vectors in {options.vectors}. Next: tauspan edit add {options.model} {pairs}",
        options,
    )
