"""Prefixes of attention: which feature map stands for a real prefix; and trained ones against ordinary parameters.

    python -m benchmarks.prefixes [--out results.json]
    python -m benchmarks.prefixes --train [--tasks email_spam ...] [--rows 640] [--steps 40] [--seeds 0 1 2] [--short]

The first prints the error of a head's output when a prefix of 2,048 tokens becomes (Z, kappa), for three sizes of its
scores. The second trains vectors of MiniLM on tasks of the suite at equal steps, in both regimes, each way at the
learning rate that is best on validation rows of the first seed, and adds them.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tauspan as ts
from tauspan.core.measure import progress
from tauspan.core.report import Table
from tauspan.models import Encoder
from tauspan.prefix.features import FeatureMap

SIZE, OWN, PREFIX = 16, 32, 2048
SCALES = (0.3, 1.0, 2.0)
MAPS = {
    "ELU + 1": FeatureMap("elu"),
    "Taylor 2": FeatureMap("taylor"),
    "positive, r = 256": FeatureMap("positive", 256),
}
TASKS = ("email_spam", "movie_sentiment", "debian_section")
TOKENS = 32  # where texts are cut
# learning rates that are tried
WEIGHTS, SMALL, PREFIXES = (1e-4, 3e-4, 1e-3), (1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2)


# -- what a map stands for ---------------------------------------------------------------------------------------


def errors(scale: float, *, related: bool = True, seed: int = 0) -> dict[str, float]:
    """|out - exact| / |exact| of one head, by the way the prefix is stood for.

    Args:
        scale: of queries and keys, which are normal; scores are q.k / 4.
        related: values that depend on their keys; else they are normal about 1, and any map looks right.
        seed: of all numbers.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    query, key, value = scale * normal(OWN, SIZE), scale * normal(OWN, SIZE), normal(OWN, SIZE)
    first = scale * normal(PREFIX, SIZE)
    mixed, about = normal(SIZE, SIZE) / SIZE**0.5, normal(PREFIX, SIZE) + 1
    last = torch.tanh(2 * first @ mixed / scale) if related else about
    own, before = ((query @ keys.T / SIZE**0.5).exp() for keys in (key, first))
    exact = (own @ value + before @ last) / (own.sum(1) + before.sum(1)).unsqueeze(1)
    found = {"no prefix": own @ value / own.sum(1, keepdim=True), "mean value": last.mean(0).expand(OWN, -1)}
    for name, features in MAPS.items():
        phi_q, phi_k = features(query / SIZE**0.25), features(first / SIZE**0.25)
        whole = own.sum(1) + phi_q @ phi_k.sum(0)
        found[name] = (own @ value + phi_q @ (phi_k.T @ last)) / whole.unsqueeze(1)
    return {name: float((one - exact).norm() / exact.norm()) for name, one in found.items()}


def tables() -> list[Table]:
    """The errors with values that depend on their keys, and with values that do not."""
    note = f"d = {SIZE}, {OWN} own tokens, {PREFIX:,} of the prefix, float64, seed 0; relative errors of the output"
    return [
        Table(
            f"A prefix as (Z, kappa), {words}",
            [{"scale of q, k": scale, **errors(scale, related=related)} for scale in SCALES],
            note,
        )
        for words, related in (("values that depend on keys", True), ("values that do not", False))
    ]


# -- what a trained prefix does ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """Something to train: which parameters of which encoder, in which small space, and the rates to try."""

    name: str
    encoder: Encoder
    params: str
    rates: Sequence[float]
    space: str | None = None


