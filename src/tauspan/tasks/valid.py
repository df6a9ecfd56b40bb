"""What every task must have, the hash of its content, and the card of a task directory."""

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor

from tauspan import store
from tauspan.core.arguments import described
from tauspan.core.choices import HeadFrom
from tauspan.core.errors import DataError, nearest
from tauspan.objectives import Classification
from tauspan.objectives.passages import Group
from tauspan.tasks.images import Images
from tauspan.tasks.labels import require_names
from tauspan.tasks.rows import fault_of
from tauspan.tasks.split import SPLITS, Split, array_bytes

if TYPE_CHECKING:
    from tauspan.tasks.task import Task


def require_valid(task: "Task") -> None:
    """Raise unless a task's classes, splits and head fit together.

    Raises:
        DataError: an empty split, labels of another type or outside the classes, or two descriptions of one head.
    """
    for what in ("label_names", "label_prompts", "templates"):
        given = getattr(task, what)
        if isinstance(given, str | bytes | Mapping | Set) or not hasattr(given, "__getitem__"):
            raise DataError(
                f"task {task.name!r}: {what} is {described(given)}, and a list of texts is wanted, since a label is "
                "the index of its class in it: put them into a list, in order."
            )
    if task.objective.headless:
        if task.label_names or task.head is not None or task.label_prompts or task.templates:
            raise DataError(
                f"task {task.name!r} is {task.objective.word}: it has no classes, and so no names or head of them."
            )
    else:
        require_names(task.label_names, task.name)
    classes = len(task.label_names)
    _check_head(task, classes)
    _check_tokens(task)
    for split in SPLITS:
        if split not in task.splits or len(task.splits[split]) == 0:
            raise DataError(f"task {task.name!r} has no rows in its {split} split.")
        _check_rows(task, split, task.splits[split], classes)


def _check_rows(task: "Task", split: str, rows: Split, classes: int) -> None:
    task.objective.require(rows.labels, classes, f"{split} of task {task.name!r}")
    if len(rows.inputs) != len(rows.labels):
        raise DataError(f"{split} of {task.name!r}: {len(rows.inputs)} inputs and {len(rows.labels)} labels.")
    for row, item in enumerate(() if isinstance(rows.inputs, Images | Tensor) else rows.inputs):
        found = len(item) if isinstance(item, Group) else 1
        if task.objective.inputs > 1 and found != task.objective.inputs:
            raise DataError(
                f"{split} of task {task.name!r}, row {row}, is {found} inputs, and a row of {task.objective.word} is a "
                f"group of {task.objective.inputs}: `Task.from_files` and `Task.from_tensors` make such rows of pairs."
            )
        fault = fault_of(item)
        if fault is not None:
            raise DataError(
                f"{split} of task {task.name!r}, row {row}, is a row {fault}: take it out; `Task.from_files`, "
                "`from_hub` and `from_tensors` do so with clean=True."
            )


def _check_tokens(task: "Task") -> None:
    most = task.max_tokens
    if most is not None and (type(most) is not int or most < 1):
        raise DataError(
            f"task {task.name!r} cuts texts at {most!r} tokens: give a whole number, at least 1 (`max_tokens`, in a "
            "card `suggested_max_tokens`), or leave it out."
        )


def _check_head(task: "Task", classes: int) -> None:
    if task.label_prompts and len(task.label_prompts) != classes:
        raise DataError(
            f"task {task.name!r} has {classes} classes and {len(task.label_prompts)} label prompts. Give one "
            "prompt a class, in the order of the class names."
        )
    for template in task.templates:
        if template.count("{}") != 1:
            raise DataError(
                f"template {template!r} of task {task.name!r} has {template.count('{}')} places for a class name. "
                "Write {} once, where the name goes."
            )
    if task.templates and task.label_prompts:
        raise DataError(
            f"task {task.name!r} has {len(task.templates)} templates and {len(task.label_prompts)} label prompts, "
            "which are two descriptions of one head. Keep one of them."
        )
    if task.head_from not in get_args(HeadFrom):
        raise DataError(
            f"task {task.name!r} has head_from={task.head_from!r}. {nearest(task.head_from, get_args(HeadFrom))}"
        )
    if task.head is not None and task.head_from != "auto":
        raise DataError(
            f"task {task.name!r} has a head of its own and head_from={task.head_from!r}. Set head=None to have one "
            'built, or head_from="auto" to keep yours.'
        )
    if task.classes or task.objective.headless:
        return
    described = "prompts" if task.templates or task.label_prompts else task.head_from
    if described in ("prompts", "prototypes"):
        raise DataError(
            f"task {task.name!r} is {task.objective.word}, and {described} describe classes: take "
            'head_from="probe" (fitted to the training rows), "outputs" (what the encoder gives), or a head of your own.'
        )


def content_hash(task: "Task") -> str:
    """SHA-256 of everything that training and evaluation read from a task."""
    texts = (task.name, list(task.label_names), list(task.label_prompts), task.max_tokens)
    digest = hashlib.sha256(repr(texts).encode())
    if task.templates:  # a field at its default is left out, so that hashes of older tasks stay the same
        digest.update(repr(("templates", list(task.templates))).encode())
    if task.head_from != "auto":
        digest.update(repr(("head_from", task.head_from)).encode())
    for name in SPLITS:
        rows = task.splits[name]
        for content in rows.contents():
            digest.update(content + b"\0")
        digest.update(rows.labels.numpy().tobytes())
    if task.objective != Classification():
        digest.update(repr(("objective", task.objective)).encode())
    if task.head_rows is not None:
        digest.update(repr(("head_rows", task.head_rows.digest)).encode())
    if task.head is not None:
        digest.update(f"{task.head.scale}|{task.head.normalize}|".encode())
        for name, tensor in task.head.state_dict().items():
            digest.update(name.encode() + array_bytes(tensor.double().cpu().numpy()))
    return digest.hexdigest()


def read_card(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The card of a task directory, and the file of each split that it names.

    Raises:
        DataError: a key or a file is missing, or a checksum differs.
    """
    card = store.read_json(path / "card.json")
    for key in ("name", "label_names", "splits"):
        if key not in card:
            raise DataError(f"{path / 'card.json'} lacks {key!r}.")
    files = {}
    for split, entry in card["splits"].items():
        for key in ("file", "sha256"):
            if key not in entry:
                raise DataError(f"{path / 'card.json'} lacks {key!r} of its split {split!r}.")
        file = path / Path(entry["file"]).name
        if not file.is_file():
            raise DataError(f"{path / 'card.json'} names {file.name!r}, which is not there.")
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != entry["sha256"]:
            raise DataError(
                f"{file} has SHA-256 {found[:12]}, its card says {entry['sha256'][:12]}: it was changed."
            )
        files[split] = file
    return card, files
