"""Worker processes: started, given one job at a time, watched, ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Protocol

from tauspan.experiments.sweep.job import Job
from tauspan.experiments.sweep.worker import Outcome

GRACE = 5.0  # seconds that the workers have to end by themselves
_PROGRAM = Path(__file__).with_name("worker.py")
_LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
DEVICE = "TAUSPAN_DEVICE"  # not an argument of the job: the result is the same piece of work on any device
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def variables(threads: int, device: str | None = None) -> dict[str, str]:
    """The environment in which torch and the libraries below it use that many threads, and jobs know their device."""
    found = {f"{library}_NUM_THREADS": str(threads) for library in _LIBRARIES}
    return found if device is None else {**found, DEVICE: device}


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that the variable CUDA_VISIBLE_DEVICES knows them by."""
    listed = os.environ.get(_VISIBLE)
    if listed is not None:
        return [one.strip() for one in listed.split(",") if one.strip()]
    import torch  # a sweep whose jobs need no torch starts without it

    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Died:
    """How a worker ended that left no outcome."""

    how: str


class Backend(Protocol):
    """Where jobs are done. The sweep holds the locks and writes the results; a backend only calls functions."""

    def start(self, job: Job, log: Path) -> str:
        """Begin a job, and return the name of who does it."""

    def wait(self, seconds: float) -> Mapping[str, Outcome | Died]:
        """The outcomes that arrived, by the name of the job; waits at most so many seconds for one."""

    def close(self) -> None:
        """End all workers, in the middle of a job too."""


class Processes:
    """A few processes on this machine, started when they are needed and kept from job to job.

    Args:
        threads: of torch and of the libraries below it, in each process.
        device: what jobs read as `TAUSPAN_DEVICE`; of several GPUs each process of `"cuda"` sees the one that the
            fewest others see.
    """

    def __init__(self, threads: int, device: str | None = None) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        settings = variables(threads, device)
        self._environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(paths)}
        self._gpus = visible_gpus() if device == "cuda" else []
        self._idle: list[_Worker] = []
        self._busy: dict[str, _Worker] = {}

    def start(self, job: Job, log: Path) -> str:
        """Give the job to a worker that is free, or to a new one, and return its process id."""
        while True:
            worker = self._idle.pop() if self._idle else _Worker(self._own_environment(), log)
            self._busy[job.name] = worker  # before it can be interrupted, so that `close` knows it
            if worker.give(job, log):
                return str(worker.process.pid)
            worker.end()  # it died between two jobs

    def _own_environment(self) -> dict[str, str]:
        """The environment of the next worker."""
        if not self._gpus:
            return self._environment
        taken = [worker.environment[_VISIBLE] for worker in [*self._busy.values(), *self._idle]]
        return {**self._environment, _VISIBLE: min(self._gpus, key=taken.count)}

    def wait(self, seconds: float) -> Mapping[str, Outcome | Died]:
        """Outcomes that arrived, and workers that died."""
        # a child of a dead worker may keep its connection open, so the processes are asked too
        wait([worker.connection for worker in self._busy.values()], seconds)
        done: dict[str, Outcome | Died] = {}
        for name, worker in list(self._busy.items()):
            outcome = worker.outcome()
            if outcome is None:
                continue
            done[name] = outcome
            del self._busy[name]
            if not isinstance(outcome, Died):
                self._idle.append(worker)
        return done

    def close(self) -> None:
        """Workers with a job are interrupted, the others told to end; what does not end in time is killed."""
        for worker in self._busy.values():
            worker.interrupt()
        for worker in self._idle:
            worker.dismiss()
        latest = time.monotonic() + GRACE
        for worker in [*self._busy.values(), *self._idle]:
            worker.end(max(0.0, latest - time.monotonic()))
        self._busy, self._idle = {}, []


class _Worker:
    """One process and the connection to it. It leads a process group, to which everything it starts belongs."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = environment
        self.connection, theirs = Pipe()
        with theirs, log.open("ab") as file:
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-X", "faulthandler", str(_PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip

    def give(self, job: Job, log: Path) -> bool:
        """Send a job, and return whether the worker took it. If it dies after that, the job has lost an attempt."""
        if self.process.poll() is not None:
            return False
        message = {"function": job.function, "arguments": job.arguments, "log": str(log.absolute())}
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def outcome(self) -> Outcome | Died | None:
        """The outcome of the job, or that the process died; None while it works."""
        gone = self.process.poll() is not None  # asked first: what it sent before its end is read below
        try:
            if self.connection.poll():
                return dict(json.loads(self.connection.recv_bytes()))
        except (EOFError, OSError, ValueError):  # it ended, or something else was written into its connection
            gone = True
        if not gone:
            return None
        self.end()
        return Died(_death(self.process.returncode))

    def interrupt(self) -> None:
        """As Ctrl-C does: what the job has open is closed, and half-written files are removed."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def dismiss(self) -> None:
        """Tell it that no more jobs come."""
        with suppress(OSError):
            self.connection.send_bytes(b"null")

    def end(self, grace: float = 0.0) -> None:
        """Wait so long for its end, then kill it, and in any case what it started."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ": the system does that when memory is short" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