@dataclass(frozen=True)
class Plan:
    """What all ways share."""

    tasks: Sequence[str]
    rows: int
    held: int
    steps: int
    batch: int
    seeds: Sequence[int]
    short: bool = False

    def drawn(self, seed: int) -> list[ts.Task]:
        """The tasks with the rows of a seed."""
        most = {"train": self.rows, "validation": self.held, "test": self.held}
        return [
            task.subset(
                **{name: min(count, len(task.split(name))) for name, count in most.items()}, seed=seed
            )
            for task in ts.suite(list(self.tasks))
        ]

    def settings(self, way: Way, regime: Any, lr: float, seed: int) -> ts.Settings:
        """Those of one run."""
        return ts.Settings(
            regime=regime, seed=seed, params=way.params, space=way.space, lr=lr, max_steps=self.steps,
            batch_size=self.batch,
            epochs=max(1, -(-self.steps * self.batch // self.rows)), max_tokens=TOKENS,
        )  # fmt: skip


def ways(base: Encoder) -> list[Way]:
    """Prefixes by two maps, LoRA, the last two blocks, and everything."""
    return [
        Way("prefix, ELU + 1", ts.with_prefix(base, "elu"), "all", PREFIXES),
        Way("prefix, positive, r = 64", ts.with_prefix(base, "positive", features=64), "all", PREFIXES),
        Way("lora:8", base, "all", SMALL, "lora:8"),
        Way("last:2", base, "last:2", WEIGHTS),
        Way("full", base, "all", WEIGHTS),
    ]


def trained(plan: Plan, base: Encoder) -> list[dict[str, Any]]:
    """A row for each way and regime: numbers that move, accuracies of the vectors alone and added, over seeds."""
    chosen = ways(base)
    regimes = ("standard", "linear")
    runs = sum((len(way.rates[:1] if plan.short else way.rates) + len(plan.seeds) - 1) for way in chosen)
    found = []
    with progress("prefixes", runs * len(regimes) * len(plan.tasks)) as advance:
        for way in chosen:
            for regime in regimes:
                found.append(_row(plan, way, regime, advance))
    return found


def _row(plan: Plan, way: Way, regime: Any, advance: Callable[[int, str], None]) -> dict[str, Any]:
    def vectors(lr: float, seed: int) -> tuple[dict[ts.Task, ts.TaskVector], float]:
        made, scores = {}, []
        for task in plan.drawn(seed):
            with ts.quiet():
                run = ts.finetune(way.encoder, task, plan.settings(way, regime, lr, seed))
            made[task] = run.task_vector
            scores.append(run.history[-1]["accuracy"])
            advance(1, f"{way.name}, {regime}, {task.name}, lr {lr:g}: {scores[-1]:.3f}")
        return made, statistics.mean(scores)

    rates = way.rates[:1] if plan.short else way.rates
    tried = {lr: vectors(lr, plan.seeds[0]) for lr in rates}
    lr = max(tried, key=lambda one: tried[one][1])
    means: dict[str, list[float]] = {"zero-shot": [], "alone": [], "added": [], "normalised": []}
    own = tried[lr][0]
    for place, seed in enumerate(plan.seeds):
        own = tried[lr][0] if place == 0 else vectors(lr, seed)[0]
        with ts.quiet():
            grid: Any = (0.0, 0.5, 1.0) if plan.short else "paper"
            mean = (
                ts.Editor(way.encoder, own, regime, reading=ts.Reading(max_tokens=TOKENS)).add(grid=grid).mean
            )
        for name, value in zip(
            means, (mean.zero_shot, mean.single, mean.added, mean.normalised), strict=True
        ):
            means[name].append(value or 0.0)
    numbers = sum(delta.numel() for delta in next(iter(own.values())).deltas.values())
    return {
        "way": way.name, "regime": regime, "numbers": numbers, "lr": lr,
        **{name: statistics.mean(values) for name, values in means.items()},
        "sd added": statistics.stdev(means["added"]) if plan.seeds[1:] else None,
    }  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", action="store_true", help="train vectors too")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tasks of the suite")
    parser.add_argument("--rows", type=int, default=640, help="training rows of each task (default: 640)")
    parser.add_argument(
        "--held", type=int, default=400, help="validation and test rows of each (default: 400)"
    )
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps (default: 40)")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step (default: 32)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="rows and their order (default: 0 1 2)"
    )
    parser.add_argument(
        "--short", action="store_true", help="one rate each, few rows and steps: shows that it runs"
    )
    parser.add_argument("--out", type=Path, help="write the tables as JSON too")
    options = parser.parse_args()
    shown = tables()
    if options.train:
        size = (32, 16, 2, 8) if options.short else (options.rows, options.held, options.steps, options.batch)
        plan = Plan(options.tasks, *size, options.seeds, options.short)
        note = (
            f"minilm, {plan.rows} training and {plan.held} test rows, {plan.steps} steps of {plan.batch} rows, seeds "
            f"{', '.join(map(str, plan.seeds))}; means over {len(plan.tasks)} tasks; lr chosen on validation of the first"
        )
        shown.append(Table("Trained vectors", trained(plan, ts.load("minilm")), note))
    for table in shown:
        print(table.to_markdown(), end="\n\n")
    if options.out:
        content = [{"title": one.title, "rows": one.rows, "note": one.note} for one in shown]
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
