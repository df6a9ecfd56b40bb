"""How cost grows: floating-point operations and bytes as one size of the work doubles, counted and not timed.

    python -m benchmarks.growth [--out results.json]

A small BERT is measured at four sizes, each twice the one before, with all other sizes as they are. A power is the slope
of the logarithm of the count over the last doubling: 1 where the cost is proportional to the size, 2 where it is to its
square. Counts are the same on every machine.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.counts import counted
from benchmarks.search import directions
from benchmarks.shapes import Shape, normal
from benchmarks.told import told
from torch import nn

import tauspan as ts
from tauspan.core.report import Table
from tauspan.kernel import TangentKernel
from tauspan.tangent import linearize

BASE = Shape("text", "bert", 2, 32, 2, 128, batch=8, length=16, other=50)
Work = Callable[[int], Callable[[], Any]]


def tangent_step(**sizes: int) -> Callable[[], Any]:
    """Forward and backward of the tangent model."""
    shape = replace(BASE, **sizes)
    tangent, batch = linearize(shape.classifier()), shape.inputs()
    return lambda: tangent(batch).sum().backward()


def ordinary_step(**sizes: int) -> Callable[[], Any]:
    """Forward and backward of the ordinary model."""
    shape = replace(BASE, **sizes)
    model, batch = shape.classifier().requires_grad_(True), shape.inputs()
    return lambda: model(batch).sum().backward()


def wide(width: int) -> dict[str, int]:
    """A model whose every layer is so wide."""
    return {"width": width, "inner": 4 * width}


def tangents(count: int) -> Callable[[], Any]:
    """The tangents of several vectors at once, of which every mix of them is made."""
    model, batch = BASE.classifier(), BASE.inputs()
    tangent, vectors = linearize(model), [dict(one.deltas) for one in directions(BASE.classifier(), count)]
    return lambda: tangent.tangent(batch, vectors=vectors)


def kernel(rows: int, classes: int = 2) -> Callable[[], Any]:
    """The whole kernel of some rows with all outputs."""
    model, batch = BASE.classifier(classes), BASE.inputs(rows)
    return lambda: TangentKernel(model, [batch], check="off").dense()


def closed_form(classes: int, by: Any) -> Callable[[], Any]:
    """A closed form of 32 rows of a task with so many classes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 128))
    x, y = normal((32, 16), 1), torch.arange(32) % classes
    names = [str(number) for number in range(classes)]
    task = ts.Task.from_tensors("many", names, train=(x, y), validation=(x, y), test=(x, y))
    encoder = ts.load(net)
    return lambda: ts.closed_form(encoder, task, ridge=1e4, by=by)


CASES: Sequence[tuple[str, str, Sequence[int], Work]] = (
    ("tangent step", "rows of a batch", (4, 8, 16, 32), lambda n: tangent_step(batch=n)),
    ("tangent step", "tokens of a row", (64, 128, 256, 512), lambda n: tangent_step(length=n)),
    ("tangent step", "width of the layers", (32, 64, 128, 256), lambda n: tangent_step(**wide(n))),
    ("tangent step", "blocks", (1, 2, 4, 8), lambda n: tangent_step(layers=n)),
    ("ordinary step", "tokens of a row", (64, 128, 256, 512), lambda n: ordinary_step(length=n)),
    ("ordinary step", "width of the layers", (32, 64, 128, 256), lambda n: ordinary_step(**wide(n))),
    ("tangents of all vectors", "vectors", (1, 2, 4, 8), tangents),
    ("kernel", "rows", (8, 16, 32, 64), kernel),
    ("kernel", "outputs", (2, 4, 8, 16), lambda n: kernel(8, n)),
    ("closed form, the whole kernel", "classes", (4, 8, 16, 32), lambda n: closed_form(n, "matrix")),
    ("closed form, products", "classes", (4, 8, 16, 32), lambda n: closed_form(n, "products")),
)


def rows() -> Iterator[dict[str, Any]]:
    """A row for each kind of work and size."""
    for what, size, values, work in CASES:
        found = [counted(work(value)) for value in values]
        flops, held = ([one[key] for one in found] for key in ("FLOPs", "bytes at most"))
        yield {
            "work": what, "in": f"{size}, {values[0]} to {values[-1]}",
            "FLOPs": math.log2(flops[-1] / flops[-2]), "bytes": math.log2(held[-1] / held[-2]),
        }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    with ts.quiet():
        found = list(rows())
    note = (
        "powers of the last doubling, counted; bytes: the most that tensors of the work hold at once, without model and "
        "inputs"
    )
    told(Table("How cost grows", found, note), options.out)


if __name__ == "__main__":
    main()
