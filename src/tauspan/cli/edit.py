"""The verbs that choose coefficients, and the verb that maps them: their options, and what each does.

The library is imported only when a verb runs.
"""

import argparse
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.shared import (
    Verb,
    add_passes,
    add_regime,
    add_rows,
    encoder_of,
    first,
    pair_of,
    pairs_of,
    reading,
    task_of,
    write_report,
)
from tauspan.core.choices import GUIDANCES, SPLITS
from tauspan.core.errors import UsageError

if TYPE_CHECKING:
    from tauspan.editing.model.chosen import ChosenEdit
    from tauspan.tasks import Task
    from tauspan.vector import TaskVector


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    edit = verbs.add_parser(
        "edit",
        help="choose coefficients on validation: add, negate, subsets, solve, front; or compare two edits",
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    choosing = [*_add_searches(edit, verb), *_add_solves(edit, verb)]
    mapped, foreseen, told = _add_maps(verbs, verb), _add_forecast(verbs, verb), _add_comparison(edit, verb)
    for made in choosing:
        made.add_argument(
            "--vector", metavar="FILE", help="write the chosen combination there (default: not written)"
        )
    for made in (*choosing, mapped, foreseen, told):
        add_regime(made)
        made.add_argument("--out", help="folder for report.json, report.md and figures (default: only shown)")
        add_rows(made)
        add_passes(made)


def _add_searches(edit: Any, verb: Verb) -> list[argparse.ArgumentParser]:
    """Add the verbs that choose one coefficient from a grid."""
    added = verb(edit, "add", "one model for all tasks: theta0 + alpha * sum of vectors", edit_add)
    negated = verb(edit, "negate", "forget a task, keep the controls: theta0 - alpha * vector", edit_negate)
    _add_pairs(added)
    added.add_argument(
        "--guided", nargs="?", const="tangent", default=False, choices=GUIDANCES,
        help="standard regime: choose the coefficient by the tangent model in one pass over validation rows (tangent, "
        "where no word follows), bent to meet the ordinary model at 1 (curved), check the proposed point (checked), or "
        "read between every fourth point only rows whose class changes (rows) (default: every point of the grid is "
        "evaluated)",
    )  # fmt: skip
    added.add_argument(
        "--untangle", choices=("task", "layer"),
        help="first make new vectors of them that move one another's tasks less, with a coefficient for each vector or "
        "layer, as `tauspan untangle` (default: the vectors as they are)",
    )  # fmt: skip
    _add_target(negated)
    which = verb(edit, "subsets", "which vectors to add, and what each is worth to each task", edit_subsets)
    _add_pairs(which)
    which.add_argument(
        "--floor",
        type=float,
        default=0.98,
        help="share of its own vector's accuracy that every added task keeps",
    )
    for made in (added, negated):
        made.add_argument(
            "--grid", default="paper",
            help="paper (0, 0.05 to 1), auto (widened as far as it needs), or coefficients such as 0,0.5,1",
        )  # fmt: skip
    return [added, negated, which]


def _add_solves(edit: Any, verb: Verb) -> list[argparse.ArgumentParser]:
    """Add the verbs that choose many coefficients with a solver."""
    solved = verb(
        edit,
        "solve",
        "one model for all tasks, a coefficient for each vector or layer, by least loss",
        edit_solve,
    )
    _add_pairs(solved)
    solved.add_argument(
        "--per", choices=("shared", "task", "layer"), default="task", help="what has a coefficient of its own"
    )
    solved.add_argument("--l1", type=float, default=0.0, help="pull of single coefficients to exactly 0")
    solved.add_argument("--unbounded", action="store_true", help="no bounds")
    traded = verb(
        edit,
        "front",
        "forgetting against keeping: every trade, and the best above the floor",
        edit_front,
    )
    _add_target(traded)
    traded.add_argument(
        "--per", choices=("shared", "layer"), default="layer", help="what has a coefficient of its own"
    )
    traded.add_argument("--prices", type=int, default=25, metavar="N", help="points of the front")
    for made in (solved, traded):
        made.add_argument(
            "--bounds", nargs=2, type=float, default=(0.0, 1.0), metavar=("LO", "HI"),
            help="between which coefficients lie (default: 0 1)",
        )  # fmt: skip
        made.add_argument("--ridge", type=float, default=0.0, help="pull of all coefficients to 0")
        made.add_argument(
            "--bootstrap", type=int, default=200, metavar="N", help="resamples behind each interval"
        )
        made.add_argument(
            "--max-evaluations", type=int, metavar="N",
            help="of the standard regime, which has no closed form (default: 100, or 30 for each price)",
        )  # fmt: skip
    return [solved, traded]


def _add_comparison(edit: Any, verb: Verb) -> argparse.ArgumentParser:
    """Add the verb that holds two edits against each other."""
    told = verb(
        edit, "compare", "two edits on the same test rows, with intervals in pairs of rows", edit_compare
    )
    _add_pairs(told)
    for name in ("first", "second"):
        told.add_argument(
            f"--{name}", required=True, metavar="NUMBERS",
            help="the edit: one coefficient for all vectors, or TASK=NUMBER,TASK=NUMBER, where the others are 0",
        )  # fmt: skip
    return told


def _add_maps(verbs: Any, verb: Verb) -> argparse.ArgumentParser:
    """Add the verbs that map two coefficients."""
    mapped = verb(
        verbs,
        "disentangle",
        "how much the vectors of two tasks disturb each other, on a grid of coefficients",
        disentangle,
    )
    _add_pairs(mapped)
    mapped.add_argument("--grid", help="coefficients such as --grid=-1,0,1 (default: 21 from -2 to 2)")
    mapped.add_argument(
        "--box", nargs=2, type=float, default=(0.0, 1.0), metavar=("LO", "HI"),
        help="the coefficients used for editing, for the mean (default: 0 1)",
    )  # fmt: skip
    mapped.add_argument(
        "--distance", choices=("argmax", "probabilities", "labels", "difference"),
        help="how far two outputs are apart: by another class, by their probabilities, by other labels, or as numbers "
        "(default: the first that the tasks' objective has)",
    )  # fmt: skip
    mapped.add_argument("--split", choices=SPLITS, default="test", help="which rows")
    return mapped


def _add_forecast(verbs: Any, verb: Verb) -> argparse.ArgumentParser:
    """Add the verb that says what vectors will do to each other's tasks."""
    foreseen = verb(
        verbs, "forecast", "before ordinary vectors are added: what each will take from the tasks of the others",
        forecast,
    )  # fmt: skip
    _add_pairs(foreseen)
    foreseen.add_argument(
        "--measured", type=int, default=10, metavar="N",
        help="how many pairs are measured, to correct the others by (default: 10)",
    )  # fmt: skip
    foreseen.add_argument(
        "--level", type=float, default=0.9, help="of the intervals, between 0 and 1 (default: 0.9)"
    )
    return foreseen


def _add_pairs(made: argparse.ArgumentParser) -> None:
    made.add_argument("model", help=commands.MODEL)
    made.add_argument("pairs", nargs="+", metavar="TASK=VECTOR", help=commands.PAIR)


def _add_target(made: argparse.ArgumentParser) -> None:
    made.add_argument("model", help=commands.MODEL)
    made.add_argument("pair", metavar="TASK=VECTOR", help=f"what to forget; {commands.PAIR}")
    made.add_argument("controls", nargs="+", metavar="CONTROL", help="tasks to keep")
    made.add_argument("--floor", type=float, default=0.95, help="share of control accuracy to keep")


def _grid(text: str) -> Any:
    if text in ("paper", "auto"):
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--grid {text!r} is neither paper, auto nor a list of numbers such as 0,0.5,1."
        ) from None


