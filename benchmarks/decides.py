"""What decides whether the linear sum at alpha 1 is ahead of the ordinary one: tasks, steps, rates, or lengths?

    python -m benchmarks.decides [--seeds 3] [--rows 100] [--out results.json]

Vectors of seven tasks are made in the linear regime at one rate, and in the ordinary one at several, for each number of
steps. Sums of two, four and seven tasks are compared at alpha 1, without a search. Beside the gap stand quantities that
could decide it: some are known before training, some only after. `bend` is how far the ordinary model at the sum is from
its tangent model there, |f(x; theta0 + sum tau) - f - J sum tau| / |J sum tau|; `reach` is how far a single ordinary
vector moves the logits of its own task over their size. The second table has Spearman's rank correlation of the gap
with each.
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr
from torch import Tensor

import tauspan as ts
from tauspan.core.report import Table
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import EditedModel, edited_model

TASKS = (
    "news_computing", "news_recreation", "news_science_society", "movie_sentiment", "tweet_sentiment", "email_spam",
    "debian_section",
)  # fmt: skip
SUMS = {
    2: (
        ("news_computing", "news_recreation"), ("movie_sentiment", "tweet_sentiment"), ("email_spam", "debian_section"),
        ("news_science_society", "movie_sentiment"),
    ),
    4: (
        ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam"),
        ("news_computing", "news_science_society", "email_spam", "debian_section"),
    ),
    7: (TASKS,),
}  # fmt: skip
LINEAR, ORDINARY = 3e-4, (5e-5, 2e-4, 4e-4)
READING = ts.Reading(batch_size=50, max_tokens=32)
MEASURES = ("tasks", "steps", "rate", "rate x steps", "reach", "bend", "single gap")


def model_of(
    encoder: ts.Encoder, tasks: Sequence[ts.Task], regime: Any, rate: float, steps: int, seed: int
) -> EditedModel:
    """The edited model of vectors that are made for all tasks."""
    settings = ts.Settings(
        regime, params="last:2", lr=rate, batch_size=16, max_steps=steps, max_tokens=32, seed=seed
    )
    vectors = {one.name: ts.finetune(encoder, one, settings).task_vector for one in tasks}
    return edited_model(encoder, Directions.whole(vectors), regime, READING, ahead=True)


def tangent_of(model: EditedModel) -> EditedModel:
    """The tangent model of ordinary vectors."""
    return edited_model(model.encoder, model.directions, "posthoc", READING, ahead=True)


def size(logits: Tensor) -> float:
    """Root mean square over rows of the norm of a row, without what moves all classes alike."""
    return float((logits - logits.mean(-1, keepdim=True)).double().square().sum(-1).mean().sqrt())


def cells(
    encoder: ts.Encoder, tasks: Sequence[ts.Task], seed: int, steps: Sequence[int]
) -> list[dict[str, Any]]:
    """For each number of steps, ordinary rate and sum: accuracies at alpha 1, and what could decide their gap."""
    found = []
    for count in steps:
        linear = model_of(encoder, tasks, "linear", LINEAR, count, seed)
        for rate in ORDINARY:
            ordinary = model_of(encoder, tasks, "standard", rate, count, seed)
            tangent = tangent_of(ordinary)
            known = {one.name: one for one in tasks}
            for names in itertools.chain(*SUMS.values()):
                some = [known[name] for name in names if name in known]
                if len(some) == len(names):
                    found.append(
                        {"seed": seed, "steps": count, "rate": rate, "tasks": len(some), "sum": list(names)}
                        | _cell(linear, ordinary, tangent, some)
                    )
    return found


def _cell(
    linear: EditedModel, ordinary: EditedModel, tangent: EditedModel, tasks: Sequence[ts.Task]
) -> dict[str, float]:
    whole, found = dict.fromkeys([one.name for one in tasks], 1.0), []
    for task in tasks:
        own = {task.name: 1.0}
        start, moved, predicted = (
            model.logits(task, "test", at)
            for model, at in ((ordinary, {}), (ordinary, whole), (tangent, whole))
        )
        alone = ordinary.logits(task, "test", own)
        found.append({
            "linear": linear.metric(task, "test", whole), "ordinary": ordinary.metric(task, "test", whole),
            "linear single": linear.metric(task, "test", own), "ordinary single": ordinary.metric(task, "test", own),
            "bend": size(moved - predicted) / size(predicted - start), "reach": size(alone - start) / size(start),
        })  # fmt: skip
    return {name: fmean(one[name] for one in found) for name in found[0]}


def mean_cells(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds and over the sums of as many tasks."""
    rows = []
    keys = list(dict.fromkeys((one["steps"], one["rate"], one["tasks"]) for one in found))
    for steps, rate, tasks in keys:
        some = [one for one in found if (one["steps"], one["rate"], one["tasks"]) == (steps, rate, tasks)]
        gaps = [
            fmean(one["linear"] - one["ordinary"] for one in some if one["seed"] == seed)
            for seed in dict.fromkeys(one["seed"] for one in some)
        ]
        rows.append({
            "steps": steps, "ordinary rate": f"{rate:g}", "tasks": tasks,
            **{name: fmean(one[name] for one in some) for name in ("linear", "ordinary")},
            "gap": fmean(gaps), "least": min(gaps), "most": max(gaps),
            **{name: fmean(one[name] for one in some) for name in ("linear single", "ordinary single", "reach", "bend")},
        })  # fmt: skip
    return rows


