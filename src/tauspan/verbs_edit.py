"""The verbs that edit models and measure them: their options and what each does; the library is imported in them."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, cast

from tauspan import commands
from tauspan.commands import (
    Verb,
    add_device,
    encoder_of,
    first,
    pair_of,
    pairs_of,
    say,
    show,
    task_of,
    vector_of,
    write_report,
)
from tauspan.errors import UsageError
from tauspan.notices import tell

if TYPE_CHECKING:
    from tauspan.models import Encoder
    from tauspan.report import Report
    from tauspan.tasks import Task
    from tauspan.vector import TaskVector

REGIMES = ("standard", "posthoc", "linear")
SPLITS = ("train", "validation", "test")


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes one."""
    use = verb(verbs, "apply", "write MODEL + SCALE * VECTOR as a model", apply)
    use.add_argument("model", help=commands.MODEL)
    use.add_argument("vector", help="its file or folder")
    use.add_argument("out", nargs="?", help="the directory to write")
    use.add_argument("-o", "--out", dest="output", metavar="OUT", help="the same (default: the third word)")
    use.add_argument("--scale", type=float, default=1.0, help="the coefficient")
    use.add_argument(
        "--regime",
        choices=REGIMES,
        help="standard writes an ordinary model, which its own library loads; linear and posthoc a tangent model, which "
        "tauspan loads (default: the vector's own)",
    )
    use.add_argument(
        "--point",
        choices=("encoder", "logits"),
        help="where a head on the tangent model is linearised (default: the vector's)",
    )
    use.add_argument(
        "--allow",
        action="append",
        choices=("regime",),
        help="regime: take a vector that was made for the other regime; another function, so evaluate it (default: "
        "none)",
    )
    use.add_argument(
        "--task",
        action="append",
        metavar="TASK",
        help="save the frozen head of this task with the model; may be repeated (default: none)",
    )
    use.add_argument(
        "--head-from",
        metavar="DIR",
        help="take head, configuration and class from a tuned model's directory (default: the model's own)",
    )
    use.add_argument(
        "--out-dtype", choices=("float32", "base", "float64", "bfloat16", "float16"), default="float32",
        help="of the stored weights; base: tensor by tensor",
    )  # fmt: skip
    use.add_argument("--overwrite", action="store_true", help="replace what lies at OUT")

    score = verb(verbs, "evaluate", "accuracy of a model, edited or not, on tasks", evaluate)
    score.add_argument("model", help=commands.MODEL)
    score.add_argument("tasks", nargs="+", help="shipped tasks, data sets, or directories with card.json")
    score.add_argument("--vector", help="edit the model with it (default: the model as it is)")
    score.add_argument("--scale", type=float, default=1.0, help="what the vector is multiplied by")
    score.add_argument("--split", choices=SPLITS, default="test", help="which rows")

    guess = verb(verbs, "predict", "classes and probabilities of rows, from a model's frozen head", predict)
    guess.add_argument("model", help="an edited model, or with --vector a pre-trained one")
    guess.add_argument("rows", help="a .txt, .csv, .tsv or .jsonl file, an image, or a folder of images")
    guess.add_argument(
        "--task",
        help="whose head: a name that is saved with the model, or a task that one is made of (default: the only one)",
    )
    guess.add_argument("--text", default="text", metavar="COLUMN", help="column or key of texts")
    guess.add_argument("--vector", help="edit the model with it first (default: the model as it is)")
    guess.add_argument("--scale", type=float, default=1.0, help="the edit's coefficient")

    edit = verbs.add_parser(
        "edit", help="choose coefficients on validation: add, negate, solve, front"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    choosing = [*_add_searches(edit, verb), *_add_solves(edit, verb)]
    mapped = _add_maps(verbs, verb)
    for made in choosing:
        made.add_argument(
            "--vector", metavar="FILE", help="write the chosen combination there (default: not written)"
        )
    for made in (score, guess):
        made.add_argument(
            "--base",
            metavar="DIR",
            help="where the pre-trained model of an edited one is now (default: where it was)",
        )
    for made in (score, guess, *choosing, mapped):
        made.add_argument(
            "--regime", choices=REGIMES,
            help="how the vector edits; posthoc: a standard vector in the tangent model (default: the vector's own)",
        )  # fmt: skip
    for made in (*choosing, mapped):
        made.add_argument("--out", help="folder for report.json, report.md and figures (default: only shown)")
    for made in (score, *choosing, mapped):
        made.add_argument(
            "--rows",
            type=int,
            metavar="N",
            help="use at most so many rows of each split (default: all of them)",
        )
        made.add_argument(
            "--max-tokens", type=int, metavar="N", help="where texts are cut (default: the task's own number)"
        )
    for made in (score, guess, *choosing, mapped):
        _add_passes(made)


def _add_passes(made: argparse.ArgumentParser) -> None:
    """How rows are read."""
    made.add_argument(
        "--point",
        choices=("encoder", "logits"),
        help="where the tangent model is linearised (default: the vector's own, else logits)",
    )
    made.add_argument("--batch-size", type=int, default=64, metavar="N", help="rows of a forward pass")
    add_device(made)


def _add_searches(edit: Any, verb: Verb) -> list[argparse.ArgumentParser]:
    """One coefficient, from a grid."""
    added = verb(edit, "add", "one model for all tasks: theta0 + alpha * sum of vectors", edit_add)
    negated = verb(edit, "negate", "forget a task, keep the controls: theta0 - alpha * vector", edit_negate)
    _add_pairs(added)
    _add_target(negated)
    for made in (added, negated):
        made.add_argument(
            "--grid", default="paper",
            help="paper (0, 0.05 to 1), auto (widened as far as it needs), or coefficients such as 0,0.5,1",
        )  # fmt: skip
    return [added, negated]


def _add_solves(edit: Any, verb: Verb) -> list[argparse.ArgumentParser]:
    """Many coefficients, from a solver."""
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


def _add_maps(verbs: Any, verb: Verb) -> argparse.ArgumentParser:
    """Maps over two coefficients."""
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
        "--distance", choices=("argmax", "probabilities"), default="argmax",
        help="when two outputs differ: another class, or by total variation of the probabilities",
    )  # fmt: skip
    mapped.add_argument("--split", choices=SPLITS, default="test", help="which rows")
    return mapped


