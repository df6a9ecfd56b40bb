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
DEVICE = "TAUSPAN_DEVICE"  # a variable and no argument of the job: its result may be reused on any device
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def variables(threads: int | None, device: str | None = None) -> dict[str, str]:
    """Environment variables that set the number of threads of torch and its libraries, and the device of jobs."""
    found = {} if threads is None else {f"{library}_NUM_THREADS": str(threads) for library in _LIBRARIES}
    return found if device is None else {**found, DEVICE: device}


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    listed = os.environ.get(_VISIBLE)
    if listed is not None:
        return [one.strip() for one in listed.split(",") if one.strip()]
    import torch  # a sweep whose jobs need no torch starts without it

    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Died:
    """The end of a worker that returned no outcome; `how` describes it."""

    how: str


class Backend(Protocol):
    """Runs jobs. The sweep holds the locks and writes the results; a backend only calls functions."""

    def start(self, job: Job, log: Path) -> str:
        """Start a job, and return the name of the worker that does it."""

    def wait(self, seconds: float) -> Mapping[str, Outcome | Died]:
        """The outcomes that have arrived, by the name of the job; waits at most `seconds` for the first."""

    def close(self) -> None:
        """End all workers, even those that are doing a job."""


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
        """The environment of the next worker, with the GPU that the fewest workers use."""
        if not self._gpus:
            return self._environment
        taken = [worker.environment[_VISIBLE] for worker in [*self._busy.values(), *self._idle]]
        return {**self._environment, _VISIBLE: min(self._gpus, key=taken.count)}

    def wait(self, seconds: float) -> Mapping[str, Outcome | Died]:
        """The outcomes that have arrived, and `Died` for workers that ended."""
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
        """Interrupt workers with a job and dismiss the others; kill those that do not end within `GRACE` seconds."""
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
        """Send a job, and return whether the worker took it.

        If the worker dies later, the job has used up an attempt.
        """
        if self.process.poll() is not None:
            return False
        message = {"function": job.function, "arguments": job.arguments, "log": str(log.absolute())}
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def outcome(self) -> Outcome | Died | None:
        """The outcome of the job, or `Died` if the process has ended; None while the job is running."""
        gone = self.process.poll() is not None  # asked before reading: its last message is still read
        try:
            if self.connection.poll():
                return dict(json.loads(self.connection.recv_bytes()))
        except (EOFError, OSError, ValueError):  # it ended, or what it sent is no outcome
            gone = True
        if not gone:
            return None
        self.end()
        return Died(_death(self.process.returncode))

    def interrupt(self) -> None:
        """Interrupt the process as Ctrl-C does, so that the job closes its files and removes half-written ones."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def dismiss(self) -> None:
        """Tell the process that there are no more jobs, so that it ends."""
        with suppress(OSError):
            self.connection.send_bytes(b"null")

    def end(self, grace: float = 0.0) -> None:
        """Wait at most `grace` seconds for the process to end, then kill it and everything that it started."""
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
