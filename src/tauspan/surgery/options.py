"""The options of surgery: `Filling` (how rows are filled) and `Running` (how the work runs); nothing here needs torch."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from tauspan.core.errors import UsageError, nearest

How: TypeAlias = Literal["copy", "mean", "local", "global", "hybrid", "cw2v", "normal"]
HOWS: tuple[How, ...] = get_args(How)


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How the rows of tokens are filled that the old vocabulary lacks.

    Args:
        how: the way in which rows of new tokens are filled.
        temperature: T of local and global weights; the smaller, the more the likest token counts.
        share: g of hybrid, the part of the global weights.
        nearest: how many old tokens a global row is made of.
        least: the cosine from which on an old token counts as near.
        anchors: how many frequent old tokens a row of cw2v may use beside its own parts.
        epochs: passes of cw2v over the texts.
        lr: learning rate of cw2v.
        spread: of normal, the factor of the covariance.
        pad_to_multiple_of: rows of the new tables are a multiple of it; the further ones are the mean of all.
        seed: of random numbers.

    Raises:
        UsageError: an unknown way, or a number out of its range.
    """

    how: How = "hybrid"
    temperature: float = 0.3
    share: float = 0.3
    nearest: int = 3
    least: float = 0.6
    anchors: int = 64
    epochs: int = 3
    lr: float = 0.05
    spread: float = 1e-5
    pad_to_multiple_of: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise UsageError(f"how: {self.how!r} fills no rows. {nearest(str(self.how), HOWS)}")
        for name, low, high in (
            ("temperature", 1e-3, 1e3), ("share", 0, 1), ("nearest", 1, 1000), ("least", -1, 1), ("anchors", 0, 4096),
            ("epochs", 0, 10_000), ("lr", 0, 1e3), ("spread", 0, 1e3), ("pad_to_multiple_of", 1, 1 << 20),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is {getattr(self, name)}, and must be from {low:g} to {high:g}.")


@dataclass(frozen=True, kw_only=True)
class Running:
    """How surgery runs; nothing of it changes a bit of the result.

    Args:
        resume: go on with what a killed run of the same surgery left.
        overwrite: replace what an earlier run wrote there, and nothing else.
        workers: threads; None takes all processors.
        access: how files are read: mmap leaves tables in their files' pages, pread holds one table whole.

    Raises:
        UsageError: fewer than one thread.
    """

    resume: bool = False
    overwrite: bool = False
    workers: int | None = None
    access: Literal["mmap", "pread"] = "mmap"

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers is {self.workers} (--workers), and at least one thread is needed.")
