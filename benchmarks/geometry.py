"""Geometry of editing on MiniLM: do orthogonal heads lower interference, and does R^2 over subsets say what adding costs?

    python -m benchmarks.geometry [--tasks email_spam ...] [--seeds 0 1 2] [--steps 40] [--rows 320] [--test 150]
                                  [--params last:2] [--sizes 2 3] [--out out/geometry]

Vectors of each task are trained in both regimes, with heads made of prompts and with heads whose classes are at equal
angles, each task's in a subspace of its own (`tauspan.tasks.with_orthogonal_heads`). Printed are means and standard
deviations over seeds: accuracy of single vectors and of the sum at alpha 1, the mean of xi over [0, 1]^2, R^2 of outputs
over all subsets, and the share of each task's own vector. The second table has the same of every group of two, three, ...
tasks, and over the groups of one size the rank correlation of R^2 and of the own share with the part of single accuracy
that a group keeps: one for each seed, of which mean and range are given. Groups of a seed share vectors and tasks, and
seeds share tasks, so there is no p value. Where R^2 is 1 up to rounding, as in the linear regime, it has no correlation.
Finished rows are read from the folder.
"""

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import spearmanr

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.core.report import Table
from tauspan.tasks import with_orthogonal_heads

TASKS = ("email_spam", "movie_sentiment", "tweet_sentiment", "news_recreation")
RATES: Mapping[Any, float] = {"standard": 2e-4, "linear": 3e-4}
HEADS = ("prompts", "orthogonal")
AXIS = (0.0, 0.5, 1.0)
BATCH, TOKENS = 16, 32
ONE = 1e-6  # R^2 nearer to 1 than this is 1 up to rounding
READING = ts.Reading(batch_size=50, max_tokens=TOKENS)
Row = dict[str, Any]


def measured(given: argparse.Namespace, heads: str, regime: Any, seed: int) -> Row:
    """One kind of heads in one regime with one seed: all tasks together, and each group of the asked sizes."""
    file = given.out / f"groups-{heads}-{regime}-{seed}.json"
    if file.exists():
        row: Row = json.loads(file.read_text())
        return row
    encoder = ts.load("minilm")
    tasks = [
        one.subset(train=given.rows, validation=40, test=given.test, seed=seed)
        for one in ts.suite(given.tasks)
    ]
    if heads == "orthogonal":
        tasks = with_orthogonal_heads(tasks, encoder, seed=seed)
    settings = ts.Settings(
        regime, params=given.params, lr=RATES[regime], epochs=math.ceil(given.steps * BATCH / given.rows),
        max_steps=given.steps, batch_size=BATCH, max_tokens=TOKENS, seed=seed,
    )  # fmt: skip
    vectors = {task: ts.finetune(encoder, task, settings).task_vector for task in tasks}
    editor = ts.Editor(
        encoder, vectors, reading=READING
    )  # one for all groups: what they share is computed once
    groups = [
        _together(editor, group) for size in given.sizes for group in itertools.combinations(tasks, size)
    ]
    xi = [one["xi"] for one in groups if "xi" in one]
    row = {
        "heads": heads, "regime": regime, "seed": seed, **_together(editor, tasks), "groups": groups,
        "xi": fmean(xi) if xi else None,
    }  # fmt: skip
    store.write_json(file, row)
    return row


def _together(editor: ts.Editor, tasks: Sequence[ts.Task]) -> Row:
    """Accuracy alone and added, R^2 and the own share of a group's vectors; of two tasks xi as well."""
    added = editor.evaluate({task.name: 1.0 for task in tasks}, tasks=tasks).accuracy
    single = {
        task.name: editor.evaluate({task.name: 1.0}, tasks=[task]).accuracy[task.name] for task in tasks
    }
    found = editor.factorise(tasks=tasks)
    row: Row = {
        "tasks": [task.name for task in tasks],
        "zero shot": fmean(editor.evaluate(0.0, tasks=tasks).accuracy.values()),
        "single": fmean(single.values()), "added": fmean(added.values()),
        "kept": fmean(added[name] / single[name] for name in single), "R2": found.r2, "own": found.own,
    }  # fmt: skip
    if len(tasks) == 2:
        (drawn,) = editor.maps(pairs=[(tasks[0].name, tasks[1].name)], grid=AXIS).pairs
        row["xi"] = drawn.means["box"]
    return row


