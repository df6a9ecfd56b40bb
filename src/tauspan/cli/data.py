"""The verbs of data sets: list them, check splits for leaks, write their rows, make a task from files."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan.cli import shared as commands
from tauspan.cli.shared import Verb
from tauspan.core.errors import DataError, UsageError
from tauspan.core.notices import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tauspan.core.report import Cell
    from tauspan.tasks import Task
    from tauspan.tasks.data import Leaks


def add(verbs: Any, verb: Verb) -> None:
    """Add the verbs of data sets to a parser; `verb(into, name, does, function)` makes the parser of each verb."""
    data = verbs.add_parser(
        "data", help="list data sets, check their splits, make tasks of files"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    verb(data, "list", "list the data sets of the catalog", list_sets)
    checked = verb(data, "check", "look for rows that are in two splits; exit code 6 if there are any", check)
    written = verb(data, "manifest", "say which rows a task has, as hashes", write)
    _add_make(verb(data, "make", "make a task directory from a file of texts and labels", make))
    checked.add_argument("tasks", nargs="+", metavar="TASK", help="a data set, a shipped task or a directory")
    written.add_argument("task", metavar="TASK", help="a data set, a shipped task or a directory")
    for made in (checked, written):
        made.add_argument("--root", metavar="DIR", help="the folder of the data sets (default: the hub)")
    checked.add_argument(
        "--near", metavar="BITS",
        help="images whose perceptual hashes differ in at most so many of 64 bits are near-duplicates, 0 to 8, or none "
        "(default: what the data set says)",
    )  # fmt: skip
    checked.add_argument("--allow-leaks", action="store_true", help="print leaks and go on, with exit code 0")
    checked.add_argument(
        "--against", metavar="FILE", help="compare with a stored manifest, of one task (default: none)"
    )
    written.add_argument("-o", "--out", metavar="FILE", help="write it there (default: stdout)")


def _add_make(made: argparse.ArgumentParser) -> None:
    """Add the options of `data make`, which are the arguments of `Task.from_files`."""
    made.add_argument(
        "train", metavar="FILE", help="CSV, TSV, JSON, JSON Lines or parquet, or a folder of one kind"
    )
    made.add_argument("-o", "--out", metavar="DIR", required=True, help="the directory to write")
    made.add_argument("--overwrite", action="store_true", help="replace DIR if it is there")
    made.add_argument("--name", help="of the task (default: what DIR is called)")
    made.add_argument(
        "--test", metavar="FILE", help="test rows (default: 20 %% of the rows, drawn with the seed)"
    )
    made.add_argument(
        "--validation", metavar="FILE", help="validation rows (default: 10 %% of the training rows)"
    )
    made.add_argument(
        "--split",
        metavar="COLUMN",
        help="the column that says train, validation or test of each row (default: none, and rows are held "
        "out)",
    )
    made.add_argument(
        "--shares", nargs=3, type=float, metavar=("TRAIN", "VALIDATION", "TEST"),
        help="divide the rows of FILE into three splits, such as 0.7 0.1 0.2: alike in each class, by the seed, and "
        "equal texts never in two (default: rows are held out by the seed alone)",
    )  # fmt: skip
    made.add_argument(
        "--text",
        metavar="COLUMN",
        help="the column of texts (default: text; of chats without --prompt, messages)",
    )
    made.add_argument(
        "--label",
        nargs="+",
        metavar="COLUMN",
        default=["label"],
        help="the column of labels; of several, with --shares, each becomes a task in OUT/COLUMN, all with one "
        "division of the rows (default: label)",
    )
    made.add_argument(
        "--objective",
        metavar="WORD",
        default="classification",
        help="what the labels are: classes; of multi-label and regression each column of --label holds the numbers of "
        "one output, 0 and 1 of a label; next-token: none, the texts are continued; chat: none, the assistant's answers "
        "of conversations are learned; masked-token: none, tokens of the texts are hidden; preference, contrastive and "
        "similarity: pairs, see --columns; with options as in 'preference(beta=0.5)' (default: classification)",
    )
    made.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME=COLUMN",
        default=(),
        help="of pairs, the columns of FILE that are not called prompt, chosen and rejected (preference), anchor, "
        "positive and group (contrastive), sentence1, sentence2 and score (similarity), such as score=points; "
        "'prompt=' where there is none (default: these)",
    )
    made.add_argument(
        "--prompt",
        metavar="COLUMN",
        help="of next-token tasks, the column of prompts, which do not count; of chats, that of questions, to which the "
        "texts are the answers (default: none)",
    )
    made.add_argument(
        "--label-names", nargs="+", metavar="NAME", help="the classes, in order (default: the sorted labels)"
    )
    made.add_argument(
        "--label-prompts",
        nargs="+",
        metavar="TEXT",
        default=(),
        help="a sentence for each class, for zero-shot heads",
    )
    made.add_argument(
        "--labels", choices=("auto", "names", "from_0", "from_1"), default="auto",
        help="what labels are: class names, or numbers from 0 or 1 (default: auto, which is told where it cannot tell)",
    )  # fmt: skip
    made.add_argument(
        "--max-tokens", type=int, metavar="N", help="where texts are cut (default: the model's limit)"
    )
    made.add_argument(
        "--clean",
        action="store_true",
        help="leave out rows without text or label, and spaces around labels; counted",
    )
    commands.add_dialect(made)


def list_sets(options: argparse.Namespace) -> None:
    """List the catalog as tables."""
    from tauspan.core.report import Report, Table
    from tauspan.tasks.data import catalog

    known = catalog()
    sets: list[dict[str, Cell]] = [
        {
            "name": name, "classes": one.class_count, "templates": len(one.templates), "epochs": one.paper_epochs,
            "GB": f"{one.download_gb:g}", "hub": one.hub.id,
        }
        for name, one in known.items()
    ]  # fmt: skip
    rows: list[dict[str, Cell]] = [
        {"name": name, "train": one.sizes.train, "validation": one.sizes.validation, "test": one.sizes.test}
        for name, one in known.items()
    ]
    controls = "; ".join(f"{name}: {one.control_split}" for name, one in known.items() if one.control_split)
    tables = [
        Table("data sets", sets, "GB: about what the hub copy takes."),
        Table("rows of the benchmark", rows, f"Controls: {controls}."),
    ]
    commands.show(Report("data sets", tables), options)


def check(options: argparse.Namespace) -> None:
    """Check some tasks for leaks between splits; all tasks are checked before an error ends the verb."""
    from tauspan.core.report import Report, Table
    from tauspan.tasks.data import check_manifest, find_leaks
    from tauspan.tasks.data.suite import find_task

    if options.against and len(options.tasks) != 1:
        raise UsageError(f"--against compares one task, and {len(options.tasks)} are named.")
    asked = None if options.near is None else _bits(options.near)
    splits: list[dict[str, Cell]] = []
    leaks: list[dict[str, Cell]] = []
    found: list[Leaks] = []
    tasks: list[Task] = []
    for name in options.tasks:
        task = find_task(name, options.root, seed=options.seed or 0)
        tasks.append(task)
        if options.against:
            check_manifest(task, options.against)
        near = task.extra.get("near") if options.near is None else asked
        found.append(
            find_leaks(
                task,
                near,
            )
        )
        splits += _splits(task)
        leaks += _leaks(found[-1])
    tables = [
        Table("splits", splits, "Benchmark: how many rows the published splits have."),
        Table("rows that stand in two splits", leaks, _note(found)),
    ]
    _tell_shared(tasks)
    commands.show(Report("data", tables, result={"leaks": any(map(bool, found))}), options)
    wrong = []
    for one in found:
        try:
            one.require_none()
        except DataError as error:
            wrong.append(str(error))
    if wrong and not options.allow_leaks:
        raise DataError(" ".join(wrong))
    for text in wrong:
        tell(f"let pass by --allow-leaks: {text}")


def _tell_shared(tasks: "Sequence[Task]") -> None:
    """Tell of rows that one task is tested on and another trained on: a sum of their vectors has seen them."""
    from tauspan.tasks.data import seen_elsewhere

    for tested, trained, count in seen_elsewhere(tasks):
        tell(
            f"{count} of the {len(tested.split('test'))} test rows of {tested.name!r} are training rows of "
            f"{trained.name!r}: a model that holds both vectors was trained on them. `tauspan data make FILE --label "
            f"{tested.name} {trained.name} --shares 0.7 0.1 0.2` divides one file alike for both."
        )


def write(options: argparse.Namespace) -> None:
    """Write a task's manifest to a file or to stdout."""
    from tauspan.tasks.data import manifest, write_manifest
    from tauspan.tasks.data.suite import find_task

    task = find_task(options.task, options.root, seed=options.seed or 0)
    made = write_manifest(task, options.out) if options.out else manifest(task)
    if options.json or not options.out:
        sys.stdout.write(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    else:
        commands.say(f"Wrote {options.out}: {task}.", options)


def make(options: argparse.Namespace) -> None:
    """Make a task directory from files, or one for each column of labels; report rows that are in two splits."""
    from tauspan.store import require_apart, require_free

    require_apart(options.out, [options.train, options.test, options.validation])
    several = len(options.label) > 1 and options.objective == "classification"
    if several and (options.shares is None or options.name or options.label_names or options.label_prompts):
        raise UsageError(
            f"--label {' '.join(options.label)} makes {len(options.label)} tasks with one division of the rows: give "
            "--shares, such as 0.7 0.1 0.2, and no --name, --label-names or --label-prompts."
        )
    columns: list[str | list[str]] = list(options.label)
    if options.objective != "classification":
        columns = [options.label]  # the outputs of one task
    paths = [Path(options.out) / str(column) if several else Path(options.out) for column in columns]
    for place in paths:
        require_free(place, options.overwrite)
    made: list[Task] = []
    for label, place in zip(columns, paths, strict=True):
        task = _read(options, options.name or place.name, label, made)
        task.to_directory(place, overwrite=options.overwrite)
        _tell_made(task, place, options)
        made.append(task)


def _read(options: argparse.Namespace, name: str, label: "str | list[str]", like: "Sequence[Task]") -> "Task":
    """The task of one column of labels, or of the columns of its outputs."""
    from tauspan.tasks import Task

    return Task.from_files(
        name,
        options.train,
        options.test,
        options.validation,
        split=options.split,
        label_names=options.label_names,
        label_prompts=options.label_prompts,
        text=options.text,
        label=label,
        labels=options.labels,
        objective=options.objective,
        prompt=options.prompt,
        columns=_columns(options.columns),
        clean=options.clean,
        encoding=options.encoding,
        delimiter=commands.delimiter(options),
        quotes=options.quotes,
        max_tokens=options.max_tokens,
        seed=options.seed or 0,
        shares=options.shares,
        like=like,
    )


def _columns(given: "Sequence[str]") -> dict[str, str | None] | None:
    """NAME=COLUMN as a mapping."""
    for one in given:
        if "=" not in one:
            raise UsageError(f"--columns {one}: write NAME=COLUMN, such as score=points.")
    pairs = (one.partition("=") for one in given)
    return {name: column or None for name, _, column in pairs} or None


def _tell_made(task: "Task", place: Path, options: argparse.Namespace) -> None:
    """What a task directory holds, what was left out, and rows that are in two splits."""
    from tauspan.core.report import Report, Table
    from tauspan.tasks.data import find_leaks

    found = find_leaks(task)
    left_out = dict(task.extra.get("left_out", {}))
    dropped: list[dict[str, Cell]] = [
        {"from": split, "why": why, "rows": count}
        for split, counts in left_out.items()
        for why, count in counts.items()
    ]
    together = task.extra.get("together")
    repeated = f" {together} rows repeat an earlier one, and went where it is." if together else ""
    tables = [
        Table("splits", _splits(task), f"{_meaning(task)}{repeated}"),
        Table("rows that stand in two splits", _leaks(found), _note([found])),
        *([Table("left out or changed", dropped, "By --clean." if options.clean else "")] if dropped else []),
    ]
    if found and options.test is None and options.split is None:
        tell("rows stand in two splits; --shares divides a file so that none does.")
    commands.show(Report(f"task {task.name}", tables, result={"left_out": left_out}), options)
    commands.say(f"Wrote {place}: {task}.", options)


def _meaning(task: "Task") -> str:
    """What the targets are, in a sentence."""
    if task.objective.headless:
        return task.objective.about
    return f"{'Classes' if task.classes else 'Outputs'}: {', '.join(task.label_names)}."


def _bits(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) > 8:
        raise UsageError(f"--near {text}: a number of bits from 0 to 8, or none.")
    return int(text)


def _splits(task: "Task") -> "list[dict[str, Cell]]":
    from tauspan.tasks import SPLITS
    from tauspan.tasks.data import catalog

    known = catalog().get(str(task.extra.get("dataset")))
    return [
        {
            "task": task.name,
            "split": split,
            "rows": len(task.splits[split]),
            "benchmark": getattr(known.sizes, split) if known else None,
            **(
                {}
                if task.objective.headless
                else {"classes" if task.classes else "outputs": len(task.label_names)}
            ),
            "made": task.extra.get(split, "own"),
            "from": task.source if split == "train" else None,
        }
        for split in SPLITS
    ]


def _leaks(found: "Leaks") -> "list[dict[str, Cell]]":
    return [
        {
            "task": found.task,
            "rows of": second,
            "that stand in": first,
            "equal": found.counts["equal", first, second],
            "near": found.counts.get(("near", first, second)),
            "first": "; ".join(str(one) for one in found.examples if one.splits == (first, second)) or None,
        }
        for kind, first, second in found.counts
        if kind == "equal"
    ]


def _note(found: "list[Leaks]") -> str:
    bits = sorted({one.near for one in found if one.near is not None})
    near = f" Near: both perceptual hashes within {', '.join(map(str, bits))} of 64 bits." if bits else ""
    return "Equal: the same pixels, or the same text but for case, punctuation and white space." + near