def _add_pairs(made: argparse.ArgumentParser) -> None:
    made.add_argument("model", help=commands.MODEL)
    made.add_argument(
        "pairs", nargs="+", metavar="TASK=VECTOR", help="a task and its vector's file or folder"
    )


def _add_target(made: argparse.ArgumentParser) -> None:
    made.add_argument("model", help=commands.MODEL)
    made.add_argument("pair", metavar="TASK=VECTOR", help="the task to forget and its vector")
    made.add_argument("controls", nargs="+", metavar="CONTROL", help="tasks to keep")
    made.add_argument("--floor", type=float, default=0.95, help="share of control accuracy to keep")


def apply(options: argparse.Namespace) -> None:
    """Write an edited model."""
    from tauspan.edit import edit_regime
    from tauspan.edit_files import apply_files

    out = options.output or options.out
    if out is None or (options.output and options.out):
        raise UsageError("name one place for the edited model: `tauspan apply MODEL VECTOR OUT` (or -o OUT).")
    vector, allow = vector_of(options.vector), options.allow or ()
    notes = apply_files(
        options.model, vector, out, options.scale, regime=options.regime, point=options.point, allow=allow,
        tasks=[task_of(name) for name in options.task or ()], head_from=options.head_from, dtype=options.out_dtype,
        overwrite=options.overwrite,
    )  # fmt: skip
    for note in notes:
        tell(note)
    chosen = edit_regime(vector, options.regime, allow)
    if options.json:
        facts = {"model": out, "scale": options.scale, "regime": chosen, "notes": notes}
        sys.stdout.write(json.dumps(facts) + "\n")
    more = "" if chosen == "standard" else (
        "\nIt is a tangent model: `tauspan evaluate`, `tauspan predict` and `tauspan.load` read it, other libraries do "
        "not. They read what --regime standard writes, another function: for a linear vector add --allow regime."
    )  # fmt: skip
    say(f"wrote {out}{more}", options)


def evaluate(options: argparse.Namespace) -> None:
    """Accuracy on tasks."""
    from tauspan.edit import load
    from tauspan.evaluate import evaluate as measure

    vector = vector_of(options.vector) if options.vector else None
    tasks = [task_of(name, options.rows) for name in options.tasks]
    show(measure(
        load(options.model, options.device, base=options.base), tasks, vector, options.scale, options.regime,
        options.split,
        point=options.point, batch_size=options.batch_size, max_tokens=options.max_tokens,
        show_progress=not options.quiet,
    ), options)  # fmt: skip


