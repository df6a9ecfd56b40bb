"""Landmarks or random features of a large tangent kernel, or contributions: time, memory and error as rows double.

    python -m benchmarks.scale [--by features | contributions] [--rows 12500 25000 50000 100000] [--outputs 10]
                               [--rank 50] [--threads 2] [--out scale.json]

A perceptron 32-64-O on random rows, whose kernel K has (rows x outputs)^2 entries: at 100,000 rows and 10 outputs 8 TB,
which are never made. `pivoted_cholesky` takes its diagonal and about `rank` of its rows, and states the share of the
trace that is left. `--by features` projects J to `rank` dimensions by random signs (`project`), and states the relative
Frobenius error to expect; beside it stands the one that 32 random products with K show,
sqrt(sum |(S S^T - K) z|^2 / sum |K z|^2). Either factor has 8 x rows x outputs x rank bytes. Each size runs in a process
of its own. `--by contributions` asks the editor of `--rank` random vectors for their best coefficients on so many
validation rows: a pass that keeps vectors x rows x outputs numbers of 4 bytes, and the convex solve. A power is the slope
of the logarithm over a doubling: 1 is proportional.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from benchmarks.search import directions
from benchmarks.shapes import normal
from benchmarks.timing import growth, in_fresh_process
from benchmarks.told import told
from torch import nn

import tauspan as ts
from tauspan.core.report import Table
from tauspan.kernel import Kernel, Nystrom, Projection, TangentKernel, pivoted_cholesky, project
from tauspan.kernel.solvers.estimates import signs
from tauspan.models import Head

TITLES = {
    "landmarks": "Landmarks of a large kernel", "features": "Random features of a large kernel",
    "contributions": "Contributions of many rows, and their coefficients",
}  # fmt: skip


def measured(by: str, rows: int, outputs: int, rank: int) -> dict[str, Any]:
    """One size, in this process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, outputs))
    size = {"rows": rows, "outputs": outputs}
    if by == "contributions":
        editor = editor_of(net, rows, outputs, rank)
        spent = _spent(lambda: editor.coefficients(bootstrap=0))[0]
        return {**size, "vectors": rank, **spent, "kept MB": 4 * rows * outputs * rank / 2**20}
    kernel = TangentKernel(net, list(normal((rows, 32), 1).split(512)))
    made = {"landmarks": pivoted_cholesky, "features": project}[by]
    spent, found = _spent(lambda: made(kernel, rank))
    factor = 8 * rows * outputs * rank / 2**20
    return {**size, "rank": rank, **spent, "factor MB": factor, **stated(kernel, found)}


def _spent(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """CPU seconds and peak memory, and what it gave."""
    found: list[Any] = []
    begun = time.process_time()
    peak = growth(lambda: found.append(run()))
    return {"CPU s": time.process_time() - begun, "peak MB": peak}, found[0]


def editor_of(net: nn.Module, rows: int, outputs: int, count: int) -> ts.Editor:
    """As many random tasks and vectors, of so many validation rows together."""
    vectors, share = {}, rows // count
    for place, tau in enumerate(directions(net, count)):
        x, y = normal((share, 32), place + 1), torch.arange(share) % outputs
        few = (x[:outputs], y[:outputs])
        task = ts.Task.from_tensors(
            f"random {place}", list(map(str, range(outputs))), head=Head(torch.eye(outputs)),
            train=few, validation=(x, y), test=few,
        )  # fmt: skip
        vectors[task] = tau
    return ts.Editor(ts.load(net), vectors, reading=ts.Reading(batch_size=512))


def stated(kernel: TangentKernel, found: Nystrom | Projection) -> dict[str, float | None]:
    """The error that an approximation states, and of features the one that products show."""
    if isinstance(found, Nystrom):
        return {"residual": found.relative_residual}
    return {"stated error": found.error.value, "standard error": found.error.standard_error,
            "shown error": shown(kernel, found.kernel)}  # fmt: skip


def shown(kernel: Kernel, near: Kernel, probes: int = 32) -> float:
    """|K' - K| / |K| in the Frobenius norm, from products with random signs."""
    z = signs(kernel.shape[1], probes, seed=1)
    true = kernel @ z
    return float((near @ z - true).norm() / true.norm())


def with_powers(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the power of CPU seconds and memory over the last doubling."""
    lines = [dict(found[0])]
    for small, large in pairwise(found):
        doubled = math.log(large["rows"] / small["rows"])
        powers = {
            f"power of {name}": math.log(large[name] / small[name]) / doubled for name in ("CPU s", "peak MB")
        }
        lines.append({**large, **powers})
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each size and print a table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--by", choices=tuple(TITLES), default="landmarks")
    asked.add_argument("--rows", nargs="+", type=int, default=[12500, 25000, 50000, 100000])
    asked.add_argument("--outputs", type=int, default=10)
    asked.add_argument(
        "--rank", type=int, default=50, help="landmarks, features of a row and output, or vectors"
    )
    asked.add_argument("--threads", type=int, default=2)
    asked.add_argument("--out", type=Path)
    asked.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = asked.parse_args(argv)
    if given.one:
        sys.stdout.write(json.dumps(measured(given.by, given.rows[0], given.outputs, given.rank)) + "\n")
        return
    shared = ["--by", given.by, "--outputs", str(given.outputs), "--rank", str(given.rank), "--one"]
    found = [
        in_fresh_process("benchmarks.scale", ["--rows", str(rows), *shared], given.threads)
        for rows in given.rows
    ]
    lines = with_powers(found)
    told(Table(TITLES[given.by], lines, f"float32 model, {given.threads} threads"), given.out)


if __name__ == "__main__":
    main()
