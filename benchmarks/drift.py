"""How near curvature factors come to exact drift, and what a step with each penalty costs.

    python -m benchmarks.drift [--tasks ...] [--rows 32] [--steps 20] [--seeds 0 1 2] [--out results.json]
    python -m benchmarks.drift --costs [--rounds 5]

The first makes vectors of each task in three ways (closed form, fine-tuned in both regimes) and one at random, and prints
the geometric mean, over all pairs of a vector and another task, of an approximation over exact drift E |J tau|^2 on the
same rows; and the rank correlation over pairs. The second prints the time of a training step with each penalty over that
of a plain step of the same regime, interleaved: median and range over rounds; the median over a plain ordinary step; and
the time and bytes of what is made before the first step: factors, or the rows that exact drift keeps.
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.told import told
from scipy.stats import spearmanr

import tauspan as ts
from tauspan.core.report import Table
from tauspan.drift import KINDS, Distilled, Exact, Factored, Penalty, TauJp, exact_drift, factors
from tauspan.models import Classifier
from tauspan.tasks import build_head

TASKS = ("news_recreation", "movie_sentiment", "tweet_sentiment", "email_spam")
TOKENS, PARAMS = 32, "last:2"
KEPT = "exact, 16 kept rows a task"
Found = dict[str, dict[str, tuple[float, float]]]  # by way and kind
READING = ts.Reading(batch_size=16, max_tokens=TOKENS)


def vectors(
    encoder: ts.Encoder, tasks: Sequence[ts.Task], steps: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By way and task, a vector."""
    found: dict[str, dict[str, Any]] = {"closed form": {}, "linear": {}, "standard": {}}
    for task in tasks:
        with ts.quiet():
            found["closed form"][task.name] = solved(encoder, task)
            for regime in ("linear", "standard"):
                settings = ts.Settings(
                    regime,
                    seed=seed,
                    params=PARAMS,
                    max_steps=steps,
                    epochs=1000,
                    batch_size=16,
                    max_tokens=TOKENS,
                )  # type: ignore[arg-type]
                found[regime][task.name] = ts.finetune(encoder, task, settings).task_vector
    found["random"] = {name: drawn(vector, seed) for name, vector in found["closed form"].items()}
    return found


def solved(encoder: ts.Encoder, task: ts.Task) -> ts.TaskVector:
    """The vector in closed form."""
    return ts.closed_form(encoder, task, ridge=100.0, params=PARAMS, reading=READING).vector


def drawn(vector: ts.TaskVector, seed: int) -> ts.TaskVector:
    """Normal numbers of the same norm in each tensor."""
    draw = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, delta in vector.deltas.items():
        noise = torch.randn(delta.shape, generator=draw)
        deltas[name] = noise * (delta.norm() / noise.norm().clamp(min=1e-30))
    return replace(vector, deltas=deltas)


