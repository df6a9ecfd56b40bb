"""What keeps models from being merged: one `Problem` each, collected first and raised together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from tauspan.errors import (
    BaseMismatchError,
    MismatchError,
    NonFiniteError,
    StoreError,
    TauspanError,
    UsageError,
    listed,
    nearest,
)

Severity: TypeAlias = Literal["error", "warning"]

LENIENT = {
    "extra_tensors": "tensors that the base lacks are left out",
    "missing_tensors": "a model that lacks a tensor of the base counts as unchanged there",
    "tied": "a name that is not stored is read from the tensor it is tied to; a second copy is left out",
    "tokenizer": "tokenizers that give one id to different tokens",
    "architecture": "another `model_type` in config.json",
    "config": "settings in config.json that make another function of the same weights",
    "base": "vectors of another base",
    "regime": "vectors of both regimes",
}
"""Kinds of errors that a caller may allow by name, each with what happens then; they become warnings."""

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
            `tied`, `architecture`, `config`, `base`, `regime`, `spaces`, `values`, `unreadable`, `unmoved` or
            `unrelated`.
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


def lenient(problems: Iterable[Problem], allow: Sequence[str]) -> tuple[Problem, ...]:
    """The problems, those of the allowed kinds as warnings; errors first."""
    for kind in allow:
        if kind not in LENIENT:
            raise UsageError(f"allow has {kind!r}, which is no leniency. {nearest(kind, LENIENT)}")
    eased = [replace(p, severity="warning") if p.kind in allow else p for p in problems]
    return tuple(sorted(eased, key=lambda problem: problem.severity != "error"))


def require_none(problems: Sequence[Problem]) -> None:
    """Raise if there is an error among the problems: the first one's exception, with the messages of all.

    Raises:
        BaseMismatchError, NonFiniteError, StoreError, MismatchError: by the first error's kind.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        allowed = sorted({problem.kind for problem in errors} & set(LENIENT))
        hint = f"\nIf it is meant, allow it by name: {listed(allowed)}." if allowed else ""
        text = "\n".join(problem.message for problem in errors)
        raise _RAISED.get(errors[0].kind, MismatchError)(text + hint)
