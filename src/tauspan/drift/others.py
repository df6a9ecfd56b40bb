"""The rows of other tasks that are not to move: their heads, and which rows a step reads."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tauspan.core.errors import UsageError, listed
from tauspan.models import Batch, Encoder, Head
from tauspan.tasks import Split, Task, build_head
from tauspan.tasks.batches import encoded
from tauspan.train.settings import Settings


class Others:
    """Training rows of other tasks, read under the tasks' own heads. Their labels are not read.

    Args:
        encoder: what reads them.
        tasks: the tasks.
        settings: where texts are cut.
        inputs: rows without labels, which are read under each task's head in the place of its own.

    Raises:
        UsageError: no task, a task without logits, or two of one name.
    """

    def __init__(
        self, encoder: Encoder, tasks: Sequence[Task], settings: Settings, inputs: Sequence[Any] | None = None
    ) -> None:
        require_others(tasks)
        self.encoder, self.tasks, self._cut = encoder, tasks, settings.max_tokens
        self.heads: list[Head] = [build_head(task, encoder, max_tokens=self._cut) for task in tasks]
        generic = None if inputs is None else unlabelled(inputs)
        self._splits = [task.split("train") if generic is None else generic for task in tasks]

    def batch(self, place: int, rows: Sequence[int]) -> Batch:
        """Some training rows of a task, as the encoder reads them."""
        task = self.tasks[place]
        return encoded(
            self.encoder, self._splits[place].take(list(rows)), task.objective, task.tokens(self._cut)
        )

    def count(self, place: int) -> int:
        """How many rows of a task there are."""
        return len(self._splits[place])

    def drawn(self, place: int, count: int, key: str) -> list[int]:
        """So many rows of a task, or all if there are fewer; by a key."""
        size = self.count(place)
        return sorted(random.Random(f"{key}/{self.tasks[place].name}").sample(range(size), min(count, size)))


def unlabelled(inputs: Sequence[Any]) -> Split:
    """Rows without labels as a split, in which each has the label 0, which nothing reads."""
    return Split(inputs, torch.zeros(len(inputs), dtype=torch.long))


def require_others(tasks: Sequence[Task]) -> None:
    """Raise `UsageError` unless there are tasks, all of them have logits, and each has a name of its own."""
    if not tasks:
        raise UsageError("no other task is given: name those whose rows are to stay where they are.")
    without = [task.name for task in tasks if task.objective.headless]
    if without:
        raise UsageError(
            f"{listed(without)} has no logits ({tasks[0].objective.word}): drift is measured on logits. Turn it into "
            "classes, or leave it out."
        )
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{names.count(twice)} of {len(names)} other tasks are called {twice!r}, and drift is told by name: give "
            "each its own, such as `dataclasses.replace(task, name=...)`, or leave one out."
        )


def require_apart(trained: Sequence[Task], others: Sequence[Mapping[str, Any]], what: str) -> None:
    """Raise `UsageError` if a task that is trained on is one of those that are to stay: the same name, or the same rows.

    Args:
        trained: on whose rows is trained.
        others: as `told_apart` or a file of factors says them; factors of earlier versions know no rows.
        what: asks that they stay.
    """
    for task in trained:
        for other in others:
            if other["name"] == task.name:
                raise UsageError(
                    f"{what}: {task.name!r} is trained on and is to stay at once. Leave it out of the others; if they "
                    "have another one of the same name, give that its own, such as `dataclasses.replace(task, name=...)`."
                )
            if other.get("rows") == _rows(task):
                raise UsageError(
                    f"{what}: {other['name']!r} has the training rows and labels of {task.name!r}, which is trained on, "
                    "so they cannot stay. Leave it out of the others."
                )


def told_apart(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """`described`, with a hash of training rows and labels, which another name does not change."""
    return [{**said, "rows": _rows(task)} for said, task in zip(described(tasks), tasks, strict=True)]


def _rows(task: Task) -> str:
    return task.split("train").digest[:16]


def described(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The tasks for a key: names, and checksums of what they hold."""
    return [{"name": task.name, "checksum": task.checksum()[:16]} for task in tasks]
