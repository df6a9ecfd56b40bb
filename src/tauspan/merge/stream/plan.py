"""`Plan`: everything about a merge that its recipe and the headers of its inputs decide, before a value is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from tauspan.core.errors import listed
from tauspan.core.report import Cell, Report, Table, in_words, provenance
from tauspan.merge.lora.adapters import Products
from tauspan.merge.lora.lowrank import LowRank
from tauspan.merge.methods import sums
from tauspan.merge.methods.method import Method, Spec
from tauspan.merge.recipe.recipe import MergeRecipe
from tauspan.merge.sources.source import Source
from tauspan.merge.stream.opened import Opened
from tauspan.store import Layout

MARK = "tauspan.merge"
"""The key under which the header of a merged single file holds its recipe."""
_STATUS = Path("/proc/self/status")
# Their result is sum_t c_t tau_t with one c_t for each tensor, so that factors can be kept.
LINEAR = (sums.LINEAR, sums.TASK_ARITHMETIC, sums.LINES, sums.PASSTHROUGH)


@dataclass(frozen=True)
class Plan:
    """What will be read, computed and written: a model, a task vector or an adapter.

    Args:
        opened: the recipe with its inputs.
        specs: the tensors that are merged, in the output's order.
        copied: names of those that are taken over as they are: integers, and what no model changes.
        layout: the output's files; None for an adapter, whose ranks are known only when it is merged.
        together: the sum of all adapters among the inputs of an adapter, for ranks and layouts.
        key: a hash of all that decides the output's bytes and the journal's lines.
        block: entries of a block.
        workers: threads.
        single: whether a model is one file, whatever its size.
        warnings: what is odd and yet no error.
    """

    opened: Opened
    specs: tuple[Spec, ...]
    copied: tuple[str, ...]
    layout: Layout | None
    together: LowRank
    key: str
    block: int
    workers: int
    single: bool
    warnings: tuple[str, ...]

    @property
    def recipe(self) -> MergeRecipe:
        """What is asked for."""
        return self.opened.recipe

    @property
    def method(self) -> Method:
        """The row of the table, or the user's own."""
        return self.opened.method

    @property
    def bytes_read(self) -> int:
        """Bytes of all inputs' tensors, each counted once; a method that measures first reads them again."""
        return sum(map(_nbytes, self.opened.read))

    @property
    def entries(self) -> int:
        """Entries of the largest piece that a worker holds at once."""
        grain = self.method.grain
        shapes = [spec.shape for spec in self.specs] or [torch.Size([0])]
        largest = max(map(prod, shapes))
        if grain == "tensor":
            return largest
        rows = [prod(shape[1:] if len(shape) > 1 else shape) for shape in shapes] if grain == "row" else []
        return min(max(self.block, *rows, 0), largest)

    @property
    def block_bytes(self) -> int:
        """Memory of the blocks: for each worker models + 2 + the method's temporaries."""
        pieces = len(self.opened.models) + 2 + self.method.temporaries
        return self.workers * self.entries * pieces * self.opened.arithmetic.itemsize

    @property
    def memory(self) -> int | None:
        """Estimate of anonymous memory: what this process has now, measured, and the blocks; None where unknown."""
        now = anonymous()
        return None if now is None else now + self.block_bytes

    @property
    def facts(self) -> dict[str, Any]:
        """What is kept with the result: the complete recipe."""
        return {"recipe": self.recipe.as_dict()}

    @property
    def factored(self) -> bool:
        """Whether an adapter keeps its inputs' factors, side by side; else displacements are cut by SVD."""
        only = all(isinstance(model, Products) for model in self.opened.models)
        return only and self.method in LINEAR

    def ranks(self) -> dict[str, int]:
        """For each matrix, the highest rank that an adapter can have there."""
        most, rank = {}, self.recipe.rank
        for spec in self.specs:
            if len(spec.shape) > 1:
                whole = min(spec.shape[0], spec.shape[1:].numel())
                own = self.together.rank(spec.name) if self.factored else whole
                most[spec.name] = own if rank is None else min(own, rank)
        return most

    def report(self) -> Report:
        """The plan as tables."""
        models = listed(self.opened.labels)
        base = "" if self.opened.base is None else str(self.opened.base.path)
        method = f"{self.method.title}: {self.method.formula}"
        told: dict[str, Cell] = {"method": method, "models": models, "base": base}
        told["tensors merged"] = len(self.specs)
        if self.layout is None:
            told |= {**self._of_adapter(), "workers": self.workers}
            return Report("merge plan", [_listing(told)], provenance(**self.facts), result=told)
        told["tensors copied"] = len(self.copied)
        sizes: dict[str, int] = {"to read": self.bytes_read, "to write": self.layout.nbytes}
        rows: dict[str, Cell] = {**told, "workers": self.workers}
        rows |= {what: in_words(count) for what, count in sizes.items()}
        memory = self.memory
        if memory is not None:
            rows["memory, estimated"] = f"{in_words(memory)}: this process now, and the blocks of its workers"
        told |= {f"bytes {what}": count for what, count in sizes.items()}
        told |= {"memory, bytes, estimated": memory, "workers": self.workers}
        read: list[dict[str, Cell]] = [
            {"reads": one.label, "path": str(one.path), "size": in_words(_nbytes(one))}
            for one in self.opened.read
        ]
        files: list[dict[str, Cell]] = [
            {"writes": one.file, "size": in_words(one.nbytes)} for one in self.layout.shards
        ]
        tables = [_listing(rows), Table("inputs", read), Table("outputs", files)]
        facts = provenance(plan=self.key, **self.facts)
        return Report("merge plan", tables, facts, result=told, warnings=self.warnings)

    def _of_adapter(self) -> dict[str, Cell]:
        ranks, shapes = self.ranks(), {spec.name: spec.shape for spec in self.specs}
        how = "factors side by side" if self.factored else "displacements"
        return {
            "how": f"{how}, {'exactly' if self.factored and self.recipe.rank is None else 'cut by SVD'}",
            "rank at most": max(ranks.values(), default=0),
            "entries to write at most": sum(
                rank * (shapes[name][0] + shapes[name][1:].numel()) for name, rank in ranks.items()
            ),
        }


def _listing(told: Mapping[str, Cell]) -> Table:
    return Table("plan", [{"what": what, "value": value} for what, value in told.items()])


def anonymous() -> int | None:
    """Bytes of anonymous memory that this process has; None where the system does not say."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), None)


def _nbytes(source: Source) -> int:
    return sum(stored.nbytes for stored in source.tensors.values())
