"""Kernel ridge regression: alpha by Cholesky, leave-one-out residuals in closed form, and the ridge they choose."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.flow import Modes
from tauspan.kernel.solvers.kernels import ScaledKernel
from tauspan.kernel.solvers.kronecker import KroneckerKernel
from tauspan.kernel.solvers.solution import DualSolution, cholesky, matrix_of, rounding_floor, vector_for

_HALF = 10.0**0.5
_LEAST, _MOST = -12, 4  # half decades of the mean eigenvalue that are tried in any case
_BEYOND = 16  # half decades beyond the spectrum, as long as the error falls
_FLAT = 1e-3  # an error that falls by a smaller share has settled
_SOLVED = 1e-6  # the share of the largest error below which a still smaller one is of no use


@checked
def solve_ridge(
    kernel: Kernel, residual: Tensor, ridge: float, weights: Tensor | None = None
) -> DualSolution:
    """(K + ridge) alpha = r by Cholesky; tau = J^T alpha minimises 1/2 |f0 + J tau - y|^2 + ridge/2 |tau|^2.

    With weights the loss is 1/2 sum_n w_n |f0_n + J_n tau - y_n|^2 + ridge/2 |tau|^2, and with D^2 = diag w, alpha =
    D (D K D + ridge)^-1 D r.

    Args:
        kernel: symmetric, over the training rows.
        residual: r = y - f0, shape (N O) or (N, O).
        ridge: 0 or more; the loss is a sum over rows, so that twice the rows want about twice the ridge.
        weights: what each row counts, shape (N,), above 0; None counts all alike.

    Returns:
        alpha with `relative_residual` = |(K + ridge) alpha - r| / |r|, of the weighted system where there are weights.

    Raises:
        UsageError: the system is singular: it names the smallest eigenvalue, duplicate rows and the repair; or another
            shape, or a negative ridge.
        NonFiniteError: NaN or infinity in the kernel or the residual.

    Cost:
        (N O)^3 / 3 FLOPs and two matrices of 8 (N O)^2 bytes.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> solve_ridge(DenseKernel(3 * torch.eye(2)), torch.tensor([2.0, 4.0]), 1.0).alpha
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    require_ridge(ridge, zero=True)
    flat = vector_for(kernel, residual, "the residual y - f0")
    if weights is not None:
        root = roots_of(kernel, weights)
        scaled = solve_ridge(ScaledKernel(kernel, root), root * flat, ridge)
        return replace(scaled, alpha=root * scaled.alpha, solver="weighted ridge by Cholesky")
    matrix = matrix_of(kernel)
    alpha = torch.cholesky_solve(flat[:, None], _factor(kernel, matrix, ridge))[:, 0]
    left = float((matrix @ alpha + ridge * alpha - flat).norm()) / (float(flat.norm()) or 1.0)
    return DualSolution(alpha, "ridge by Cholesky", float(ridge), True, True, relative_residual=left)


def roots_of(kernel: Kernel, weights: Tensor) -> Tensor:
    """The square roots of the rows' weights, one for each row and output, shape (N O).

    Raises:
        UsageError: another number of weights than rows, or one that is not above 0 and finite.
    """
    flat = weights.detach().double().cpu().flatten()
    if len(flat) != kernel.samples:
        raise UsageError(f"{len(flat)} weights for {kernel.samples} rows: give one for each row.")
    wrong = (~((flat > 0) & flat.isfinite())).nonzero().flatten()
    if len(wrong):
        raise UsageError(
            f"the weight of row {int(wrong[0])} is {float(flat[wrong[0]])}: it must be above 0. Leave out rows that are "
            "not to count."
        )
    return flat.sqrt().repeat_interleave(kernel.outputs)


