"""How tangents are computed inside a `with` block: which engine is tried first, and whether it is checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from tauspan.core.errors import UsageError, nearest

Engine: TypeAlias = Literal["onepass", "reference", "backward"]
Check: TypeAlias = Literal["auto", "off"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
CHECKS: tuple[Check, ...] = get_args(Check)


@dataclass(frozen=True)
class Way:
    """How `linearize`, and everything that calls it, computes tangents by default.

    Args:
        engine: what computes tangents first: `"onepass"`; `"reference"`, `torch.func.jvp`; or `"backward"`, ordinary
            backward passes. All give the same numbers. Where one fails, or fails the check, the next is taken.
        check: `"auto"` compares each answer that claims to be exact with ordinary autograd on the module itself, on the
            first batch of each kind; `"off"` does not check, and reports say so.

    Raises:
        UsageError: an unknown word.
    """

    engine: Engine = "onepass"
    check: Check = "auto"

    def __post_init__(self) -> None:
        for name, value, known in (("engine", self.engine, ENGINES), ("check", self.check, CHECKS)):
            if value not in known:
                raise UsageError(f"{name}={value!r}. {nearest(str(value), known)}")


_way: ContextVar[Way] = ContextVar("tauspan_way", default=Way())  # noqa: B039 - frozen


def way(engine: Engine | None = None, check: Check | None = None) -> Way:
    """The settings of the innermost `computing` block, with those that are given instead.

    Raises:
        UsageError: an unknown word.
    """
    here = _way.get()
    return Way(here.engine if engine is None else engine, here.check if check is None else check)


@contextmanager
def computing(engine: Engine | None = None, check: Check | None = None) -> Iterator[Way]:
    """Compute tangents in this way everywhere inside the block; see `Way`.

    Args:
        engine: None leaves it as it is.
        check: None leaves it as it is.

    Raises:
        UsageError: an unknown word.

    Example:
        >>> import torch, tauspan as ts
        >>> with ts.computing(engine="reference"):
        ...     lin = ts.linearize(torch.nn.Linear(2, 1))
        >>> lin.engine
        'reference'
    """
    chosen = way(engine, check)
    token = _way.set(chosen)
    try:
        yield chosen
    finally:
        _way.reset(token)
