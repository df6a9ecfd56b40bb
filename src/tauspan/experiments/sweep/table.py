"""The live table of a sweep."""

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tauspan.core.errors import listed
from tauspan.core.measure import Advance, on_terminal, progress, shown

State = Literal["waiting", "running", "done", "reused", "failed", "again"]
log = logging.getLogger(__name__)
_WIDTH = 80
_FRAME = 5  # lines of the title, the head, the counts and the cursor
_COLOURS: dict[str, str] = {
    "running": "cyan",
    "done": "green",
    "reused": "green",
    "failed": "red",
    "again": "yellow",
}


@dataclass
class _Row:
    state: State = "waiting"
    worker: str = ""
    seconds: float | None = None
    began: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether the job is over."""
        return self.state in ("done", "reused", "failed")

    def shown_seconds(self) -> str:
        seconds = time.monotonic() - self.began if self.state == "running" else self.seconds
        return "" if seconds is None else f"{seconds:.1f}"


class JobTable:
    """The state of each job: a live table on a terminal, else lines like those of other work (`measure.progress`).

    Without a terminal each change is also a line in the log.
    """

    def __init__(self, names: list[str], console: Console | None = None) -> None:
        self._rows = {name: _Row() for name in names}
        self._console = console or Console(stderr=True)
        self._stack = ExitStack()
        self._live: Live | None = None
        self._advance: Advance | None = None
        if shown() and self._console.is_terminal and (console is not None or on_terminal()):
            self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> "JobTable":
        if self._live:
            self._stack.enter_context(self._live)
        else:
            self._advance = self._stack.enter_context(progress("jobs", len(self._rows)))
            self._advance(sum(row.settled for row in self._rows.values()), "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def set(self, name: str, state: State, worker: str = "", seconds: float | None = None) -> None:
        """Set the state of a job and show it."""
        row = _Row(state, worker, seconds, time.monotonic())
        if (row.state, row.worker) == (self._rows[name].state, self._rows[name].worker):
            return
        settles = row.settled and not self._rows[name].settled
        self._rows[name] = row
        if self._advance:
            self._advance(int(settles), self._under_way())
        if not self._live:
            by = f" ({worker})" if worker else ""
            took = "" if seconds is None else f", {seconds:.1f} s"
            log.info("%s: %s%s%s", name, state, by, took)

    def _under_way(self) -> str:
        """Which jobs run, and how many failed."""
        running = [name for name, row in self._rows.items() if row.state == "running"]
        failed = sum(row.state == "failed" for row in self._rows.values())
        words = (f"running: {listed(running, 3)}" if running else "", f"{failed} failed" if failed else "")
        return ", ".join(filter(None, words))

    def render(self) -> Table:
        """The table of all jobs or, if the screen has too few lines, of those that run, failed or are tried again."""
        grid = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, width=min(_WIDTH, self._console.width),
            caption=Text(self.counts()), caption_justify="left",
        )  # fmt: skip
        grid.add_column("job", ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_column("state", width=7)
        grid.add_column("worker", width=13, no_wrap=True, overflow="ellipsis")
        grid.add_column("seconds", width=8, justify="right")
        for name in self._fitting():
            row = self._rows[name]
            state = Text(row.state, style=_COLOURS.get(row.state, ""))
            grid.add_row(Text(name), state, Text(row.worker), row.shown_seconds())
        return grid

    def _fitting(self) -> list[str]:
        room = max(self._console.height - _FRAME, 1)
        if len(self._rows) <= room:
            return list(self._rows)
        rank = {"running": 0, "failed": 1, "again": 2}
        urgent = [name for name, row in self._rows.items() if row.state in rank]
        return sorted(urgent, key=lambda name: rank[self._rows[name].state])[:room]

    def counts(self) -> str:
        """How many jobs are in each state.

        Example:
            >>> JobTable(["a", "b"]).counts()
            '2 jobs: 2 waiting'
        """
        found = Counter(row.state for row in self._rows.values())
        return f"{len(self._rows)} jobs: " + ", ".join(f"{count} {state}" for state, count in found.items())