def correlations(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the gap at alpha 1 with each quantity, over all sums; and within each seed."""
    rows = []
    for name in MEASURES:
        by_seed = {
            seed: [one for one in found if one["seed"] == seed]
            for seed in dict.fromkeys(o["seed"] for o in found)
        }
        each = [_rank(some, name) for some in by_seed.values()]
        rows.append({
            "quantity": name, "known": "before" if name in MEASURES[:4] else "after",
            "with the gap": fmean(each), "least": min(each), "most": max(each),
        })  # fmt: skip
    return rows


def _rank(found: Sequence[Mapping[str, Any]], name: str) -> float:
    def value(one: Mapping[str, Any]) -> float:
        if name == "rate x steps":
            return float(one["rate"] * one["steps"])
        return float(one["linear single"] - one["ordinary single"] if name == "single gap" else one[name])

    gaps = [one["linear"] - one["ordinary"] for one in found]
    return float(spearmanr([value(one) for one in found], gaps).statistic)


def main(argv: list[str] | None = None) -> None:
    """Make the vectors, compare the sums, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100, help="test rows a task")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 60])
    parser.add_argument(
        "--out", type=Path, help="JSON, written after each seed; seeds that it holds are not run again"
    )
    options = parser.parse_args(argv)
    encoder = ts.load("minilm")
    found = json.loads(options.out.read_text())["cells"] if options.out and options.out.exists() else []
    note = (
        f"minilm, last two blocks, 32 tokens, linear rate {LINEAR:g}, {options.rows} test rows a task, "
        f"{options.seeds} seeds; means over seeds and sums; gap: linear less ordinary at alpha 1, least and most of a "
        "seed"
    )
    with ts.quiet():
        for seed in sorted(set(range(options.seeds)) - {one["seed"] for one in found}):
            tasks = [
                one.subset(train=320, validation=40, test=options.rows, seed=seed)
                for one in ts.suite(options.tasks)
            ]
            found += cells(encoder, tasks, seed, options.steps)
            if options.out:
                options.out.write_text(
                    json.dumps({"cells": found, "note": note}, indent=1) + "\n", encoding="utf-8"
                )
    print(Table("Sums at alpha 1", mean_cells(found), note).to_markdown())
    said = "Spearman's rank correlation over sums, mean, least and most of a seed"
    print(Table("What the gap goes with", correlations(found), said).to_markdown())


if __name__ == "__main__":
    main()