def _search(options: argparse.Namespace) -> dict[str, Any]:
    return {"grid": _grid(options.grid), "reading": reading(options)}


def _solver(options: argparse.Namespace) -> dict[str, Any]:
    most = {} if options.max_evaluations is None else {"max_evaluations": options.max_evaluations}
    return {"per": options.per, "ridge": options.ridge, "bootstrap": options.bootstrap, "seed": options.seed or 0,
            **most, "reading": reading(options)}  # fmt: skip


def edit_add(options: argparse.Namespace) -> None:
    """Choose one coefficient for the sum of the vectors, and report the accuracies there."""
    from tauspan.editing import Editor

    _require_free(options)
    pairs = pairs_of(options.pairs, options.rows, options.model)
    editor = Editor(encoder_of(options), pairs, options.regime, reading=reading(options), ahead=False)
    if options.untangle:
        found = editor.untangle(per=options.untangle)
        commands.say(found.report().verdict, options)
        editor = Editor(editor.encoder, found.vectors, options.regime, reading=reading(options), ahead=False)
    _combined(editor.add(grid=_grid(options.grid), guided=options.guided), options)


def edit_subsets(options: argparse.Namespace) -> None:
    """Choose the vectors to add at coefficient 1, and say what each is worth to each task."""
    from tauspan.editing import Editor

    _require_free(options)
    pairs = pairs_of(options.pairs, options.rows, options.model)
    editor = Editor(encoder_of(options), pairs, options.regime, reading=reading(options))
    _combined(editor.subsets(floor=options.floor, seed=options.seed or 0), options)


