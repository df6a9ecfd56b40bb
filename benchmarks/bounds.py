"""Are the certified bounds ever broken, and how loose are they?

    python -m benchmarks.bounds [--tasks ...] [--pool 400] [--draws 20] [--out results.json]

Vectors are made in closed form on training rows. For error rates, each of `--draws` resamplings takes 128 rows of a pool
of validation and test rows, bounds the error rate of the sum at 1 (fixed before: binomial) and at coefficients in [0, 2]
that minimise the cross-entropy of these rows (chosen: PAC-Bayes), and compares with the error rate of the whole pool. For
drift, landmarks among the training rows bound how far the vector of another task moves each row of a pool; each
resampling draws other landmarks.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import minimize

import tauspan as ts
from tauspan.core.report import Table
from tauspan.drift.bound import bounds_of, chosen_entries
from tauspan.editing.search.certificate import best_drawn, drawn_error, fixed_bound, margins_of
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.models import Classifier
from tauspan.tasks import Split, build_head
from tauspan.train.convex import labelled

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
READING = ts.Reading(batch_size=32, max_tokens=32)
PARAMS = "last:2"
ROWS = 128


def pooled(task: ts.Task, size: int) -> ts.Task:
    """The task with its validation and test rows as one split under both names."""
    validation, test = task.split("validation"), task.split("test")
    inputs = [*validation.inputs, *test.inputs][:size]
    labels = torch.cat([validation.labels, test.labels])[:size]
    pool = Split(inputs, labels)
    return replace(task, splits={"train": task.split("train"), "validation": pool, "test": pool})


def error_rates(editor: ts.Editor, draws: int) -> list[dict[str, Any]]:
    """For fixed and for chosen coefficients: bounds that were broken, and how far they are from the pool's rate."""
    tasks, names = list(editor.vectors), [task.name for task in editor.vectors]
    model, confidence = editor._models.whole(tasks), 0.05 / len(tasks)
    model.read(dict.fromkeys(tasks, names), "validation")
    rows: dict[str, list[tuple[float, float, float]]] = {"fixed at 1": [], "chosen": []}
    for seed in range(draws):
        draw = torch.Generator().manual_seed(seed)
        few = {task: torch.randperm(len(task.split("validation")), generator=draw)[:ROWS] for task in tasks}
        ones, chosen = dict.fromkeys(names, 1.0), least_loss(model, few, names)
        margins = {task: margins_of(model, task, chosen, "validation") for task in tasks}
        own = {task: (found[few[task]], slopes[few[task]]) for task, (found, slopes) in margins.items()}
        away = sum((value - 1) ** 2 for value in chosen.values())
        drawn = best_drawn(own, len(names), away, 0.3, confidence)
        for task in tasks:
            wrong, chance = 1 - model.scores(task, "validation", ones), 1 - 1 / len(task.label_names)
            bound = fixed_bound(float(wrong[few[task]].mean()), ROWS, confidence)
            rows["fixed at 1"].append((bound, float(wrong.mean()), chance))
            rows["chosen"].append((drawn.bounds[task], drawn_error(*margins[task], drawn.width), chance))
    return [
        {
            "coefficients": way, "bounds": len(found), "broken": sum(true > bound for bound, true, _ in found),
            "bound": statistics.fmean(bound for bound, _, _ in found),
            "error of the pool": statistics.fmean(true for _, true, _ in found),
            "not below chance": sum(bound >= chance for bound, _, chance in found),
        }
        for way, found in rows.items()
    ]  # fmt: skip


def least_loss(model: Any, few: dict[ts.Task, torch.Tensor], names: list[str]) -> dict[str, float]:
    """The coefficients in [0, 2] of least mean cross-entropy on some rows."""
    parts = []
    for task, rows in few.items():
        start = model.logits(task, "validation", {}).double()[rows]
        moved = [model.logits(task, "validation", {name: 1.0}).double()[rows] - start for name in names]
        parts.append((start, torch.stack(moved), model.targets(task, "validation")[rows]))

    def loss(at: Any) -> tuple[float, Any]:
        numbers = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        losses = [
            torch.nn.functional.cross_entropy(start + torch.einsum("t,tnc->nc", numbers, moved), labels)
            for start, moved, labels in parts
        ]
        total = torch.stack(losses).mean()
        (gradient,) = torch.autograd.grad(total, numbers)
        return float(total.detach()), gradient.numpy()

    found = minimize(
        loss, [1.0] * len(names), jac=True, bounds=[(0.0, 2.0)] * len(names), method="L-BFGS-B"
    ).x
    return dict(zip(names, found.tolist(), strict=True))


