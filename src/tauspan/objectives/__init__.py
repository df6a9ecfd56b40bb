"""What tasks are trained and measured by: a loss of outputs and targets with its derivatives, and a metric."""

import ast
import re
from dataclasses import Field, fields
from typing import Any, cast

from tauspan.core.errors import UsageError, nearest
from tauspan.objectives.classification import Classification, MultiLabel
from tauspan.objectives.embeddings import Contrastive, Similarity
from tauspan.objectives.objective import Apart, Objective
from tauspan.objectives.own import OwnLoss
from tauspan.objectives.preference import Preference
from tauspan.objectives.regression import Regression
from tauspan.objectives.tokens import Chat, MaskedToken, NextToken

__all__ = [
    "OBJECTIVES",
    "Apart",
    "Chat",
    "Classification",
    "Contrastive",
    "MaskedToken",
    "MultiLabel",
    "NextToken",
    "Objective",
    "OwnLoss",
    "Preference",
    "Regression",
    "Similarity",
    "objective_of",
    "spelled",
]

OBJECTIVES: dict[str, type[Objective]] = {
    one.word: one
    for one in (
        Classification,
        MultiLabel,
        Regression,
        NextToken,
        MaskedToken,
        Chat,
        Preference,
        Contrastive,
        Similarity,
    )
}


def objective_of(given: str | Objective) -> Objective:
    """An objective by its word, perhaps with options, or itself.

    Raises:
        UsageError: no objective has this name, or it has no such option.

    Example:
        >>> objective_of("preference(beta=0.5)")
        Preference(beta=0.5)
    """
    if isinstance(given, Objective):
        return given
    word, begun, options = given.partition("(")
    if word not in OBJECTIVES:
        raise UsageError(f"objective={given!r}. {nearest(word, OBJECTIVES)}")
    return OBJECTIVES[word](**(_options(word, given, options) if begun else {}))


def _options(word: str, given: str, written: str) -> dict[str, Any]:
    """The options of `word(name=value, ...)` as they are written after the bracket."""
    known = {one.name for one in options_of(OBJECTIVES[word])}
    if not known and written.strip() != ")":
        raise UsageError(f"objective={given!r}: {word} has no options: write {word!r}.")
    try:
        call = ast.parse(f"f({written}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(written)
        found = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (SyntaxError, ValueError) as error:
        if re.search(r"=\s*-?(nan|inf)\b", written, re.IGNORECASE):
            raise UsageError(f"objective={given!r}: an option is a finite number.") from error
        example = f"{word}({next(iter(known), 'name')}=1)"
        raise UsageError(
            f"objective={given!r}: options are written as NAME=VALUE, such as {example!r}."
        ) from error
    for name in found:
        if name not in known:
            raise UsageError(f"objective={given!r} has no option {name!r}. {nearest(name, known)}")
    return found


def spelled(objective: Objective) -> str:
    """The text of which `objective_of` makes an objective again.

    Example:
        >>> spelled(Preference(0.5)), spelled(Preference())
        ('preference(beta=0.5)', 'preference')
    """
    options = [
        f"{one.name}={getattr(objective, one.name)!r}"
        for one in options_of(type(objective))
        if getattr(objective, one.name) != one.default
    ]
    return objective.word + (f"({', '.join(options)})" if options else "")


def options_of(kind: type[Objective]) -> list[Field[Any]]:
    """The fields of an objective that a user sets."""
    return [one for one in fields(cast(Any, kind)) if one.init and one.compare and one.name != "logits"]
