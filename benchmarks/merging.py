"""`python -m benchmarks.merging`: `tauspan merge` against mergekit and against copying; prints tables, writes JSON.

Whole processes on the same files, in turn: the checkpoints are read from the page cache, outputs are written to the disk
of `--work`. mergekit runs in an environment of its own (`--mergekit PYTHON`), without it only tauspan is measured.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import merge_inputs
from benchmarks.merge_correctness import correctness
from benchmarks.rows import ROOT, Row, Setting, device_name, report, write
from benchmarks.timing import Clock, Spread, spread
from rich.console import Console

from tauspan.core.report import Report, Table

GOALS = {
    "task_arithmetic": 0.4,
    "ties": 0.12,
    "copy": 0.7,
    "memory": 0.5,
    "plan": 3.0,
    "many": 1.3,
    "many, ties": 2.5,
}
METHODS: Mapping[str, tuple[str, dict[str, float]]] = {
    "task_arithmetic": ("task_arithmetic", {"weight": 0.3}),
    "ties, density 0.5": ("ties", {"weight": 1.0, "density": 0.5}),
    "ties, density 0.2": ("ties", {"weight": 1.0, "density": 0.2}),
}
_WIDTH = 1024
_TUNED = 4
_POLL = 0.02  # seconds between looks at a process's memory
_SHARE = 0.6  # of the free disk, that --large may take


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
    """

    work: Path
    mergekit: Path | None
    rounds: int
    width: int = _WIDTH
    clock: Clock = "wall"
    billions: float = 8.0

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


def speed(bench: Bench) -> list[Row]:
    """Base + 4: time against mergekit, bytes a second against `cp`, peak memory."""
    files = merge_inputs.checkpoints(bench.work / f"width{bench.width}", bench.width, _TUNED)
    for file in files:
        watched(["cat", file])  # into the page cache
    commands: dict[str, Sequence[str | Path]] = {}
    for name, (method, each) in METHODS.items():
        one = merge_inputs.recipe(bench.work / f"{_plain(name)}.yaml", method, files, each)
        commands[f"ours, {name}"] = bench.ours(one)
        if bench.mergekit:
            commands[f"mergekit, {name}"] = bench.theirs(one)
    copies = (len(files) + 1) // 2  # reads and writes as many bytes as a merge: models + 1
    commands["cp, as many bytes"] = bench.copying(files[:copies])
    commands["cp, the output"] = bench.copying(files[:1])
    taken = bench.in_turn(commands)
    return [*_times(taken), *_ratios(taken), *_copies(taken), *_memory(taken, "base + 4")]


def larger(bench: Bench) -> list[Row]:
    """The same memory for a model four times as large."""
    wide = Bench(bench.work, None, 1, 2 * bench.width)
    files = merge_inputs.checkpoints(wide.work / f"width{wide.width}", wide.width, _TUNED)
    commands = {}
    for name, (method, each) in METHODS.items():
        one = merge_inputs.recipe(wide.work / f"4x-{_plain(name)}.yaml", method, files, each)
        commands[f"ours, {name}"] = wide.ours(one)
    return _memory(wide.in_turn(commands), "four times as large")


def planning(bench: Bench) -> list[Row]:
    """Seconds of `tauspan merge --plan` on 100 GB of sparse files."""
    models = merge_inputs.headers(bench.work / "sparse", 100 * 10**9, 4)
    one = merge_inputs.recipe(bench.work / "plan.yaml", "task_arithmetic", models, {"weight": 0.3})
    command = [*bench.ours(one), "--plan"]
    taken = spread([watched(command, bench.clock).seconds for _ in range(max(bench.rounds, 3))])
    size = sum(file.stat().st_size for model in models for file in model.glob("*.safetensors")) / 1e9
    return [
        _row("plan of base + 3, sharded", taken, GOALS["plan"], "s", note=f"{size:.0f} GB by their headers")
    ]


def large(bench: Bench) -> list[Row]:
    """A sharded base + 2 as large as the disk allows."""
    folder = bench.work / "large"
    free = shutil.disk_usage(bench.work).free + sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    models = merge_inputs.sharded(folder, int(_SHARE * free / 4), 2)  # three models and one output
    one = merge_inputs.recipe(bench.work / "large.yaml", "task_arithmetic", models, {"weight": 0.5})
    commands: dict[str, Sequence[str | Path]] = {"ours, large": bench.ours(one)}
    if bench.mergekit:
        commands["mergekit, large"] = bench.theirs(one, "mergekit-yaml")
    commands["cp, the output"] = bench.copying(models[:1])
    taken = Bench(bench.work, bench.mergekit, 1, clock=bench.clock).in_turn(commands)
    moved = sum(f.stat().st_size for model in models for f in model.glob("*.safetensors")) / len(models) / 1e9
    note = f"base + 2, {moved:.1f} GB each"
    rates = [
        _row(
            f"{name}: bytes read and written",
            _one(times * moved / taken[name][0].seconds),
            None,
            "GB/s",
            note=note,
        )
        for name, times in (("ours, large", 4), ("mergekit, large", 4), ("cp, the output", 2))
        if name in taken
    ]
    return [*_times(taken), *rates, *_memory(taken, note)]


