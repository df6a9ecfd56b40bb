"""`Desk`: the page as a result, and what is gathered for it."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tauspan import __version__, store
from tauspan.core.computing import way
from tauspan.core.errors import DataError, UsageError, listed
from tauspan.core.measure import progress
from tauspan.core.notices import heard
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.editing.desk.choices import Choice, Question
from tauspan.editing.desk.copies import copies
from tauspan.editing.desk.examples import shown
from tauspan.editing.desk.held import Contributed, Held, held
from tauspan.editing.desk.limits import LARGE, Parts
from tauspan.editing.desk.packing import Blob
from tauspan.editing.desk.page import as_texts, filled
from tauspan.editing.model.chosen import facts_of
from tauspan.editing.search.exact import interval
from tauspan.tasks import Task
from tauspan.tasks.split import permutation

FORMAT = "tauspan desk 1"
SPLITS = ("validation", "test")
_HEIGHT = 900  # pixels of the frame in a notebook


@dataclass(frozen=True, kw_only=True)
class Desk(Result):
    """A page on which the coefficients of task vectors are moved and every accuracy follows; one file, no network.

    Args:
        html: the whole page.
        title: of its window.
        notes: what a reader is told: what is not exact, what was left out, warnings of the work.
        choices: the points that have a button.
        tasks: a row for each task and split: rows, and accuracies of the pre-trained model and of the task's own vector.
    """

    html: str = field(repr=False)
    title: str
    notes: Sequence[str]
    choices: Sequence[Choice] = field(repr=False)
    tasks: Sequence[Mapping[str, Cell]] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of the page."""
        return len(self.html.encode("utf-8"))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page; a browser opens it from there.

        Args:
            path: the file, such as `desk.html`.
            overwrite: replace a file that is there.

        Raises:
            StoreError: the file is there already or cannot be written; nothing is left behind.
        """
        store.write_text(path, self.html, overwrite=overwrite)
        return Path(path)

    def report(self) -> Report:
        """A table of what the page holds, and one of its choices."""
        names = [str(name) for name in self.provenance.get("tasks", ())]
        chosen: list[dict[str, Cell]] = [
            {
                "choice": one.name,
                **dict(zip(names, one.coefficients, strict=True)),
                "chosen on": one.split or "-",
            }
            for one in self.choices
        ]
        note = " ".join(self.notes)
        tables = [
            Table("What the page holds", [dict(row) for row in self.tasks], note),
            Table("Choices", chosen),
        ]
        result = {"bytes": self.size, "choices": {one.name: list(one.coefficients) for one in self.choices}}
        return Report(self.title, tables, dict(self.provenance), result=result, warnings=self.warnings)

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which cannot reach the notebook."""
        return (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:{_HEIGHT}px;border:0" '
            f'srcdoc="{html.escape(self.html)}"></iframe>'
        )


@dataclass
class _Gathered:
    """The blob, the data and the examples, as they grow."""

    question: Question
    exact: bool
    places: Mapping[tuple[Task, str], Sequence[int]]
    held: dict[tuple[Task, str], Held] = field(default_factory=dict)
    blob: Blob = field(default_factory=Blob)
    examples: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def hold(self) -> None:
        """The numbers of every task and split; of large ones only the classes that can win."""
        grid = self.question.sampled()
        for (task, split), places in self.places.items():
            self.held[task, split] = held(self.question.model, task, split, places, grid, self.exact)
        if sum(one.nbytes for one in self.held.values()) > LARGE:
            self._prune()

    def _prune(self) -> None:
        low, high = self.question.low, self.question.high
        for key, one in self.held.items():
            self.held[key] = one.pruned(low, high)
        pruned = [one for one in self.held.values() if isinstance(one, Contributed) and one.kept is not None]
        if pruned:
            before = sum(one.values.shape[0] * one.values.shape[2] for one in pruned)
            left = sum(int(one.kept.sum()) for one in pruned if one.kept is not None)
            self.notes.append(
                f"Of each row the page holds the classes that win somewhere between {low:g} and {high:g}, "
                f"{left / before:.1%} of all: predictions are those of all classes, and probabilities are not known."
            )

    def show(self) -> None:
        """Texts and thumbnails."""
        without = []
        for (task, split), places in self.places.items():
            found = shown(task.split(split), places)
            if found is None:
                without.append(task.name)
            else:
                self.examples.setdefault(task.name, {})[split] = found
        if without:
            self.notes.append(
                f"The rows of {listed(dict.fromkeys(without))} are neither texts nor pictures: no examples are shown."
            )

    def tasks(self) -> list[dict[str, Any]]:
        """Every task as the page holds it."""
        vectors = [task.name for task in self.question.vectors]
        return [
            {
                "name": task.name,
                "classes": [str(name) for name in task.label_names],
                "vector": vectors.index(task.name) if task.name in vectors else None,
                "kind": next(one.kind for (other, _), one in self.held.items() if other is task),
                "floor": None if task.name in vectors else self.question.floor,
                "kept": None,
                "splits": {split: self._split(task, split) for split in SPLITS},
            }
            for task in self.question.tasks
        ]

    def _split(self, task: Task, split: str) -> dict[str, Any]:
        one = self.held[task, split]
        return {
            "rows": len(one),
            "labels": self.blob.add(one.labels, "<u2"),
            "zeroShot": self._accuracy(task, split, {}),
            "single": self._accuracy(task, split, {task.name: 1.0})
            if task in self.question.vectors
            else None,
            **one.written(self.blob),
        }

    def _accuracy(self, task: Task, split: str, at: Mapping[str, float]) -> dict[str, float]:
        """The model's own accuracy on the page's rows, with its interval."""
        classes = self.question.model.classes(task, split, at).numpy()[list(self.places[task, split])]
        return interval(int((classes == self.held[task, split].labels).sum()), len(classes)).record()


