"""What decides whether the linear sum at alpha 1 is ahead of the ordinary one: parameters, steps, rates, rows, likeness?

    python -m benchmarks.decides [--seeds 3] [--train 320] [--rows 100] [--out results.json]

Vectors of some tasks are made in the linear regime at one rate, and in the ordinary one at several, for each choice of
parameters, number of steps and number of training rows. The sums of all pairs and of all tasks are compared at alpha 1,
without a search. Beside the gap stand quantities that could decide it: some are known before training (`outlook` is the
error of the tangent model that `tauspan.kernel.diagnose.outlook` expects, `alike` the mean cosine between the vectors
that it expects of the tasks), some only after. `bend` is how far the ordinary model at the sum is from its tangent
model there, |f(x; theta0 + sum tau) - f - J sum tau| / |J sum tau|; `reach` is how far a single ordinary vector moves the
logits of its own task over their size. The second table has Spearman's rank correlation of the gap with each, over all
sums, and over those of one number of blocks, of steps, or of rows. The third has the sums where `tauspan outlook` advises
against ordinary vectors, and the gap there.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

import tauspan as ts
from tauspan.core.computing import computing
from tauspan.core.report import Table
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.kinds import edited_model
from tauspan.kernel.diagnose.outlook import BENDS, Expectation
from tauspan.merge.methods.method import added

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
BATCH = 16
LINEAR, ORDINARY = 3e-4, (1e-4, 4e-4)
READING = ts.Reading(batch_size=50, max_tokens=32)
AXES = ("blocks", "steps", "train")  # that a training has besides its rate
BEFORE = ("tasks", *AXES, "rate", "rate x steps", "outlook", "alike")
SHOWN = ("linear single", "ordinary single", "outlook", "alike", "bend")
AFTER = ("reach", "bend", "single gap")


@dataclass(frozen=True)
class Training:
    """What makes the vectors of a cell, but for their regime and rate."""

    blocks: int
    steps: int
    train: int
    seed: int

    def settings(self, regime: Any, rate: float) -> ts.Settings:
        """Of one task."""
        return ts.Settings(
            regime, params=f"last:{self.blocks}", lr=rate, epochs=math.ceil(self.steps * BATCH / self.train),
            batch_size=BATCH, max_steps=self.steps, max_tokens=32, seed=self.seed,
        )  # fmt: skip

    def tasks(self, names: Sequence[str], test: int) -> list[ts.Task]:
        """With the rows of the seed."""
        return [
            one.subset(train=self.train, validation=40, test=test, seed=self.seed) for one in ts.suite(names)
        ]


def training_of(cell: Mapping[str, Any]) -> Training:
    """That a cell is of."""
    return Training(*(cell[name] for name in (*AXES, "seed")))


def with_outlook(encoder: ts.Encoder, found: Sequence[dict[str, Any]], test: int, out: Path | None) -> None:
    """Write into each cell what is expected of its sum before the ordinary training."""
    missing = dict.fromkeys((training_of(one), one["rate"]) for one in found if "alike" not in one)
    for training, rate in missing:
        cells = [one for one in found if (training_of(one), one["rate"]) == (training, rate)]
        chosen, names = (
            training.settings("standard", rate),
            sorted({name for one in cells for name in one["sum"]}),
        )
        with computing(check="off"):  # the same models and shapes as those that were trained
            asked = {
                task.name: Expectation.of(encoder, task, chosen, 32) for task in training.tasks(names, test)
            }
            vectors = {name: one.expected_vector(chosen) for name, one in asked.items()}
            for one in cells:
                parts = [vectors[name] for name in one["sum"]]
                total = {name: added(part[name] for part in parts) for name in parts[0]}
                one["outlook"] = fmean(asked[name].error_at(total) for name in one["sum"])
                one["alike"] = fmean(cosine(*pair) for pair in itertools.combinations(parts, 2))
        _keep(out, found)


def cosine(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Between two vectors."""
    flat = [torch.cat([part[name].flatten().double() for name in one]) for part in (one, two)]
    return float(torch.nn.functional.cosine_similarity(*flat, dim=0))


def model_of(
    encoder: ts.Encoder, tasks: Sequence[ts.Task], training: Training, regime: Any, rate: float
) -> EditedModel:
    """The edited model of vectors that are made for all tasks."""
    chosen = training.settings(regime, rate)
    vectors = {one.name: ts.finetune(encoder, one, chosen).task_vector for one in tasks}
    return edited_model(encoder, Directions.whole(vectors), regime, READING, ahead=True)


def tangent_of(model: EditedModel) -> EditedModel:
    """The tangent model of ordinary vectors."""
    return edited_model(model.encoder, model.directions, "posthoc", READING, ahead=True)


def size(logits: Tensor) -> float:
    """Root mean square over rows of the norm of a row, without what moves all classes alike."""
    return float((logits - logits.mean(-1, keepdim=True)).double().square().sum(-1).mean().sqrt())


