"""Closed forms of tasks with many classes: their time over that of AdamW to the same accuracy.

    python -m benchmarks.classes [--tasks debian_section ...] [--rows 128] [--rounds 3] [--loose 0.1] [--out results.json]

A round fits the squared loss in closed form by products, to the residual that is the default (1e-4) and to `--loose`,
and by the whole kernel; and trains AdamW in the linear regime for more and more epochs, until test accuracy is that of
the first vector; each of its trainings starts anew, and only the last one counts. `--tasks` takes names of shipped
tasks and folders of your own.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.timing import spread
from benchmarks.told import told

import tauspan as ts
from tauspan.core.report import Table

READING = ts.Reading(batch_size=32, max_tokens=32)
EPOCHS = (1, 2, 4, 8, 16, 32)


def task_of(given: str, rows: int, test: int) -> ts.Task:
    """A shipped task by its name, or one in a folder."""
    task = ts.Task.from_directory(given) if Path(given).is_dir() else ts.suite([given])[0]
    return task.subset(train=rows, validation=1, test=test)


def accuracy(encoder: ts.Encoder, task: ts.Task, vector: ts.TaskVector) -> float:
    """Of the tangent model on test rows."""
    return ts.Editor(encoder, {task: vector}, reading=READING).evaluate().mean.value


def one_round(
    encoder: ts.Encoder, task: ts.Task, params: str, ways: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Seconds and accuracies of every way."""
    found: dict[str, Any] = {}
    for way, options in ways.items():
        fitted = ts.closed_form(encoder, task, params=params, reading=READING, **options)
        found[way] = {
            "seconds": fitted.cost.seconds,
            "accuracy": accuracy(encoder, task, fitted.vector),
            "steps": fitted.solution.iterations,
        }
    wanted = next(iter(found.values()))["accuracy"]
    for epochs in EPOCHS:
        run = ts.finetune(
            encoder, task, ts.Settings("linear", params=params, lr=3e-4, epochs=epochs, max_tokens=32)
        )
        reached = accuracy(encoder, task, run.task_vector)
        found["AdamW"] = {"seconds": run.cost.seconds, "accuracy": reached, "steps": epochs}
        if reached >= wanted:
            break
    return found


def rows_of(task: ts.Task, rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each way: medians over rounds, and the ratio within a round."""
    made = []
    for way in rounds[0]:
        ratio = spread([one[way]["seconds"] / one["AdamW"]["seconds"] for one in rounds])
        made.append({
            "task": task.name, "classes": len(task.label_names), "rows": len(task.split("train")), "way": way,
            "accuracy": rounds[0][way]["accuracy"], "steps or epochs": rounds[0][way]["steps"],
            "seconds": spread([one[way]["seconds"] for one in rounds]).value, "over AdamW": ratio.value,
            "lowest": ratio.low, "highest": ratio.high,
        })  # fmt: skip
    return made


def main(argv: list[str] | None = None) -> None:
    """Fit, train, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=["debian_section"])
    parser.add_argument("--rows", type=int, default=128, help="training rows")
    parser.add_argument("--test", type=int, default=300, help="test rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--params", default="last:2")
    parser.add_argument(
        "--loose", type=float, default=0.1, help="relative residual at which products may end"
    )
    parser.add_argument("--no-matrix", action="store_true", help="leave out the whole kernel")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    encoder, rows = ts.load("minilm"), []
    ways: dict[str, dict[str, Any]] = {
        "products": {"by": "products"},
        f"products to {options.loose:g}": {"by": "products", "tolerance": options.loose},
        "matrix": {"by": "matrix"},
    }
    if options.no_matrix:
        del ways["matrix"]
    with ts.quiet():
        for name in options.tasks:
            task = task_of(name, options.rows, options.test)
            rounds = [one_round(encoder, task, options.params, ways) for _ in range(options.rounds)]
            rows += rows_of(task, rounds)
    table = Table("Closed forms of many classes", rows, f"minilm, {options.params}, {options.rounds} rounds")
    told(table, options.out)


if __name__ == "__main__":
    main()
