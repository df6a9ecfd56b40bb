"""The part `profile` of `python -m benchmarks.merging`: where the time of a merge goes, and what threads save."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod

from benchmarks import merge_inputs
from benchmarks.merge_programs import Bench
from benchmarks.merge_stopwatch import KINDS
from benchmarks.rows import ROOT, Row
from benchmarks.timing import spread

Taken = Mapping[str, float]
_TUNED = 4


def profile(bench: Bench) -> list[Row]:
    """Base + 4 of about 0.1 billion entries: seconds and shares by kind of work with one thread, and whole times."""
    width = bench.width * 5 // 8
    files = merge_inputs.checkpoints(bench.work / f"width{width}", width, _TUNED)
    entries = sum(prod(shape) for shape in merge_inputs.shapes(width).values())
    threads = os.cpu_count() or 1
    note = f"base + {_TUNED}, {entries / 1e6:.0f} million entries each, one thread"
    rows = []
    for name, (method, each) in list(bench.methods().items())[:2]:  # of the densities the first
        recipe = merge_inputs.recipe(bench.work / f"profile-{method}.yaml", method, files, each)
        one, several = [], []
        for _ in range(bench.rounds):
            one.append(_watched(bench, str(recipe), 1))
            several.append(_watched(bench, str(recipe), threads))
        rows += [*shares(name, one, note), *saved(name, one, several, threads)]
    return rows


def shares(name: str, runs: Sequence[Taken], note: str) -> list[Row]:
    """Seconds of each kind of work and its share of the whole process, by the size of the share."""
    rows = [_row(f"{name}: whole process, one thread", [run["whole"] for run in runs], "s", note)]
    kinds = [kind for kind in KINDS if any(kind in run for run in runs)]
    for kind in sorted(kinds, key=lambda kind: -spread([run.get(kind, 0.0) for run in runs]).value):
        spent = [run.get(kind, 0.0) for run in runs]
        rows.append(_row(f"{name}: {kind}", spent, "s"))
        parts = [one / run["whole"] for one, run in zip(spent, runs, strict=True)]
        rows.append(_row(f"{name}: {kind}, share", parts, "ratio"))
    return rows


def saved(name: str, one: Sequence[Taken], several: Sequence[Taken], threads: int) -> list[Row]:
    """The whole process with several threads over the same with one, round by round."""
    pairs = zip(several, one, strict=True)
    return [
        _row(f"{name}: time of {threads} threads / one", [a["whole"] / b["whole"] for a, b in pairs], "ratio")
    ]


def _watched(bench: Bench, recipe: str, workers: int) -> Taken:
    """One merge in a process of its own, into an output that is removed before and after."""
    out = bench.work / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    words = [recipe, str(out), "--workers", str(workers), "--clock", bench.clock, "--begun", str(time.time())]
    command = [sys.executable, "-m", "benchmarks.merge_stopwatch", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    shutil.rmtree(out, ignore_errors=True)
    found: Taken = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(what: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    found = spread(values)
    return Row(what, found.value, found.low, found.high, None, unit, note=note)
