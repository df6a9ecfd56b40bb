"""Filling the matrix block by block: by several processes, and into files from which a later run resumes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.errors import NonFiniteError, StoreError
from tauspan.core.measure import progress
from tauspan.core.processes import World

FORMAT = "tauspan-kernel/1"
_WITH_FOLDER = 4  # the least number of stretches per side, so that an interrupted run can resume


@dataclass(frozen=True)
class Partition:
    """How a kernel of N x M rows of data is cut into blocks.

    Args:
        samples: N and M.
        lengths: rows and columns of a block; the last of each may be smaller.
        outputs: O.
        symmetric: whether the blocks below the diagonal are transposes.
    """

    samples: tuple[int, int]
    lengths: tuple[int, int]
    outputs: int
    symmetric: bool

    def blocks(self) -> list[tuple[range, range]]:
        """All blocks that must be computed, row by row, every second row backwards: neighbours share a tile."""
        found: list[tuple[range, range]] = []
        for number, rows in enumerate(stretches(range(self.samples[0]), self.lengths[0])):
            columns = stretches(range(self.samples[1]), self.lengths[1])
            if self.symmetric:
                columns = [stretch for stretch in columns if stretch.start >= rows.start]
            found += [(rows, stretch) for stretch in (columns if number % 2 == 0 else reversed(columns))]
        return found

    def places(self, block: tuple[range, range]) -> tuple[slice, slice]:
        """The rows and columns of a block in the matrix."""
        rows, columns = (slice(one.start * self.outputs, one.stop * self.outputs) for one in block)
        return rows, columns


@overload
def stretches(places: range, length: int) -> list[range]: ...


@overload
def stretches(places: Sequence[int], length: int) -> list[Sequence[int]]: ...


def stretches(places: Any, length: int) -> Any:
    """Consecutive parts of `places`, each of at most `length` entries."""
    return [places[start : start + length] for start in range(0, len(places), length)]


def partition(
    samples: tuple[int, int], fitting: tuple[int, int], outputs: int, symmetric: bool, parts: tuple[int, int]
) -> Partition:
    """The partition into at least as many stretches per side as `parts` says, where there are as many rows.

    Args:
        samples: N and M.
        fitting: rows and columns of the largest block that fits.
        outputs: O.
        symmetric: whether both sides are the same.
        parts: stretches of the left and of the right side.
    """
    triples = zip(samples, fitting, parts, strict=True)
    lengths = [min(fit, -(-count // least)) for count, fit, least in triples]
    return Partition(samples, (lengths[0], lengths[1]), outputs, symmetric)


class Folder:
    """Finished blocks of one kernel on disk, one safetensors file each, in a folder named by the kernel's key.

    Args:
        path: where kernels are kept; several may share it.
        facts: everything that decides the numbers.
    """

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self.key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self.path = path / self.key[:24]

    def agreed(self, wanted: Partition) -> Partition:
        """The partition of the blocks that the folder holds already; else the wanted one, written down for later runs.

        Raises:
            StoreError: the note is damaged.
        """
        file = self.path / "layout.json"
        if not file.exists():
            store.write_json(file, {"format": FORMAT, "key": self.key, "lengths": list(wanted.lengths)})
            return wanted
        read = store.read_json(file)
        content = read if isinstance(read, dict) else {}
        lengths = content.get("lengths")
        known = content.get("format") == FORMAT and content.get("key") == self.key
        whole = isinstance(lengths, list) and len(lengths) == 2 and all(type(n) is int for n in lengths)
        if not known or not isinstance(lengths, list) or not whole or min(lengths) < 1:
            raise StoreError(
                f"{file} is not the layout of this kernel as {FORMAT!r} has it: remove {self.path} to compute its "
                "blocks anew."
            )
        return Partition(wanted.samples, (lengths[0], lengths[1]), wanted.outputs, wanted.symmetric)

    def _file(self, block: tuple[range, range]) -> Path:
        rows, columns = block
        return self.path / f"block-{rows.start}-{columns.start}.safetensors"

    def read(self, block: tuple[range, range], shape: tuple[int, int]) -> Tensor | None:
        """A finished block; None where there is none.

        Raises:
            StoreError: the file is damaged or is no block of this kernel.
        """
        file = self._file(block)
        if not file.exists():
            return None
        checkpoint = store.Checkpoint(file)
        found = checkpoint["block"]
        kind = (tuple(found.shape), found.dtype, checkpoint.metadata.get("key"))
        if kind != (shape, torch.float64, self.key) or not bool(torch.isfinite(found).all()):
            raise StoreError(
                f"{file} is not the block of shape {shape} that belongs there: remove it to compute it anew."
            )
        return found

    def write(self, block: tuple[range, range], values: Tensor) -> None:
        """Keep a finished block."""
        store.write_tensors(self._file(block), {"block": values}, {"key": self.key})


def agreed(wanted: Partition, folder: Folder | None, processes: World) -> Partition:
    """The partition that all processes use, which is that of the first process."""
    lengths = torch.zeros(2, dtype=torch.int64)
    if processes.first:
        found = folder.agreed(wanted) if folder else wanted
        lengths = torch.tensor(found.lengths)
    processes.sum([lengths])
    return Partition(wanted.samples, (int(lengths[0]), int(lengths[1])), wanted.outputs, wanted.symmetric)


def parts_wanted(folder: Folder | None, processes: World) -> int:
    """The least number of stretches per side, so that there are blocks to share out or to resume from."""
    return max(_WITH_FOLDER if folder else 1, 2 * processes.size if processes.size > 1 else 1)


def _require_finite(found: Tensor, block: tuple[range, range]) -> None:
    if not bool(torch.isfinite(found).all()):
        rows, columns = (f"{one.start} to {one.stop - 1}" for one in block)
        raise NonFiniteError(
            f"the kernel holds NaN or infinity between rows {rows} and rows {columns} of the data: check the model's "
            "weights, or compute in float32 or float64."
        )


def fill(
    plan: Partition,
    compute: Callable[[range, range], Tensor],
    folder: Folder | None,
    processes: World,
) -> Tensor:
    """The matrix, shape (N O, M O): each process computes its share of the blocks, and every process gets all of them.

    Args:
        plan: the blocks.
        compute: rows and columns to their block; of a block on the diagonal of a symmetric kernel only the upper
            triangle is read.
        folder: where finished blocks are read and written.
        processes: who shares the work.

    Raises:
        NonFiniteError: NaN or infinity in a block.
    """
    total = torch.zeros(plan.samples[0] * plan.outputs, plan.samples[1] * plan.outputs, dtype=torch.float64)
    blocks = plan.blocks()
    mine = blocks[
        processes.rank * len(blocks) // processes.size : (processes.rank + 1) * len(blocks) // processes.size
    ]
    with progress("kernel blocks", len(mine), processes.first) as advance:
        for block in mine:
            rows, columns = plan.places(block)
            target = total[rows, columns]
            found = folder.read(block, (target.shape[0], target.shape[1])) if folder else None
            if found is None:
                found = compute(*block)
                _require_finite(found, block)
                if plan.symmetric and block[0] == block[1]:
                    found = found.triu_().add_(found.triu(1).T)
                if folder:
                    folder.write(block, found)
            target.copy_(found)
            if plan.symmetric and block[0] != block[1]:
                total[columns, rows] = found.T
            advance(1, "")
    if processes.size > 1:
        for strip in torch.split(total, plan.lengths[0] * plan.outputs):
            processes.sum([strip])
    return total
