"""Interleaved timings, and the growth of memory of a piece of work in a process of its own."""

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Clock = Literal["wall", "cpu"]
_ROOT = Path(__file__).parents[1]
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Sample:
    """One run: seconds on the wall, and seconds of CPU time of this process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Spread:
    """The median of several values, with the smallest and the largest."""

    value: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    Raises:
        ValueError: no values.
    """
    return Spread(statistics.median(values), min(values), max(values))


Samples = Mapping[str, Sequence[Sample]]


def interleaved(
    work: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, list[Sample]]:
    """Run all variants in turn, `rounds` times, after `warmup` rounds that do not count.

    Turn by turn, the machine's mood reaches all alike, and the ratio within a round is what can be trusted.
    """
    taken: dict[str, list[Sample]] = {name: [] for name in work}
    for count in range(-warmup, rounds):
        for name, run in work.items():
            sample = once(run, device)
            if count >= 0:
                taken[name].append(sample)
    return taken


def once(run: Callable[[], object], device: str = "cpu") -> Sample:
    """Time one run; on a GPU until the device has finished."""
    _settle(device)
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    _settle(device)
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(samples: Samples, name: str, clock: Clock = "wall") -> Spread:
    """What a variant took."""
    return spread([getattr(sample, clock) for sample in samples[name]])


def ratio(samples: Samples, name: str, against: str, clock: Clock = "wall") -> Spread:
    """A variant's time over another's, formed round by round."""
    pairs = zip(samples[name], samples[against], strict=True)
    return spread([getattr(one, clock) / getattr(other, clock) for one, other in pairs])


# -- memory ------------------------------------------------------------------------------------------------------


def growth(run: Callable[[], object], device: str = "cpu") -> float:
    """MiB by which memory peaks above where it stood before the run.

    On a GPU the allocator's own count. On a CPU resident memory, sampled every 2 ms, or the system's own peak where
    that has risen; use a fresh process, because memory that an earlier run gave back may still be resident, and work that
    never gives up the interpreter's lock is seen by the system's peak alone.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before, risen = resident(), highest()
    with _sampled() as peaks:
        run()
    after = highest()
    return (max(max(peaks), after if after > risen else 0.0) - before) / 2**20


def resident() -> float:
    """Resident memory of this process in bytes; where the system does not tell, its highest so far."""
    if not _STATM.exists():
        return highest()
    return int(_STATM.read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def highest() -> float:
    """The highest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


@contextmanager
def _sampled() -> Iterator[list[float]]:
    peaks = [resident()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peaks[0] = max(peaks[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()
        peaks[0] = max(peaks[0], resident())


def in_fresh_process(module: str, arguments: Sequence[str], threads: int) -> Any:
    """Run `python -m module ARGUMENTS` and read the JSON that it writes to its standard output.

    Raises:
        RuntimeError: it failed; the message holds its standard error.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=_ROOT, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
