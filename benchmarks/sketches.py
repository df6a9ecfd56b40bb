"""Spectral merging by certified sketches, against one whole decomposition of the same matrix, at widths of large models.

    python -m benchmarks.sketches [--widths 1024 2048 4096] [--power 0.5] [--loss 0.01] [--rounds 1] [--threads 2]
                                  [--exact 1024] [--out sketches.json]

Eight vectors of one square matrix each, singular values i^-power. `exact` is the method without a loss, up to the width
of `--exact` (at 4096 it takes many minutes). The floor of TSV-M is 2: it makes two matrices of that size orthogonal.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.shapes import normal
from benchmarks.timing import interleaved, ratio, seconds
from benchmarks.told import told
from torch import Tensor

from tauspan.core.report import Table
from tauspan.merge import merge
from tauspan.merge.methods.sketch import sketched
from tauspan.vector import TaskVector

TASKS = 8
METHODS: dict[str, dict[str, float]] = {"tsv_m": {}, "iso_cts": {}, "svd": {"rank": 64}}


def made(width: int, power: float, seed: int) -> Tensor:
    """A square matrix with singular values i^-power and random singular vectors."""
    u, v = (torch.linalg.qr(normal((width, width), 2 * seed + side)).Q for side in (0, 1))
    return (u * torch.arange(1, width + 1) ** -power) @ v


def measured(width: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one width."""
    matrices = [made(width, given.power, task) for task in range(TASKS)]
    vectors = [
        TaskVector({"layer.0.weight": one}, "b", "standard", f"t{n}") for n, one in enumerate(matrices)
    ]
    share = width // TASKS
    work: dict[str, Callable[[], object]] = {
        "one SVD": lambda: torch.linalg.svd(matrices[0], full_matrices=False),
        f"sketch of {share}": partial(sketched, matrices[0], share, given.loss),
    }
    for name, options in METHODS.items():
        work[name] = partial(merge, vectors, name, options={**options, "loss": given.loss})
        if width <= given.exact:
            work[f"{name}, exact"] = partial(merge, vectors, name, options=options)
    taken = interleaved(work, given.rounds, warmup=0)
    rows = []
    for name in work:
        one, against = seconds(taken, name), ratio(taken, name, "one SVD")
        rows.append({
            "width": width, "what": name, "seconds": one.value, "of one SVD": against.value, "least": against.low,
            "most": against.high,
        })  # fmt: skip
    if sketched(matrices[0], share, given.loss) is None:
        rows[1]["what"] += ", not certified"
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--widths", nargs="+", type=int, default=[1024, 2048, 4096])
    asked.add_argument("--power", type=float, default=0.5)
    asked.add_argument("--loss", type=float, default=0.01)
    asked.add_argument("--rounds", type=int, default=1)
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--exact", type=int, default=1024)
    asked.add_argument("--out", type=Path)
    given = asked.parse_args(argv)
    torch.set_num_threads(given.threads)
    rows = [row for width in given.widths for row in measured(width, given)]
    note = f"{TASKS} vectors, s_i = i^-{given.power:g}, loss {given.loss:g}, {given.threads} threads"
    told(Table("Spectral merging by sketches", rows, note), given.out)


if __name__ == "__main__":
    main()
