"""`python -m benchmarks.merging`: `tauspan merge` against mergekit and against copying; prints tables, writes JSON.

Whole processes on the same files, in turn: the checkpoints are read from the page cache, outputs are written to the disk
of `--work`. mergekit runs in an environment of its own (`--mergekit PYTHON`), without it only tauspan is measured.
Each part is written when it is done. `--keep` puts the parts that were measured in the place of their earlier tables in
`benchmarks/results`, and leaves the tables of other parts as they are.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import merge_inputs
from benchmarks.merge_correctness import correctness
from benchmarks.merge_profile import profile
from benchmarks.merge_programs import DENSITIES, WIDTH, Bench, Watched, watched
from benchmarks.rows import ROOT, Row, Setting, device_name, facts, report, write
from benchmarks.timing import Spread, spread
from rich.console import Console

from tauspan.core.report import Report, Table

RESULTS = ROOT / "benchmarks" / "results"
GOALS = {
    "task_arithmetic": 0.4,
    "ties": 0.10,
    "copy": 0.7,
    "memory": 0.5,
    "plan": 3.0,
    "many": 1.3,
    "many, ties": 2.5,
    "many, memory": 1.0,
}
_TUNED = 4
_SHARE = 0.6  # of the free disk, that --large may take


def speed(bench: Bench) -> list[Row]:
    """Base + 4: time against mergekit, bytes a second against `cp`, peak memory."""
    files = merge_inputs.checkpoints(bench.work / f"width{bench.width}", bench.width, _TUNED)
    for file in files:
        watched(["cat", file])  # into the page cache
    commands: dict[str, Sequence[str | Path]] = {}
    for name, (method, each) in bench.methods().items():
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
    wide = Bench(bench.work, None, 1, 2 * bench.width, densities=bench.densities)
    files = merge_inputs.checkpoints(wide.work / f"width{wide.width}", wide.width, _TUNED)
    commands = {}
    for name, (method, each) in wide.methods().items():
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
    for name, (method, each) in list(bench.methods().items())[:2]:  # of the densities the first
        one = merge_inputs.recipe(bench.work / f"many-{_plain(name)}.yaml", method, models, each)
        commands |= {f"plan, {name}": [*bench.ours(one), "--plan"], f"ours, {name}": bench.ours(one)}
    taken = bench.in_turn(commands)
    read = sum(file.stat().st_size for model in models for file in model.glob("*.safetensors")) / 1e9
    note = f"base + 9, {read:.0f} GB read as holes of sparse files, {read / 10:.0f} GB written"
    return [*_many(taken, note), *_memory(taken, "ten models", GOALS["many, memory"])]


def _many(taken: Mapping[str, Sequence[Watched]], note: str) -> list[Row]:
    """Seconds of all, those of plans beside their goal, and time of merges over `cat and cp`, round by round."""
    rows = []
    for name, runs in taken.items():
        kind, _, what = name.partition(", ")
        goal = GOALS["plan"] if kind == "plan" else None
        rows.append(_row(f"{name}, ten models", spread([run.seconds for run in runs]), goal, "s"))
        if kind == "ours":
            pairs = zip(runs, taken["cat and cp"], strict=True)
            found = spread([run.seconds / other.seconds for run, other in pairs])
            goal = GOALS["many"] if what == "task_arithmetic" else GOALS["many, ties"]
            rows.append(_row(f"{what}, ten models: time / cat and cp", found, goal, note=note))
    return rows


def _times(taken: Mapping[str, Sequence[Watched]]) -> list[Row]:
    return [_row(name, spread([run.seconds for run in runs]), None, "s") for name, runs in taken.items()]


def _ratios(taken: Mapping[str, Sequence[Watched]]) -> list[Row]:
    """Time of a merge over mergekit's, round by round."""
    rows = []
    for name, runs in taken.items():
        who, _, what = name.partition(", ")
        if who == "mergekit":
            pairs = zip(taken[f"ours, {what}"], runs, strict=True)
            found = spread([ours.seconds / theirs.seconds for ours, theirs in pairs])
            rows.append(_row(f"{what}: time / mergekit", found, GOALS[what.partition(",")[0]]))
    return rows


