"""How far a kernel moves between two points."""

import math
from dataclasses import replace

from tauspan.core.errors import MismatchError, UsageError
from tauspan.kernel import Estimate, Kernel
from tauspan.kernel.solvers.estimates import at_least, exactly, finite_entries, signs, standard_error, times


def kernel_distance(first: Kernel, second: Kernel, probes: int | None = None, seed: int = 0) -> Estimate:
    """1 - <K, K'> / (|K| |K'|): how far a kernel has turned, between 0 and 1 for positive kernels, whatever its size.

    Args:
        first: the kernel at one point, for instance theta0.
        second: the kernel of the same rows at another, for instance theta0 + tau.
        probes: estimate from so many products with each; None is exact and takes both matrices.
        seed: of the probes.

    Raises:
        MismatchError: kernels of different shapes.
        UsageError: a kernel that is zero, fewer than 2 probes.

    Example:
        >>> import torch
        >>> from tauspan.kernel import DenseKernel
        >>> round(kernel_distance(DenseKernel(torch.eye(2)), DenseKernel(3 * torch.eye(2))).value, 6)
        0.0
    """
    _require_same_rows(first, second)
    if probes is None:
        pair = [finite_entries(one) for one in (first, second)]
        a, b, c = ((x * y).sum().reshape(1) for x, y in ((pair[0], pair[1]), (pair[0],) * 2, (pair[1],) * 2))
    else:
        z = signs(first.shape[1], at_least(probes, 2), seed)
        pair = [times(one, z) for one in (first, second)]
        a, b, c = ((x * y).sum(0) for x, y in ((pair[0], pair[1]), (pair[0],) * 2, (pair[1],) * 2))
    if not float(b.sum()) or not float(c.sum()):
        raise UsageError(
            "a kernel that is zero has no distance to another: no parameter moves these outputs."
        )
    cosine = float(a.mean() / (b.mean() * c.mean()).sqrt())
    if probes is None:
        return exactly(1 - cosine)
    influence = a / (b.mean() * c.mean()).sqrt() - cosine / 2 * (b / b.mean() + c / c.mean())
    return Estimate(1 - cosine, False, "probes", standard_error(influence))


def kernel_velocity(
    first: Kernel, second: Kernel, time: float, probes: int | None = None, seed: int = 0
) -> Estimate:
    """`kernel_distance` divided by the time between the two points, in any unit of time.

    Raises:
        UsageError: a time that is not above 0.
    """
    if not 0 < time < math.inf:
        raise UsageError(f"time={time}: the time between two points must be above 0.")
    moved = kernel_distance(first, second, probes, seed)
    error = None if moved.standard_error is None else moved.standard_error / time
    return replace(moved, value=moved.value / time, standard_error=error)


def kernel_change(first: Kernel, second: Kernel) -> Estimate:
    """|K' - K|_F / |K|_F: how far a kernel has moved, its size included; exact. Errors as for `kernel_distance`."""
    _require_same_rows(first, second)
    start = finite_entries(first)
    if not start.any():
        raise UsageError("the first kernel is zero: there is no change relative to it.")
    moved = finite_entries(second) - start
    return exactly(float(moved.norm() / start.norm()))


def _require_same_rows(first: Kernel, second: Kernel) -> None:
    if first.shape != second.shape:
        raise MismatchError(
            f"kernels of shapes {tuple(first.shape)} and {tuple(second.shape)}: compare one set of rows and outputs at "
            "two points."
        )
