"""Landmarks of a large tangent kernel: time and memory as rows double.

    python -m benchmarks.scale [--rows 12500 25000 50000 100000] [--outputs 10] [--rank 50] [--threads 2]
                               [--out scale.json]

A perceptron 32-64-O on random rows, whose kernel has (rows x outputs)^2 entries: at 100,000 rows and 10 outputs 8 TB,
which are never made. `pivoted_cholesky` takes its diagonal and about `rank` of its rows; its factor has 8 x rows x
outputs x rank bytes. Each size runs in a process of its own. A power is the slope of the logarithm over a doubling: 1 is
proportional.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.shapes import normal
from benchmarks.timing import growth, in_fresh_process
from benchmarks.told import told
from torch import nn

from tauspan.core.report import Table
from tauspan.kernel import Nystrom, TangentKernel, pivoted_cholesky


def measured(rows: int, outputs: int, rank: int) -> dict[str, Any]:
    """One size, in this process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, outputs))
    data = normal((rows, 32), 1)
    kernel = TangentKernel(net, list(data.split(512)))
    found: list[Nystrom] = []
    begun = time.perf_counter()
    peak = growth(lambda: found.append(pivoted_cholesky(kernel, rank)))
    return {
        "rows": rows, "outputs": outputs, "rank": rank, "seconds": time.perf_counter() - begun, "peak MB": peak,
        "factor MB": 8 * rows * outputs * rank / 2**20, "residual": found[0].relative_residual,
    }  # fmt: skip


def with_powers(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the power of seconds and memory over the last doubling."""
    lines = [dict(found[0])]
    for small, large in pairwise(found):
        doubled = math.log(large["rows"] / small["rows"])
        powers = {
            f"power of {name}": math.log(large[name] / small[name]) / doubled
            for name in ("seconds", "peak MB")
        }
        lines.append({**large, **powers})
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each size and print a table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", nargs="+", type=int, default=[12500, 25000, 50000, 100000])
    asked.add_argument("--outputs", type=int, default=10)
    asked.add_argument("--rank", type=int, default=50)
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--out", type=Path)
    asked.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = asked.parse_args(argv)
    if given.one:
        sys.stdout.write(json.dumps(measured(given.rows[0], given.outputs, given.rank)) + "\n")
        return
    shared = ["--outputs", str(given.outputs), "--rank", str(given.rank), "--one"]
    found = [
        in_fresh_process("benchmarks.scale", ["--rows", str(rows), *shared], given.threads)
        for rows in given.rows
    ]
    lines = with_powers(found)
    told(Table("Landmarks of a large kernel", lines, f"float32 model, {given.threads} threads"), given.out)


if __name__ == "__main__":
    main()
