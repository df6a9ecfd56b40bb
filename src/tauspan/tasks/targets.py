"""The rows of a table with what an objective needs of it: a column of classes, columns of numbers, prompts, or pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tauspan.core.errors import UsageError
from tauspan.objectives import Chat, Classification, Objective
from tauspan.tasks.assembly import Gathered, gathered
from tauspan.tasks.labels import Meaning
from tauspan.tasks.numbers import numbered
from tauspan.tasks.pairs import columns_of, paired
from tauspan.tasks.rows import Rows
from tauspan.tasks.texts import continued

Read = Callable[
    [str, str], Mapping[str, Sequence[Rows]]
]  # of each split, with a column as inputs and one as labels


def read_targets(
    read: Read,
    kind: Objective,
    columns: Sequence[str],
    names: Sequence[Any] | None,
    *,
    text: str = "text",
    prompt: str | None = None,
    pairs: Mapping[str, str | None] | None = None,
    labels: Meaning = "auto",
    clean: bool = False,
    what: str,
) -> Gathered:
    """The splits of a task from the columns of its tables.

    Args:
        read: reads the rows with a column as their inputs and one as their labels.
        kind: the objective.
        columns: of the labels; for numbers one for each output.
        names: the classes, or the names of the outputs; None takes what the table says.
        text: the column of texts.
        prompt: the column of prompts of texts to be continued.
        pairs: the columns of an objective of pairs by what they hold, where they have other names.
        labels: what labels of classes mean.
        clean: drop incomplete rows instead of raising.
        what: the task's name.

    Raises:
        UsageError: columns or names that the objective does not take.
        DataError: as `gathered`, `numbered` and `continued`.
    """
    if prompt is not None and (kind.columns or not kind.headless):
        raise UsageError(f"task {what!r}: prompt={prompt!r} is for tasks of texts, and this is {kind.word}.")
    if kind.headless and names:
        raise UsageError(f"task {what!r}: {kind.word} has no classes, and so no label_names: leave them out.")
    if kind.columns:
        _require_usual(kind, columns, text, what)
        return paired(read, kind, columns_of(kind, pairs, what), clean, what)
    if pairs:
        raise UsageError(
            f"task {what!r}: columns= is for pairs, and this is {kind.word}: it takes text= and label=."
        )
    if kind.headless:
        if list(columns) not in ([], ["label"]):
            raise UsageError(
                f"task {what!r}: label={list(columns)}, and {kind.word} has no labels: name the columns of the texts and "
                "of what goes before them, text= (--text) and prompt= (--prompt)."
            )
        if prompt == text:
            raise UsageError(
                f"task {what!r}: text={text!r} and prompt={prompt!r} are one column, and a text follows its prompt: "
                "name two, or leave prompt= (--prompt) out."
            )
        return continued(read(text, prompt or text), prompt is not None, clean, what, isinstance(kind, Chat))
    if not columns or len(set(columns)) < len(columns):
        raise UsageError(f"task {what!r}: label={list(columns)}: give at least one column, and none twice.")
    if isinstance(kind, Classification):
        if len(columns) > 1:
            raise UsageError(
                f"task {what!r}: {len(columns)} columns of labels, and a row has one class: name one, or take "
                'objective="multi-label" or "regression".'
            )
        return gathered(read(text, columns[0]), names, labels, clean, what)
    named = list(columns) if names is None else [str(one) for one in names]
    if len(named) != len(columns):
        raise UsageError(f"task {what!r}: {len(named)} label names for {len(columns)} columns of numbers.")
    return numbered(
        {title: read(text, column) for title, column in zip(named, columns, strict=True)}, kind, clean, what
    )


def _require_usual(kind: Objective, columns: Sequence[str], text: str, what: str) -> None:
    """Raise if columns of pairs were named as those of texts and labels."""
    if text != "text" or list(columns) != ["label"]:
        raise UsageError(
            f"task {what!r}: text= and label= name no columns of {kind.word}, which reads {', '.join(kind.columns)}: say "
            f"columns={{{kind.columns[1]!r}: COLUMN}} (--columns {kind.columns[1]}=COLUMN) where one has another name."
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
