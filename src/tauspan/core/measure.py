"""Seconds and peak memory of a piece of work, and its progress."""

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Advance: TypeAlias = Callable[[int, str], None]
SILENCE = 15.0  # seconds between two lines of progress where there is no terminal
_BLINK = 0.5  # seconds between two drawings of a bar in a notebook
_log = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Seconds of wall time and the highest resident memory (device memory on CUDA) in MB; 0 until the work ends."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block.

    On Linux the peak is that of the block; elsewhere that of the whole process so far, or 0 where it is not known.
    """
    cost = Cost()
    _reset_peak()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - started, 3)
        cost.peak_mb = round(_peak_mb(), 1)


def _cuda() -> Any:
    """`torch.cuda` if CUDA is in use, else None; torch is not imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _reset_peak() -> None:
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # Linux: reset the peak of the resident size
    except OSError:
        return


def _peak_mb() -> float:
    cuda = _cuda()
    if cuda is not None and cuda.max_memory_allocated():
        return float(cuda.max_memory_allocated()) / 2**20
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):  # some sandboxes leave it out
                return int(line.split()[1]) / 1024
    try:
        resource: Any = importlib.import_module("resource")  # POSIX alone has it
    except ImportError:
        return 0.0
    unit = 2**20 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


# -- how far it is -----------------------------------------------------------------------------------------------


_QUIET = ContextVar("quiet", default=False)
_DRAWN = ContextVar(
    "drawn", default=False
)  # whether a bar is on the screen; work inside it draws no second one


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no progress inside this block, for this thread and its tasks only.

    Args:
        on: False shows progress again inside a quiet block.

    Example:
        >>> with quiet(), progress("work", 3) as advance:
        ...     advance(1, "nobody is told")
    """
    token = _QUIET.set(on)
    try:
        yield
    finally:
        _QUIET.reset(token)


def shown() -> bool:
    """Whether progress is shown here."""
    return not _QUIET.get()


@contextmanager
def progress(description: str, total: int, show: bool = True) -> Iterator[Advance]:
    """Show the progress of a piece of work; yields `advance(steps, note)`.

    On a terminal it is a bar, in a notebook a bar below the cell, and elsewhere (a pipe, a file, a job's log) a plain
    line on stderr at least every `SILENCE` seconds: what is done, how much of it, and the time so far. If logging shows
    INFO, the lines go to the logger `tauspan.core.measure` instead. Inside `quiet()` nothing is shown.

    Args:
        description: the work, in words.
        total: how many steps there are.
        show: False for processes other than the first.
    """
    with _told(Work(description, total), show) as advance:
        yield advance


def _told(work: "Work", show: bool) -> AbstractContextManager[Advance]:
    if not show or not shown() or _DRAWN.get():
        return _LINES.passing(work)
    if on_terminal():
        return _bar(work)
    return _cell(work) if in_notebook() else _LINES.telling(work)


@contextmanager
def underway(description: str, show: bool = True, total: int | None = None) -> Iterator[Advance]:
    """Progress of work that contains other work, such as a whole run: named in the lines, and never drawn as a bar."""
    lines = show and shown() and not on_terminal() and not in_notebook()
    work = Work(description, total)
    with _LINES.telling(work) if lines else _LINES.passing(work) as advance:
        yield advance


@contextmanager
def _drawing() -> Iterator[None]:
    token = _DRAWN.set(True)
    try:
        yield
    finally:
        _DRAWN.reset(token)


@dataclass(eq=False)
class Work:
    """A piece of work in progress: the steps done, the time it began, and a note on the last step."""

    description: str
    total: int | None = None
    done: int = 0
    note: str = ""
    began: float = field(default_factory=lambda: time.monotonic())
    _first: tuple[float, int] | None = None

    def advance(self, steps: int, note: str) -> None:
        """Count further steps as done."""
        self.done, self.note = self.done + steps, note
        if self._first is None:  # a resumed run first counts the steps of the earlier run
            self._first = time.monotonic(), self.done

    def so_far(self) -> str:
        """The work and the share of its steps that is done, in words."""
        return self.description if self.total is None else f"{self.description}: {self.done} of {self.total}"

    def left(self, now: float) -> float | None:
        """Seconds left at the pace since the first step; None where the pace is not known yet."""
        if self._first is None or self.total is None or not self._first[1] < self.done < self.total:
            return None
        return (now - self._first[0]) / (self.done - self._first[1]) * (self.total - self.done)

    def line(self, now: float) -> str:
        """`so_far` with the note and the time left."""
        left = self.left(now)
        parts = (self.so_far(), self.note, "" if left is None else f"about {in_hours(left)} left")
        return ", ".join(filter(None, parts))


def in_hours(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> in_hours(3723.4)
        '1:02:03'
    """
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class _Lines:
    """The lines of progress of this process: one thread writes one for the innermost work every `SILENCE` seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: list[Work] = []
        self._ended = threading.Event()
        self._said = 0.0

    @contextmanager
    def passing(self, work: Work) -> Iterator[Advance]:
        """Progress that is not shown."""
        yield work.advance

    @contextmanager
    def telling(self, work: Work) -> Iterator[Advance]:
        """Progress that is shown as lines."""
        with self._lock:
            self._works.append(work)
            if len(self._works) == 1:
                self._said, self._ended = work.began, threading.Event()
                threading.Thread(target=self._watch, args=(self._ended,), daemon=True).start()
        try:
            yield work.advance
        finally:
            with self._lock:
                self._works.remove(work)
                if not self._works:
                    self._ended.set()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(max(self._said + SILENCE - time.monotonic(), 0.01)):
            with self._lock:
                now = time.monotonic()
                due = not ended.is_set() and now - self._said >= SILENCE
                line = _line(self._works, now) if due else ""
                self._said = now if due else self._said
            if due:
                _say(line)


_LINES = _Lines()  # one for the whole process, as stderr is


def _line(works: list[Work], now: float) -> str:
    *around, inner = works
    parts = [*(work.so_far() for work in around), inner.line(now)]
    return f"[{in_hours(now - works[0].began)}] {'; '.join(parts)}"


def _say(line: str) -> None:
    if _log.isEnabledFor(logging.INFO):
        _log.info("%s", line)
        return
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader of stderr has gone; the work continues
        return


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    if not sys.stderr.isatty():
        return False
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def _bar(work: Work) -> Iterator[Advance]:
    """Progress as a bar on the terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with _drawing(), Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(work.description, total=work.total, note="")

        def advance(steps: int, note: str) -> None:
            bars.update(bar, advance=steps, note=note)

        yield advance


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which can show a bar below the cell."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class _Cell:
    """A piece of work as a notebook displays it."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __repr__(self) -> str:
        now = time.monotonic()
        return f"[{in_hours(now - self._work.began)}] {self._work.line(now)}"

    def _repr_html_(self) -> str:
        from html import escape

        bar = f'<progress value="{self._work.done}" max="{self._work.total}"></progress>'
        return f"<div>{bar} <code>{escape(repr(self))}</code></div>"


@contextmanager
def _cell(work: Work) -> Iterator[Advance]:
    """Progress as a bar below the notebook's cell; IPython is enough, without widgets."""
    display: Any = sys.modules["IPython"].display
    handle = display.display(_Cell(work), display_id=True)
    shown = time.monotonic()

    def advance(steps: int, note: str) -> None:
        nonlocal shown
        work.advance(steps, note)
        if time.monotonic() - shown >= _BLINK:
            shown = time.monotonic()
            handle.update(_Cell(work))

    try:
        with _drawing():
            yield advance
    finally:
        handle.update(_Cell(work))
