"""Traces and norms of a kernel from products with random vectors, or exactly, with standard errors.

With entries z = +1 or -1 drawn at random, E[z^T A z] = tr A for any square A. So tr K needs z^T K z alone, and
|K|_F^2, which is tr K^2 for a symmetric K, needs |K z|^2.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import NonFiniteError, UsageError, nearest
from tauspan.kernel.solvers.base import Kernel

Estimator = Literal["hutchinson", "hutch++"]
EPSILON = float(torch.finfo(torch.float64).eps)
# rounding in single precision stays a thousand times below these shares
_UNSYMMETRIC = 1e-3
_NEGATIVE = 1e-3


@dataclass(frozen=True)
class Estimate:
    """A number, and how well it is known. What is not known is None.

    Args:
        value: the number.
        exact: whether it is exact up to rounding.
        estimator: which method computed it.
        standard_error: of `value`, over the random draws or over the rows that it is a mean of; in its unit.
        bound: half the width of an interval that holds the value at these draws, where a method leaves out something
            besides chance: the steps that a quadrature did not take.
    """

    value: float
    exact: bool
    estimator: str
    standard_error: float | None = None
    bound: float | None = None


def exactly(value: float, estimator: str = "exact") -> Estimate:
    """An exact number, whose standard error and bound are 0."""
    return Estimate(value, True, estimator, 0.0, 0.0)


def require_square(kernel: Kernel, what: str) -> int:
    """The number of rows of a square kernel.

    Raises:
        UsageError: a kernel between two sets of rows.
    """
    if kernel.shape[0] != kernel.shape[1]:
        raise UsageError(
            f"{what} belongs to a square kernel, and this one has the shape {tuple(kernel.shape)}: build it from one set "
            "of rows."
        )
    return kernel.shape[0]


def require_ridge(ridge: float, zero: bool = False) -> None:
    """Raises `UsageError` for a ridge that is not finite, negative, or 0 where it must not be."""
    number = isinstance(ridge, int | float) and not isinstance(ridge, bool)
    if not (number and math.isfinite(ridge) and (ridge > 0 or (zero and ridge == 0))):
        raise UsageError(f"ridge={ridge}: give a finite number {'of at least' if zero else 'above'} 0.")


def require_symmetric(form: Tensor) -> None:
    """Raises `UsageError` where Z^T K Z of some vectors Z shows that K is not symmetric."""
    gap, size = float((form - form.T).norm()), float(form.norm())
    if gap > _UNSYMMETRIC * size:
        raise UsageError(
            f"the kernel is not symmetric: Z^T K Z differs from its transpose by {gap / size:.2g} of its norm. "
            "Eigenvalue methods need K = J J^T of one set of rows."
        )


def require_semidefinite(low: float, high: float, what: str) -> None:
    """Raises `UsageError` if values that cannot be negative for J J^T go further below 0 than rounding explains."""
    if low < -_NEGATIVE * high:
        raise UsageError(
            f"the kernel is not positive semi-definite: {what} goes down to {low:.3g} beside {high:.3g}, and that of "
            "J J^T is never below 0."
        )


def times(kernel: Kernel, vectors: Tensor) -> Tensor:
    """K V in float64.

    Raises:
        NonFiniteError: NaN or infinity in the product.
    """
    return finite(kernel @ vectors, "products with the kernel")


def finite(values: Tensor, what: str) -> Tensor:
    """The tensor itself in float64; raises `NonFiniteError` where it holds NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"{what} hold NaN or infinity: check the model's weights and the data.")
    return values.double()


def finite_entries(kernel: Kernel) -> Tensor:
    """The whole matrix; raises `NonFiniteError` where it holds NaN or infinity."""
    return finite(kernel.dense(), "the kernel's entries")


def finite_diagonal(kernel: Kernel) -> Tensor:
    """The diagonal; raises `NonFiniteError` where it holds NaN or infinity."""
    return finite(kernel.diag(), "the kernel's diagonal")


