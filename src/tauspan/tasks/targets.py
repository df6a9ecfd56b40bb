"""The rows of a table with what an objective needs of it: a column of classes, columns of numbers, or prompts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tauspan.core.errors import UsageError
from tauspan.objectives import Chat, Classification, Objective
from tauspan.tasks.assembly import Gathered, gathered
from tauspan.tasks.labels import Meaning
from tauspan.tasks.numbers import numbered
from tauspan.tasks.rows import Rows
from tauspan.tasks.texts import continued

Read = Callable[[str], Mapping[str, Sequence[Rows]]]  # the rows of each split, with one column as labels


def read_targets(
    read: Read,
    kind: Objective,
    columns: Sequence[str],
    names: Sequence[Any] | None,
    *,
    text: str = "text",
    prompt: str | None = None,
    labels: Meaning = "auto",
    clean: bool = False,
    what: str,
) -> Gathered:
    """The splits of a task from the columns of its tables.

    Args:
        read: reads the rows with a column as their labels.
        kind: the objective.
        columns: of the labels; for numbers one for each output.
        names: the classes, or the names of the outputs; None takes what the table says.
        text: the column of texts.
        prompt: the column of prompts of texts to be continued.
        labels: what labels of classes mean.
        clean: drop incomplete rows instead of raising.
        what: the task's name.

    Raises:
        UsageError: columns or names that the objective does not take.
        DataError: as `gathered`, `numbered` and `continued`.
    """
    if prompt is not None and not kind.headless:
        raise UsageError(f"task {what!r}: prompt={prompt!r} is for tasks of texts, and this is {kind.word}.")
    if kind.headless:
        if names:
            raise UsageError(
                f"task {what!r}: {kind.word} has no classes, and so no label_names: leave them out."
            )
        if list(columns) not in ([], ["label"]):
            raise UsageError(
                f"task {what!r}: label={list(columns)}, and {kind.word} has no labels: name the columns of the texts and "
                "of what goes before them, text= (--text) and prompt= (--prompt)."
            )
        return continued(read(prompt or text), prompt is not None, clean, what, isinstance(kind, Chat))
    if not columns or len(set(columns)) < len(columns):
        raise UsageError(f"task {what!r}: label={list(columns)}: give at least one column, and none twice.")
    if isinstance(kind, Classification):
        if len(columns) > 1:
            raise UsageError(
                f"task {what!r}: {len(columns)} columns of labels, and a row has one class: name one, or take "
                'objective="multi-label" or "regression".'
            )
        return gathered(read(columns[0]), names, labels, clean, what)
    named = list(columns) if names is None else [str(one) for one in names]
    if len(named) != len(columns):
        raise UsageError(f"task {what!r}: {len(named)} label names for {len(columns)} columns of numbers.")
    return numbered(
        {title: read(column) for title, column in zip(named, columns, strict=True)}, kind, clean, what
    )


def require_no_classes(label_prompts: Sequence[str], labels: Meaning, kind: Objective) -> None:
    """Raise unless options of classes are left alone for an objective without classes.

    Raises:
        UsageError: label prompts, or a meaning of labels.
    """
    if not isinstance(kind, Classification) and (label_prompts or labels != "auto"):
        raise UsageError(
            f"label_prompts and labels= say what classes are, and the objective is {kind.word}: leave them out."
        )
