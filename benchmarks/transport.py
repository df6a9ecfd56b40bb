"""A vector on another base: what each way of carrying it over keeps, and whether the cosine says so before.

    python -m benchmarks.transport [--tasks ...] [--seeds 3] [--rows 200] [--out results.json]

The old base is MiniLM; the new one is MiniLM after ordinary training on two other tasks, or the same with its hidden
units and attention heads in another order, which is the same function. Ordinary vectors of the old base are carried to
the new one in each way, and evaluated there on test rows, beside the new base alone and a vector that was trained on it.
Gains are over the new base alone; `kept` is the gain over that of the trained vector. `cosine` compares J tau on both
bases, on validation rows; a vector carries over from 0.5 on, and `right` counts where that verdict agrees with whether
half of the trained vector's gain or more is kept.
"""

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import torch
from benchmarks.told import told

import tauspan as ts
from tauspan.core.report import Table
from tauspan.editing import transport
from tauspan.editing.rebasing.methods import read
from tauspan.editing.rebasing.rebasin import hidden_units
from tauspan.editing.rebasing.transport import TRANSPORTS

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
OTHERS = ("news_computing", "news_science_society")
READING = ts.Reading(batch_size=32, max_tokens=32)
RATE = 2e-4
LEAST = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)


def settings(steps: int, seed: int, params: str = "last:2") -> ts.Settings:
    """Of an ordinary training."""
    return ts.Settings(
        "standard", params=params, lr=RATE, batch_size=16, max_steps=steps, max_tokens=32, seed=seed
    )


def further(encoder: ts.Encoder, steps: int, rows: int, seed: int) -> ts.Encoder:
    """The encoder after training on tasks that no vector is of."""
    tasks = [one.subset(train=rows, seed=seed) for one in ts.suite(OTHERS)]
    return ts.apply(encoder, ts.finetune(encoder, tasks, settings(steps, seed, "all")).task_vector)


def reordered(encoder: ts.Encoder, task: ts.Task, seed: int) -> ts.Encoder:
    """The same function with hidden units and heads in other places."""
    _, batch = read(encoder, task, "train", READING)[0]
    draw, tensors = torch.Generator().manual_seed(seed), dict(encoder.backbone.state_dict())
    for units in hidden_units(encoder, batch):
        tensors = units.reordered(tensors, torch.randperm(units.count, generator=draw))
    other = copy.deepcopy(encoder)
    other.backbone.load_state_dict(tensors)
    return other


def measured(
    old: ts.Encoder, new: ts.Encoder, vectors: dict[ts.Task, ts.TaskVector], steps: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """For each way, one entry for each task."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in (*TRANSPORTS, "trained there")}
    for task, vector in vectors.items():
        own = ts.finetune(new, task, settings(steps, seed)).task_vector
        base = accuracy(new, task, own, 0.0)
        best = accuracy(new, task, own, 1.0)
        found["trained there"].append(
            {"base": base, "accuracy": best, "gain": best - base, "best": best - base}
        )
        for way in TRANSPORTS:
            moved = transport(vector, old, new, task, way, strict=False, reading=READING)
            at = accuracy(new, task, moved.vector, 1.0)
            found[way].append({
                "base": base, "accuracy": at, "gain": at - base, "best": best - base, "cosine": moved.cosine,
                "carries": float(moved.carries),
            })  # fmt: skip
    return found


def accuracy(encoder: ts.Encoder, task: ts.Task, vector: ts.TaskVector, alpha: float) -> float:
    """On test rows."""
    return ts.evaluate(encoder, [task], vector, alpha, "standard", reading=READING).accuracy[task.name]


def row(base: str, way: str, seeds: list[list[dict[str, float]]]) -> dict[str, Any]:
    """A way over seeds and tasks."""
    every = [one for seed in seeds for one in seed]
    means = [statistics.fmean(one["accuracy"] for one in seed) for seed in seeds]
    cells: dict[str, Any] = {
        "new base": base, "carried": way, "base alone": statistics.fmean(one["base"] for one in every),
        "accuracy": statistics.fmean(means), "least": min(means), "most": max(means),
        "kept": sum(one["gain"] for one in every) / sum(one["best"] for one in every),
    }  # fmt: skip
    if "cosine" in every[0]:
        right = [(one["gain"] >= one["best"] / 2) == bool(one["carries"]) for one in every]
        cells |= {
            "cosine": statistics.fmean(one["cosine"] for one in every),
            "carry over": f"{sum(one['carries'] for one in every):.0f} of {len(every)}",
            "right": f"{sum(right)} of {len(every)}",
        }
    return cells


def thresholds(found: dict[str, dict[str, list[list[dict[str, float]]]]]) -> list[dict[str, Any]]:
    """How often the verdict would be right, had it another least cosine."""
    every = [
        one for ways in found.values() for seeds in ways.values() for seed in seeds for one in seed
        if "cosine" in one
    ]  # fmt: skip
    kept = [one["gain"] >= one["best"] / 2 for one in every]
    rows = []
    for least in LEAST:
        over = [one["cosine"] >= least for one in every]
        right = sum(said == good for said, good in zip(over, kept, strict=True))
        rows.append({"from a cosine of": least, "right": right, "of": len(every), "carry over": sum(over)})
    return rows


def main(argv: list[str] | None = None) -> None:
    """Train, carry over, evaluate, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200, help="test rows a task; validation has half as many")
    parser.add_argument("--train", type=int, default=320, help="training rows a task")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    old = ts.load("minilm")
    found: dict[str, dict[str, list[list[dict[str, float]]]]] = {}
    with ts.quiet():
        for seed in range(options.seeds):
            tasks = [
                one.subset(train=options.train, validation=options.rows // 2, test=options.rows, seed=seed)
                for one in ts.suite(options.tasks)
            ]
            vectors = {one: ts.finetune(old, one, settings(options.steps, seed)).task_vector for one in tasks}
            trained = further(old, options.steps, options.train, seed)
            bases = {"trained further": trained, "and reordered": reordered(trained, tasks[0], seed)}
            for name, new in bases.items():
                for way, each in measured(old, new, vectors, options.steps, seed).items():
                    found.setdefault(name, {}).setdefault(way, []).append(each)
    rows = [row(name, way, seeds) for name, ways in found.items() for way, seeds in ways.items()]
    note = (
        f"minilm, {', '.join(options.tasks)}, {options.steps} steps of 16 rows at {RATE:g}, last two blocks; the new "
        f"base: as many steps of all blocks on {' and '.join(OTHERS)}; {options.rows} test rows a task, "
        f"{options.seeds} seeds; least and most of a seed"
    )
    told(Table("Vectors on another base", rows, note), options.out, each=found)
    print(
        Table(
            "Verdicts by the least cosine", thresholds(found), "all ways, bases, tasks and seeds"
        ).to_markdown()
    )


if __name__ == "__main__":
    main()
