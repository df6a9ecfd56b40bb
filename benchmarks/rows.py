"""What a benchmark is asked (`Setting`), what it answers (`Row`), and the goals."""

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.shapes import DEFAULT
from benchmarks.timing import Clock, Spread
from torch import Tensor

from tauspan.core.report import Cell, Report, Table, provenance

ROOT = Path(__file__).parents[1]

# Ratios: at most this. Speed-ups ("times faster"): at least this. Two CPU cores, float32; or one CUDA GPU.
GOALS: dict[str, dict[str, float]] = {
    "cpu": {
        "step / paper": 0.95,
        "step / ordinary": 1.70,
        "tuned / paper": 0.90,
        "tuned / ordinary": 1.60,
        "memory / paper": 0.45,
        "inference / ordinary": 3.0,
        "primal / ordinary": 1.35,
        "factors / paper": 0.40,
        "factors / ordinary": 0.75,
        "features / full step": 0.17,
        "coefficient search": 15.0,
        "xi map": 100.0,
        "optimiser": 0.2,
        "check / step": 1.0,
        "check / epoch": 1.0,
        "pipeline": 0.4,
        "spectral": 2.0,
    },
    "cuda": {"step / paper": 0.75, "step / ordinary": 1.72, "memory / paper": 0.4},
}


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Args:
        device: `"cpu"` or `"cuda"`.
        dtype: float32, or bfloat16 under autocast; what trains stays float32.
        threads: of the CPU.
        rounds: turns of every variant.
        clock: wall time, or CPU time of the process, which other work on the machine disturbs less.
        shapes: names of `benchmarks.shapes.SHAPES`; None takes the device's own.
        short: leave out what takes minutes.
        batch: rows in place of the shape's own.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 2
    rounds: int = 5
    clock: Clock = "wall"
    shapes: tuple[str, ...] | None = None
    short: bool = False
    batch: int | None = None

    def names(self) -> tuple[str, ...]:
        """The shapes to measure."""
        return DEFAULT[self.device] if self.shapes is None else self.shapes

    def cast(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The forward pass under autocast, if one is asked for."""
        if self.dtype == torch.float32:
            return forward

        def run() -> Tensor:
            with torch.autocast(self.device, self.dtype):
                return forward()

        return run

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "dtype": str(self.dtype).removeprefix("torch."), "shapes": list(self.names())}


@dataclass(frozen=True)
class Row:
    """One measured number.

    Args:
        what: in words.
        value: the median over the rounds.
        low: the smallest.
        high: the largest.
        goal: what to reach; None where there is none.
        unit: of the value.
        more: whether larger is better.
        note: what a reader must know.
    """

    what: str
    value: float
    low: float
    high: float
    goal: float | None = None
    unit: str = "ratio"
    more: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.more else self.value <= self.goal

    def as_dict(self) -> dict[str, Cell]:
        """The row as it stands in tables and files."""
        return {
            "what": self.what, "value": self.value, "goal": self.goal, "low": self.low, "high": self.high,
            "unit": self.unit, "met": self.met, "note": self.note,
        }  # fmt: skip


def row(
    what: str, found: Spread, setting: Setting, goal: str = "", unit: str = "ratio", note: str = ""
) -> Row:
    """A row with the goal of that name on this device, where there is one."""
    wanted = GOALS[setting.device].get(goal)
    return Row(what, found.value, found.low, found.high, wanted, unit, unit == "times faster", note)


def report(name: str, rows: Sequence[Row], setting: Setting) -> Report:
    """The rows of one benchmark as people read them, with where they come from."""
    shown: list[dict[str, Cell]] = [
        {
            "what": one.what if one.unit == "ratio" else f"{one.what} [{one.unit}]",
            "value": one.value, "goal": one.goal, "low": one.low, "high": one.high, "met": one.met,
        }
        for one in rows
    ]  # fmt: skip
    notes = dict.fromkeys(f"{one.what}: {one.note}" for one in rows if one.note)
    return Report(name, [Table(name, shown, ". ".join(notes))], facts(setting))


def write(name: str, rows: Sequence[Row], setting: Setting, folder: Path) -> Path:
    """`<folder>/<name>.json`: the rows and where they come from."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "rows": [one.as_dict() for one in rows], "provenance": facts(setting)}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file


def read(file: Path) -> tuple[list[Row], dict[str, Any]]:
    """What `write` wrote: the rows and where they come from."""
    content = json.loads(file.read_text())
    rows = []
    for entry in content["rows"]:
        more = entry["unit"] == "times faster" or entry["unit"] == "fraction"
        rows.append(Row(**{key: value for key, value in entry.items() if key != "met"}, more=more))
    return rows, content["provenance"]


def facts(setting: Setting) -> dict[str, Any]:
    """The machine, the versions, the commit and the setting."""
    threads = torch.get_num_threads()
    return provenance(
        device=device_name(setting.device), threads=threads, commit=commit(), setting=setting.as_dict()
    )


def device_name(device: str) -> str:
    """The processor's or the GPU's own name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, with a plus where files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if not done.returncode else ""

    try:
        found = git("rev-parse", "--short", "HEAD")
        return found + ("+" if found and git("status", "--porcelain", "--untracked-files=no") else "")
    except FileNotFoundError:
        return ""
