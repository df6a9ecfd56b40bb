"""Superposed vectors against vectors of single tasks that are made as small: is superposition more than a smaller step?

    python -m benchmarks.matched [--tasks ...] [--seeds 3] [--train 64] [--rows 200] [--out results.json]

Vectors of single tasks in closed form disturb each other; vectors with ghosts disturb each other less, and so do the
former when they are scaled down. For each kind of ghosts the single ones are therefore scaled until the others move the
logits of a task as far on test rows (root mean square, mean over tasks): `at` is that scale, `xi at` the mean
disentanglement error over the points {0.5, 1}^2 of the scaled vectors, `single at` what is left of single tasks, and
`sum at` of the sum. One kernel serves all ghosts of a seed; a seed draws the rows.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.told import told

import tauspan as ts
from tauspan.core.report import Table
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.search.addition import scaled
from tauspan.kernel import Ghosts

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
READING = ts.Reading(batch_size=32, max_tokens=32)
AXIS = (0.5, 1.0)
GHOSTS: Mapping[str, float | Ghosts] = {
    "none": 0.0, "weight 0.1": 0.1, "weight 1": 1.0, "weight 10": 10.0, "8 rows, weight 4": Ghosts(4.0, 8),
    "8 rows by pivots, weight 4": Ghosts(4.0, 8, "pivoted"),
}  # fmt: skip


def facts(
    model: EditedModel, own: Mapping[ts.Task, Coefs], tasks: Sequence[ts.Task], scale: float = 1.0
) -> dict[str, float]:
    """What vectors do on test rows: alone, added, to each other."""
    whole = added(*own.values())
    moved = []
    for task in tasks:
        alone, together = (
            model.logits(task, "test", at).double() for at in (scaled(own[task], scale), scaled(whole, scale))
        )
        moved.append(float((together - alone).square().sum(-1).mean().sqrt()))
    return {
        "single": fmean(model.metric(task, "test", scaled(own[task], scale)) for task in tasks),
        "sum at 1": fmean(model.metric(task, "test", scaled(whole, scale)) for task in tasks),
        "moved": fmean(moved),
        "xi": fmean(
            disagreement(model, task, own, pair, (scale * first, scale * second))
            for pair in itertools.combinations(tasks, 2)
            for task in pair
            for first, second in itertools.product(AXIS, AXIS)
        ) * 2,
    }  # fmt: skip


def added(*coefficients: Coefs) -> dict[str, float]:
    """The coefficients of a sum of vectors that differ."""
    return {name: value for one in coefficients for name, value in one.items()}


def disagreement(
    model: EditedModel,
    task: ts.Task,
    own: Mapping[ts.Task, Coefs],
    pair: tuple[ts.Task, ts.Task],
    at: tuple[float, float],
) -> float:
    """The share of a task's rows whose class the other vector of a pair changes; xi is the sum of both tasks'."""
    both = added(*(scaled(own[one], value) for one, value in zip(pair, at, strict=True)))
    alone = scaled(own[task], at[pair.index(task)])
    return float((model.classes(task, "test", alone) != model.classes(task, "test", both)).double().mean())


def seeded(encoder: ts.Encoder, tasks: list[ts.Task], params: str) -> dict[str, dict[str, float]]:
    """For each kind of ghosts, what comes out, and what the single vectors do at the scale that moves as far."""
    made = ts.superpose(encoder, tasks, params=params, reading=READING)
    vectors, own = {}, {}
    for name, ghosts in GHOSTS.items():
        found = made.with_ghosts(ghosts).vectors
        vectors |= {f"{task.name}, {name}": vector for task, vector in found.items()}
        own[name] = {task: {f"{task.name}, {name}": 1.0} for task in found}
    model = edited_model(encoder, Directions.whole(vectors), "linear", READING, ahead=True)
    model.read({task: list(vectors) for task in tasks}, "test")
    every = {name: facts(model, at, tasks) for name, at in own.items()}
    for one in every.values():
        scale = one["moved"] / every["none"]["moved"]
        smaller = facts(model, own["none"], tasks, scale)
        one |= {
            "at": scale, "single at": smaller["single"], "sum at": smaller["sum at 1"], "xi at": smaller["xi"],
        }  # fmt: skip
    return every


def row(name: str, seeds: list[dict[str, float]]) -> dict[str, Any]:
    """A kind of ghosts over the seeds."""
    shares = [one["xi"] / one["xi at"] for one in seeds]
    return {
        "ghosts": name, **{key: fmean(one[key] for one in seeds) for key in seeds[0]},
        "xi / xi at": fmean(shares), "least": min(shares), "most": max(shares),
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
    told(Table("Superposed vectors at matched drift", rows, note), options.out, seeds=seeds)


if __name__ == "__main__":
    main()
