"""How well plans say how long the work takes: predicted over true seconds, case by case.

    python -m benchmarks.predicted [--tasks movie_sentiment news_recreation] [--out results.json]

Fine-tunings (`tauspan.plan(timed=True)`, from a few of their steps) and kernels (`kernel_plan`, from a few of their rows)
are planned, then carried out, in turn on the same machine. The goal is 25 %.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.told import told

import tauspan as ts
from tauspan.core.report import Table
from tauspan.kernel.diagnose import kernel_plan, kernel_report

GOAL = 0.25
TASKS = ("movie_sentiment", "news_recreation")
KERNELS = tuple(itertools.product(("last:2", "all"), ("contrast", "all"), (32, 96)))
CASES = tuple(itertools.product(("standard", "linear"), ("last:2", "all"), ((16, 32), (8, 128))))


def cases(encoder: ts.Encoder, tasks: Sequence[ts.Task]) -> Iterator[dict[str, Any]]:
    """A row for each task and choice of regime, parameters, rows of a step and tokens."""
    for task, (regime, params, (rows, tokens)) in itertools.product(tasks, CASES):
        settings = ts.Settings(regime, params=params, batch_size=rows, max_tokens=tokens, epochs=2)
        planned = ts.plan(encoder, task, settings, timed=True).pace
        true = ts.finetune(encoder, task, settings).cost.seconds
        if planned is not None:
            yield {
                "task": task.name, "work": f"fine-tuning, {regime}", "parameters": params,
                "size": f"{planned.steps} steps of {rows} rows, {tokens} tokens", "predicted s": planned.seconds,
                "true s": true, "ratio": planned.seconds / true,
            }  # fmt: skip


def kernels(encoder: ts.Encoder, tasks: Sequence[ts.Task]) -> Iterator[dict[str, Any]]:
    """A row for each choice of parameters, outputs and rows; the kernels of all tasks, and between them."""
    reading, names = ts.Reading(batch_size=32, max_tokens=32), " + ".join(task.name for task in tasks)
    for params, outputs, rows in KERNELS:
        planned = kernel_plan(encoder, tasks, rows=rows, outputs=outputs, params=params, reading=reading)
        begun = time.perf_counter()
        kernel_report(encoder, tasks, rows=rows, outputs=outputs, params=params, reading=reading)
        true = time.perf_counter() - begun
        yield {
            "task": names, "work": "kernel", "parameters": params, "size": f"{rows} rows a task, outputs {outputs}",
            "predicted s": planned.seconds, "true s": true, "ratio": planned.seconds / true,
        }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Plan and train, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--rows", type=int, default=400, help="training rows a task; validation has 100")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    tasks = [one.subset(train=options.rows, validation=100, test=50) for one in ts.suite(options.tasks)]
    with ts.quiet():
        encoder = ts.load("minilm")
        rows = [*kernels(encoder, tasks), *cases(encoder, tasks)]
    ratios = [row["ratio"] for row in rows]
    close = sum(abs(ratio - 1) <= GOAL for ratio in ratios)
    note = (
        f"minilm, fine-tunings of two epochs of {options.rows} rows; {close} of {len(rows)} within "
        f"{100 * GOAL:g} %, median ratio {median(ratios):.2f}, least {min(ratios):.2f}, most {max(ratios):.2f}"
    )
    told(Table("Predicted time", rows, note), options.out)


if __name__ == "__main__":
    main()
