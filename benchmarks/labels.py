"""Few labels: rows chosen by a design against rows chosen at random, on MiniLM with real tasks and on polynomials.

    python -m benchmarks.labels [--tasks email_spam ...] [--pool 400] [--test 200] [--labels 16 32 64 128]
                                [--seeds 0 1 2 3 4] [--params last:1] [--max-tokens 32] [--out out/labels]
    python -m benchmarks.labels --legendre [--functions 10 20 30] [--ratios 1 2 4] [--repeats 200]

For each task the tangent kernel of a pool of training rows is computed once. Then a few rows are labelled, the squared
loss is minimised in closed form with the ridge that leave-one-out chooses on them, and accuracy is measured on test rows.
Heads are made of prompts, so that no label is read but those of the chosen rows. Each design is fitted with its weights
and without, since a class is an argmax and no value. `pivoted` are the pivots of a randomly pivoted Cholesky
factorisation. Differences to `uniform` are paired by seed, each the mean over tasks.

`--legendre` approximates 1 / (1 + 5 x^2) on [-1, 1] by Legendre polynomials, from n = ratio m values: the mean and the
90 % quantile of the error over that of the projection.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tauspan as ts
from tauspan import store
from tauspan.core.measure import progress
from tauspan.core.report import Table
from tauspan.kernel import (
    DRAWS,
    DenseKernel,
    TangentKernel,
    choose_ridge,
    design,
    pivoted_cholesky,
    solve_ridge,
)
from tauspan.kernel.operator.closed_form import logits_at_base, loss_problem

TASKS = ("email_spam", "movie_sentiment", "tweet_sentiment", "news_recreation")
DESIGNS = ("leverage", "volume", "repeated-dpp")


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """One task: the kernel of the pool, and all that is needed to fit and to measure without the model."""

    inner: Tensor  # (N C, N C)
    across: Tensor  # (M C, N C)
    wanted: Tensor  # (N, C)
    start: Tensor  # (M, C), on test
    truth: Tensor  # (M,)
    classes: int

    @staticmethod
    def of(encoder: ts.Encoder, task: ts.Task, params: str, reading: ts.Reading) -> "Pool":
        """Compute the kernels."""
        tests = dataclasses.replace(task, splits={**task.splits, "train": task.split("test")})
        known, asked = (loss_problem(encoder, one, params=params, reading=reading) for one in (task, tests))
        across = TangentKernel(
            known.kernel.tangent.base, asked.kernel.left.batches, known.kernel.left.batches, params
        )
        return Pool(
            known.kernel.dense(), across.dense(), known.residual().double(), logits_at_base(asked.kernel), asked.labels,
            known.kernel.outputs,
        )  # fmt: skip

    def trace(self) -> DenseKernel:
        """The mean over the diagonal blocks of the outputs."""
        blocks = self.inner.view(len(self.wanted), self.classes, len(self.wanted), self.classes)
        return DenseKernel(torch.einsum("nomo->nm", blocks) / self.classes)

    def accuracy(self, rows: Sequence[int], weights: Tensor | None = None) -> float:
        """On test, of the fit on some rows."""
        entries = (torch.tensor(rows)[:, None] * self.classes + torch.arange(self.classes)).flatten()
        kernel = DenseKernel(self.inner[entries][:, entries], self.classes)
        wanted = self.wanted[list(rows)]
        ridge = choose_ridge(kernel, wanted).ridge
        alpha = solve_ridge(kernel, wanted, ridge, weights).alpha
        logits = self.start + (self.across[:, entries] @ alpha).view_as(self.start)
        return float((logits.argmax(1) == self.truth).double().mean())

    def scores(self, labels: int, seed: int) -> dict[str, float]:
        """By way to choose rows."""
        kernel, found = self.trace(), {}
        for method in ("uniform", *DESIGNS):
            made = design(kernel, labels, method, seed=seed)
            found[method] = self.accuracy(made.chosen, torch.tensor(made.weights))
            if method != "uniform":
                found[f"{method}, unweighted"] = self.accuracy(made.chosen)
        found["pivoted, unweighted"] = self.accuracy(sorted(pivoted_cholesky(kernel, labels, seed).landmarks))
        return found


def table(scores: dict[int, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each number of labels and way, from the means over tasks of each seed."""
    rows = []
    for labels, runs in scores.items():
        for way in runs[0]:
            values = [run[way] for run in runs]
            gaps = [run[way] - run["uniform"] for run in runs]
            spread = statistics.stdev(gaps) / len(gaps) ** 0.5 if gaps[1:] and way != "uniform" else None
            rows.append({
                "labels": labels, "rows": way, "accuracy": statistics.mean(values),
                "less uniform": None if way == "uniform" else statistics.mean(gaps), "s.e.": spread,
            })  # fmt: skip
    return rows


