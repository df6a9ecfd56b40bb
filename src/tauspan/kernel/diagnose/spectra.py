"""Diagnostics from eigenvalues: how many directions count, how fast they are learned, what part of a target they hold."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.kernel import Estimate, Kernel, Modes, eigenpairs, participation_rank, trace
from tauspan.kernel.solvers.estimates import exactly, require_ridge
from tauspan.kernel.solvers.solution import rounding_floor, vector_for


@dataclass(frozen=True)
class EffectiveRanks:
    """Effective ranks of a kernel with eigenvalues lam_1 >= lam_2 >= ...

    Args:
        stable: tr K / lam_1.
        participation: (tr K)^2 / tr K^2.
        lr_max: 2 / lam_1, above which gradient descent on 1/2 |f - y|^2 diverges.
        entropy: exp(-sum p log p), p = lam / tr K. This and all that follow are None where probes were used.
        dimension: tr K (K + ridge)^-1.
        condition: lam_1 over the smallest eigenvalue; infinite for a singular kernel.
        decay: a of the fit lam_i ~ i^-a, by least squares on logarithms, over eigenvalues above rounding; None for fewer
            than two.
        ridge: that of `dimension`.
    """

    stable: Estimate
    participation: Estimate
    lr_max: Estimate
    entropy: Estimate | None = None
    dimension: Estimate | None = None
    condition: Estimate | None = None
    decay: Estimate | None = None
    ridge: float | None = None


def effective_ranks(
    kernel: Kernel, ridge: float | None = None, probes: int | None = None, seed: int = 0
) -> EffectiveRanks:
    """All of `EffectiveRanks` from the eigenvalues, or some of them from products with the kernel alone.

    Args:
        kernel: symmetric.
        ridge: of the effective dimension; None takes the mean eigenvalue.
        probes: None is exact and takes the matrix; a number gives stable and participation rank and lr_max from so many
            random products, and the largest eigenvalue from a Krylov space.
        seed: of the probes.

    Raises:
        UsageError: a kernel that is zero, too large for a matrix, not symmetric; a ridge that is not above 0.
        NonFiniteError: NaN or infinity in the kernel.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> ranks = effective_ranks(DenseKernel(torch.diag(torch.tensor([2.0, 2.0, 0.0]))))
        >>> [round(one.value, 3) for one in (ranks.stable, ranks.participation, ranks.entropy, ranks.lr_max)]
        [2.0, 2.0, 2.0, 1.0]
    """
    if ridge is not None:
        require_ridge(ridge)
    if probes is not None:
        top = eigenpairs(kernel, 1, seed=seed)
        largest, whole = float(top.values[0]), trace(kernel, probes, seed)
        _require_positive(largest)
        error = None if whole.standard_error is None else whole.standard_error / largest
        stable = Estimate(whole.value / largest, False, "probes", error)
        bound = None if top.residuals is None else 2 * float(top.residuals[0]) / largest**2
        lr_max = Estimate(2 / largest, top.exact, "block Krylov", bound=bound)
        return EffectiveRanks(stable, participation_rank(kernel, probes, seed), lr_max)
    values = Modes.of(kernel).values.flip(0)
    largest = float(values[0])
    _require_positive(largest)
    total = float(values.sum())
    strength = total / len(values) if ridge is None else ridge
    seen = values[values > rounding_floor(values)]
    whole_rank = len(seen) == len(values)
    numbers = {
        "stable": total / largest,
        "participation": total**2 / float(values.square().sum()),
        "lr_max": 2 / largest,
        "entropy": entropy_rank(values),
        "dimension": float((values / (values + strength)).sum()),
        "condition": largest / float(values[-1]) if whole_rank else math.inf,
        "decay": decay_exponent(seen),
    }
    known = {name: None if value is None else exactly(value) for name, value in numbers.items()}
    return EffectiveRanks(**known, ridge=strength)  # type: ignore[arg-type]


def _require_positive(largest: float) -> None:
    if not largest > 0:
        raise UsageError("the kernel is zero and has no rank: no parameter moves these outputs.")


def entropy_rank(values: Tensor) -> float:
    """exp(-sum p log p), p = lam / sum lam: how many equal values would be as evenly spread.

    Args:
        values: 0 or more, not all 0; eigenvalues, or squared singular values.
    """
    shares = values.double() / values.double().sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def decay_exponent(values: Tensor) -> float | None:
    """The a of lam_i ~ i^-a by least squares of log lam_i on log i; None for fewer than two eigenvalues.

    Args:
        values: positive eigenvalues, falling.
    """
    if len(values) < 2:
        return None
    x = torch.arange(1, len(values) + 1, dtype=torch.float64).log()
    x, y = x - x.mean(), values.double().log()
    return -float((x * y).sum() / x.square().sum())


@dataclass(frozen=True, eq=False)
class CumulativePower:
    """How much of a target is in the span of the leading eigenvectors, and when it is learned.

    Args:
        values: eigenvalues, falling, shape (n).
        shares: C(r) = sum_{i <= r} (u_i y)^2 / |y|^2, shape (n); the last is 1.
        times: 1 / lam_i, the time in which gradient flow learns mode i; in steps divide by the learning rate.
        half: the smallest r with C(r) >= 1/2.
    """

    values: Tensor
    shares: Tensor
    times: Tensor
    half: int

    def __repr__(self) -> str:
        return f"CumulativePower({len(self.values)} eigenvalues, half of the target in the first {self.half})"


def cumulative_power(kernel: Kernel, targets: Tensor) -> CumulativePower:
    """How much of the targets is in the span of the leading eigenvectors, exact.

    The training loss that follows is `Modes.of(kernel).flow_loss(y - f0, t)`, half the sum of (u_i r)^2 exp(-2 lam_i t).

    Args:
        kernel: symmetric, N rows of O outputs.
        targets: shape (N, O) or (N O), as in kernel regression; or (N, C) where O = 1, each column a target.

    Raises:
        UsageError: targets of another length or all zero.
        NonFiniteError: NaN or infinity in kernel or targets.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> power = cumulative_power(DenseKernel(torch.diag(torch.tensor([1.0, 4.0]))), torch.tensor([3.0, 1.0]))
        >>> [round(share, 6) for share in power.shares.tolist()], power.half
        ([0.1, 1.0], 2)
    """
    several = kernel.outputs == 1 and targets.dim() == 2
    columns = list(targets.T) if several else [targets]
    modes = Modes.of(kernel)
    found = torch.stack([modes.vectors.T @ vector_for(kernel, one, "the target") for one in columns])
    energy = found.square().sum(0).flip(0)
    if not float(energy.sum()):
        raise UsageError("the targets are zero: they have no power in any direction.")
    shares = energy.cumsum(0) / energy.sum()
    values = modes.values.flip(0)
    seen = values > rounding_floor(values)
    times = torch.where(seen, 1 / torch.where(seen, values, 1.0), math.inf)
    return CumulativePower(values, shares, times, int((shares < 0.5).sum()) + 1)
