"""What TSV-M and Iso-C take beside the SVDs they cannot do without, on the matrices of one transformer block."""

from functools import partial

import torch
from benchmarks.rows import Row, Setting, row
from benchmarks.shapes import SHAPES, Shape, normal
from benchmarks.timing import interleaved, ratio, seconds
from torch import Tensor

from tauspan.merge import merge
from tauspan.vector import TaskVector

TASKS = 8


def spectral(setting: Setting) -> list[Row]:
    """The rows of all chosen shapes."""
    return [found for name in setting.names() for found in _shape(SHAPES[name], setting)]


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """The weight matrices of one block: four of attention, two of the feed-forward layers."""
    attention = {f"attention.{name}": (shape.width, shape.width) for name in "qkvo"}
    return {**attention, "up": (shape.inner, shape.width), "down": (shape.width, shape.inner)}


def deltas(shape: Shape, device: str = "cpu") -> list[TaskVector]:
    """One block's task vectors, of full rank."""
    made = []
    for task in range(TASKS):
        seeds = range(1000 * task, 1000 * task + 6)
        own = {
            name: 1e-3 * normal(size, seed).to(device)
            for (name, size), seed in zip(matrices(shape).items(), seeds, strict=True)
        }
        made.append(TaskVector(own, "benchmark", "standard", f"task{task}"))
    return made


def as_given(matrices: list[Tensor]) -> None:
    """The SVDs as the methods' authors call them."""
    for matrix in matrices:
        torch.linalg.svd(matrix, full_matrices=False)


def turned(matrices: list[Tensor]) -> None:
    """The SVDs of the matrices or of their transposes, whichever are taller: faster on a CPU."""
    as_given([matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT for matrix in matrices])


def needed(vectors: list[TaskVector], method: str) -> list[Tensor]:
    """What a method takes the SVD of: the sums; or every task's matrix and the two factors side by side."""
    found = []
    for name, first in vectors[0].deltas.items():
        tasks = [vector.deltas[name] for vector in vectors]
        if method == "iso_c":
            found.append(torch.stack(tasks).sum(0))
        else:
            rank = min(first.shape) // TASKS * TASKS
            found += [*tasks, first[:, :rank], first[:rank]]  # the factors' shapes
    return found


def _shape(shape: Shape, setting: Setting) -> list[Row]:
    vectors = deltas(shape, setting.device)
    rounds = 1 if setting.short else min(setting.rounds, shape.layers)
    rows = []
    for method in ("iso_c", "tsv_m"):
        bare = needed(vectors, method)
        work = {
            "merge": partial(merge, vectors, method),
            "turned": partial(turned, bare),
            "as given": partial(as_given, bare),
        }
        taken = interleaved(work, rounds, device=setting.device)
        title = f"{shape.name}: {method}"
        note = f"one block, {TASKS} vectors, {len(bare)} SVDs, wide matrices by their transpose"
        near, far = (ratio(taken, "merge", other, setting.clock) for other in ("turned", "as given"))
        rows += [
            row(title, seconds(taken, "merge", setting.clock), setting, unit="s"),
            row(f"{title} / its SVDs", near, setting, "spectral", note=note),
            row(f"{title} / its SVDs, none transposed", far, setting),
        ]
    return rows
