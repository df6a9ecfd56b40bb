"""Whole tensors against small spaces and prefixes at equal steps; what leading singular values of the weights hold.

    python -m benchmarks.small_spaces [--tasks email_spam movie_sentiment debian_section] [--seeds 0 1 2] [--steps 40]
                                      [--rows 640] [--out out/small_spaces]
    python -m benchmarks.small_spaces --energy

Prints accuracy of each task's own vector, of their sum at the best coefficient, and how many numbers move. Each way has
the learning rate that is best on the validation rows of the first task with the first seed. Each training is kept in the
folder and used again, so that an interrupted study goes on where it was. Progress goes to stderr, with an estimate of
the rest.
"""

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import tauspan as ts
from tauspan.core.measure import progress
from tauspan.core.report import Table


@dataclass(frozen=True, eq=False)
class Way:
    """What moves: parameters of the encoder, a small space of them, or prefixes of its attention."""

    name: str
    rates: tuple[float, ...]  # peak learning rates that are tried
    moves: Mapping[str, Any] = field(default_factory=dict)  # fields of Settings
    prefix: str | None = None  # the feature map


QUERY_VALUE = ("*.query.weight", "*.value.weight")
WEIGHTS, FACTORS, FEW = (1e-4, 3e-4, 1e-3), (1e-3, 3e-3, 1e-2), (1e-2, 3e-2, 1e-1)
WAYS = (
    Way("all", WEIGHTS),
    Way("last:2", WEIGHTS, {"params": "last:2"}),
    Way("lora:8", FACTORS, {"space": "lora:8"}),
    Way("singular:384, query and value", FEW, {"space": "singular:384", "params": QUERY_VALUE}),
    Way("prefix, ELU + 1", FEW, prefix="elu"),
    Way("prefix, positive", FEW, prefix="positive"),
)
GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # coefficients of a sum
BATCH, TOKENS = 16, 32
KINDS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "layer.output")
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


@dataclass(frozen=True, eq=False)
class Trial:
    """One way in one regime: its trainings and sums, each kept in a folder."""

    way: Way
    encoder: ts.Encoder
    regime: Any
    tasks: Sequence[ts.Task]
    steps: int
    out: Path

    @property
    def name(self) -> str:
        """A name for files."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.way.name} {self.regime}".lower())

    def trained(self, task: ts.Task, seed: int, lr: float) -> ts.Finetuned:
        """A task's vector by one seed at one learning rate."""
        settings = ts.Settings(
            regime=self.regime, seed=seed, epochs=1000, max_steps=self.steps, lr=lr, batch_size=BATCH,
            max_tokens=TOKENS, **self.way.moves,
        )  # fmt: skip
        folder = self.out / "vectors" / f"{self.name}-{seed}-{lr:g}" / task.name
        return ts.finetune(self.encoder, task, settings, out=folder, resume=True)

    def rate(self, seed: int) -> float:
        """The learning rate that is best on the validation rows of the first task."""
        found = {lr: self.trained(self.tasks[0], seed, lr).history[-1]["accuracy"] for lr in self.way.rates}
        return max(found, key=lambda lr: found[lr])

    def added(self, seed: int, lr: float) -> dict[str, Any]:
        """Single and added accuracy on test, the coefficient chosen on validation, and how many numbers move."""
        file = self.out / "rows" / f"{self.name}-{seed}.json"
        if file.exists():
            row: dict[str, Any] = json.loads(file.read_text())
            return row
        vectors = {task: self.trained(task, seed, lr).task_vector for task in self.tasks}
        found = ts.add(self.encoder, vectors, grid=GRID, reading=ts.Reading(max_tokens=TOKENS))
        made = {
            "lr": lr,
            "single": {one.task: one.single for one in found.tasks},
            "added": {one.task: one.added for one in found.tasks},
            "zero shot": {one.task: one.zero_shot for one in found.tasks},
            "alpha": found.alpha,
            "normalised": found.mean.normalised,
            "numbers": sum(delta.numel() for delta in next(iter(vectors.values())).deltas.values()),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(made))
        return made


