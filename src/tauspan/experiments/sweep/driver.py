"""`sweep`: many jobs over several workers, each finished once."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import tauspan.core.errors as kinds
from tauspan.core.arguments import checked
from tauspan.core.errors import TauspanError, UsageError, listed, nearest
from tauspan.core.notices import tell
from tauspan.core.schema import shown
from tauspan.experiments.sweep.cluster import Ray
from tauspan.experiments.sweep.executors import Makes, Submits, Submitted, require_executor
from tauspan.experiments.sweep.job import Job, require_distinct
from tauspan.experiments.sweep.pool import Backend, Died, Processes
from tauspan.experiments.sweep.results import Results
from tauspan.experiments.sweep.table import JobTable
from tauspan.experiments.sweep.worker import Outcome

BackendName = Literal["processes", "ray"]
OnErrors = Literal["raise", "return"]
BACKENDS: dict[str, Callable[[int, str | None], Backend]] = {
    "processes": Processes,
    "ray": lambda threads, device: Submitted(functools.partial(Ray, threads, device), None),
}
TICK = 0.2  # seconds between two checks of the workers and of the jobs of other sweeps


@checked
def sweep(
    jobs: Sequence[Job],
    folder: str | Path,
    workers: int = 1,
    backend: BackendName | Submits | Makes = "processes",
    threads: int | None = None,
    *,
    attempts: int = 3,
    device: str | None = None,
    errors: OnErrors = "raise",
) -> dict[str, Any]:
    """Do every job once, several at a time, and keep each result as a JSON file.

    A job whose result file exists is not done again. Several sweeps may share a folder and its work: each job is locked
    while it is done; if another sweep holds the lock, this one waits and reads the result. A worker that dies (killed,
    out of memory) costs its job an attempt, and another worker takes the job. When a job fails, the others are still
    done, and the files of those that succeeded stay. Ctrl-C ends the workers; finished results stay. Warnings of
    tauspan in a job are repeated in this process.

    Args:
        jobs: what to do, under distinct names.
        folder: results as `NAME.json`, what the jobs printed as `logs/NAME.log`.
        workers: jobs at a time.
        backend: `processes` on this machine, or `ray` (the extra `ray`) on a cluster; or an executor, such as those of
            `concurrent.futures`, loky, Dask, Parsl and submitit (Slurm), which stays open; or a function that makes one,
            which is called again when one breaks, as a pool of processes does as a whole with one of its workers. A job
            of an executor cannot be ended before it is done, and what it prints goes where the executor puts it.
        threads: of torch in each worker; None shares this machine's cores among the workers, is 1 with `ray`, and leaves
            it to an executor of yours.
        attempts: how many workers may die of a job before it counts as failed.
        errors: what to do with failed jobs when all are done. `"raise"` raises the first one's error, in the order of the
            jobs, which names all that failed and their logs. `"return"` raises nothing for them: the result of
            a failed job is its error, an object of `TauspanError`.
        device: what jobs read as the variable `TAUSPAN_DEVICE`; of several GPUs each worker of `"cuda"` sees one. With an
            executor of threads neither `threads` nor `device` can be told.

    Returns:
        Results by name, in the order of the jobs, as JSON gives them back; with `errors="return"` also errors. Results do
        not depend on workers or backend; give `threads` where last digits count, because torch rounds sums otherwise
        with another number of threads.

    Raises:
        UsageError: names that collide, a function that is not there or does not take its arguments, workers < 1, what is
            no backend; before anything starts.
        StoreError: a file of that name holds another job's result, or is damaged; the folder cannot be written.
        MissingExtraError: `ray` is not installed.
        TauspanError: what a job raised, in its class if it is one of tauspan's, else in this one; or its workers died, or
            the executor takes no more jobs.

    Cost: a worker starts within about 0.1 s and loads torch only if a job does; it is kept from job to job.

    Example:
        >>> import tempfile
        >>> jobs = [Job(f"mean{n}", "statistics:fmean", {"data": [0, n]}) for n in (2, 4)]
        >>> sweep(jobs, tempfile.mkdtemp(), workers=2)
        {'mean2': 1.0, 'mean4': 2.0}
        >>> jobs.append(Job("mean0", "statistics:fmean", {"data": []}))
        >>> found = sweep(jobs, tempfile.mkdtemp(), errors="return")
        >>> [name for name, result in found.items() if isinstance(result, TauspanError)]
        ['mean0']
    """
    for name, value in (("workers", workers), ("attempts", attempts), ("threads", threads)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"{name}={shown(value)}: give a whole number from 1 on.")
    if not isinstance(backend, str):
        require_executor(backend)
    elif backend not in BACKENDS:
        raise UsageError(f"there is no backend {shown(backend)}. {nearest(str(backend), BACKENDS)}")
    require_distinct(jobs)
    for job in jobs:
        job.require_callable()
    results = Results(Path(folder))
    with JobTable([job.name for job in jobs]) as table:
        under_way = _Sweep(jobs, results, table, attempts)
        if not under_way.finished:
            with closing(_backend(backend, workers, threads, device)) as running:
                under_way.run(running, workers)
    if under_way.failed and errors == "raise":
        raise _first_failure(jobs, under_way.failed, results)
    whole = {**under_way.done, **under_way.failed}
    return {job.name: whole[job.name] for job in jobs}


def _backend(chosen: str | Submits | Makes, workers: int, threads: int | None, device: str | None) -> Backend:
    if not isinstance(chosen, str):
        return Submitted(chosen, threads, device)
    if threads is None:
        threads = max(1, _cores() // workers) if chosen == "processes" else 1
    return BACKENDS[chosen](threads, device)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Sweep:
    """The state of a sweep: each job is open, running under a lock, done or failed."""

    def __init__(self, jobs: Sequence[Job], results: Results, table: JobTable, attempts: int) -> None:
        self.results, self.table, self.attempts = results, table, attempts
        self.done: dict[str, Any] = {}
        self.failed: dict[str, TauspanError] = {}
        self._deaths: Counter[str] = Counter()
        self._running: dict[str, tuple[Job, str, ExitStack]] = {}
        self._open = [job for job in jobs if not self._reused(job)]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self._open and not self._running

    def run(self, backend: Backend, workers: int) -> None:
        """Start jobs and collect their outcomes until every job is done or failed."""
        try:
            while not self.finished:
                for job in list(self._open):
                    if len(self._running) == workers:
                        break
                    self._begin(job, backend)
                for name, outcome in backend.wait(TICK).items():
                    self._settle(name, outcome)
        finally:
            for _, _, lock in self._running.values():
                lock.close()

    def _reused(self, job: Job) -> bool:
        content = self.results.find(job)
        if content is None:
            return False
        self.done[job.name] = content["content"]
        self.table.set(job.name, "reused", seconds=content["cost"].get("seconds"))
        return True

    def _begin(self, job: Job, backend: Backend) -> None:
        """Start the job, or move it to the end of the queue if another sweep is doing it."""
        self._open.remove(job)
        lock = self.results.stages.lock(job.name)
        if lock is None:
            self._open.append(job)
            self.table.set(job.name, "waiting", "another sweep")
            return
        with ExitStack() as kept:
            kept.push(lock)
            if self._reused(job):  # finished elsewhere before the lock was free
                return
            worker = backend.start(job, self.results.log(job))
            self._running[job.name] = (job, worker, kept.pop_all())
            self.table.set(job.name, "running", worker)

    def _settle(self, name: str, outcome: Outcome | Died) -> None:
        job, worker, lock = self._running.pop(name)
        with lock:
            if isinstance(outcome, dict) and "told" not in outcome:
                for text in outcome.get("warnings", ()):
                    tell(text)
            if isinstance(outcome, Died):
                self._bury(job, worker, outcome)
            elif "error" in outcome:
                self.results.note(job, outcome["error"]["traceback"])
                self.failed[name] = _rebuilt(job, outcome["error"], self.results.log(job))
                self.table.set(name, "failed", worker, outcome["seconds"])
            else:
                self.results.write(
                    job, outcome["result"], outcome["seconds"], outcome["warnings"], self._deaths[name] + 1
                )
                self.done[name] = outcome["result"]
                self.table.set(name, "done", worker, outcome["seconds"])

    def _bury(self, job: Job, worker: str, death: Died) -> None:
        self._deaths[job.name] += 1
        deaths, file = self._deaths[job.name], self.results.log(job)
        self.results.note(job, f"attempt {deaths} of {self.attempts}, worker {worker}: {death.how}.\n")
        if deaths < self.attempts:
            self._open.insert(0, job)
            self.table.set(job.name, "again", f"attempt {deaths + 1}")
            return
        self.failed[job.name] = TauspanError(
            f"job {job.name!r} ({job.function}) was given up after attempt {deaths} of {self.attempts}: {death.how}. "
            f"What it printed is in {file}. Give it more memory (fewer workers, smaller batches) or repair it, and sweep "
            "again."
        )
        self.table.set(job.name, "failed", worker)


def _rebuilt(job: Job, error: dict[str, str], log: Path) -> TauspanError:
    """The error that a job raised, in its own class of `tauspan.core.errors`, or else as a `TauspanError`."""
    kind = getattr(kinds, error["type"] or "", None)
    if isinstance(kind, type) and issubclass(kind, TauspanError):
        return kind(f"{error['text']} (raised by job {job.name!r}; log: {log})")
    return TauspanError(
        f"job {job.name!r} ({job.function}) failed: {error['line']}. The whole traceback is in {log}. Repair it and "
        "sweep again: finished jobs are not done again."
    )


def _first_failure(jobs: Sequence[Job], failed: dict[str, TauspanError], results: Results) -> TauspanError:
    """The error of the first failed job, in the order of the jobs, which also lists the others and their logs."""
    lost = [job for job in jobs if job.name in failed]
    first = failed[lost[0].name]
    if len(jobs) == 1:
        return first
    others = listed((f"{job.name!r} ({results.log(job)})" for job in lost[1:]), 12)
    more = f"; the others: {others}" if others else ""
    kept = (
        f"{len(jobs) - len(lost)} results are in {results.folder}"
        if len(lost) < len(jobs)
        else "there is no result"
    )
    return type(first)(
        f"{first} {len(lost)} of {len(jobs)} jobs failed{more}. {kept}; errors='return' gives both together."
    )