def signs(rows: int, count: int, seed: int) -> Tensor:
    """Random vectors of +1 and -1, shape (rows, count), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (rows, count), generator=generator).double().mul_(2).sub_(1)


# -- traces ------------------------------------------------------------------------------------------------------


@checked
def trace(
    kernel: Kernel, probes: int | None = 32, seed: int = 0, method: Estimator = "hutchinson"
) -> Estimate:
    """Tr K.

    Args:
        kernel: square; it need not be symmetric with `"hutchinson"`.
        probes: products with the kernel; None sums the diagonal, which is exact.
        seed: of the vectors.
        method: `"hutchinson"`, or `"hutch++"` (Meyer, Musco, Musco, Woodruff): a third of the products finds a subspace
            that holds the largest eigenvalues, whose trace is then exact, so that for a fast-falling spectrum the
            error falls as 1/probes and not as its root. It needs a symmetric kernel.

    Raises:
        UsageError: a kernel that is not square, fewer than 2 probes (6 with `"hutch++"`), an unknown method.
        NonFiniteError: NaN in the kernel.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> trace(DenseKernel(2.0 * torch.eye(3, dtype=torch.float64)), probes=4).value
        6.0
    """
    n = require_square(kernel, "a trace")
    if method not in get_args(Estimator):
        raise UsageError(f"method={method!r}. {nearest(str(method), get_args(Estimator))}")
    if probes is None:
        return exactly(float(finite_diagonal(kernel).sum()), "diagonal")
    if method == "hutch++":
        return _deflated_trace(kernel, n, probes, seed)
    z = signs(n, at_least(probes, 2), seed)
    return mean_of((z * times(kernel, z)).sum(0), "Hutchinson")


def _deflated_trace(kernel: Kernel, n: int, probes: int, seed: int) -> Estimate:
    count = at_least(probes, 6) // 3
    drawn = signs(n, 2 * count, seed)
    basis = torch.linalg.qr(times(kernel, drawn[:, :count])).Q
    form = basis.T @ times(kernel, basis)
    require_symmetric(form)
    rest = drawn[:, count:] - basis @ (basis.T @ drawn[:, count:])
    remainder = (rest * times(kernel, rest)).sum(0)
    value = float(form.trace()) + float(remainder.mean())
    return Estimate(value, False, "Hutch++", standard_error(remainder))


def squared_norm(kernel: Kernel, probes: int | None = 32, seed: int = 0) -> Estimate:
    """|K|_F^2, which is tr K^2 for a symmetric kernel; any shape. Arguments and errors as for `trace`."""
    if probes is None:
        return exactly(float(finite_entries(kernel).square().sum()), "dense")
    z = signs(kernel.shape[1], at_least(probes, 2), seed)
    return mean_of(times(kernel, z).square().sum(0), "Hutchinson")


def participation_rank(kernel: Kernel, probes: int | None = 32, seed: int = 0) -> Estimate:
    """(tr K)^2 / tr K^2: how many equal eigenvalues would spread the trace as much; between 1 and the rank.

    Numerator and denominator come from the same products; the standard error is that of their ratio to first order.

    Raises:
        UsageError: as for `trace`, and a kernel that is zero.
    """
    n = require_square(kernel, "a participation rank")
    if probes is None:
        t = finite_diagonal(kernel).sum().reshape(1)
        s = torch.tensor([squared_norm(kernel, None).value], dtype=torch.float64)
    else:
        z = signs(n, at_least(probes, 2), seed)
        product = times(kernel, z)
        t, s = (z * product).sum(0), product.square().sum(0)
    if not float(s.mean()):
        raise UsageError(
            "the kernel is zero and has no participation rank: no parameter moves these outputs."
        )
    value = float(t.mean() ** 2 / s.mean())
    if probes is None:
        return exactly(value, "dense")
    influence = 2 * t.mean() / s.mean() * t - value / s.mean() * s
    return Estimate(value, False, "Hutchinson", standard_error(influence))


def mean_of(values: Tensor, estimator: str) -> Estimate:
    """The mean over independent draws, with its standard error."""
    return Estimate(float(values.mean()), False, estimator, standard_error(values))


def standard_error(values: Tensor) -> float:
    """The standard error of the mean of two independent draws or more."""
    return float(values.std()) / math.sqrt(len(values))


def at_least(probes: int, least: int) -> int:
    """The number of probes; raises `UsageError` for too few."""
    if probes < least:
        raise UsageError(
            f"probes={probes}: at least {least}, since a standard error needs several; or None for the exact value."
        )
    return probes