def drifts(editor: ts.Editor, draws: int, counts: list[int], pool: int) -> list[dict[str, Any]]:
    """By kind and number of landmarks: rows that moved farther than their bound, and how loose the bounds are."""
    on, by = list(editor.vectors)[:2]
    tau = editor.vectors[by].fitted(editor.encoder, tangent=True).deltas
    train, unseen = on.split("train"), on.split("validation")
    inputs = [*train.inputs, *unseen.inputs[:pool]]
    rows = Split(inputs, torch.zeros(len(inputs), dtype=torch.long))
    batches = [batch for batch, _ in labelled(editor.encoder, rows, READING.max_tokens, 32, on.objective)]
    classifier = Classifier(editor.encoder, build_head(on, editor.encoder, max_tokens=READING.max_tokens))
    kernel = TangentKernel(classifier, batches, params=list(tau))
    matrix, moved = kernel.dense(), kernel.push(tau)
    cut, outputs = len(train) * kernel.outputs, kernel.outputs
    actual = moved[cut:].view(-1, outputs).norm(dim=1)
    norm = sum(float(delta.double().square().sum()) for delta in tau.values())
    own = DenseKernel(matrix[:cut, :cut])
    found = []
    for choose in ("pivoted", "random"):
        for count in counts:
            bounds = []
            for seed in range(draws):
                at = chosen_entries(own, count, choose, seed)
                entries, _ = bounds_of(
                    matrix[at][:, at], moved[at], matrix[cut:, at], matrix.diagonal()[cut:], norm
                )
                bounds.append(entries.view(-1, outputs).norm(dim=1))
            found.append({
                "landmarks": f"{count} {choose}", "rows": len(bounds) * len(actual),
                "broken": sum(int((actual > one).sum()) for one in bounds),
                "bound, median": statistics.median(float(one.median()) for one in bounds),
                "moved, median": float(actual.median()),
                "bound / moved": statistics.median(float((one / actual).median()) for one in bounds),
            })  # fmt: skip
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--train", type=int, default=64, help="training rows of each task (default: 64)")
    parser.add_argument("--pool", type=int, default=400, help="rows whose error is bounded (default: 400)")
    parser.add_argument(
        "--drift-pool", type=int, default=120, help="rows whose drift is bounded (default: 120)"
    )
    parser.add_argument("--draws", type=int, default=20, help="resamplings (default: 20)")
    parser.add_argument("--landmarks", type=int, nargs="+", default=[16, 64], help="(default: 16 64)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON too")
    options = parser.parse_args()
    encoder = ts.load("minilm")
    tasks = [pooled(task.subset(train=options.train), options.pool) for task in ts.suite(options.tasks)]
    with ts.quiet():
        vectors = {
            task: ts.closed_form(encoder, task, ridge=100.0, params=PARAMS, reading=READING).vector
            for task in tasks
        }  # fmt: skip
        editor = ts.Editor(encoder, vectors, reading=READING)
        rates = error_rates(editor, options.draws)
        moved = drifts(editor, options.draws, options.landmarks, options.drift_pool)
    said = f"minilm, {PARAMS}, {', '.join(options.tasks)}, closed forms of {options.train} rows, {options.draws} draws"
    tables = [
        Table(
            "Error rates: bounds from 128 rows", rates, f"{said}; pools of {options.pool} rows; level 0.95"
        ),
        Table(f"Drift of rows of {tasks[0].name} by the vector of {tasks[1].name}", moved, said),
    ]
    for table in tables:
        print(table.to_markdown(), "\n")
    if options.out:
        rows = {table.title: list(table.rows) for table in tables}
        options.out.write_text(json.dumps({"rows": rows, "note": said}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