def edit_compare(options: argparse.Namespace) -> None:
    """Compare two edits of given vectors on test rows."""
    from tauspan.editing import Editor

    first, second = (_numbers(getattr(options, name), f"--{name}") for name in ("first", "second"))
    pairs = pairs_of(options.pairs, options.rows, options.model)
    editor = Editor(encoder_of(options), pairs, options.regime, reading=reading(options))
    write_report(editor.compare(first, second, seed=options.seed or 0).report(), options)


def _numbers(text: str, option: str) -> float | dict[str, float]:
    """The coefficients of an edit: one number, or one for each task that is named."""
    named = dict[str, float]()
    try:
        if "=" not in text:
            return float(text)
        for part in text.split(","):
            name, _, value = part.partition("=")
            if not name.strip() or name.strip() in named:
                raise ValueError
            named[name.strip()] = float(value)
    except ValueError:
        raise UsageError(
            f"{option} {text!r}: write one number, such as 1, or each task once with its number, such as "
            "email_spam=1,movie_sentiment=0.5."
        ) from None
    return named


def forecast(options: argparse.Namespace) -> None:
    """Forecast what each vector takes from the tasks of the others, and say how often such forecasts were right."""
    from tauspan.editing import Editor

    pairs = pairs_of(options.pairs, options.rows, options.model)
    editor = Editor(encoder_of(options), pairs, options.regime, reading=reading(options))
    found = editor.forecast(measured=options.measured, level=options.level, seed=options.seed or 0)
    write_report(found.report(), options)


def _target(options: argparse.Namespace) -> "tuple[Task, TaskVector, list[Task]]":
    """The task to forget, its vector, and the controls."""
    task, vector = pair_of(options.pair, options.rows, options.model)
    controls = [task_of(name, options.rows) for name in options.controls]
    if task.name in {control.name for control in controls}:
        raise UsageError(f"{task.name!r} is the target and cannot be its own control.")
    return task, vector, controls


def edit_negate(options: argparse.Namespace) -> None:
    """Choose the coefficient that forgets a task while the accuracy on the controls stays above a floor."""
    from tauspan.editing import negate

    _require_free(options)
    task, vector, controls = _target(options)
    found = negate(
        encoder_of(options), task, vector, controls, options.floor, options.regime, **_search(options)
    )
    _combined(found, options)


def edit_solve(options: argparse.Namespace) -> None:
    """Choose the coefficients with the smallest loss, by a solver."""
    from tauspan.editing import coefficients

    _require_free(options)
    pairs, bounds = (
        pairs_of(options.pairs, options.rows, options.model),
        None if options.unbounded else tuple(options.bounds),
    )
    found = coefficients(
        encoder_of(options), pairs, options.regime, bounds=bounds, l1=options.l1, **_solver(options)
    )
    _combined(found, options)


def edit_front(options: argparse.Namespace) -> None:
    """Choose coefficients along the trade-off between forgetting a task and keeping the controls."""
    from tauspan.editing import front

    _require_free(options)
    task, vector, controls = _target(options)
    found = front(
        encoder_of(options), task, vector, controls, options.floor, options.regime,
        bounds=tuple(options.bounds), prices=options.prices, **_solver(options),
    )  # fmt: skip
    _combined(found, options)


def _require_free(options: argparse.Namespace) -> None:
    """Raise an error if the vector's output file exists already, before any work is done."""
    if options.vector:
        from tauspan.store import require_free
        from tauspan.vector import vector_file

        require_free(vector_file(options.vector), False)


def _combined(result: "ChosenEdit", options: argparse.Namespace) -> None:
    """Write the report and, if asked for, the vector at the chosen coefficients."""
    vector = result.vector if options.vector else None
    if vector is not None and first():
        vector.save_pretrained(options.vector)
    write_report(result.report(), options)
    if vector is not None:
        commands.say(
            f"Wrote {options.vector}: {commands.mixed(vector)}. Next: tauspan apply {options.model} {options.vector} OUT",
            options,
        )


def disentangle(options: argparse.Namespace) -> None:
    """Report the disentanglement error of each pair of tasks as a map over two coefficients."""
    from tauspan.editing import disentanglement
    from tauspan.editing.maps.asked import GRID

    grid = GRID if options.grid is None else _grid(options.grid)
    found = disentanglement(
        encoder_of(options), pairs_of(options.pairs, options.rows, options.model), options.regime, grid=grid,
        box=tuple(options.box), distance=options.distance, split=options.split, reading=reading(options),
    )  # fmt: skip
    write_report(found.report(), options)
