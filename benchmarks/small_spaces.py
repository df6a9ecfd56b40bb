"""Whole tensors against small spaces at equal steps, and how much of the weights their leading singular values hold.

    python -m benchmarks.small_spaces [--tasks email_spam movie_sentiment debian_section] [--seeds 0 1 2] [--steps 200]
                                      [--rows 1000] [--out out/small_spaces]
    python -m benchmarks.small_spaces --energy
    python -m benchmarks.small_spaces --rates --steps 50

Prints accuracy of each task's own vector, of their sum at the best coefficient, and how many numbers move. Each training
is kept in the folder and used again, so that an interrupted study goes on where it was. Progress goes to stderr, with an
estimate of the rest.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import tauspan as ts
from tauspan.core.report import Table

QUERY_VALUE = ("*.query.weight", "*.value.weight")
WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "last:2": {"params": "last:2"},
    "lora:8": {"space": "lora:8"},
    "lora:8, query and value": {"space": "lora:8", "params": QUERY_VALUE},
    "singular:384, query and value": {"space": "singular:384", "params": QUERY_VALUE},
}
# Peak learning rates of the small spaces, from a few short trainings; `--rates` looks at more. Whole tensors have the
# package's own.
RATES: dict[tuple[str, str], float] = {
    ("lora:8", "linear"): 3e-3, ("lora:8", "standard"): 3e-3,
    ("lora:8, query and value", "linear"): 3e-3, ("lora:8, query and value", "standard"): 3e-3,
    ("singular:384, query and value", "linear"): 3e-2, ("singular:384, query and value", "standard"): 3e-2,
}  # fmt: skip
KINDS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.output")
TOKENS = 64
TOPS = (8, 32, 96, 192)


def energies(encoder: ts.Encoder) -> list[dict[str, Any]]:
    """The share of sum sigma_i^2 in the leading singular values, the mean over layers; and how many hold 99 %."""
    found: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for name, weight in encoder.backbone.named_parameters():
        if not name.endswith(".weight") or weight.dim() != 2 or "layer." not in name:
            continue
        kind = next(
            (one for one in KINDS[:-1] if name.endswith(f"{one}.weight")), "layer.output"
        )  # the rest of a layer's matrices
        found[kind].append(torch.linalg.svdvals(weight.detach().double()).square())
    rows = []
    for kind, spectra in found.items():
        shares = torch.stack([(square.cumsum(0) / square.sum()) for square in spectra])
        needed = (shares < 0.99).sum(1) + 1
        rows.append({
            "matrices": kind, "layers": len(spectra), "of": shares.shape[1],
            **{f"top {top}": float(shares[:, top - 1].mean()) for top in TOPS},
            "for 99 %": float(needed.double().mean()),
        })  # fmt: skip
    return rows


def settings(way: str, regime: Any, seed: int, steps: int, lr: float | None = None) -> ts.Settings:
    """The settings of one training; a small space has a rate of its own."""
    rate = RATES.get((way, regime)) if lr is None else lr
    return ts.Settings(
        regime=regime, seed=seed, epochs=1000, max_steps=steps, lr=rate, max_tokens=TOKENS, **WAYS[way]
    )


class Clock:
    """Says what was done and what is left, on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.spent, self.begun = total, 0, 0.0, time.perf_counter()
        self.fresh = 0

    def tell(self, what: str, reused: bool) -> None:
        """One part of the work is done."""
        now = time.perf_counter()
        if not reused:
            self.spent, self.fresh = self.spent + now - self.begun, self.fresh + 1
        self.done, self.begun = self.done + 1, now
        left = (self.total - self.done) * self.spent / max(self.fresh, 1) / 60
        sys.stderr.write(
            f"{self.done} of {self.total}: {what}{' (reused)' if reused else ''}; about {left:.0f} min left\n"
        )


