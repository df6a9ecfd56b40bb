"""Shared by the verbs: the models, tasks and vectors that options name, and printing results."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tauspan.cli.fields import add_fields, read_fields
from tauspan.core.choices import EDIT_REGIMES
from tauspan.core.computing import CHECKS, ENGINES
from tauspan.core.errors import DataError, UsageError
from tauspan.core.launch import launch
from tauspan.core.reading import Reading

if TYPE_CHECKING:
    from tauspan.core.report import Cell, Report, Table
    from tauspan.models import Encoder
    from tauspan.tasks import Task
    from tauspan.vector import TaskVector

MODEL = "minilm, a directory or a hub id"
PAIR = "a task and its vector: a vector's file or folder, or the folder of a model or adapter that was fine-tuned for it"
TASK = "a shipped task, a data set of the catalog, or a directory with card.json"
PARAMS = "what moves: all, attention, last:K (the last K blocks) or a pattern of names"
Verb: TypeAlias = Callable[
    ..., argparse.ArgumentParser
]  # called as (into, name, does, function), it makes the parser of a verb


def first() -> bool:
    """Whether this process prints and writes: it is the only one, or the first of several under a launcher."""
    return launch().first


def show(report: "Report", options: argparse.Namespace) -> None:
    """Print a report as tables, as JSON or not at all, as the options say."""
    if options.json:
        sys.stdout.write(report.to_json())
    elif not options.quiet:
        from rich.console import Console

        Console().print(report.renderable())


def say(text: str, options: argparse.Namespace) -> None:
    """Print a line on stdout, unless the options ask for silence or for JSON."""
    if not options.quiet and not options.json:
        sys.stdout.write(text + "\n")


def interrupted(words: Sequence[str], options: argparse.Namespace) -> str:
    """The message after Ctrl-C: the exact command that continues, or that nothing was kept.

    A verb continues by itself if its parser has `resumes`, and with `--resume` if it has that option. A function in
    `resumes` says whether there is something to continue.

    Args:
        words: the command line after the program's name.
        options: the parsed command line.
    """
    by_option, resumes = hasattr(options, "resume"), getattr(options, "resumes", None)
    goes_on = resumes(options) if callable(resumes) else bool(resumes) or by_option
    more = ["--resume"] if goes_on and by_option and not options.resume else []
    command = shlex.join([*_program(), *words, *more])
    if not goes_on:
        return f"tauspan: interrupted; nothing was written. To begin anew:\n  {command}\n"
    return f"tauspan: interrupted; what was finished is kept. To go on:\n  {command}\n"


def _program() -> list[str]:
    """The command by which this program was called."""
    by_module = Path(sys.argv[0]).parts[-2:] == ("tauspan", "__main__.py")
    return [sys.executable, "-m", "tauspan"] if by_module else ["tauspan"]


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that computes with a model: device, engine and check."""
    parser.add_argument(
        "--device",
        help="cpu, cuda, cuda:1 ...; under torchrun, cuda is each process's own (default: where the model is)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="what computes tangents first; the others follow where it fails (default: onepass)",
    )
    parser.add_argument(
        "--check",
        choices=CHECKS,
        help="compare tangents with ordinary autograd on the first batch of each kind (default: auto)",
    )


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add the option of verbs that read tasks of texts."""
    parser.add_argument(
        "--language",
        type=int,
        metavar="L",
        help="read the model as a language model, for tasks of texts of at most L tokens (default: read it for "
        "features)",
    )


def add_regime(parser: argparse.ArgumentParser) -> None:
    """Add the option of the regime in which a vector edits."""
    parser.add_argument(
        "--regime", choices=EDIT_REGIMES,
        help="how the vector edits; posthoc: a standard vector in the tangent model (default: the vector's own)",
    )  # fmt: skip


def add_rows(parser: argparse.ArgumentParser) -> None:
    """Add the options of which rows of tasks are read, and where texts are cut."""
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="use at most so many rows of each split (default: all of them); a head is always the whole task's",
    )
    add_fields(parser, Reading, skip=("batch_size", "point"))


def add_passes(parser: argparse.ArgumentParser) -> None:
    """Add the options of how the edited model runs over rows."""
    add_fields(parser, Reading, skip=("max_tokens",))
    add_device(parser)
    add_language(parser)


def reading(options: argparse.Namespace) -> Reading:
    """The `Reading` from the options of `add_rows` and `add_passes`."""
    return read_fields(options, Reading)


def encoder_of(options: argparse.Namespace) -> "Encoder":
    """Load the encoder that the options name, on the device if they name one.

    Only a pre-trained encoder is accepted: an edited tangent model raises a `UsageError`.
    """
    from tauspan.editing.model.edit import load
    from tauspan.models import Encoder

    model = load(options.model, getattr(options, "device", None), language=getattr(options, "language", None))
    if not isinstance(model, Encoder):
        raise UsageError(
            f"{options.model!r} is an edited tangent model; this verb starts from a pre-trained one."
        )
    return model


def task_of(name: str, rows: int | None = None) -> "Task":
    """A task by its name, with at most `rows` rows of each split and the head of the whole task."""
    from tauspan.tasks.data.suite import find_task

    task = find_task(name)
    return task if rows is None else fewer(task.subset(train=rows, validation=rows, test=rows), task)


def fewer(subset: "Task", whole: "Task") -> "Task":
    """A subset under the head of the whole task: every verb reads a task under one head, whatever its `--rows`."""
    return dataclasses.replace(subset, head_rows=whole.split("train"))


def vector_of(path: str) -> "TaskVector":
    """The task vector in a file or folder."""
    from tauspan.vector import TaskVector

    return TaskVector.from_pretrained(path)


def assigned(texts: Sequence[str] | None, form: str) -> dict[str, str]:
    """The values given by `--set NAME=VALUE`, as texts, by their names; `form` is how messages write that."""
    found: dict[str, str] = {}
    kind = form.partition("=")[0].lower()
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not all(name.split(".")) or name in found:
            raise UsageError(f"--set {text}: write {form}, each {kind} once.")
        found[name] = value
    return found


def _moved_from(base: str, path: str, label: str) -> "TaskVector":
    """The task vector in a file or folder, or of a folder's fine-tuned model or adapter, which starts from `base`."""
    from tauspan.merge.sources.opening import adapter_folder
    from tauspan.merge.stream.adapter_vector import adapter_vector
    from tauspan.vector import TaskVector, vector_file

    folder = Path(path)
    if not folder.is_dir() or vector_file(path).exists():
        return vector_of(path)
    if adapter_folder(folder):
        return adapter_vector(path, base, label=label)
    return TaskVector.from_checkpoints(base, path, label=label)


