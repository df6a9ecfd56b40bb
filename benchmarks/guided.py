"""The coefficient of an ordinary sum: what each way of choosing it costs, and what its choice loses to the whole grid.

    python -m benchmarks.guided [--tasks ...] [--seeds 3] [--rows 200] [--out results.json]

Ordinary vectors of a few steps are added with one coefficient, chosen on validation rows in five ways: by evaluating the
paper's 21 points, and by the guides of `Editor.add(guided=...)`. `lost` is mean normalised accuracy on the test rows at
the grid's choice, less that at the way's own; seconds are relative to the grid's, all ways of one seed in turn, and
include the test rows, which all ways read. `read` is the share of the grid's validation rows that are read, where the way
counts them.
"""

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any, Literal, cast

from benchmarks.told import told

import tauspan as ts
from tauspan.core.report import Table

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
READING = ts.Reading(batch_size=32, max_tokens=32)
WAYS = ("grid", "tangent", "curved", "checked", "rows")
Guided = Literal["tangent", "curved", "checked", "rows"]


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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="test rows a task; validation has half as many")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--params", nargs="+", default=["last:2", "all"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    encoder, rows = ts.load("minilm"), []
    with ts.quiet():
        for params in options.params:
            seeds = []
            for seed in range(options.seeds):
                settings = ts.Settings(
                    "standard", params=params, lr=2e-4, batch_size=16, max_steps=options.steps, max_tokens=32,
                    seed=seed,
                )  # fmt: skip
                tasks = [
                    one.subset(train=320, validation=options.rows // 2, test=options.rows, seed=seed)
                    for one in ts.suite(options.tasks)
                ]
                seeds.append(
                    choices(encoder, {one: ts.finetune(encoder, one, settings).task_vector for one in tasks})
                )
            rows += [row(params, way, seeds) for way in WAYS]
    said = f"minilm, {', '.join(options.tasks)}, {options.steps} steps at 2e-4, {options.rows} test rows, "
    table = Table("Coefficient of an ordinary sum", rows, said + f"{options.seeds} seeds")
    told(table, options.out)


if __name__ == "__main__":
    main()