def one_seed(
    encoder: ts.Encoder,
    tasks: Sequence[ts.Task],
    way: str,
    regime: Any,
    seed: int,
    steps: int,
    out: Path,
    clock: Clock,
) -> dict[str, Any]:
    """Single and added accuracy on test, the coefficient chosen on validation, and how many numbers move."""
    file = out / "rows" / f"{way}-{regime}-{seed}.json".replace(", ", "-").replace(" ", "-").replace(":", "")
    if file.exists():
        clock.tell(file.stem, True)
        row: dict[str, Any] = json.loads(file.read_text())
        return row
    vectors = {}
    for task in tasks:
        folder = out / "vectors" / file.stem / task.name
        vectors[task] = ts.finetune(
            encoder, task, settings(way, regime, seed, steps), out=folder, resume=True
        ).task_vector
    added = ts.Editor(encoder, vectors, reading=ts.Reading(max_tokens=TOKENS)).add()
    made = {
        "single": {one.task: one.single for one in added.tasks},
        "added": {one.task: one.added for one in added.tasks},
        "zero shot": {one.task: one.zero_shot for one in added.tasks},
        "alpha": added.alpha,
        "normalised": added.mean.normalised,
        "numbers": sum(delta.numel() for delta in next(iter(vectors.values())).deltas.values()),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made))
    clock.tell(file.stem, False)
    return made


def table(found: dict[tuple[str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each way and regime: means over seeds of the mean over tasks, with the sample standard deviation."""
    rows = []
    for (way, regime), runs in found.items():
        cells: dict[str, Any] = {"moves": way, "regime": regime, "numbers": runs[0]["numbers"]}
        for kind in ("single", "added"):
            means = [statistics.mean(run[kind].values()) for run in runs]
            cells[kind] = statistics.mean(means)
            cells[f"{kind} +-"] = statistics.stdev(means) if means[1:] else None
        cells["added norm."] = statistics.mean(run["normalised"] for run in runs)
        rows.append(cells)
    return rows


def rates(
    encoder: ts.Encoder, tasks: Sequence[ts.Task], steps: int, asked: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Validation accuracy, the mean over tasks, at several peak learning rates; seed 0."""
    rows = []
    for way, regime in asked:
        cells: dict[str, Any] = {"moves": way, "regime": regime}
        for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
            runs = [ts.finetune(encoder, task, settings(way, regime, 0, steps, lr)) for task in tasks]
            cells[f"{lr:g}"] = statistics.mean(run.history[-1]["accuracy"] for run in runs)
            sys.stderr.write(f"{way}, {regime}, {lr:g}: {cells[f'{lr:g}']:.3f}\n")
        rows.append(cells)
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm", help="a BERT, as for tauspan.load (default: minilm)")
    parser.add_argument("--tasks", nargs="+", default=["email_spam", "movie_sentiment", "debian_section"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of 32 rows (default: 200)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each split at most (default: 1000)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--regimes", nargs="+", choices=["linear", "standard"], default=["linear", "standard"]
    )
    parser.add_argument("--energy", action="store_true", help="only the energies of singular values")
    parser.add_argument(
        "--rates", action="store_true", help="only validation accuracy by learning rate, seed 0"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/small_spaces"), help="what is kept, and results.json"
    )
    options = parser.parse_args()
    encoder, note = ts.load(options.model), f"{options.model}, torch {torch.__version__}"
    shares = energies(encoder)
    print(Table("Share of the squared singular values, mean over layers", shares, note).to_markdown())
    if options.energy:
        return
    tasks = [
        task.subset(train=options.rows, validation=options.rows // 2, test=options.rows)
        for task in ts.suite(options.tasks)
    ]
    said = f"{', '.join(options.tasks)}; {options.steps} steps of 32 rows of at most {TOKENS} tokens; {note}"
    asked = [(way, regime) for way in options.ways for regime in options.regimes]
    if options.rates:
        print(
            Table(
                "Validation accuracy by learning rate", rates(encoder, tasks, options.steps, asked), said
            ).to_markdown()
        )
        return
    clock, found = Clock(len(asked) * len(options.seeds)), {}
    folder = options.out / f"{'-'.join(options.tasks)}-{options.steps}-{options.rows}"
    for way, regime in asked:
        found[way, regime] = [
            one_seed(encoder, tasks, way, regime, seed, options.steps, folder, clock)
            for seed in options.seeds
        ]
    rows = table(found)
    said = f"test accuracy, mean over tasks, seeds {', '.join(map(str, options.seeds))}; {said}"
    print(Table("Whole tensors and small spaces", rows, said).to_markdown())
    kept = [{"moves": way, "regime": regime, "runs": runs} for (way, regime), runs in found.items()]
    whole = {"rows": rows, "runs": kept, "energies": shares, "note": said}
    (options.out / "results.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
