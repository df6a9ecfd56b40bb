"""What keeps models from being merged: one `Problem` each, collected first and raised together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from tauspan.core.errors import (
    BaseMismatchError,
    MismatchError,
    NonFiniteError,
    StoreError,
    TauspanError,
    UsageError,
    listed,
    nearest,
)
from tauspan.merge.sources.source import Source

Severity: TypeAlias = Literal["error", "warning"]

LENIENT = {
    "extra_tensors": "tensors that the base lacks are left out",
    "missing_tensors": "a model that lacks a tensor of the base counts as unchanged there; without a base the tensor is "
    "merged from the models that have it, whose weights take over those of the others",
    "shape": "a tensor of another shape counts as lacking, so that the base's is kept",
    "vocabulary": "embeddings with another number of rows count as lacking, so that the base's are kept",
    "buffers": "whole numbers that differ are the base's",
    "tied": "a name that is not stored is read from the tensor it is tied to; a second copy is left out",
    "tokenizer": "rows of embeddings are merged by their ids, though these mean different tokens",
    "architecture": "another `model_type` in config.json; the result has the base's",
    "config": "settings in config.json that make another function of the same weights; the result has the base's",
    "base": "vectors of another base",
    "regime": "vectors of both regimes",
}
"""Kinds of errors that a caller may allow by name, each with what happens then; they become warnings.

Where there is no base, the first model takes its place.
"""

_RAISED: dict[str, type[TauspanError]] = {
    "base": BaseMismatchError,
    "values": NonFiniteError,
    "unreadable": StoreError,
}


@dataclass(frozen=True)
class Problem:
    """One thing that does not fit.

    Args:
        severity: `error` stops a merge, `warning` does not.
        kind: `missing_tensors`, `extra_tensors`, `prefix`, `shape`, `vocabulary`, `tokenizer`, `dtypes`, `buffers`,
            `constants`, `tied`, `architecture`, `config`, `base`, `regime`, `spaces`, `values`, `unreadable`, `unmoved`
            or `unrelated`.
        tensor: the first tensor it concerns; None where it is about the whole model.
        model: the label.
        file: where to look; None where there is none.
        message: what, both values, and the repair.
    """

    severity: Severity
    kind: str
    tensor: str | None
    model: str
    file: Path | None
    message: str

    def __str__(self) -> str:
        return f"{self.severity} ({self.kind}): {self.message}"


def about(
    source: Source,
    kind: str,
    message: str,
    *,
    severity: Severity = "error",
    tensor: str | None = None,
    file: Path | None = None,
) -> Problem:
    """A problem with one source; its own path is where to look unless `file` is given."""
    return Problem(severity, kind, tensor, source.label, source.path if file is None else file, message)


def lenient(problems: Iterable[Problem], allow: Sequence[str]) -> tuple[Problem, ...]:
    """The problems, those of the allowed kinds as warnings that say what happens; errors first."""
    for kind in allow:
        if kind not in LENIENT:
            raise UsageError(f"allow has {kind!r}, which is no leniency. {nearest(kind, LENIENT)}")
    eased = [_eased(problem) if problem.kind in allow else problem for problem in problems]
    return tuple(sorted(eased, key=lambda problem: problem.severity != "error"))


def _eased(problem: Problem) -> Problem:
    if problem.severity == "warning":
        return problem
    message = f"{problem.message} Allowed: {LENIENT[problem.kind]}."
    return replace(problem, severity="warning", message=message)


def folded(problems: Sequence[Problem]) -> list[str]:
    """The messages, one for all models that have a problem of one kind with one tensor."""
    kinds: dict[tuple[str, str, str | None], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.severity, problem.kind, problem.tensor), []).append(problem)
    messages = []
    for first, *rest in kinds.values():
        others = list(dict.fromkeys(problem.model for problem in rest if problem.model != first.model))
        more = f" The same holds for {len(others)} more: {listed(others)}." if others else ""
        messages.append(first.message + more)
    return messages


def require_none(problems: Sequence[Problem]) -> None:
    """Raise if there is an error among the problems: the first one's exception, with the messages of all.

    Raises:
        BaseMismatchError, NonFiniteError, StoreError, MismatchError: by the first error's kind.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        allowed = sorted({problem.kind for problem in errors} & set(LENIENT))
        flags = " ".join(f"--allow {kind}" for kind in allowed)
        hint = f"\nIf it is meant, allow it by name: `{flags}`, or `allow: [{', '.join(allowed)}]` in the recipe."
        text = "\n".join(folded(errors)) + (hint if allowed else "")
        raise _RAISED.get(errors[0].kind, MismatchError)(text)
