"""A pre-trained transformer whose query, key and value matrices lose rank: is it fine-tuned further from its tangent
model?

Liu and others (ICLR 2024) ask it of recurrent nets with random weights (examples/rank_of_start.py): a start of low rank
leaves the lazy regime further. Here the query, key and value matrices of MiniLM's last two blocks are replaced by their
leading singular values, with one of their norms kept, the last two blocks are fine-tuned for 20 steps on a shipped
task, and it is measured how far the kernel turned (`kernel_distance`) and how far the model is from its linearisation
(`posthoc_gap`). Each start has the head that its own features make.

    python examples/rank_of_minilm.py [--short] [--ranks R ...] [--seeds N]
"""

import argparse
from collections.abc import Sequence

import torch

import tauspan as ts
from tauspan import Table
from tauspan.kernel.diagnose import (
    KernelSettings,
    kernel_distance,
    linearity,
    low_rank_start,
    posthoc_gap,
    start_ranks,
    task_kernels,
)

MATRICES = [
    f"encoder.layer.{layer}.attention.self.{kind}.weight"
    for layer in (4, 5)
    for kind in ("query", "key", "value")
]
FULL, PARAMS, READING = 384, "last:2", ts.Reading(batch_size=16, max_tokens=16)
MEASURES = ("kernel distance", "post-hoc gap", "norm of tau", "accuracy before", "accuracy")


def measured(start: ts.Encoder, task: ts.Task, steps: int, rows: int, seed: int) -> dict[str, float]:
    """What fine-tuning from one start does."""
    settings = ts.Settings(
        "standard", seed=seed, params=PARAMS, max_steps=steps, batch_size=8, epochs=10, lr=1e-4, max_tokens=16
    )
    vector = ts.finetune(start, task, settings).task_vector
    (one,) = task_kernels(
        start, [task], PARAMS, KernelSettings(rows=rows, split="test", reading=READING, seed=seed)
    )
    distance = kernel_distance(one.kernel, one.kernel_with(at=ts.apply(start, vector)))
    path = linearity(one.kernel.tangent, vector, one.batches, scales=(1.0,))
    gap = posthoc_gap(path.start, path.tangent, path.moved[0], one.labels)
    before = float((path.start.argmax(-1) == one.labels).double().mean())
    numbers = (distance.value, gap.relative.value, vector.norm(), before, gap.nonlinear)
    return dict(zip(MEASURES, map(float, numbers), strict=True))


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {float(found.std()) / len(found) ** 0.5:.3f}" if len(found) > 1 else ""
    return f"{float(found.mean()):.3f}{error}"


def main(
    ranks: Sequence[int] = (FULL, 64, 8),
    seeds: int = 3,
    steps: int = 20,
    rows: int = 24,
    name: str = "email_spam",
) -> list[dict[str, str]]:
    """Prints a row for each start."""
    encoder, (task,) = ts.load("minilm"), ts.suite([name])
    table = []
    for rank in ranks:
        for keep in ("frobenius", "spectral") if rank < FULL else ("both",):
            start = encoder if rank == FULL else low_rank_start(encoder, rank, MATRICES, keep)
            entropy = [one.entropy for one in start_ranks(start, MATRICES).matrices]
            found = []
            for seed in range(seeds):
                some = task.subset(train=8 * steps, validation=8, test=2 * rows, seed=seed)
                found.append(measured(start, some, steps, rows, seed))
            row = {"rank": str(rank), "norm kept": keep, "entropy rank": f"{sum(entropy) / len(entropy):.0f}"}
            table.append(row | {what: spread([one[what] for one in found]) for what in MEASURES})
    told = f"mean and standard error of {seeds} seeds of rows and order" if seeds > 1 else "one seed"
    note = (
        f"{name}, {steps} steps of 8 rows, {PARAMS}; {told}. Entropy "
        f"rank: mean of the {len(MATRICES)} matrices. Measured on {rows} test rows."
    )
    print(Table("MiniLM with query, key and value matrices of low rank", table, note).to_markdown())
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="two starts, one seed, 2 steps, 6 rows")
    parser.add_argument("--ranks", type=int, nargs="+", default=[FULL, 64, 8], help="384 is full (384 64 8)")
    parser.add_argument("--seeds", type=int, default=3, help="of rows and order (3)")
    asked = parser.parse_args()
    if asked.short:
        main((FULL, 8), 1, 2, 6)
    else:
        main(asked.ranks, asked.seeds)