def made(
    question: Question,
    *,
    rows: int | None,
    examples: bool,
    exact: bool,
    title: str | None,
    files: Mapping[str, str | Path],
) -> Desk:
    """The page of a question; see `tauspan.Editor.desk`."""
    _require(question, rows)
    model, tasks = question.model, question.tasks
    names = [task.name for task in question.vectors]
    title = title or f"{Path(model.encoder.source).name}: {_counted(len(tasks), 'task')}, {model.regime}"
    with heard() as warned, progress("desk", 3) as advance:
        for split in SPLITS:
            model.read(dict.fromkeys(tasks, names), split)
        advance(1, "")
        choices = question.choices()
        interference, why = question.interference()
        front = question.front()
        advance(1, "")
        gathered = _Gathered(question, exact, _places(tasks, rows, question.seed))
        gathered.notes += [*_about(question, rows), *([why] if why else [])]
        gathered.hold()
        if examples:
            gathered.show()
        advance(1, "")
    data: dict[str, Any] = {
        "format": FORMAT, "title": title, "model": model.encoder.source, "regime": model.regime, "point": model.point,
        "version": __version__, "exact": exact, "range": [question.low, question.high], "step": 0.01,
        "vectors": [
            {"name": task.name, "norm": tau.norm(), "file": None if task.name not in files else str(files[task.name])}
            for task, tau in question.vectors.items()
        ],
        "tasks": gathered.tasks(), "choices": [one.record() for one in choices], "interference": interference,
        "front": front, "notes": [*gathered.notes, *(text for text in warned if text not in gathered.notes)],
        "copy": copies(
            model.encoder.source, names, {name: str(file) for name, file in files.items()}, model.regime, model.point
        ),
    }  # fmt: skip
    texts = as_texts(gathered.examples)
    page = filled(title, data, gathered.blob.content(), texts)
    Parts(
        len(page), list(gathered.held.values()), len(texts), question.low, question.high, exact
    ).require_small()
    facts = facts_of(model, question.vectors.values(), tasks=names, rows=rows, seed=question.seed)
    return Desk(
        html=page, title=title, notes=tuple(data["notes"]), choices=tuple(choices),
        tasks=_table(gathered, choices, data["tasks"]), provenance=facts,
    )  # fmt: skip


def _require(question: Question, rows: int | None) -> None:
    low, high = question.low, question.high
    if not (np.isfinite([low, high]).all() and low <= 0 and high >= 1):
        raise UsageError(
            f"range=({low:g}, {high:g}) (--range {low:g} {high:g}): a page has the pre-trained model and each vector "
            "whole on it, so its range begins at 0 or below and ends at 1 or above."
        )
    if rows is not None and rows < 1:
        raise UsageError(f"rows={rows} (--rows {rows}): a page holds at least one row of each split.")
    if len({task.name for task in question.tasks}) < len(question.tasks):
        raise DataError("two of the tasks and controls have one name; give each its own.")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _places(tasks: Sequence[Task], rows: int | None, seed: int) -> dict[tuple[Task, str], Sequence[int]]:
    """The rows of each task and split that a page holds, as `Task.subset` draws them."""
    found: dict[tuple[Task, str], Sequence[int]] = {}
    for task in tasks:
        for split in SPLITS:
            size = len(task.split(split))
            whole = rows is None or rows >= size
            found[task, split] = range(size) if whole else sorted(permutation(size, f"{seed}/{split}")[:rows])
    return found


def _about(question: Question, rows: int | None) -> list[str]:
    """What a reader must know of how the page was made."""
    model, notes = question.model, []
    cut = rows is not None and any(
        len(task.split(split)) > rows for task in question.tasks for split in SPLITS
    )
    if cut:
        notes.append(
            f"The page holds at most {rows} rows of each split, drawn with seed {question.seed}; coefficients were "
            "chosen on all of them."
        )
    if model.regime == "standard":
        notes.append(
            "In the standard regime accuracies are known at sampled points alone, and the solver's optimum is not among "
            "them: `tauspan edit solve` finds it."
        )
    elif way().check == "off":
        notes.append("Tangents were not compared with ordinary autograd: checks were switched off.")
    if not question.negates and len(question.tasks) > 1:
        notes.append(
            "Coefficients below 0, which forget a task, are on a page of range=(-1, 1) (--range -1 1)."
        )
    return notes


def _table(
    gathered: _Gathered, choices: Sequence[Choice], tasks: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Cell]]:
    """A row for each task and split."""
    rows: list[Mapping[str, Cell]] = []
    for task, told in zip(gathered.question.tasks, tasks, strict=True):
        for split in SPLITS:
            one, entry = gathered.held[task, split], told["splits"][split]
            unsure = max(int(one.unsure(choice.coefficients).sum()) for choice in choices)
            single = entry["single"]
            rows.append({
                "task": task.name, "split": split, "rows": len(one), "kind": one.kind,
                "zero shot": entry["zeroShot"]["value"], "single": None if single is None else single["value"],
                "within rounding": unsure,
            })  # fmt: skip
    return rows
