"""The verbs of models: write, evaluate, predict.

The library is imported only when a verb runs.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, cast

from tauspan.cli import shared as commands
from tauspan.cli.shared import (
    Verb,
    add_passes,
    add_regime,
    add_rows,
    reading,
    say,
    show,
    task_of,
    vector_of,
)
from tauspan.core.choices import EDIT_REGIMES, SPLITS
from tauspan.core.errors import UsageError
from tauspan.core.notices import tell

if TYPE_CHECKING:
    from tauspan.models import Encoder


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    _add_apply(verb(verbs, "apply", "write MODEL + SCALE * VECTOR as a model", apply))
    score = verb(verbs, "evaluate", "accuracy of a model, edited or not, on tasks", evaluate)
    guess = verb(verbs, "predict", "classes and probabilities of rows, from a model's frozen head", predict)
    _add_evaluate(score)
    _add_predict(guess)
    for made in (score, guess):
        made.add_argument(
            "--base",
            metavar="DIR",
            help="where the pre-trained model of an edited one is now (default: where it was)",
        )
        add_regime(made)
        add_passes(made)


def _add_apply(use: argparse.ArgumentParser) -> None:
    use.add_argument("model", help=commands.MODEL)
    use.add_argument("vector", help="its file or folder")
    use.add_argument("out", nargs="?", help="the directory to write")
    use.add_argument("-o", "--out", dest="output", metavar="OUT", help="the same (default: the third word)")
    use.add_argument("--scale", type=float, default=1.0, help="the coefficient")
    use.add_argument(
        "--regime",
        choices=EDIT_REGIMES,
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


def _add_evaluate(score: argparse.ArgumentParser) -> None:
    score.add_argument("model", help=commands.MODEL)
    score.add_argument("tasks", nargs="+", help="shipped tasks, data sets, or directories with card.json")
    score.add_argument("--vector", help="edit the model with it (default: the model as it is)")
    score.add_argument("--scale", type=float, default=1.0, help="what the vector is multiplied by")
    score.add_argument("--split", choices=SPLITS, default="test", help="which rows")
    add_rows(score)


def _add_predict(guess: argparse.ArgumentParser) -> None:
    guess.add_argument("model", help="an edited model, or with --vector a pre-trained one")
    guess.add_argument(
        "rows", help="a .txt, .csv, .tsv, .jsonl or .parquet file, an image, or a folder of images"
    )
    guess.add_argument(
        "--task",
        help="whose head: a name that is saved with the model, or a task that one is made of (default: the only one)",
    )
    guess.add_argument("--text", default="text", metavar="COLUMN", help="column or key of texts")
    guess.add_argument("--clean", action="store_true", help="leave out rows without a text; counted")
    commands.add_dialect(guess)
    guess.add_argument("--vector", help="edit the model with it first (default: the model as it is)")
    guess.add_argument("--scale", type=float, default=1.0, help="the edit's coefficient")


def apply(options: argparse.Namespace) -> None:
    """Write an edited model."""
    from tauspan.editing.model.edit_files import apply_files
    from tauspan.editing.model.kinds import model_kind
    from tauspan.editing.model.regime import edit_regime
    from tauspan.store import require_apart

    out = options.output or options.out
    if out is None or (options.output and options.out):
        raise UsageError("name one place for the edited model: `tauspan apply MODEL VECTOR OUT` (or -o OUT).")
    require_apart(out, [options.vector, *(options.task or ())])
    vector, allow = vector_of(options.vector), options.allow or ()
    chosen = edit_regime(vector, options.regime, allow)
    _require_read(options, chosen)
    notes = apply_files(
        options.model, vector, out, options.scale, regime=options.regime, point=options.point, allow=allow,
        tasks=[task_of(name) for name in options.task or ()], head_from=options.head_from, dtype=options.out_dtype,
        overwrite=options.overwrite,
    )  # fmt: skip
    for note in notes:
        tell(note)
    if options.json:
        facts = {"model": out, "scale": options.scale, "regime": chosen, "notes": notes}
        sys.stdout.write(json.dumps(facts) + "\n")
    more = "" if not model_kind(chosen).tangent else (
        "\nIt is a tangent model: `tauspan evaluate`, `tauspan predict` and `tauspan.load` read it, other libraries do "
        "not. They read what --regime standard writes, another function: for a linear vector add --allow regime."
    )  # fmt: skip
    say(f"wrote {out}{more}", options)


def evaluate(options: argparse.Namespace) -> None:
    """Measure accuracy on tasks."""
    from tauspan.editing.evaluation import evaluate as measure
    from tauspan.editing.model.edit import load
    from tauspan.editing.model.regime import edit_regime
    from tauspan.tangent import Linearized

    vector = vector_of(options.vector) if options.vector else None
    tasks = [task_of(name, options.rows) for name in options.tasks]
    model = load(options.model, options.device, base=options.base, language=options.language)
    if vector is not None or not isinstance(
        model, Linearized
    ):  # a Linearized holds a vector already, for which --scale and --point have a meaning
        _require_read(options, None if vector is None else edit_regime(vector, options.regime))
    show(measure(
        model, tasks, vector, options.scale, options.regime, options.split,
        reading=reading(options),
    ).report(), options)  # fmt: skip


def _require_read(options: argparse.Namespace, regime: str | None) -> None:
    """Raise for options of an edit that have no effect: without a vector (`regime` None), or in the standard regime."""
    if regime is None:
        given = {"--scale": options.scale != 1.0, "--regime": options.regime, "--point": options.point}
        for name in (name for name, value in given.items() if value):
            raise UsageError(
                f"{name} says how a vector edits, and none is given: add --vector VECTOR, or leave {name} out."
            )
    if regime == "standard" and options.point:
        raise UsageError(
            f"--point {options.point} says where a tangent model is linearised, and the standard regime has none: "
            "leave it out, or say --regime posthoc."
        )


def predict(options: argparse.Namespace) -> None:
    """Predict the classes of rows."""
    from tauspan.core.report import Cell, Report, Table, provenance
    from tauspan.editing.model.edit import apply as edited
    from tauspan.editing.model.edit import load
    from tauspan.editing.model.regime import edit_regime
    from tauspan.models import encoder_in
    from tauspan.tangent import Linearized
    from tauspan.tasks import build_head
    from tauspan.tasks.tables import Dialect
    from tauspan.tasks.unlabelled import rows_of

    model = load(options.model, options.device, base=options.base, language=options.language)
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
        _require_read(options, edit_regime(vector, options.regime))
        model = cast(
            "Encoder", edited(base, vector, options.scale, regime=options.regime, point=options.point)
        )
    else:
        _require_read(options, None)
    dialect = Dialect(options.encoding, commands.delimiter(options), options.quotes)
    names, rows = rows_of(options.rows, options.text, dialect, options.clean)
    found = model.predict(rows, name, batch_size=options.batch_size)
    table: list[dict[str, Cell]] = [
        {
            "row": row,
            **(
                {"class": one.label, "probability": one.probability}
                if one.label in one.probabilities
                else {"labels": one.label}
                if one.probabilities
                else dict(one.values)
            ),
        }
        for row, one in zip(names, found, strict=True)
    ]
    result = [{"row": row, "label": one.label, "probabilities": dict(one.probabilities), "values": dict(one.values)}
              for row, one in zip(names, found, strict=True)]  # fmt: skip
    about = provenance(base=base.source, task=name)
    show(Report("Predictions", [Table("Predictions", table)], about, result={"rows": result}), options)
