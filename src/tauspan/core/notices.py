"""Warnings of tauspan: how the program prints them, and how they get into the report of the work that gave them.

A warning is a record of the logger `tauspan` (or of one below it), or a Python warning raised by code of this package.
Warnings of other libraries are not collected.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

LOGGER = logging.getLogger("tauspan")


def tell(text: str) -> None:
    """Warn: on stderr (or in the program's log) and in the report of the work in progress."""
    LOGGER.warning("%s", text)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect tauspan's warnings inside the block into a list, each text once; they are printed as well.

    Warnings of other threads during the block are collected too.

    Example:
        >>> with heard() as found:
        ...     LOGGER.warning("the cache of %s was left out", "x")
        >>> found
        ['the cache of x was left out']
    """
    found: list[str] = []
    listener, hook = _Listener(found), _Hook(found, warnings.showwarning)
    LOGGER.addHandler(listener)
    warnings.showwarning = hook
    try:
        yield found
    finally:
        hook.remove()
        LOGGER.removeHandler(listener)


class _Hook:
    """In the place of `warnings.showwarning`; blocks of several threads may end in another order than they began."""

    def __init__(self, found: list[str], shown: Callable[..., None]) -> None:
        self.found, self.shown, self.live = found, shown, True

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if self.live and raised_here():
            _add(self.found, str(message))
        self.shown(message, category, filename, lineno, file, line)

    def remove(self) -> None:
        """Collect no more; the hook goes when those that came after it have gone."""
        self.live = False
        while isinstance(hook := warnings.showwarning, _Hook) and not hook.live:
            warnings.showwarning = hook.shown


@contextmanager
def program(verbose: bool) -> Iterator[None]:
    """Set up the program's stderr: a line for each warning of tauspan; those of other libraries only with `verbose`."""
    root, handler = logging.getLogger(), _Stderr()
    levels, shown = (root.level, LOGGER.level), warnings.showwarning

    def as_a_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if raised_here():
            LOGGER.warning("%s", message)
        elif verbose:
            shown(message, category, filename, lineno, file, line)

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers has its own handlers and levels
    root.setLevel(root.level if verbose else logging.ERROR)
    LOGGER.setLevel(logging.INFO if verbose else logging.WARNING)
    LOGGER.addHandler(handler)
    warnings.showwarning = as_a_line
    try:
        yield
    finally:
        warnings.showwarning = shown
        LOGGER.removeHandler(handler)
        root.setLevel(levels[0])
        LOGGER.setLevel(levels[1])


def raised_here() -> bool:
    """Whether the Python warning that is being shown was raised by code of this package.

    The stack is read, because with `stacklevel` the warning's file name is that of the caller.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "warnings"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).split(".")[0] == "tauspan"


def once(*groups: Iterable[str]) -> tuple[str, ...]:
    """The texts of several lists in their order, without repetitions."""
    return tuple(dict.fromkeys(text for group in groups for text in group))


def in_one_line(text: str) -> str:
    """A message without line breaks, for a log."""
    return " ".join(text.split())


def _add(found: list[str], text: str) -> None:
    if in_one_line(text) not in found:
        found.append(in_one_line(text))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the stderr of the moment; warnings and errors begin with the program's name."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # the stream is looked up each time

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        text = in_one_line(record.getMessage())
        return text if record.levelno < logging.WARNING else f"tauspan: {record.levelname.lower()}: {text}"


class _Listener(logging.Handler):
    """Stores the texts of warnings and errors."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        _add(self._found, record.getMessage())
        others = [one for one in _handlers(logging.getLogger(record.name)) if not isinstance(one, _Listener)]
        first = next(one for one in LOGGER.handlers if isinstance(one, _Listener))
        if self is first and not others and logging.lastResort is not None:
            logging.lastResort.handle(
                record
            )  # this listener must not hide what Python prints when there is no handler


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """All handlers that receive a logger's records."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