def means(rows: Sequence[Row]) -> list[Row]:
    """A line for each kind of heads and regime."""
    lines = []
    for heads, regime in itertools.product(HEADS, RATES):
        some = [row for row in rows if (row["heads"], row["regime"]) == (heads, regime)]
        line: Row = {"heads": heads, "regime": regime}
        for name in ("zero shot", "single", "added", "kept", "xi", "R2", "own"):
            line[name] = _spread([row[name] for row in some])
        lines.append(line)
    return lines


def _spread(values: Sequence[float | None]) -> str | None:
    """Mean and standard deviation; nothing where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return f"{fmean(known):.3f}" + (f" ± {stdev(known):.3f}" if known[1:] else "")


def correlations(rows: Sequence[Row]) -> list[Row]:
    """A line for each kind of heads, regime and size of group: means, and rank correlations with what groups keep."""
    lines = []
    for heads, regime in itertools.product(HEADS, RATES):
        seeds = [row["groups"] for row in rows if (row["heads"], row["regime"]) == (heads, regime)]
        for size in sorted({len(one["tasks"]) for groups in seeds for one in groups}):
            some = [[one for one in groups if len(one["tasks"]) == size] for groups in seeds]
            line: Row = {"heads": heads, "regime": regime, "tasks": size, "groups": len(some[0])}
            for name in ("kept", "R2", "own"):
                line[name] = _spread([fmean(one[name] for one in groups) for groups in some])
            for name in ("R2", "own"):
                line[f"{name} with kept"] = _ranked([rank_correlation(groups, name) for groups in some])
            lines.append(line)
    return lines


def rank_correlation(groups: Sequence[Row], name: str) -> float | None:
    """Spearman's, of one seed; None of fewer than three groups, of equal values, and of R^2 that is 1 up to rounding."""
    one, two = [group[name] for group in groups], [group["kept"] for group in groups]
    rounding = name == "R2" and all(abs(1 - value) < ONE for value in one)
    if len(groups) < 3 or rounding or len(set(one)) < 2 or len(set(two)) < 2:
        return None
    return float(spearmanr(one, two).statistic)


def _ranked(values: Sequence[float | None]) -> str | None:
    """The mean over seeds and their range; nothing where a seed has none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return f"{fmean(known):.2f}" + (f" ({min(known):.2f} to {max(known):.2f})" if known[1:] else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tasks", nargs="+", default=list(TASKS))
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--rows", type=int, default=320, help="training rows a task")
    asked.add_argument("--test", type=int, default=150, help="test rows a task")
    asked.add_argument("--params", default="last:2")
    asked.add_argument("--sizes", nargs="+", type=int, default=[2, 3], help="of groups of tasks")
    asked.add_argument("--out", type=Path, default=Path("out/geometry"))
    given = asked.parse_args(argv)
    if not all(2 <= size < len(given.tasks) for size in given.sizes):
        asked.error(f"--sizes {given.sizes} of {len(given.tasks)} tasks: from 2 to {len(given.tasks) - 1}")
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    todo = list(itertools.product(given.seeds, HEADS, RATES))
    with progress("geometry", len(todo)) as advance, ts.quiet():
        for seed, heads, regime in todo:
            rows.append(measured(given, heads, regime, seed))
            advance(1, f"{heads}, {regime}, {seed}")
    note = (
        f"minilm, {', '.join(given.tasks)}; {given.rows} rows, {given.steps} steps, {given.params}, {TOKENS} tokens, "
        f"{given.test} test rows a task, {len(given.seeds)} seeds: mean ± standard deviation"
    )
    print(Table("Heads and interference", means(rows), note).to_markdown())
    about = (
        "Means ± standard deviation over seeds of the mean over groups. Rank correlations over groups of one size: mean "
        "and, in brackets, range over seeds; empty where fewer than three groups or equal values leave none, and where "
        "R2 is 1 up to rounding."
    )
    print(Table("Does R2 over subsets say what adding costs?", correlations(rows), about).to_markdown())


if __name__ == "__main__":
    main()