def _factor(kernel: Kernel, matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of K + ridge, or an error that says what made it singular."""
    try:
        return cholesky(matrix, ridge)
    except UsageError as error:
        values = torch.linalg.eigvalsh(matrix)
        same = _duplicates(kernel, matrix)
        who = f" Rows {same[0]} and {same[1]} have the same tangents." if same else ""
        raise UsageError(
            f"{error} The smallest eigenvalue of K is {float(values[0]):.3g}, the largest {float(values[-1]):.3g}.{who}"
        ) from error


def _duplicates(kernel: Kernel, matrix: Tensor) -> tuple[int, int] | None:
    """The first two rows whose Jacobians agree: |J_a - J_b|^2 = K_aa + K_bb - 2 K_ab is rounding."""
    outputs = kernel.outputs
    cubes = matrix.view(kernel.samples, outputs, kernel.samples, outputs)
    traces = cubes.diagonal(dim1=1, dim2=3).sum(-1)
    own = traces.diagonal()
    apart = own[:, None] + own[None, :] - 2 * traces
    same = (apart <= 1e-10 * (own[:, None] + own[None, :])).triu(1).nonzero()
    return (int(same[0, 0]), int(same[0, 1])) if len(same) else None


@checked
def leave_one_out(kernel: Kernel, residual: Tensor, ridge: float) -> Tensor:
    """y_n - f(x_n) of each row under the fit without that row, all its outputs left out together: shape (N, O).

    With G = (K + ridge)^-1 the residual of row n is (G_nn)^-1 (G r)_n, where G_nn is its O x O block; no refit is made.

    Args:
        kernel: symmetric, over the training rows.
        residual: r = y - f0, shape (N O) or (N, O).
        ridge: above 0, or 0 where K itself can be inverted.

    Raises:
        UsageError: one row only, or a singular system.
        NonFiniteError: NaN or infinity in the kernel or the residual.

    Cost:
        (N O)^3 FLOPs and three matrices of 8 (N O)^2 bytes.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> leave_one_out(DenseKernel(torch.eye(2)), torch.tensor([2.0, 4.0]), 1.0)[:, 0]
        tensor([2., 4.], dtype=torch.float64)
    """
    require_ridge(ridge, zero=True)
    flat = vector_for(kernel, residual, "the residual y - f0")
    _require_rows(kernel)
    lower = _factor(kernel, matrix_of(kernel), ridge)
    inverse = torch.cholesky_inverse(lower).view(kernel.samples, kernel.outputs, kernel.samples, -1)
    blocks = inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return _left_out(blocks, torch.cholesky_solve(flat[:, None], lower))


def _require_rows(kernel: Kernel) -> None:
    if kernel.samples < 2:
        raise UsageError("leave-one-out needs 2 rows or more, and the kernel has 1: give a ridge instead.")


def _left_out(blocks: Tensor, alpha: Tensor) -> Tensor:
    """(G_nn)^-1 alpha_n from the diagonal blocks (N, O, O) of G."""
    found: Tensor = torch.linalg.solve(blocks, alpha.view(blocks.shape[:2]))
    return found


def _left_out_error(parts: Sequence[tuple[slice, int]], modes: Modes, flat: Tensor, ridge: float) -> float:
    """The mean over rows of |y_n - f_{without n}(x_n)|^2; a row leaves with all its outputs."""
    alpha, errors = modes.ridge(flat, ridge), []
    for span, outputs in parts:
        rows = modes.vectors[span].view(-1, outputs, len(modes.values))
        blocks = (rows / (modes.values + ridge)) @ rows.transpose(1, 2)
        errors.append(_left_out(blocks, alpha[span]).square().sum(1))
    return float(torch.cat(errors).mean())


@dataclass(frozen=True)
class RidgeChoice:
    """The ridge with the least leave-one-out error, and the errors it was chosen from.

    Args:
        ridge: the choice; the larger one of equals, which gives the shorter vector.
        grid: what was tried, in increasing order.
        errors: mean over rows of |y_n - f_{without n}(x_n)|^2, one for each.
        at_edge: whether the choice is the first or the last of what was tried. A warning says so where a wider grid may
            hold a better one, and where the ridge is so large that the fit is almost 0.
    """

    ridge: float
    grid: Sequence[float]
    errors: Sequence[float]
    at_edge: bool


@checked
def choose_ridge(kernel: Kernel, residual: Tensor, grid: Sequence[float] | None = None) -> RidgeChoice:
    """The ridge of least leave-one-out error over a grid, from one eigendecomposition.

    Args:
        kernel: symmetric, over the training rows.
        residual: r = y - f0, shape (N O) or (N, O).
        grid: ridges above 0; None takes half decades from 1e-6 to 1e2 of K's mean eigenvalue over the rows that are not
            0, and as many more as the spectrum needs: down to a tenth of the smallest eigenvalue that is not rounding, up
            to ten times the largest. Beyond an end up to eight decades follow, as long as the error falls there.

    Raises:
        UsageError: one row only, an empty grid, or a ridge of 0 or less in it.
        NonFiniteError: NaN or infinity in the kernel or the residual.

    Cost:
        All eigenpairs once, about 9 (N O)^3 FLOPs, then N^2 O^3 for each ridge. A `KroneckerKernel` needs 9 (N^3 + O^3),
        then N O (N + O^2).

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> choice = choose_ridge(DenseKernel(torch.ones(4, 4)), torch.tensor([1.0, 2.0, 1.0, 2.0]))
        >>> round(choice.ridge, 3), choice.at_edge
        (0.1, False)
    """
    flat = vector_for(kernel, residual, "the residual y - f0")
    _require_rows(kernel)
    values, error = _left_out_of(kernel, flat)
    ridges = _usual(kernel, values) if grid is None else grid
    if not ridges:
        raise UsageError("the grid of ridges is empty: give numbers above 0, or None for the usual one.")
    for ridge in ridges:
        require_ridge(ridge)
    errors = {ridge: error(ridge) for ridge in map(float, ridges)}
    if grid is None:
        _extend(errors, error, 10 * rounding_floor(values))
    best, beyond = _best_and_next(errors)
    if len(errors) == 1:  # one value is no choice
        beyond = None
    if beyond is not None:
        doubt = _doubt(best, beyond, errors) if grid is None else _given_doubt(beyond, errors)
        if doubt:
            warnings.warn(f"leave-one-out chose ridge {best:g}, {doubt}", RuntimeWarning, stacklevel=2)
    tried = sorted(errors)
    return RidgeChoice(best, tried, [errors[ridge] for ridge in tried], beyond is not None)


def _usual(kernel: Kernel, values: Tensor) -> list[float]:
    """Half decades around the mean eigenvalue that reach beyond the spectrum, where the error settles."""
    middle, floor = _middle(kernel, values), 10 * rounding_floor(values)
    real = values[values > floor]
    least, most = (float(real.min()) / 10, float(real.max()) * 10) if len(real) else (middle, middle)
    first = min(_LEAST, math.floor(math.log(max(least, floor) / middle, _HALF)))
    last = max(_MOST, math.ceil(math.log(most / middle, _HALF)))
    return [middle * _HALF**half for half in range(first, last + 1)]


def _middle(kernel: Kernel, values: Tensor) -> float:
    """The mean eigenvalue; rows of zeros do not count, since a `ScaledKernel` has them in the place of fewer rows."""
    mean, entries = float(values.mean()), int((kernel.diag() != 0).sum())
    return mean * len(values) / entries if mean and 0 < entries < len(values) else mean or 1.0


def _left_out_of(kernel: Kernel, flat: Tensor) -> tuple[Tensor, Callable[[float], float]]:
    """The eigenvalues of a kernel, and its leave-one-out error as a function of the ridge."""
    if isinstance(kernel, KroneckerKernel):
        product = kernel  # the name is bound once, for the function

        def of_product(ridge: float) -> float:
            left = _left_out(product.left_out_blocks(ridge), product.precondition(flat, ridge))
            return float(left.square().sum(1).mean())

        return product.eigenvalues, of_product
    modes = Modes.of(kernel)
    return modes.values, lambda ridge: _left_out_error(kernel.parts, modes, flat, ridge)


def _best_and_next(errors: Mapping[float, float]) -> tuple[float, float | None]:
    """The ridge of least error, the larger of equals; and if it is an end, the ridge half a decade beyond."""
    best = min(errors, key=lambda ridge: (errors[ridge], -ridge))
    if best == max(errors):
        return best, best * _HALF
    return best, best / _HALF if best == min(errors) else None


def _extend(errors: dict[float, float], error: Callable[[float], float], least: float) -> None:
    """Add ridges beyond the end at which the least error lies, until it settles or rounding begins (`least`)."""
    for _ in range(_BEYOND):
        best, beyond = _best_and_next(errors)
        if beyond is None or beyond < least:
            return
        found = error(beyond)
        if not found < (1 - _FLAT) * errors[best]:  # settled, or NaN where nothing but rounding is left
            return
        errors[beyond] = found


def _given_doubt(beyond: float, errors: Mapping[float, float]) -> str:
    """What is to be said of an end of a grid that was given."""
    return (
        f"an end of its grid ({min(errors):g} to {max(errors):g}, {len(errors)} values), and its error may still fall "
        f"beyond: give a grid that goes on, such as {beyond:g}."
    )


def _doubt(best: float, beyond: float, errors: Mapping[float, float]) -> str:
    """What is to be said of an end of the usual grid, which reaches beyond the spectrum; nothing where none is better."""
    if errors[best] == 0:
        return ""
    if beyond > best:
        return (
            "the largest that was tried and far above all eigenvalues, so that the fit is almost 0: no row helps to "
            "predict another one. Check the targets, or give a ridge."
        )
    falling = errors[best] < (1 - _FLAT) * errors[sorted(errors)[1]]
    if falling and errors[best] > _SOLVED * max(errors.values()):
        return (
            f"the least that rounding allows, and its error still falls there (to {errors[best]:g}): the eigenvalues are "
            f"too far apart for float64. Bring the inputs to one scale, or give a grid that goes on, such as {beyond:g}."
        )
    return ""
