"""`kernel_plan`: what the kernels of some tasks will take, before they are computed."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.choices import SplitName
from tauspan.core.errors import UsageError
from tauspan.core.measure import underway
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, duration, in_words, noted, provenance
from tauspan.core.results import Result
from tauspan.kernel import Backend
from tauspan.kernel.diagnose.rows import KernelOutputs, KernelSettings, task_kernels
from tauspan.models import Encoder, fingerprint_of
from tauspan.tangent.cache.room import free_memory
from tauspan.tasks import Task

_ROOM = 0.9  # of the memory
_COPIES = 3  # of the whole matrix: the tasks' own, the union's, and eigenvectors


@dataclass(frozen=True)
class TaskPace:
    """What one task's rows cost.

    Args:
        task: its name.
        rows: N, as many as will be read.
        outputs: O of each.
        prepared: seconds of its head, of reading the rows, of the checks that each depends on itself alone, and of the
            comparison of entries with rows of J by autograd.
        recorded: seconds in which all rows are recorded once.
        pair: seconds for a pair of rows.
        held: bytes of a recorded row.
    """

    task: str
    rows: int
    outputs: int
    prepared: float
    recorded: float
    pair: float
    held: int


@dataclass(frozen=True, kw_only=True)
class KernelPlan(Result):
    """What `kernel_report` with the same arguments will take on this machine.

    Args:
        tasks: by task, from some of its rows.
        memory: bytes that are free.
        timed: rows of each task that were timed.
    """

    tasks: Sequence[TaskPace]
    memory: int
    timed: int

    @property
    def own(self) -> float:
        """Seconds of the kernels of each task."""
        return sum(one.recorded + one.pair * one.rows * (one.rows + 1) / 2 for one in self.tasks)

    @property
    def between(self) -> float:
        """Seconds between tasks: all rows are recorded again, once where they fit into a quarter of the memory."""
        pairs = list(combinations(self.tasks, 2))
        if not pairs:
            return 0.0
        fits = sum(one.rows * one.held for one in self.tasks) <= self.memory // 4
        again = 1 if fits else len(self.tasks) - 1
        multiplied = sum(math.sqrt(one.pair * two.pair) * one.rows * two.rows for one, two in pairs)
        return again * sum(one.recorded for one in self.tasks) + multiplied

    @property
    def prepared(self) -> float:
        """Seconds before the first entry."""
        return sum(one.prepared for one in self.tasks)

    @property
    def seconds(self) -> float:
        """Of everything."""
        return self.prepared + self.own + self.between

    @property
    def matrix(self) -> int:
        """Bytes of the kernel of all tasks."""
        return 8 * sum(one.rows * one.outputs for one in self.tasks) ** 2

    @property
    def fits(self) -> bool:
        """Whether the matrix and its copies fit into nine tenths of the free memory."""
        return _COPIES * self.matrix <= _ROOM * self.memory

    @property
    def verdict(self) -> str:
        """The answer in one sentence."""
        size = f"a matrix of {in_words(self.matrix)}, {in_words(self.memory)} free"
        if not self.fits:
            return f"does not fit with the copies that it needs: {size}; take fewer rows or outputs"
        return f"about {duration(self.seconds)}; {size}"

    def report(self) -> Report:
        """The verdict, the work of each task, and the whole."""
        rows: list[dict[str, Cell]] = [
            {
                "task": one.task, "rows": one.rows, "outputs": one.outputs, "prepare": f"{one.prepared:.3g} s",
                "record": f"{one.recorded:.3g} s", "a pair of rows": f"{1e6 * one.pair:.3g} us",
                "held a row": in_words(one.held),
            }
            for one in self.tasks
        ]  # fmt: skip
        work: list[dict[str, Cell]] = [
            {"what": what, "value": duration(seconds)}
            for what, seconds in (
                ("before the first entry", self.prepared), ("kernels of tasks", self.own),
                ("between tasks", self.between),
            )
        ]  # fmt: skip
        tables = [
            Table("Tasks", rows, f"from {self.timed} rows of each"),
            Table("Work", work),
        ]
        result = {"fits": self.fits, "seconds": self.seconds, "matrix": self.matrix}
        return Report(
            "Tangent kernel: plan", tables, dict(self.provenance), result=result,
            warnings=tuple(self.warnings), verdict=self.verdict,
        )  # fmt: skip


@noted
@checked
def kernel_plan(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    rows: int = 64,
    split: SplitName = "train",
    outputs: KernelOutputs = "contrast",
    params: str | Sequence[str] = "all",
    reading: Reading = Reading(batch_size=32),
    backend: Backend = "auto",
    seed: int = 0,
    timed: int = 12,
) -> KernelPlan:
    """How long `kernel_report` with the same arguments will take, and whether its matrix fits.

    Time is affine in rows and in pairs of rows: seconds = a + b N for reading and checking, r N for recording, and
    p N^2 / 2 for products. The four numbers come from `timed` and twice as many rows of each task.

    Args:
        encoder: as for `kernel_report`, as all others.
        tasks: one or more.
        rows: at most so many of each task.
        split: the split that they are drawn from.
        outputs: of the logits.
        params: the parameters whose tangents count.
        reading: batches, and where texts are cut.
        backend: of the kernels.
        seed: of the draw.
        timed: rows of each task that are recorded and multiplied, 2 or more.

    Raises:
        UsageError: as `kernel_report`; fewer than 2 timed rows; kernels by products.

    Cost:
        Two preparations and two recordings of at most 2 `timed` rows of each task.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> found = kernel_plan(ts.load(torch.nn.Linear(4, 3)), [task], timed=2)
        >>> found.fits, found.matrix
        (True, 128)
    """
    reading.require_no_point("kernel_plan")
    if timed < 2:
        raise UsageError(f"timed={timed}: a pace comes from 2 rows or more.")
    found = []
    with underway("kernel plan"):
        for task in tasks:
            few = KernelSettings(min(rows, timed), split, outputs, reading, backend, seed)
            more = KernelSettings(min(rows, 2 * timed), split, outputs, reading, backend, seed)
            found.append(_timed(encoder, task, params, few, more, rows))
    where = provenance(
        base=fingerprint_of(encoder), params=params if isinstance(params, str) else list(params)
    )
    return KernelPlan(tasks=found, memory=free_memory(), timed=timed, provenance=where)


def _timed(
    encoder: Encoder, task: Task, params: Any, few: KernelSettings, more: KernelSettings, rows: int
) -> TaskPace:
    count = min(rows, len(task.split(few.split)))
    task_kernels(encoder, [task], params, few)  # what a model makes at its first call is not counted
    begun = time.perf_counter()
    task_kernels(encoder, [task], params, few)
    between = time.perf_counter()
    (one,) = task_kernels(encoder, [task], params, more)
    first, second = between - begun, time.perf_counter() - between
    small, large = min(few.rows, count), min(more.rows, count)
    slope = max(second - first, 0.0) / (large - small) if large > small else 0.0
    begun = time.perf_counter()
    one.kernel.block([0, 1], [0, 1])
    compared = time.perf_counter() - begun
    pace = one.kernel.pace(large)
    prepared = second + slope * (count - large) + compared
    return TaskPace(task.name, count, one.kernel.outputs, prepared, pace.row * count, pace.pair, pace.held)