def _copies(taken: Mapping[str, Sequence[Watched]]) -> list[Row]:
    """Bytes read and written a second, over those of a copy that moves as many."""
    pairs = zip(taken["ours, task_arithmetic"], taken["cp, as many bytes"], strict=True)
    found = spread([copy.seconds / ours.seconds for ours, copy in pairs])
    note = "whole process against cp and sync of half as many files, so that both move the same bytes"
    what = "task_arithmetic: bytes a second / cp of as many bytes"
    return [_row(what, found, GOALS["copy"], "fraction", note)]


def _memory(taken: Mapping[str, Sequence[Watched]], what: str, goal: float = GOALS["memory"]) -> list[Row]:
    """Peaks of both programs' merges; the goal is ours."""
    rows = []
    for name, runs in taken.items():
        if name.startswith(("ours", "mergekit")):
            found = spread([run.memory for run in runs])
            wanted = goal if name.startswith("ours") else None
            rows.append(_row(f"{name}: peak anonymous memory, {what}", found, wanted, "GB"))
    return rows


def _plain(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def _one(value: float) -> Spread:
    return Spread(value, value, value)


def _row(what: str, found: Spread, goal: float | None, unit: str = "ratio", note: str = "") -> Row:
    return Row(what, found.value, found.low, found.high, goal, unit, unit == "fraction", note)


PARTS: Mapping[str, Callable[[Bench], list[Row]]] = {
    "speed": speed, "larger": larger, "planning": planning, "large": large, "many": many, "profile": profile,
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
    tables: list[Table] = []
    origins: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(
            (given.work or Path(temporary)).resolve(), given.mergekit, given.rounds, given.width, given.clock,
            given.billions, tuple(given.densities),
        )  # fmt: skip
        bench.work.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            rows = PARTS[name](bench)
            write(f"merging-{name}", rows, setting, given.out)
            tables += report(name, rows, setting).tables
            origins[name] = facts(setting)
        if given.correctness:
            tables.append(correctness(bench.work, given.mergekit))
            origins[tables[-1].title] = facts(setting)
    made = Report("merging", tables, origins)
    Console().print(made.renderable())
    if given.keep:
        keep(made, RESULTS)
    return made


def keep(measured: Report, folder: Path) -> Path:
    """The tables of `measured` in the place of those of the same title that `folder` has for this processor.

    All other tables stay, each with its own provenance.
    """
    device = device_name("cpu").lower().replace(" ", "-")
    named = "".join(sign for sign in device if sign.isalnum() or sign in "-.")
    file = folder / f"merging-{named}.json"
    before = Report.from_json(file.read_text()) if file.exists() else Report("merging", [])
    tables = {table.title: table for table in (*before.tables, *measured.tables)}
    order = [title for title in (*PARTS, "correctness") if title in tables]
    origins = {**before.provenance, **measured.provenance}
    made = Report("merging", [tables[title] for title in order], {title: origins[title] for title in order})
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(made.to_json())
    file.with_suffix(".md").write_text(made.to_markdown())
    return file


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
        "--width", type=int, default=WIDTH, help="of the models; 1024 makes 271 million entries"
    )
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, help="these parts; none: only what other options ask"
    )
    parser.add_argument("--large", action="store_true", help="also base + 2 on 60 %% of the free disk")
    parser.add_argument("--many", action="store_true", help="also ten models of --billions, as sparse files")
    parser.add_argument("--billions", type=float, default=8.0, help="parameters of each of the ten models")
    parser.add_argument("--densities", nargs="+", type=float, default=list(DENSITIES),
                        help="of TIES; the first one also for ten models")  # fmt: skip
    parser.add_argument("--correctness", action="store_true", help="also every shared method on small models")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench")
    parser.add_argument(
        "--keep", action="store_true", help="put the parts in benchmarks/results/merging-<device>.md"
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
