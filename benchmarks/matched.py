"""Superposed vectors against vectors of single tasks that are made as small: is superposition more than a smaller step?

    python -m benchmarks.matched [--tasks ...] [--seeds 3] [--train 64] [--rows 200] [--out results.json]

Vectors of single tasks in closed form disturb each other; vectors with ghosts disturb each other less, and so do the
former when they are scaled down. For each kind of ghosts the single ones are therefore scaled until the others move the
logits of a task as far on test rows (root mean square, mean over tasks): `at` is that scale, `xi at` the mean
disentanglement error over the points {0.5, 1}^2 of the scaled vectors, `single at` what is left of single tasks, and
`sum at` of the sum. One kernel serves all ghosts of a seed; a seed draws the rows.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tauspan as ts
from tauspan.core.report import Table
from tauspan.kernel import Ghosts

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
READING = ts.Reading(batch_size=32, max_tokens=32)
GHOSTS: Mapping[str, float | Ghosts] = {
    "none": 0.0, "weight 0.1": 0.1, "weight 1": 1.0, "weight 10": 10.0, "8 rows, weight 4": Ghosts(4.0, 8),
    "8 rows by pivots, weight 4": Ghosts(4.0, 8, "pivoted"),
}  # fmt: skip


def facts(encoder: ts.Encoder, vectors: Mapping[ts.Task, ts.TaskVector]) -> dict[str, float]:
    """What vectors do: alone, added, to each other."""
    editor = ts.Editor(encoder, vectors, "linear", reading=READING)
    whole = editor.evaluate(1.0).accuracy
    own = [editor.evaluate({task.name: 1.0}, tasks=[task]).accuracy[task.name] for task in vectors]
    moved = []
    model, names = editor._models.whole(list(vectors)), [task.name for task in vectors]
    for task in vectors:
        alone, added = (
            model.logits(task, "test", at).double() for at in ({task.name: 1.0}, dict.fromkeys(names, 1.0))
        )
        moved.append(float((added - alone).square().sum(-1).mean().sqrt()))
    maps = editor.maps(grid=(0.5, 1.0))
    return {
        "single": statistics.fmean(own), "sum at 1": statistics.fmean(whole.values()),
        "moved": statistics.fmean(moved), "xi": statistics.fmean(pair.means["box"] for pair in maps.pairs),
    }  # fmt: skip


def seeded(encoder: ts.Encoder, tasks: list[ts.Task], params: str) -> dict[str, dict[str, float]]:
    """For each kind of ghosts, what comes out, and what the single vectors do at the scale that moves as far."""
    made = ts.superpose(encoder, tasks, params=params, reading=READING)
    vectors = {name: dict(made.with_ghosts(ghosts).vectors) for name, ghosts in GHOSTS.items()}
    found = {name: facts(encoder, some) for name, some in vectors.items()}
    for one in found.values():
        scale = one["moved"] / found["none"]["moved"]
        smaller = facts(encoder, {task: scale * vector for task, vector in vectors["none"].items()})
        one |= {
            "at": scale,
            "single at": smaller["single"],
            "sum at": smaller["sum at 1"],
            "xi at": smaller["xi"],
        }
    return found


def row(name: str, seeds: list[dict[str, float]]) -> dict[str, Any]:
    """A kind of ghosts over the seeds."""
    shares = [one["xi"] / one["xi at"] for one in seeds]
    return {
        "ghosts": name, **{key: statistics.fmean(one[key] for one in seeds) for key in seeds[0]},
        "xi / xi at": statistics.fmean(shares), "least": min(shares), "most": max(shares),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Make the vectors, measure them, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=64, help="training rows a task")
    parser.add_argument("--rows", type=int, default=200, help="test rows a task")
    parser.add_argument("--params", default="last:2")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    encoder, seeds = ts.load("minilm"), []
    with ts.quiet():
        for seed in range(options.seeds):
            tasks = [
                one.subset(train=options.train, validation=8, test=options.rows, seed=seed)
                for one in ts.suite(options.tasks)
            ]
            seeds.append(seeded(encoder, tasks, options.params))
    rows = [row(name, [one[name] for one in seeds]) for name in GHOSTS]
    note = (
        f"minilm, {options.params}, {', '.join(options.tasks)}, {options.train} rows a task, {options.rows} test rows, "
        f"{options.seeds} seeds that draw the rows; least and most of a seed"
    )
    print(Table("Superposed vectors at matched drift", rows, note).to_markdown())
    if options.out:
        text = json.dumps({"rows": rows, "seeds": seeds, "note": note}, indent=1)
        options.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