def predict(options: argparse.Namespace) -> None:
    """Classes of rows."""
    from tauspan.edit import apply as edited
    from tauspan.edit import load
    from tauspan.linear import Linearized
    from tauspan.models import encoder_in
    from tauspan.report import Cell, Report, Table, provenance
    from tauspan.rows import rows_of
    from tauspan.tasks import build_head

    model = load(options.model, options.device, base=options.base)
    base = encoder_in(model.base) if isinstance(model, Linearized) else model
    assert base is not None  # noqa: S101 - `load` gives an encoder
    name = options.task
    if name is not None and name not in base.frozen:
        task = task_of(name)
        build_head(task, base)
        name = task.name
    if options.vector:
        if isinstance(model, Linearized):
            raise UsageError(
                f"{options.model!r} is an edited tangent model; --vector starts from a pre-trained one."
            )
        vector = vector_of(options.vector)
        model = cast(
            "Encoder", edited(base, vector, options.scale, regime=options.regime, point=options.point)
        )
    names, rows = rows_of(options.rows, options.text)
    found = model.predict(rows, name, batch_size=options.batch_size)
    table: list[dict[str, Cell]] = [
        {"row": row, "class": one.label, "probability": one.probability}
        for row, one in zip(names, found, strict=True)
    ]
    result = [{"row": row, "label": one.label, "probabilities": dict(one.probabilities)}
              for row, one in zip(names, found, strict=True)]  # fmt: skip
    about = provenance(base=base.source, task=name)
    show(Report("Predictions", [Table("Predictions", table)], about, result={"rows": result}), options)


def _grid(text: str) -> Any:
    if text in ("paper", "auto"):
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--grid {text!r} is neither paper, auto nor a list of numbers such as 0,0.5,1."
        ) from None


def _passes(options: argparse.Namespace) -> dict[str, Any]:
    return {"point": options.point, "batch_size": options.batch_size, "max_tokens": options.max_tokens,
            "show_progress": not options.quiet}  # fmt: skip


def _search(options: argparse.Namespace) -> dict[str, Any]:
    return {"grid": _grid(options.grid), **_passes(options)}


def _solver(options: argparse.Namespace) -> dict[str, Any]:
    most = {} if options.max_evaluations is None else {"max_evaluations": options.max_evaluations}
    return {"per": options.per, "ridge": options.ridge, "bootstrap": options.bootstrap, "seed": options.seed or 0,
            **most, **_passes(options)}  # fmt: skip


def edit_add(options: argparse.Namespace) -> None:
    """Addition with one coefficient."""
    from tauspan.search import add

    _require_free(options)
    pairs = pairs_of(options.pairs, options.rows)
    _combined(add(encoder_of(options), pairs, options.regime, **_search(options)), pairs, options)


def _target(options: argparse.Namespace) -> "tuple[Task, TaskVector, list[Task]]":
    """The task to forget, its vector, and the controls."""
    task, vector = pair_of(options.pair, options.rows)
    controls = [task_of(name, options.rows) for name in options.controls]
    if task.name in {control.name for control in controls}:
        raise UsageError(f"{task.name!r} is the target and cannot be its own control.")
    return task, vector, controls


def edit_negate(options: argparse.Namespace) -> None:
    """Negation under a control floor."""
    from tauspan.search import negate

    _require_free(options)
    task, vector, controls = _target(options)
    found = negate(
        encoder_of(options), task, vector, controls, options.floor, options.regime, **_search(options)
    )
    _combined(found, {task: vector}, options)


def edit_solve(options: argparse.Namespace) -> None:
    """Coefficients of least loss."""
    from tauspan.search import coefficients

    _require_free(options)
    pairs, bounds = (
        pairs_of(options.pairs, options.rows),
        None if options.unbounded else tuple(options.bounds),
    )
    found = coefficients(
        encoder_of(options), pairs, options.regime, bounds=bounds, l1=options.l1, **_solver(options)
    )
    _combined(found, pairs, options)


def edit_front(options: argparse.Namespace) -> None:
    """Forgetting against keeping."""
    from tauspan.search import front

    _require_free(options)
    task, vector, controls = _target(options)
    found = front(
        encoder_of(options), task, vector, controls, options.floor, options.regime,
        bounds=tuple(options.bounds), prices=options.prices, **_solver(options),
    )  # fmt: skip
    _combined(found, {task: vector}, options)


def _require_free(options: argparse.Namespace) -> None:
    """Refuse a vector file that is already there before any work."""
    if options.vector:
        from tauspan.store import require_free
        from tauspan.vector import vector_file

        require_free(vector_file(options.vector), False)


def _combined(report: "Report", vectors: "dict[Task, TaskVector]", options: argparse.Namespace) -> None:
    """Write the vector at the chosen coefficients, if one is wanted, and the report."""
    if options.vector and first():
        from tauspan.search import combine

        found = report.result
        combine(vectors, found["coefficients"], found.get("groups")).save_pretrained(options.vector)
    write_report(report, options)


def disentangle(options: argparse.Namespace) -> None:
    """Maps of the disentanglement error."""
    from tauspan.disentangle import GRID, disentanglement

    grid = GRID if options.grid is None else _grid(options.grid)
    found = disentanglement(
        encoder_of(options), pairs_of(options.pairs, options.rows), options.regime, grid=grid,
        box=tuple(options.box), distance=options.distance, split=options.split, **_passes(options),
    )  # fmt: skip
    write_report(found, options)
