"""Warnings of ours: how the program prints them, and how they are kept for the report of the work that warned.

A warning is either a record of the logger `tauspan` (or of one below it) or a Python warning that code of this package
raised. Those of other libraries are theirs and are not heard.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

LOGGER = logging.getLogger("tauspan")


def tell(text: str) -> None:
    """Warn: a line on stderr (or wherever the program's log goes) and in the report of the work under way."""
    LOGGER.warning("%s", text)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Inside, warnings of ours are gathered into the list as well as printed, each text once.

    What other threads warn of in the meantime is heard too.

    Example:
        >>> with heard() as found:
        ...     LOGGER.warning("the cache of %s was left out", "x")
        >>> found
        ['the cache of x was left out']
    """
    found: list[str] = []
    listener = _Listener(found)
    shown = warnings.showwarning

    def also_kept(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if raised_here():
            _add(found, str(message))
        shown(message, category, filename, lineno, file, line)

    LOGGER.addHandler(listener)
    warnings.showwarning = also_kept
    try:
        yield found
    finally:
        warnings.showwarning = shown
        LOGGER.removeHandler(listener)


@contextmanager
def program(verbose: bool) -> Iterator[None]:
    """How the program speaks on stderr: each warning of ours in a line, and of other libraries' only with `verbose`."""
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

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it has handlers and levels of its own
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
    """Whether the Python warning that is being shown was raised by code of this package; asked while it is shown.

    Its file name does not say so, because `stacklevel` points at the code of whoever called us.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "warnings"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")).split(".")[0] == "tauspan"


def once(*groups: Iterable[str]) -> tuple[str, ...]:
    """Texts of several sources in their order, each once."""
    return tuple(dict.fromkeys(text for group in groups for text in group))


def in_one_line(text: str) -> str:
    """A message without line breaks, as a log shows it."""
    return " ".join(text.split())


def _add(found: list[str], text: str) -> None:
    if in_one_line(text) not in found:
        found.append(in_one_line(text))


class _Stderr(logging.StreamHandler[TextIO]):
    """Whatever stderr is when a line is written; warnings and errors by the program's name."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # the stream is looked up each time

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        text = in_one_line(record.getMessage())
        return text if record.levelno < logging.WARNING else f"tauspan: {record.levelname.lower()}: {text}"


class _Listener(logging.Handler):
    """Keeps the texts of warnings and errors."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        _add(self._found, record.getMessage())
        others = [one for one in _handlers(logging.getLogger(record.name)) if not isinstance(one, _Listener)]
        first = next(one for one in LOGGER.handlers if isinstance(one, _Listener))
        if self is first and not others and logging.lastResort is not None:
            logging.lastResort.handle(record)  # it speaks where no handler is, and listening is no handling


def _handlers(logger: logging.Logger | None) -> Iterator[logging.Handler]:
    """All that a logger's records come to."""
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None
