"""Infinite sequence models as baselines of the suite: what texts say without pre-trained layers.

    python -m benchmarks.infinite [--tasks email_spam ...] [--rows 100] [--test 100] [--tokens 24] [--seeds 0 1 2]
                                  [--noise 0.1] [--out FILE.json]

For each task and draw of rows, test accuracy of the posterior mean of three infinite nets (Gaussian process, NNGP, and
trained by descent, NTK) whose positions are MiniLM's frozen token embeddings, scaled to variance 1; of logistic
regression on the mean of these embeddings and on MiniLM's features; and of the zero-shot head of prompts. Targets of the
nets are one-hot less their mean. Printed are means and standard deviations over the draws.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from benchmarks.told import told
from torch import Tensor
from torch.nn.functional import one_hot

import tauspan as ts
from tauspan.core.measure import progress
from tauspan.core.report import Table
from tauspan.kernel.analytic import (
    Act,
    Attention,
    Dense,
    Norm,
    Pool,
    Program,
    Recurrent,
    Residual,
    posterior,
)
from tauspan.tasks.probe import probe


def programs() -> Mapping[str, Program]:
    """The nets: a recurrent one read at its end and on average, and two blocks of a transformer."""
    recurrent = Recurrent("erf", recurrent_std=1.2, weight_std=1.3, bias_std=0.3)
    block = [
        Residual([Norm(), Dense(), Attention(), Dense(0.8)]),
        Residual([Norm(), Dense(1.4), Act("relu"), Dense(0.8)]),
    ]
    return {
        "RNN, last": Program([recurrent, Pool("last"), Dense()]),
        "RNN, mean": Program([recurrent, Pool("mean"), Dense()]),
        "transformer": Program([Dense(), *block, *block, Pool("mean"), Dense()]),
    }


@torch.no_grad()
def embedded(encoder: ts.Encoder, texts: Sequence[Any], tokens: int) -> tuple[Tensor, Tensor]:
    """Token embeddings, shape (N, T, d), and how many of the T are text."""
    read = encoder.encode(list(texts), tokens)
    found = encoder.backbone.get_input_embeddings()(read["input_ids"])  # type: ignore[operator]
    return found, read["attention_mask"].sum(1)


def own_positions(positions: Tensor, lengths: Tensor) -> Tensor:
    """Which positions of each row are text, shape (N, T)."""
    return torch.arange(positions.shape[1]) < lengths[:, None]


def averaged(positions: Tensor, lengths: Tensor) -> Tensor:
    """The mean of each row's own positions."""
    known = own_positions(positions, lengths)
    return (positions * known[..., None]).sum(1) / lengths[:, None]


def accuracies(encoder: ts.Encoder, task: ts.Task, tokens: int, noise: float) -> dict[str, float]:
    """Of every baseline on the task's test rows."""
    train, test = task.split("train"), task.split("test")
    labels, truth, count = train.labels, test.labels, len(train)
    positions, lengths = embedded(encoder, [*train.inputs, *test.inputs], tokens)
    positions = positions / positions[own_positions(positions, lengths)].std()
    classes = len(task.label_names)
    targets = one_hot(labels, classes).double()
    middle = targets.mean(0)

    def right(scores: Tensor) -> float:
        return float((scores.argmax(1) == truth).double().mean())

    found = {}
    for name, net in programs().items():
        for kind, whole in zip(("NNGP", "NTK"), net.kernels(positions, lengths=lengths), strict=True):
            own, cross, rest = whole[:count, :count], whole[count:, :count], whole[count:, count:]
            mean = posterior(
                own, cross, rest, targets - middle, noise=noise * float(own.diagonal().mean())
            ).mean
            found[f"{name}, {kind}"] = right(mean + middle)
    features = torch.cat(
        [encoder(encoder.encode(list(one.inputs), tokens)).detach() for one in (train, test)]
    )
    for name, z in (("mean embedding", averaged(positions, lengths)), ("features", features)):
        head = probe(z[:count], labels, classes).head
        found[f"probe, {name}"] = right(head(z[count:].to(head.weight)))
    head = ts.tasks.build_head(task, encoder, max_tokens=tokens)
    found["zero shot"] = right(head(features[count:].to(head.weight)))
    return found


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tasks", nargs="+")
    asked.add_argument("--rows", type=int, default=100)
    asked.add_argument("--test", type=int, default=100)
    asked.add_argument("--tokens", type=int, default=24)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--noise", type=float, default=0.1, help="over the mean of the kernel's diagonal")
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    encoder, tasks = ts.load("minilm"), ts.suite(given.tasks)
    runs: dict[str, list[dict[str, float]]] = {task.name: [] for task in tasks}
    with progress("infinite nets", len(tasks) * len(given.seeds)) as advance:
        for task in tasks:
            for seed in given.seeds:
                some = task.subset(train=given.rows, validation=8, test=given.test, seed=seed)
                runs[task.name].append(accuracies(encoder, some, given.tokens, given.noise))
                advance(1, f"{task.name}, seed {seed}")
    names = list(next(iter(runs.values()))[0])
    rows: list[dict[str, Any]] = [
        {"baseline": name, **{task: spread([one[name] for one in found]) for task, found in runs.items()},
         "mean": fmean(one[name] for found in runs.values() for one in found)}
        for name in names
    ]  # fmt: skip
    note = (
        f"{given.rows} training and {given.test} test rows, {given.tokens} tokens, noise {given.noise:g}; test accuracy, "
        f"mean and standard deviation over {len(given.seeds)} draws of rows"
    )
    told(Table("Infinite sequence models on the suite", rows, note), given.out, runs=runs)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if values[1:] else "")


if __name__ == "__main__":
    main()