def ratios(
    encoder: ts.Encoder, tasks: Sequence[ts.Task], steps: int, seed: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """By way and kind, the log of approximate over exact, and their rank correlation over pairs."""
    curvature = {
        kind: {task.name: factors(encoder, task, kind, params=PARAMS, reading=READING) for task in tasks}
        for kind in KINDS
    }
    found: Found = {}
    for way, own in vectors(encoder, tasks, steps, seed).items():
        exact = exact_drift(encoder, own, tasks, reading=READING)
        pairs = [(on, by) for on in exact for by in own if on != by]
        true = [exact[on][by] for on, by in pairs]
        found[way] = {}
        for kind, each in curvature.items():
            near = [float(each[on].drift(own[by].fitted(encoder, tangent=True).deltas)) for on, by in pairs]
            logs = statistics.mean(math.log(a / b) for a, b in zip(near, true, strict=True))
            found[way][kind] = (logs, float(spearmanr(near, true).statistic))
    return found


def step_times(encoder: ts.Encoder, tasks: Sequence[ts.Task], rounds: int) -> list[dict[str, Any]]:
    """Seconds of a step with each penalty over those of a plain one."""
    first, *others = tasks
    made, sizes = {}, {}
    for kind in KINDS:
        begun = time.perf_counter()
        made[kind] = [factors(encoder, task, kind, params=PARAMS, reading=READING) for task in others]
        sizes[kind] = (time.perf_counter() - begun, sum(one.bytes for one in made[kind]) / 2**20)
    sizes[KEPT] = _kept(encoder, others)
    penalties: dict[str, Penalty | None] = {
        "none": None,
        "exact, 16 fresh rows a task": Exact(others),
        KEPT: Exact(others, kept=1),
        "exact, in turn": Exact(others, turn=True),
        "tau-jp": TauJp(others),
        **{kind: Factored(made[kind]) for kind in KINDS},
        "DELTA's student": Distilled(solved(encoder, first)),
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for regime in ("linear", "standard"):
            for name, penalty in penalties.items():
                if regime == "linear" and isinstance(penalty, Distilled):
                    continue
                seconds.setdefault((regime, name), []).append(_step(encoder, first, regime, penalty))
    rows = []
    for (regime, name), spent in seconds.items():
        over = [mine / plain for mine, plain in zip(spent, seconds[regime, "none"], strict=True)]
        ordinary = [mine / plain for mine, plain in zip(spent, seconds["standard", "none"], strict=True)]
        cost = sizes.get(name, (None, None)) if (regime, name) != ("standard", KEPT) else (None, None)
        rows.append({
            "regime": regime, "penalty": name, "step": statistics.median(over), "least": min(over), "most": max(over),
            "over an ordinary step": statistics.median(ordinary), "made s": cost[0], "made MB": cost[1],
        })  # fmt: skip
    return rows


def _kept(encoder: ts.Encoder, tasks: Sequence[ts.Task]) -> tuple[float, float]:
    """Seconds and MiB of the factors of J on 16 rows of each task."""
    begun, size = time.perf_counter(), 0
    for task in tasks:
        model = ts.linearize(Classifier(encoder, build_head(task, encoder, max_tokens=TOKENS)), params=PARAMS)
        rows = encoder.inputs.encode(list(task.split("train").inputs)[:16], max_tokens=TOKENS)
        size += model.cache([rows]).bytes
    return time.perf_counter() - begun, size / 2**20


def _step(encoder: ts.Encoder, task: ts.Task, regime: Any, penalty: Penalty | None) -> float:
    """Seconds of a step: the median of the later ones of a short run."""
    settings = ts.Settings(
        regime, params=PARAMS, max_steps=6, epochs=100, batch_size=32, max_tokens=TOKENS, check="off"
    )
    stamps: list[float] = []

    def stamp(entry: dict[str, Any]) -> None:
        if entry["split"] == "train":
            stamps.append(time.perf_counter())

    with ts.quiet():
        ts.finetune(encoder, task, settings, penalty=penalty, on_log=stamp)
    return statistics.median(later - earlier for earlier, later in pairwise(stamps[1:]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--rows", type=int, default=32, help="training rows of each task (default: 32)")
    parser.add_argument("--steps", type=int, default=20, help="of a fine-tuned vector (default: 20)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of rows and orders (default: 0 1 2)"
    )
    parser.add_argument("--costs", action="store_true", help="times and bytes instead")
    parser.add_argument("--rounds", type=int, default=5, help="of --costs (default: 5)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON too")
    options = parser.parse_args()
    encoder = ts.load("minilm")

    def tasks(seed: int) -> list[ts.Task]:
        return [task.subset(train=options.rows, validation=16, seed=seed) for task in ts.suite(options.tasks)]

    said = f"minilm, {PARAMS}, {TOKENS} tokens, {', '.join(options.tasks)}, {options.rows} rows each"
    if options.costs:
        rows = step_times(encoder, tasks(options.seeds[0]), options.rounds)
        title, note = (
            "A step over a plain step",
            f"{said}; batches of 32; {options.rounds} interleaved rounds",
        )
    else:
        found = [ratios(encoder, tasks(seed), options.steps, seed) for seed in options.seeds]
        rows = [
            {
                "vectors": way, "factors": kind,
                "approximate / exact": math.exp(statistics.mean(one[way][kind][0] for one in found)),
                "least": math.exp(min(one[way][kind][0] for one in found)),
                "most": math.exp(max(one[way][kind][0] for one in found)),
                "Spearman": statistics.mean(one[way][kind][1] for one in found),
            }
            for way in found[0]
            for kind in KINDS
        ]  # fmt: skip
        title = "Approximate over exact drift"
        note = (
            f"{said}; geometric mean over pairs of different tasks; least and most of seeds {options.seeds}"
        )
    told(Table(title, rows, note), options.out)


if __name__ == "__main__":
    main()