def suite(given: argparse.Namespace) -> None:
    """Designs against random rows on the tasks."""
    reading, encoder = ts.Reading(32, given.max_tokens), ts.load("minilm")
    found: dict[int, list[list[dict[str, float]]]] = {
        labels: [[] for _ in given.seeds] for labels in given.labels
    }
    tasks = ts.suite(given.tasks)
    with progress("labels", len(tasks)) as advance:
        for task in tasks:
            with ts.quiet():
                pool = Pool.of(encoder, task.subset(train=given.pool, test=given.test), given.params, reading)
            for labels in given.labels:
                for place, seed in enumerate(given.seeds):
                    found[labels][place].append(pool.scores(labels, seed))
            advance(1, task.name)
    means = {
        labels: [{way: statistics.mean(one[way] for one in run) for way in run[0]} for run in runs]
        for labels, runs in found.items()
    }
    said = (
        f"MiniLM, {given.params}, pools of {given.pool}; test accuracy, mean over {', '.join(one.name for one in tasks)} "
        f"and seeds {', '.join(map(str, given.seeds))}; s.e.: of the paired difference over seeds."
    )
    _tell(Table("Which rows to label", table(means), said), given.out, {"said": said, "runs": found})


def legendre(given: argparse.Namespace) -> None:
    """Errors of weighted least squares on polynomials."""
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    truth, rows = 1 / (1 + 5 * x.square()), []
    for count in given.functions:
        values = np.polynomial.legendre.legvander(x.numpy(), count - 1)
        basis = torch.linalg.qr(torch.from_numpy(values)).Q
        scores = basis.square().sum(1)
        least = float((truth - basis @ (basis.T @ truth)).norm())
        for ratio in given.ratios:
            for method in ("uniform", "leverage", "dpp", "volume", "repeated-dpp"):
                if method == "dpp" and ratio > 1:
                    continue
                generator, errors = torch.Generator().manual_seed(0), []
                for _ in range(given.repeats):
                    drawn = DRAWS[method](basis, ratio * count, generator)
                    root = (
                        1 / scores[drawn].sqrt() if method != "uniform" else torch.ones(len(drawn)).double()
                    )
                    left = root[:, None] * basis[drawn]
                    fit = torch.linalg.lstsq(
                        left, root[:, None] * truth[drawn][:, None], driver="gelsd"
                    ).solution
                    errors.append(float((truth - (basis @ fit)[:, 0]).norm()) / least)
                high = torch.tensor(errors).quantile(0.9)
                rows.append({
                    "functions": count, "values": ratio * count, "rows": method, "mean": statistics.mean(errors),
                    "90 %": float(high),
                })  # fmt: skip
    said = f"Error over that of the projection, {given.repeats} repeats."
    _tell(Table("Legendre polynomials", rows, said), given.out, {"rows": rows})


def _tell(found: Table, out: Path, kept: dict[str, Any]) -> None:
    sys.stdout.write(found.to_markdown() + "\n")
    store.write_json(
        out / f"{found.title.lower().replace(' ', '-')}.json", {**kept, "rows": list(found.rows)}
    )


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tasks", nargs="+", default=TASKS)
    asked.add_argument("--pool", type=int, default=400)
    asked.add_argument("--test", type=int, default=200)
    asked.add_argument("--labels", nargs="+", type=int, default=[16, 32, 64, 128])
    asked.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    asked.add_argument("--params", default="last:1")
    asked.add_argument("--max-tokens", type=int, default=32)
    asked.add_argument("--legendre", action="store_true")
    asked.add_argument("--functions", nargs="+", type=int, default=[10, 20, 30])
    asked.add_argument("--ratios", nargs="+", type=int, default=[1, 2, 4])
    asked.add_argument("--repeats", type=int, default=200)
    asked.add_argument("--out", type=Path, default=Path("out/labels"))
    given = asked.parse_args()
    (legendre if given.legendre else suite)(given)


if __name__ == "__main__":
    main()
