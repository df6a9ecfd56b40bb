"""Jobs through any executor: what has `submit` and gives futures, as `concurrent.futures` has it.

That is a pool of the standard library, loky, Dask's `client.get_executor()`, Parsl's and executorlib's, and what looks
like one: submitit's, which puts jobs into Slurm's queue.
"""

import concurrent.futures
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tauspan.core.errors import TauspanError, UsageError
from tauspan.core.schema import shown
from tauspan.experiments.sweep.job import Job
from tauspan.experiments.sweep.pool import Died, variables
from tauspan.experiments.sweep.worker import Outcome, perform

_PAUSE = 0.05  # seconds between two looks at futures that cannot be waited for together


class Submits(Protocol):
    """What takes calls: `submit(function, *arguments)` returns a future with `done()`, `result()` and `cancel()`."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Have the function called somewhere, at some time."""


Makes: TypeAlias = Callable[[], Submits]


def require_executor(given: Any) -> None:
    """Raise `UsageError` unless it is an executor, or makes one when it is called."""
    if not callable(getattr(given, "submit", None)) and not callable(given):
        raise UsageError(
            f"backend={shown(given)} is no executor: give 'processes', 'ray', an object with `submit` such as "
            "ProcessPoolExecutor(4), or a function without arguments that makes one."
        )


class Submitted:
    """A backend on an executor, or on those that a function makes: another one each time that one breaks.

    An executor that was given stays open, and its jobs go on after an interruption; one that was made is shut down.

    Args:
        executor: the executor, or what makes it.
        threads: of torch and the libraries below it, in each job; None leaves them as the executor's processes have them.
        device: what jobs read as `TAUSPAN_DEVICE`; None leaves the variable as it is there.
    """

    def __init__(self, executor: Submits | Makes, threads: int | None, device: str | None = None) -> None:
        made = isinstance(executor, type) or not hasattr(executor, "submit")
        self._make: Makes | None = executor if made else None  # type: ignore[assignment]
        self._executor: Any = executor if self._make is None else self._make()
        self._settings = variables(threads, device)
        self._running: dict[str, Any] = {}

    def start(self, job: Job, log: Path) -> str:
        """Submit the job, and return the kind of executor as the worker's name.

        Raises:
            TauspanError: the executor takes no more jobs, and there is nothing that makes another.
        """
        call = (perform_there, job.function, dict(job.arguments), self._settings, _here())
        try:
            future = self._executor.submit(*call)
        except RuntimeError as error:  # also that a pool is broken
            if self._make is None:
                raise TauspanError(
                    f"the executor {type(self._executor).__name__} takes no more jobs ({_first_line(error)}). Sweep "
                    "again with a new one, finished jobs are not done again; or give what makes one, such as "
                    "backend=lambda: ProcessPoolExecutor(4), and a broken one is replaced."
                ) from error
            self._shut()
            self._executor = self._make()
            future = self._executor.submit(*call)
        self._running[job.name] = future
        return type(self._executor).__name__

    def wait(self, seconds: float) -> Mapping[str, Outcome | Died]:
        """The outcomes that have arrived, and `Died` for jobs that the executor has lost."""
        futures = list(self._running.values())
        if futures and all(isinstance(one, concurrent.futures.Future) for one in futures):
            concurrent.futures.wait(futures, seconds, concurrent.futures.FIRST_COMPLETED)
        else:
            latest = time.monotonic() + seconds
            while time.monotonic() < latest and not any(future.done() for future in futures):
                time.sleep(min(_PAUSE, seconds))
        done = [name for name, future in self._running.items() if future.done()]
        return {name: _outcome(self._running.pop(name)) for name in done}

    def close(self) -> None:
        """Cancel the jobs that have not begun, and shut the executor down if it was made here."""
        for future in self._running.values():
            future.cancel()
        self._running = {}
        self._shut()

    def _shut(self) -> None:
        if self._make is not None and hasattr(self._executor, "shutdown"):
            with suppress(TypeError):  # an executor that takes other arguments
                self._executor.shutdown(wait=False, cancel_futures=True)


def perform_there(
    function: str, arguments: Mapping[str, Any], settings: Mapping[str, str], sender: tuple[str, int]
) -> Outcome:
    """What the executor calls: `perform`, after the environment was set, except in a thread of the sweep's process.

    Returns:
        The outcome; with `told` if the warnings were shown in the sweep's own process.
    """
    if _here() == sender:
        if settings:
            return perform(f"{__name__}:refuse", {"settings": dict(settings)})
        return perform(function, arguments) | {"told": True}
    os.environ.update(settings)
    torch: Any = sys.modules.get("torch")
    if (
        torch is not None and "OMP_NUM_THREADS" in settings
    ):  # it was loaded before, and reads the variable no more
        torch.set_num_threads(int(settings["OMP_NUM_THREADS"]))
    return perform(function, arguments)


def refuse(settings: Mapping[str, str]) -> None:
    """Raise `UsageError`: a job in a thread has the environment of the process around it."""
    raise UsageError(
        "threads and device are told to jobs by the environment, which a job in a thread of this process shares with "
        f"everything else here (it would be {', '.join(f'{key}={value}' for key, value in settings.items())}). Leave "
        "them out, or give an executor with processes."
    )


def _here() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _outcome(future: Any) -> Outcome | Died:
    try:
        outcome = future.result()
    except (
        Exception,
        concurrent.futures.CancelledError,
    ) as error:  # `perform` raises nothing: the executor did
        return Died(f"the executor lost it: {_first_line(error)}")
    if not isinstance(outcome, dict) or "seconds" not in outcome:
        return Died(f"the executor gave {shown(outcome)} in the place of its outcome")
    return dict(outcome)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