def pair_of(text: str, rows: int | None, base: str) -> "tuple[Task, TaskVector]":
    """A task with its vector from TASK=VECTOR, where VECTOR may also be a model or an adapter that starts from `base`."""
    name, equals, path = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} must be TASK=VECTOR, for example email_spam=out/spam/vector.safetensors.")
    return task_of(name, rows), _moved_from(base, path, name)


def pairs_of(texts: list[str], rows: int | None, base: str) -> "dict[Task, TaskVector]":
    """Tasks with their vectors, each as `pair_of` reads it, with at most `rows` rows of each split."""
    pairs = dict(pair_of(text, rows, base) for text in texts)
    if len({task.name for task in pairs}) < len(pairs):
        raise DataError("a task stands twice among the pairs; give each task one vector.")
    return pairs


def mixed(vector: "TaskVector") -> str:
    """What a vector was combined from, such as `0.4 email_spam + 1 emotion`; its label where nothing says it."""
    held = vector.info.get("coefficients")
    if not isinstance(held, dict) or not held:
        return vector.label
    named = {
        name: f"{value:.3g}" if isinstance(value, int | float) else f"{len(value)} groups of"
        for name, value in held.items()
    }
    sum_ = " + ".join(f"{number} {name}" for name, number in named.items()).replace("+ -", "- ")
    return f"{sum_}, of untangled vectors" if "untangled" in vector.info else sum_


def drift_table(vectors: "Sequence[tuple[str, TaskVector]]") -> "Table | None":
    """What was measured of the rows of other tasks when vectors were trained; None of vectors without such a penalty.

    Args:
        vectors: what each is called, and the vector.
    """
    from tauspan.core.report import Table

    rows: list[dict[str, Cell]] = []
    without = False
    for name, vector in vectors:
        found: Mapping[str, Any] = vector.info.get("penalty") or {}
        asked = found.get("penalty") or found  # DELTA may have a penalty of its own
        if asked.get("kind") not in ("Exact", "TauJp", "Factored"):
            continue
        drift, ratio = found.get("drift", {}), found.get("ratio", {})
        sets = [", ".join(task["name"] for task in one["tasks"]) for one in asked.get("factors", ())]
        without |= bool(sets) and not ratio
        for whose in dict.fromkeys((*drift, *sets)):
            cells: dict[str, Cell] = {"vector": name, "rows of": whose, "penalty": asked["kind"]}
            for key, values in (("drift", drift), ("ratio", ratio)):
                cells[key] = None if values.get(whose) is None else f"{values[whose]:.3g}"
            rows.append(cells)
    if not rows:
        return None
    note = (
        "when the vector was trained; drift: E |change of the logits|^2; ratio: of factors, their value over the exact "
        "drift E |J tau|^2"
    )
    if without:
        note += (
            "; what is empty was not measured: `tauspan finetune --factors FILE... --others TASK...`, with the tasks "
            "that the factors are of, measures both"
        )
    return Table("Drift on the rows of other tasks", rows, note)


def write_report(report: "Report", options: argparse.Namespace) -> None:
    """Show a report, and with --out write it with its figures."""
    if options.out and first():
        from tauspan import store
        from tauspan.experiments.figures import draw

        folder = Path(options.out)
        store.write_text(folder / "report.json", report.to_json())
        store.write_text(folder / "report.md", report.to_markdown())
        draw(report, folder)
    show(report, options)
    if options.out:
        say(f"Wrote {options.out}: report.json, report.md and its figures.", options)


def add_dialect(made: argparse.ArgumentParser) -> None:
    """Add the options of `Dialect`: how text files of rows are written."""
    made.add_argument(
        "--encoding", help="of the file, such as cp1252 (default: its byte order mark's, else UTF-8)"
    )
    made.add_argument("--delimiter", metavar="C", help=r"such as ';' or '\t' (default: the first line's)")
    made.add_argument(
        "--quotes", choices=("doubled", "escaped", "none"), default="doubled",
        help="how a quote is written in a quoted field (default: doubled)",
    )  # fmt: skip


def delimiter(options: argparse.Namespace) -> str | None:
    """The delimiter that the options give; a backslash followed by t means a tab, as people type it in shells."""
    return "\t" if options.delimiter == r"\t" else options.delimiter