def many(bench: Bench) -> list[Row]:
    """Ten sharded models of many billion parameters, as sparse files: time over reading all and writing one."""
    size = 2 * 10**9 * bench.billions
    models = merge_inputs.headers(bench.work / f"many{bench.billions:g}", int(10 * size), 10)
    named = " ".join(f"'{model}'/*.safetensors" for model in models)
    target = f"'{bench.work / 'out'}'"
    moving = f"cat {named} > /dev/null && cp -r --sparse=never '{models[0]}' {target} && sync -f {target}"
    commands: dict[str, Sequence[str | Path]] = {"cat and cp": ["sh", "-c", moving]}
    for name, (method, each) in METHODS.items():
        if name != "ties, density 0.2":
            one = merge_inputs.recipe(bench.work / f"many-{_plain(name)}.yaml", method, models, each)
            commands[f"ours, {name}"] = bench.ours(one)
    taken = bench.in_turn(commands)
    read = sum(file.stat().st_size for model in models for file in model.glob("*.safetensors")) / 1e9
    note = f"base + 9, {read:.0f} GB read as holes of sparse files, {read / 10:.0f} GB written"
    rows = [
        _row(
            f"{name.removeprefix('ours, ')}, ten models: time / cat and cp",
            spread([run.seconds / other.seconds for run, other in zip(runs, taken["cat and cp"], strict=True)]),
            GOALS["many"] if "task_arithmetic" in name else GOALS["many, ties"], note=note,
        )
        for name, runs in taken.items()
        if name.startswith("ours")
    ]  # fmt: skip
    return [*_times(taken), *rows, *_memory(taken, "ten models")]


def _times(taken: Mapping[str, Sequence[Watched]]) -> list[Row]:
    return [_row(name, spread([run.seconds for run in runs]), None, "s") for name, runs in taken.items()]


def _ratios(taken: Mapping[str, Sequence[Watched]]) -> list[Row]:
    """Time of a merge over mergekit's, round by round."""
    rows = []
    for name in METHODS:
        if f"mergekit, {name}" in taken:
            pairs = zip(taken[f"ours, {name}"], taken[f"mergekit, {name}"], strict=True)
            found = spread([ours.seconds / theirs.seconds for ours, theirs in pairs])
            rows.append(_row(f"{name}: time / mergekit", found, GOALS[name.partition(",")[0]]))
    return rows


def _copies(taken: Mapping[str, Sequence[Watched]]) -> list[Row]:
    """Bytes read and written a second, over those of a copy that moves as many."""
    pairs = zip(taken["ours, task_arithmetic"], taken["cp, as many bytes"], strict=True)
    found = spread([copy.seconds / ours.seconds for ours, copy in pairs])
    note = "whole process against cp and sync of half as many files, so that both move the same bytes"
    what = "task_arithmetic: bytes a second / cp of as many bytes"
    return [_row(what, found, GOALS["copy"], "fraction", note)]


def _memory(taken: Mapping[str, Sequence[Watched]], what: str) -> list[Row]:
    rows = []
    for name, runs in taken.items():
        if not name.startswith("cp"):
            goal = GOALS["memory"] if name.startswith("ours") else None
            found = spread([run.memory for run in runs])
            rows.append(_row(f"{name}: peak anonymous memory, {what}", found, goal, "GB"))
    return rows


def _plain(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def _one(value: float) -> Spread:
    return Spread(value, value, value)


def _row(what: str, found: Spread, goal: float | None, unit: str = "ratio", note: str = "") -> Row:
    return Row(what, found.value, found.low, found.high, goal, unit, unit == "fraction", note)


PARTS: Mapping[str, Callable[[Bench], list[Row]]] = {
    "speed": speed, "larger": larger, "planning": planning, "large": large, "many": many,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measure what was asked for; the exit code does not depend on the numbers."""
    given = _parser().parse_args(arguments)
    chosen = (
        [name for name in PARTS if name not in ("large", "many") or vars(given)[name]]
        if given.only is None
        else given.only
    )
    setting = Setting(rounds=given.rounds, clock=given.clock)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            (given.work or Path(temporary)).resolve(),
            given.mergekit,
            given.rounds,
            given.width,
            given.clock,
            given.billions,
        )
        bench.work.mkdir(parents=True, exist_ok=True)
        rows = [row for name in chosen for row in PARTS[name](bench)]
        tables: list[Table] = [correctness(bench.work, given.mergekit)] if given.correctness else []
    made = report("merging", rows, setting)
    made = Report(made.title, [*(made.tables if rows else []), *tables], made.provenance)
    write("merging", rows, setting, given.out)
    Console().print(made.renderable())
    if given.keep:
        name = "".join(
            sign for sign in device_name("cpu").lower().replace(" ", "-") if sign.isalnum() or sign in "-."
        )
        kept = ROOT / "benchmarks" / "results" / f"merging-{name}"
        kept.with_suffix(".md").write_text(made.to_markdown())
        kept.with_suffix(".json").write_text(made.to_json())
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    parser.add_argument(
        "--work", type=Path, help="folder of checkpoints and outputs; default: a temporary one"
    )
    parser.add_argument(
        "--mergekit", type=Path, metavar="PYTHON", help="of an environment with mergekit and peft"
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--width", type=int, default=_WIDTH, help="of the models; 1024 makes 271 million entries"
    )
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, help="these parts; none: only what other options ask"
    )
    parser.add_argument("--large", action="store_true", help="also base + 2 on 60 %% of the free disk")
    parser.add_argument("--many", action="store_true", help="also ten models of --billions, as sparse files")
    parser.add_argument("--billions", type=float, default=8.0, help="parameters of each of the ten models")
    parser.add_argument("--correctness", action="store_true", help="also every shared method on small models")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/merging-<device>.md")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
