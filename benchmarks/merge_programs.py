"""Whole programs that merge or copy, run in turn: their seconds, and the peak of their anonymous memory."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import ROOT
from benchmarks.timing import Clock

WIDTH = 1024
DENSITIES = (0.5, 0.2, 0.8)
_POLL = 0.02  # seconds between looks at a process's memory


@dataclass(frozen=True)
class Watched:
    """One run of a program: seconds, and the peak of anonymous memory of its processes, in GB."""

    seconds: float
    memory: float


def watched(command: Sequence[str | Path], clock: Clock = "wall") -> Watched:
    """Run a program to its end; seconds on the wall, or CPU seconds of all its processes.

    Raises:
        RuntimeError: it failed; the message holds the end of its output.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        start, before = time.perf_counter(), _cpu()
        process = subprocess.Popen(
            [str(word) for word in command], stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(anonymous(one) for one in _tree(process.pid)))
            time.sleep(_POLL)
        seconds = time.perf_counter() - start if clock == "wall" else _cpu() - before
        if process.returncode:
            said.seek(0)
            tail = said.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{tail}")
    return Watched(seconds, peak / 1e9)


def _cpu() -> float:
    """Seconds that all ended children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def anonymous(process: int) -> int:
    """Bytes of anonymous memory of one process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _tree(process: int) -> list[int]:
    found = [process]
    for one in found:
        try:
            children = Path(f"/proc/{one}/task/{one}/children").read_text().split()
        except OSError:
            continue
        found += map(int, children)
    return found


@dataclass(frozen=True)
class Bench:
    """What is measured where.

    Args:
        work: folder of checkpoints and outputs.
        mergekit: the Python of mergekit's environment; None leaves it out.
        rounds: turns of every program.
        width: of the synthetic models.
        clock: what seconds are; CPU time is for a machine that others use too.
        billions: of parameters of each of ten models, for the part `many`.
        densities: of TIES; the first one also for ten models.
    """

    work: Path
    mergekit: Path | None
    rounds: int
    width: int = WIDTH
    clock: Clock = "wall"
    billions: float = 8.0
    densities: tuple[float, ...] = DENSITIES

    def methods(self) -> dict[str, tuple[str, dict[str, float]]]:
        """What is merged: by its name in the tables, the method and each model's options."""
        ties = {f"ties, density {one:g}": ("ties", {"weight": 1.0, "density": one}) for one in self.densities}
        return {"task_arithmetic": ("task_arithmetic", {"weight": 0.3}), **ties}

    def ours(self, recipe: Path) -> list[str | Path]:
        """The command line of tauspan."""
        return [sys.executable, "-m", "tauspan", "merge", recipe, self.work / "out", "--quiet"]

    def theirs(self, recipe: Path, program: str = "mergekit-pytorch") -> list[str | Path]:
        """The command line of mergekit."""
        assert self.mergekit is not None  # noqa: S101 - callers ask
        plain = ["--no-copy-tokenizer"] if program == "mergekit-yaml" else []
        return [self.mergekit.with_name(program), recipe, self.work / "out", "--quiet", *plain]

    def copying(self, files: Sequence[Path]) -> list[str | Path]:
        """The command line of a copy that is on the disk when it ends."""
        named = " ".join(f"'{file}'" for file in files)
        target = f"'{self.work / 'out'}'"
        return ["sh", "-c", f"mkdir {target} && cp -r {named} {target} && sync -f {target}"]

    def in_turn(self, commands: Mapping[str, Sequence[str | Path]]) -> dict[str, list[Watched]]:
        """All programs in turn; each output is removed, and the disk is at rest, before the next one starts."""
        taken: dict[str, list[Watched]] = {name: [] for name in commands}
        for _ in range(self.rounds):
            for name, command in commands.items():
                self._rest()
                taken[name].append(watched(command, self.clock))
        self._rest()
        return taken

    def _rest(self) -> None:
        shutil.rmtree(self.work / "out", ignore_errors=True)
        os.sync()
