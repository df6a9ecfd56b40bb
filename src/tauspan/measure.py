"""What a piece of work took: seconds and peak memory; and progress bars for people who wait."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Seconds of wall time and the highest resident memory (device memory on CUDA) in MB; 0 until the work ends."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block. On Linux the peak is the block's own; elsewhere it is the process's so far."""
    cost = Cost()
    _reset_peak()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - started, 3)
        cost.peak_mb = round(_peak_mb(), 1)


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # Linux: forget the highest resident size so far
    except OSError:
        return


def _peak_mb() -> float:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):  # some sandboxes leave it out
                return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextmanager
def progress(description: str, total: int, show: bool) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on stderr; yields `advance(steps, note)`. Silent when `show` is false or nobody watches."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bars:
        bar = bars.add_task(description, total=total, note="")

        def advance(steps: int, note: str) -> None:
            bars.update(bar, advance=steps, note=note)

        yield advance
