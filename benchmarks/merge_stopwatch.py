"""One merge with a stopwatch at each kind of its work; the last line of the output is JSON of seconds.

    python -m benchmarks.merge_stopwatch RECIPE OUT [--workers 1] [--clock cpu] [--begun SECONDS]

Seconds of a kind leave out those of other kinds inside it and add up over threads. `whole` is the process from its start
on; with one worker the rest of it, `other`, is the reader of results, the queue between threads, and gaps. `--begun` is
when the process was started, in seconds since 1970; without it, and with CPU seconds, `starting` is Python's own count.
"""

import argparse
import functools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tauspan.merge import merge_files
from tauspan.merge.engine.engine import Engine
from tauspan.merge.sources.opening import FileSource
from tauspan.merge.stream import blocks, card, output, planning
from tauspan.merge.stream.blocks import Merging, Reader
from tauspan.store import Writer

KINDS = (
    "starting", "planning", "reading", "converting", "measuring", "combining", "rounding", "restoring", "accounting",
    "hashing", "writing", "finishing", "other",
)  # fmt: skip
PLACES: tuple[tuple[Any, str, str], ...] = (
    (planning, "open_recipe", "planning"),
    (planning, "plan_opened", "planning"),
    (FileSource, "read", "reading"),
    (Reader, "__call__", "converting"),
    (Engine, "ready", "measuring"),  # of one tensor
    (Engine, "piece", "combining"),
    (Merging, "_merge", "combining"),
    (blocks, "rounded", "rounding"),
    (Merging, "_restored", "restoring"),
    (blocks, "restore", "restoring"),
    (blocks, "account", "accounting"),
    (Merging, "_put", "hashing"),
    (Writer, "create", "writing"),
    (Writer, "write", "writing"),
    (Writer, "flush", "writing"),
    (Writer, "close", "writing"),
    (card, "write", "finishing"),
    (output, "finish", "finishing"),
)


class Stopwatch:
    """Seconds by kind of work, where work inside other work counts for itself alone.

    Args:
        now: the clock; that of a thread for CPU seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.taken = now, Counter[str]()
        self._lock, self._own = threading.Lock(), threading.local()

    def timed(self, kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose seconds count as that kind."""

        @functools.wraps(work)
        def run(*given: Any, **options: Any) -> Any:
            inner = self._inner()
            inner.append(0.0)
            begun = self.now()
            try:
                return work(*given, **options)
            finally:
                spent = self.now() - begun
                own = spent - inner.pop()
                if inner:
                    inner[-1] += spent
                with self._lock:
                    self.taken[kind] += own

        return run

    def _inner(self) -> list[float]:
        """Of each piece of work that this thread is in, the seconds of the work inside it."""
        if not hasattr(self._own, "inner"):
            self._own.inner = []
        found: list[float] = self._own.inner
        return found


@contextmanager
def watching(watch: Stopwatch) -> Iterator[None]:
    """Inside the block merges are timed at `PLACES`; what is measured of a whole model, in the threads that do it."""
    before = [(place, name, getattr(place, name)) for place, name, _ in (*PLACES, (Engine, "measure", ""))]
    measure = Engine.measure

    def measured(engine: Engine) -> None:
        run = engine.run
        engine.run = lambda work, items: run(watch.timed("measuring", work), items)
        try:
            measure(engine)
        finally:
            engine.run = run

    try:
        for place, name, kind in PLACES:
            setattr(place, name, watch.timed(kind, getattr(place, name)))
        Engine.measure = measured  # type: ignore[method-assign]
        yield
    finally:
        for place, name, was in before:
            setattr(place, name, was)


def merged(
    recipe: Path | Mapping[str, Any], out: Path, workers: int | None, clock: str = "wall"
) -> dict[str, float]:
    """Seconds by kind of one merge of this process."""
    watch = Stopwatch(time.thread_time if clock == "cpu" else time.perf_counter)
    with watching(watch):
        merge_files(recipe, out, workers=workers)
    return {kind: watch.taken[kind] for kind in KINDS if kind in watch.taken}


def main(arguments: list[str]) -> None:
    """Merge, and print seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--begun", type=float)
    given = parser.parse_args(arguments)
    starting = (
        time.process_time() if given.clock == "cpu" or given.begun is None else time.time() - given.begun
    )
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    begun = clock()
    taken = merged(given.recipe, given.out, given.workers, given.clock)
    whole = starting + clock() - begun
    taken = {"starting": starting, **taken, "other": whole - starting - sum(taken.values()), "whole": whole}
    sys.stdout.write(json.dumps(taken) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
