"""How well `tauspan.plan(timed=True)` says how long a fine-tuning takes: predicted over true seconds, run by run.

    python -m benchmarks.predicted [--tasks movie_sentiment news_recreation] [--out results.json]

Each run is planned from a few of its steps, then carried out, in turn on the same machine. The goal is 25 %.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import tauspan as ts
from tauspan.core.report import Table

GOAL = 0.25
TASKS = ("movie_sentiment", "news_recreation")
CASES = tuple(itertools.product(("standard", "linear"), ("last:2", "all"), ((16, 32), (8, 128))))


def cases(encoder: ts.Encoder, tasks: Sequence[ts.Task]) -> Iterator[dict[str, Any]]:
    """A row for each task and choice of regime, parameters, rows of a step and tokens."""
    for task, (regime, params, (rows, tokens)) in itertools.product(tasks, CASES):
        settings = ts.Settings(regime, params=params, batch_size=rows, max_tokens=tokens, epochs=2)
        planned = ts.plan(encoder, task, settings, timed=True).pace
        true = ts.finetune(encoder, task, settings).cost.seconds
        if planned is not None:
            yield {
                "task": task.name, "regime": regime, "parameters": params, "rows": rows, "tokens": tokens,
                "steps": planned.steps, "timed": planned.timed, "predicted s": planned.seconds, "true s": true,
                "ratio": planned.seconds / true,
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
        rows = list(cases(ts.load("minilm"), tasks))
    ratios = [row["ratio"] for row in rows]
    close = sum(abs(ratio - 1) <= GOAL for ratio in ratios)
    note = (
        f"minilm, two epochs of {options.rows} rows; {close} of {len(rows)} within {100 * GOAL:g} %, median ratio "
        f"{median(ratios):.2f}, least {min(ratios):.2f}, most {max(ratios):.2f}"
    )
    print(Table("Predicted time of fine-tunings", rows, note).to_markdown())
    if options.out:
        text = json.dumps({"rows": rows, "note": note}, indent=1)
        options.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
