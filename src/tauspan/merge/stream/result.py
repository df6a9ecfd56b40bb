"""`MergeResult`: what a merge of files wrote, and what rounding kept of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.merge.engine.engine import Account, meaning

_WORST = 10  # rows of the report's table of tensors


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of the result: SHA-256 over the SHA-256 of its blocks, and what rounding kept of it."""

    name: str
    digest: str
    account: Account


@dataclass(frozen=True)
class CutTensor:
    """One matrix of a merged adapter: its rank, and the Frobenius norm of what the SVD left out."""

    name: str
    rank: int
    left_out: float


@dataclass(frozen=True, kw_only=True)
class MergeResult(Result):
    """What `merge_files` wrote. Numbers that are not known, because the merge was finished before, are None.

    Args:
        out: where the result is.
        method: the name of the method.
        digest: SHA-256 over the names and digests of the tensors; of an adapter, over its file of weights.
        finished: whether the result was there already and nothing was left to do.
        tensors: the tensors, in the order of the output.
        cuts: the matrices of an adapter, in place of `tensors`.
        resumed: how many tensors an earlier run had finished.
        nbytes: size of all files of weights.
        bytes_read: bytes of all inputs, each counted once.
        seconds: wall-clock time.
        norm: Frobenius norm of the exact merged displacement, or of the weights where there is no base.
        loss: the share of it that rounding, or an adapter's SVD, took.
        changed: how many entries the merge moves; None without a base.
        swallowed: the share of them that are stored as the base's own value; None without a base.
        kept: for a sparse method, the share of each model's entries that it kept, by label.
    """

    out: Path
    method: str
    digest: str | None
    finished: bool = False
    tensors: Sequence[WrittenTensor] = field(default=(), repr=False)
    cuts: Sequence[CutTensor] = field(default=(), repr=False)
    resumed: int | None = None
    nbytes: int | None = None
    bytes_read: int | None = None
    seconds: float | None = None
    norm: float | None = None
    loss: float | None = None
    changed: int | None = None
    swallowed: float | None = None
    kept: Mapping[str, float] = field(default_factory=dict)

    @property
    def displaced(self) -> bool:
        """Whether the numbers are those of a displacement from a base."""
        return self.swallowed is not None

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes read and written per second."""
        if self.seconds is None or self.nbytes is None or self.bytes_read is None:
            return None
        return (self.bytes_read + self.nbytes) / max(self.seconds, 1e-3)

    def precision(self) -> dict[str, Cell]:
        """What was kept of the merged displacement: the numbers of this result that are known."""
        found = {name: getattr(self, name) for name in ("changed", "norm", "loss", "swallowed")}
        return {name: value for name, value in found.items() if value is not None}

    def kept_table(self) -> list[Table]:
        """The shares that a sparse method kept, as a table; none for other methods."""
        rows: list[dict[str, Cell]] = [{"model": model, "kept": share} for model, share in self.kept.items()]
        note = "kept: the share of a model's entries that the method did not leave out."
        return [Table("kept", rows, note)] if rows else []

    def report(self) -> Report:
        """What rounding kept, tensor by tensor, as tables."""
        numbers: dict[str, Any] = {
            "out": str(self.out),
            "digest": self.digest,
            "finished": self.finished or None,
        }
        numbers |= {"tensors": len(self.tensors or self.cuts) or None, "resumed": self.resumed}
        numbers |= {"bytes": self.nbytes, "seconds": self.seconds, "bytes_per_second": self.bytes_per_second}
        numbers |= {**self.precision(), "kept": dict(self.kept) or None}
        series = [{"tensor": one.name, "digest": one.digest, **one.account.row()} for one in self.tensors]
        return Report(
            f"merge by {self.method}", [self._main(), *self.kept_table()], dict(self.provenance), series,
            {name: value for name, value in numbers.items() if value is not None}, self.warnings,
        )  # fmt: skip

    def _main(self) -> Table:
        if self.finished:
            done = f"{self.out} is the finished result; nothing was left to do"
            return Table("finished", [{"what": "merge", "value": done}])
        if self.cuts:
            cuts: list[dict[str, Cell]] = [
                {"tensor": one.name, "rank": one.rank, "left out": one.left_out} for one in self.cuts
            ]
            return Table("adapter", cuts, "left out: the Frobenius norm of what the SVD took away.")
        total = sum((one.account for one in self.tensors), Account())
        lossy = [one for one in self.tensors if one.account.lost]
        worst = sorted(lossy, key=lambda one: -one.account.lost)[:_WORST]
        rows = [{"tensor": "all", **total.row(self.displaced)}]
        rows += [{"tensor": one.name, **one.account.row(self.displaced)} for one in worst]
        most = f" The {len(worst)} tensors that lost most." if len(worst) > 1 else ""
        return Table("precision", rows, meaning(self.displaced) + most)
