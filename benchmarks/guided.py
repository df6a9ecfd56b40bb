"""The coefficient of an ordinary sum: what each way of choosing it costs, and what its choice loses to the whole grid.

    python -m benchmarks.guided [--tasks ...] [--vectors 8] [--seeds 3] [--rows 200] [--out results.json]

Ordinary vectors of a few steps are added with one coefficient, chosen on validation rows in five ways: by evaluating the
paper's 21 points, and by the guides of `Editor.add(guided=...)`. `lost` is mean normalised accuracy on the test rows at
the grid's choice, less that at the way's own; seconds are relative to the grid's, all ways of one seed in turn, and
include the test rows, which all ways read. `same` counts the seeds whose choice is the grid's. `read` is the share of the
grid's validation rows that are read, where the way counts them; a third is aimed at.

`--vectors` adds the other tasks of the suite to those that are named; where more are asked for than there are, the first
ones come again, with vectors and rows of another seed.
"""

import argparse
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from benchmarks.told import told

import tauspan as ts
from tauspan.core.report import Table

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
READING = ts.Reading(batch_size=32, max_tokens=32)
WAYS = ("grid", "tangent", "curved", "checked", "rows")
Guided = Literal["tangent", "curved", "checked", "rows"]


def drawn(names: Sequence[str], vectors: int, rows: int, seed: int) -> list[tuple[ts.Task, int]]:
    """So many tasks of so many test rows, and the seed of each; a task that comes again has a name of its own."""
    every = ts.suite(list(names) + [one.name for one in ts.suite() if one.name not in names])
    found = []
    for place in range(vectors):
        turn, which = divmod(place, len(every))
        own = seed + 1000 * turn
        task = every[which].subset(train=320, validation=rows // 2, test=rows, seed=own)
        found.append((replace(task, name=f"{task.name}_{turn + 1}") if turn else task, own))
    return found


def choices(encoder: ts.Encoder, vectors: dict[ts.Task, ts.TaskVector]) -> dict[str, dict[str, float]]:
    """For each way its alpha, what the sum keeps there on test rows, and its seconds."""
    found = {}
    for way in WAYS:
        editor = ts.Editor(encoder, vectors, reading=READING, ahead=False)
        begun = time.perf_counter()
        added = editor.add(guided=False if way == "grid" else cast("Guided", way))
        seconds = time.perf_counter() - begun
        found[way] = {"alpha": added.alpha, "kept": cast("float", added.mean.normalised), "seconds": seconds}
        if counted := re.search(r"from (\d+) of the (\d+) rows", added.remark):
            found[way]["read"] = int(counted[1]) / int(counted[2])
    return found


def row(params: str, way: str, seeds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """A way over the seeds."""
    lost = [one["grid"]["kept"] - one[way]["kept"] for one in seeds]
    share = [one[way]["seconds"] / one["grid"]["seconds"] for one in seeds]
    return {
        "parameters": params, "chosen by": way, "alphas": ", ".join(f"{one[way]['alpha']:g}" for one in seeds),
        "same": f"{sum(one[way]['alpha'] == one['grid']['alpha'] for one in seeds)} of {len(seeds)}",
        "lost": statistics.fmean(lost), "lost most": max(lost), "seconds over grid's": statistics.median(share),
        "lowest": min(share), "highest": max(share),
        "read": max((one[way]["read"] for one in seeds if "read" in one[way]), default=None),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Make vectors for each choice of parameters and each seed, choose in every way, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--vectors", type=int, help="default: as many as tasks are named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="test rows a task; validation has half as many")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--params", nargs="+", default=["last:2", "all"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    count = options.vectors or len(options.tasks)
    encoder, rows = ts.load("minilm"), []
    with ts.quiet():
        for params in options.params:
            seeds = []
            for seed in range(options.seeds):
                settings = ts.Settings(
                    "standard", params=params, lr=2e-4, batch_size=16, max_steps=options.steps, max_tokens=32,
                    seed=seed,
                )  # fmt: skip
                tasks = drawn(options.tasks, count, options.rows, seed)
                vectors = {
                    one: ts.finetune(encoder, one, replace(settings, seed=own)).task_vector
                    for one, own in tasks
                }
                seeds.append(choices(encoder, vectors))
            rows += [row(params, way, seeds) for way in WAYS]
    named = ", ".join(one.name for one, _ in drawn(options.tasks, count, options.rows, 0))
    said = f"minilm, {named}, {options.steps} steps at 2e-4, {options.rows} test rows, "
    table = Table("Coefficient of an ordinary sum", rows, said + f"{options.seeds} seeds")
    told(table, options.out)


if __name__ == "__main__":
    main()