def cells(encoder: ts.Encoder, names: Sequence[str], test: int, training: Training) -> list[dict[str, Any]]:
    """For each ordinary rate and sum: accuracies at alpha 1, and what could decide their gap."""
    found, tasks = [], training.tasks(names, test)
    linear = model_of(encoder, tasks, training, "linear", LINEAR)
    for rate in ORDINARY:
        ordinary = model_of(encoder, tasks, training, "standard", rate)
        tangent = tangent_of(ordinary)
        for some in (*itertools.combinations(tasks, 2), tuple(tasks)):
            known = asdict(training) | {
                "rate": rate, "rate x steps": rate * training.steps, "tasks": len(some),
                "sum": [one.name for one in some],
            }  # fmt: skip
            found.append(known | _cell(linear, ordinary, tangent, some))
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
    names = (*AXES, "rate", "tasks")
    for key in dict.fromkeys(tuple(one[name] for name in names) for one in found):
        some = [one for one in found if tuple(one[name] for name in names) == key]
        gaps = [fmean(map(gap, group)) for group in _by_seed(some)]
        rows.append({
            **dict(zip(names, key, strict=True)), "rate": f"{key[-2]:g}",
            **{name: fmean(one[name] for one in some) for name in ("linear", "ordinary")},
            "gap": fmean(gaps), "least": min(gaps), "most": max(gaps),
            **{name: fmean(one[name] for one in some) for name in SHOWN},
        })  # fmt: skip
    return rows


def gap(one: Mapping[str, Any]) -> float:
    """How far the linear sum is ahead at alpha 1."""
    return float(one["linear"] - one["ordinary"])


def _by_seed(found: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [[one for one in found if one["seed"] == seed] for seed in dict.fromkeys(o["seed"] for o in found)]


def groups(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """All sums, and those of one number of blocks, of steps, or of training rows."""
    made: dict[str, list[Mapping[str, Any]]] = {"all": list(found)}
    for name in AXES:
        values = sorted({one[name] for one in found})
        if len(values) > 1:
            made |= {
                f"{value} {'rows' if name == 'train' else name}": [one for one in found if one[name] == value]
                for value in values
            }
    return made


def correlations(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's rank correlations over the sums of each seed: the mean, and the least and the most of a seed."""
    return [
        {
            "sums": which, "quantity": name, "known": "before" if name in BEFORE else "after",
            **{target: _ranks(some, name, of) for target, of in TARGETS.items()},
        }
        for which, some in groups(found).items()
        for name in (*BEFORE, *AFTER)
    ]  # fmt: skip


def advised(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where the outlook advises against ordinary vectors: how many sums, and how far the linear ones are ahead there."""
    rows = []
    for which, some in groups(found).items():
        gaps = [gap(one) for one in some if one["outlook"] > BENDS]
        rows.append({
            "sums": which, "of": len(some), "advised": len(gaps), "gap": fmean(gaps) if gaps else None,
            "least": min(gaps, default=None), "most": max(gaps, default=None),
        })  # fmt: skip
    return rows


def _ranks(
    found: Sequence[Mapping[str, Any]], name: str, target: Callable[[Mapping[str, Any]], float]
) -> str:
    each = []
    for some in _by_seed(found):
        values = [single_gap(one) if name == "single gap" else one[name] for one in some]
        if len(set(values)) > 1:  # one that never differs has no rank
            each.append(float(spearmanr(values, list(map(target, some))).statistic))
    return f"{fmean(each):.2f} [{min(each):.2f}, {max(each):.2f}]" if each else ""


def single_gap(one: Mapping[str, Any]) -> float:
    """How far single linear vectors are ahead."""
    return float(one["linear single"] - one["ordinary single"])


def lost(one: Mapping[str, Any]) -> float:
    """What ordinary vectors lose of single accuracy by adding."""
    return float(one["ordinary single"] - one["ordinary"])


TARGETS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "with the gap": gap, "with what ordinary vectors lose": lost, "with bend": lambda one: float(one["bend"])
}  # fmt: skip


def _keep(out: Path | None, found: Sequence[Mapping[str, Any]], note: str = "") -> None:
    if out:
        out.write_text(f"{json.dumps({'cells': found, 'note': note}, indent=1)}\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Make the vectors, compare the sums, and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100, help="test rows a task")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--train", type=int, nargs="+", default=[320], help="training rows a task")
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[2, 6], help="how many of the last blocks train"
    )
    parser.add_argument("--out", type=Path, help="JSON, written as it goes; what it holds is not made again")
    options = parser.parse_args(argv)
    encoder = ts.load("minilm")
    found = json.loads(options.out.read_text())["cells"] if options.out and options.out.exists() else []
    note = (
        f"minilm, {', '.join(options.tasks)}, 32 tokens, linear rate {LINEAR:g}, "
        f"{options.rows} test rows a task, {options.seeds} seeds; means over seeds and sums; gap: linear less ordinary "
        "at alpha 1, least and most of a seed"
    )
    done, axes = {training_of(one) for one in found}, (options.blocks, options.steps, options.train)
    with ts.quiet():
        for seed, *values in itertools.product(range(options.seeds), *axes):
            training = Training(*values, seed)
            if training not in done:
                found += cells(encoder, options.tasks, options.rows, training)
                _keep(options.out, found, note)
        with_outlook(encoder, found, options.rows, options.out)
        _keep(options.out, found, note)
    print(Table("Sums at alpha 1", mean_cells(found), note).to_markdown())
    said = "Spearman's rank correlation over sums: mean, least and most of a seed; lose: of single accuracy, by adding"
    print(Table("What the gap goes with", correlations(found), said).to_markdown())
    said = f"sums whose expected error is above {BENDS}; gap: mean, least and most of a sum"
    print(Table("Where the outlook advises the linear regime", advised(found), said).to_markdown())


if __name__ == "__main__":
    main()