def table(found: dict[Trial, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each way and regime: means over seeds of the mean over tasks, with the sample standard deviation."""
    rows = []
    for trial, runs in found.items():
        cells: dict[str, Any] = {
            "moves": trial.way.name,
            "regime": trial.regime,
            "numbers": runs[0]["numbers"],
        }
        cells["lr"] = f"{runs[0]['lr']:g}"
        for kind in ("zero shot", "single", "added"):
            means = [statistics.mean(run[kind].values()) for run in runs]
            cells[kind] = statistics.mean(means)
            if kind != "zero shot":
                cells[f"{kind} +-"] = statistics.stdev(means) if means[1:] else None
        cells["added norm."] = statistics.mean(run["normalised"] for run in runs)
        rows.append(cells)
    return rows


def study(trials: Sequence[Trial], seeds: Sequence[int]) -> dict[Trial, list[dict[str, Any]]]:
    """What came out of each trial with each seed."""
    found: dict[Trial, list[dict[str, Any]]] = {}
    with progress("small spaces", len(trials) * len(seeds)) as advance:
        for trial in trials:
            found[trial] = []
            with ts.quiet():
                lr = trial.rate(seeds[0])
                for seed in seeds:
                    found[trial].append(trial.added(seed, lr))
                    advance(1, f"{trial.name}, lr {lr:g}, seed {seed}")
    return found


def main() -> None:
    """Print the tables."""
    options = asked()
    encoder = ts.load(options.model)
    shares = energies(encoder)
    print(
        Table("Share of the squared singular values, mean over layers", shares, options.model).to_markdown()
    )
    if options.energy:
        return
    tasks = [
        task.subset(train=options.rows, validation=options.held, test=3 * options.held)
        for task in ts.suite(options.tasks)
    ]
    folder = options.out / f"{'-'.join(options.tasks)}-{options.steps}-{options.rows}-{options.held}"
    trials = [
        Trial(
            way,
            ts.with_prefix(encoder, way.prefix) if way.prefix else encoder,
            regime,
            tasks,
            options.steps,
            folder,
        )
        for way in WAYS
        if way.name in options.ways
        for regime in options.regimes
    ]
    found = study(trials, options.seeds)
    said = (
        f"{options.model}; test accuracy, mean over {', '.join(options.tasks)}; seeds "
        f"{', '.join(map(str, options.seeds))}; {options.steps} steps of {BATCH} rows of at most {TOKENS} tokens; "
        f"{options.rows} training, {options.held} validation and {3 * options.held} test rows at most; torch "
        f"{torch.__version__}"
    )
    rows = table(found)
    print(Table("Whole tensors, small spaces and prefixes", rows, said).to_markdown())
    kept = [{"moves": trial.way.name, "regime": trial.regime, "runs": runs} for trial, runs in found.items()]
    whole = {"rows": rows, "runs": kept, "energies": shares, "note": said}
    (options.out / "results.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def asked() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [way.name for way in WAYS]
    parser.add_argument("--model", default="minilm", help="a BERT, as for tauspan.load (default: minilm)")
    parser.add_argument("--tasks", nargs="+", default=["email_spam", "movie_sentiment", "debian_section"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=40, help=f"optimiser steps of {BATCH} rows (default: 40)"
    )
    parser.add_argument("--rows", type=int, default=640, help="training rows at most (default: 640)")
    parser.add_argument(
        "--held", type=int, default=100, help="validation rows; three times as many test rows (default: 100)"
    )
    parser.add_argument("--ways", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--regimes", nargs="+", choices=["linear", "standard"], default=["linear", "standard"]
    )
    parser.add_argument("--energy", action="store_true", help="only the energies of singular values")
    parser.add_argument(
        "--out", type=Path, default=Path("out/small_spaces"), help="what is kept, and results.json"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
