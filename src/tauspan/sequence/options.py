"""What the protocols of a sequence are told; importing it imports no torch."""

from dataclasses import dataclass
from typing import Literal

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError

Covariance = Literal["diagonal", "full"]
Spread = Literal["uniform", "erdos-renyi-kernel"]
Growth = Literal["random", "gradient", "momentum"]


@checked
@dataclass(frozen=True)
class Options:
    """What the protocols are told.

    Args:
        ridge: the pull to the base of all closed forms; None takes what leave-one-out chooses on the first task, and of
            `masked`, whose kernels have fewer entries, what it chooses for each fit.
        kept: of `superposed`, so many rows of each earlier task, without labels.
        drawn: of `pseudo` and `stored`, so many rows of each class.
        covariance: of `pseudo`, what is kept of each class beside its mean.
        density: of `masked`, the share of all entries that a task gets; None takes 1 / (2 T) of T tasks.
        spread: of `masked`, how entries are spread over tensors.
        growth: of `masked`, which entries are picked: at random, by the gradient |J^T r|, or by its momentum.
        rounds: of `masked`, so often entries are dropped and others grown.

    Raises:
        UsageError: a number outside its range, an unknown word.
    """

    ridge: float | None = None
    kept: int = 32
    drawn: int = 32
    covariance: Covariance = "diagonal"
    density: float | None = None
    spread: Spread = "uniform"
    growth: Growth = "gradient"
    rounds: int = 1

    def __post_init__(self) -> None:
        least = {"kept": 1, "drawn": 1, "rounds": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name}={getattr(self, name)}: it must be at least {bound}.")
        if self.ridge is not None and not self.ridge > 0:
            raise UsageError(f"ridge={self.ridge}: it must be above 0.")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"density={self.density}: above 0, at most 1.")
