"""A task of texts as a directory: a card with checksums, and a CSV file for each split."""

import csv
import gzip
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauspan import store
from tauspan.core.errors import DataError
from tauspan.objectives import OBJECTIVES, spelled
from tauspan.objectives.passages import Group
from tauspan.tasks.pairs import written
from tauspan.tasks.split import SPLITS, Split

if TYPE_CHECKING:
    from tauspan.tasks.task import Task


def write_directory(task: "Task", path: Path, overwrite: bool) -> Path:
    """Write `card.json`, and a gzipped CSV file for each split; equal tasks give equal bytes."""
    if not task.classes and (task.objective.word not in OBJECTIVES or "text" in task.label_names):
        raise DataError(
            f"task {task.name!r} has "
            f"{'the objective' if 'text' not in task.label_names else 'an output named text, beside'} "
            f"{task.objective.word}, which a card does not hold: keep its table, which `Task.from_files` reads."
        )
    if task.head is not None or task.templates or task.head_from != "auto":
        raise DataError(
            f"task {task.name!r} has a head, templates or head_from of its own, which a card does not hold: write it "
            "without, and give them when it is read."
        )
    for split in SPLITS:
        for row, item in enumerate(task.splits[split].inputs):
            if not all(isinstance(one, str) for one in (item if isinstance(item, Group) else [item])):
                raise DataError(
                    f"{split} of task {task.name!r}, row {row}, is a {type(item).__name__}: a directory is written of "
                    "texts. Folders of images and parquet files are read as they are."
                )
    with store.atomic(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        entries = {split: _write(task.splits[split], task, temporary / f"{split}.csv.gz") for split in SPLITS}
        store.write_json(temporary / "card.json", _card(task, entries))
    return path


def _write(rows: Split, task: "Task", file: Path) -> dict[str, Any]:
    """Write the file of one split, with class names or a column for each output; give its entry for the card."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = list(task.label_names)
    headless, pairs = task.objective.headless, task.objective.columns
    usual = ["text", *(["label"] if task.classes else ["prompt"] if headless else names)]
    writer.writerow(pairs or usual)
    if pairs:
        writer.writerows(written(task.objective, rows))
    for item, label in () if pairs else zip(rows.inputs, rows.labels.tolist(), strict=True):
        if headless:
            writer.writerow([item[label:], item[:label]])
        else:
            writer.writerow([item, *([names[label]] if task.classes else map(repr, label))])
    content = gzip.compress(text.getvalue().encode(), mtime=0)
    file.write_bytes(content)
    return {
        "file": file.name,
        "rows": len(rows),
        **({"classes": len(set(rows.labels.tolist()))} if task.classes else {}),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _card(task: "Task", entries: dict[str, Any]) -> dict[str, Any]:
    card: dict[str, Any] = {
        "name": task.name,
        "source": task.source,
        "label_names": list(task.label_names),
        **({"labels": "names"} if task.classes else {"objective": spelled(task.objective)}),
        "splits": entries,
    }
    if task.label_prompts:
        card["label_prompts"] = list(task.label_prompts)
    if task.max_tokens is not None:
        card["suggested_max_tokens"] = task.max_tokens
    return card | {
        key: task.extra[key] for key in ("seed", "test", "validation", "left_out") if key in task.extra
    }
