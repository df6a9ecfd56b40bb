"""Soft-margin fitting of the tangent model: a support vector machine with its kernel, in primal and dual."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import require_ridge
from tauspan.kernel.solvers.solution import DualSolution, matrix_of, reached, require_steps, vector_for


def one_vs_rest(labels: Tensor, classes: int) -> Tensor:
    """Signs s of shape (N, O): +1 at each row's class, -1 elsewhere; two classes may instead share one output.

    Example:
        >>> one_vs_rest(torch.tensor([1, 0]), 2)
        tensor([[-1.,  1.],
                [ 1., -1.]], dtype=torch.float64)
    """
    return torch.nn.functional.one_hot(labels, classes).double() * 2 - 1


def signs_for(kernel: Kernel, signs: Tensor) -> Tensor:
    """Signs as a float64 vector of shape (N O); raises `DataError` for anything but +1 and -1."""
    flat = vector_for(kernel, signs, "the signs")
    other = (flat.abs() != 1).nonzero().flatten()
    if len(other):
        row = int(other[0]) // kernel.outputs
        raise DataError(f"row {row}: sign {float(flat[other[0]]):g}; the hinge loss takes labels +1 and -1.")
    return flat


def start_for(kernel: Kernel, start: Tensor | None) -> Tensor:
    """f0 as a float64 vector of shape (N O), 0 where it is not given."""
    zeros = torch.zeros(kernel.shape[0], dtype=torch.float64)
    return vector_for(kernel, zeros if start is None else start, "f0")


@checked
def solve_hinge(
    kernel: Kernel,
    signs: Tensor,
    ridge: float,
    start: Tensor | None = None,
    *,
    tolerance: float = 1e-10,
    max_steps: int = 100,
) -> DualSolution:
    """The minimum of (1/N) sum max(0, 1 - s f) + ridge/2 |tau|^2, f = f0 + J tau, through its dual.

    tau = J^T alpha with alpha = s b, where b minimises 1/2 b^T Q b - (1 - s f0)^T b over the box [0, 1/(N ridge)], Q_ij
    = s_i K_ij s_j. The solver is a primal-dual interior-point method (Mehrotra's predictor and corrector); duplicate
    rows do not slow it down.

    Args:
        kernel: symmetric, over the training rows; several outputs per row count as one-vs-rest, summed.
        signs: s in {-1, +1}, shape (N O) or (N, O).
        ridge: above 0.
        start: f0; None is 0.
        tolerance: end where the duality gap is at most this times the loss, or 1 where the loss is smaller.
        max_steps: end after so many steps.

    Returns:
        alpha with `loss`, `duality_gap` and `error_bound` = sqrt(2 gap / ridge) on |tau - tau*|.

    Raises:
        DataError: a label other than -1 and +1.
        UsageError: ridge not above 0, a kernel that is too large, another shape.
        NonFiniteError: NaN or infinity.

    Cost:
        (N O)^3 / 3 FLOPs per step, usually 10 to 30 steps, and three matrices of 8 (N O)^2 bytes.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> solve_hinge(DenseKernel(torch.eye(2).double()), torch.tensor([1, -1]), 0.1).alpha.round(decimals=9)
        tensor([ 1., -1.], dtype=torch.float64)
    """
    require_ridge(ridge)
    require_steps(max_steps, tolerance)
    signs, base, matrix = signs_for(kernel, signs), start_for(kernel, start), matrix_of(kernel)
    dual = _Dual(signs[:, None] * matrix * signs, 1 - signs * base, 1 / (kernel.samples * ridge))
    inner = dual.middle()
    steps, found, loss, gap = 0, *dual.best(inner, ridge)
    while gap > tolerance * max(loss, 1.0) and steps < max_steps:
        moved = dual.step(inner)
        if moved is None:  # no further progress is possible at this precision
            break
        inner, steps = moved, steps + 1
        found, loss, gap = dual.best(inner, ridge)
    converged = reached(
        gap <= tolerance * max(loss, 1.0), "hinge: duality gap", gap, steps, tolerance, "or a larger ridge"
    )
    return DualSolution(
        signs * found, "hinge by interior point", float(ridge), False, converged, steps,
        loss=loss, duality_gap=gap, error_bound=math.sqrt(2 * gap / ridge),
    )  # fmt: skip


class _Inner(NamedTuple):
    """A point inside the box, in units of the box's side: b, 1 - b, and the multipliers of the bounds 0 and 1."""

    b: Tensor
    rest: Tensor
    low: Tensor
    high: Tensor

    def mu(self) -> float:
        """The mean product of distances and multipliers, 0 at the minimum."""
        return float(self.b @ self.low + self.rest @ self.high) / (2 * len(self.b))

    def along(self, step: "_Inner", share: float) -> "_Inner":
        """This point moved by `share` of the longest step, up to 1, that stays inside."""
        longest = 1.0
        for value, change in zip(self, step, strict=True):
            falling = change < 0
            if bool(falling.any()):
                longest = min(longest, share * float((-value[falling] / change[falling]).min()))
        return _Inner(*(value + longest * change for value, change in zip(self, step, strict=True)))


@dataclass(frozen=True)
class _Dual:
    """The problem min 1/2 b^T Q b - c^T b over [0, top]^n; the original losses are its losses times the ridge."""

    matrix: Tensor
    linear: Tensor
    top: float

    def best(self, inner: _Inner, ridge: float) -> tuple[Tensor, float, float]:
        """The point b, with coordinates that tend to a bound set to it, the loss, and the duality gap, never below 0."""
        b = torch.where(inner.b < inner.low, 0.0, inner.b)  # one of the two tends to 0
        b = self.top * torch.where(inner.rest < inner.high, 1.0, b)
        moved = self.matrix @ b
        loss = self.top * float((self.linear - moved).clamp(min=0).sum()) + 0.5 * float(b @ moved)
        gap = loss + 0.5 * float(b @ moved) - float(b @ self.linear)
        return b, ridge * loss, ridge * max(gap, 0.0)

    def slope(self, inner: _Inner) -> Tensor:
        """Q b - c."""
        return self.matrix @ (self.top * inner.b) - self.linear

    def middle(self) -> _Inner:
        """The middle of the box, with multipliers that balance the slope there."""
        half = torch.full_like(self.linear, 0.5)
        none = torch.zeros_like(half)
        slope = self.slope(_Inner(half, half, none, none))
        lift = 1 + slope.abs().mean()
        return _Inner(half, half, slope.clamp(min=0) + lift, (-slope).clamp(min=0) + lift)

    def step(self, at: _Inner) -> _Inner | None:
        """One predictor and corrector step; None if rounding makes the system singular."""
        system = self.top * self.matrix
        system.diagonal().add_(at.low / at.b + at.high / at.rest)
        factor = _factor(system)
        if factor is None:
            return None
        unbalanced = self.slope(at) - at.low + at.high

        def solved(low: Tensor | float, high: Tensor | float) -> _Inner:
            """The step that brings b low and rest high to these values, to first order."""
            right = -unbalanced + (low / at.b - at.low) - (high / at.rest - at.high)
            moved = torch.cholesky_solve(right[:, None], factor)[:, 0]
            return _Inner(
                moved, -moved,
                (low - at.low * moved) / at.b - at.low, (high + at.high * moved) / at.rest - at.high,
            )  # fmt: skip

        guess = solved(0.0, 0.0)
        mu = at.mu()
        aim = mu * (at.along(guess, 1.0).mu() / mu) ** 3
        return at.along(solved(aim - guess.b * guess.low, aim - guess.rest * guess.high), 0.995)


def _factor(system: Tensor) -> Tensor | None:
    """The Cholesky factor; of a slightly larger matrix where rows that are free at the minimum depend on one another.

    Then the step is a little shorter than Newton's, and the gap that ends the iteration is computed without it.
    """
    largest = float(system.diagonal().max())
    for share in (0.0, 1e-14, 1e-12, 1e-10):
        factored = torch.linalg.cholesky_ex(system + share * largest * torch.eye(len(system)).to(system))
        if not int(factored.info):
            lower: Tensor = factored.L
            return lower
    return None


@dataclass(frozen=True)
class Margins:
    """Support set and robustness bounds of a soft-margin vector; entries are rows and outputs, shape (N O).

    Args:
        support: places with alpha other than 0, which alone make the vector.
        bounded: those of them at the box, inside the margin or on the wrong side.
        norm: |tau|; the margin in the space of tangents J_n is 1/|tau|.
        values: s f, above 0 where the sign is right.
        distances: s f / |tau|: a row keeps its sign while its tangent J_n moves by less, f0 kept.
        edits: s f / |J_n|, |J_n|^2 = K_nn: a row keeps its sign under any further displacement that is shorter.
    """

    support: Tensor
    bounded: Tensor
    norm: float
    values: Tensor
    distances: Tensor
    edits: Tensor

    @property
    def margin(self) -> float:
        """1/|tau|."""
        return 1 / self.norm if self.norm else math.inf

    @property
    def safe_edit(self) -> float:
        """The largest norm of a further displacement (another task's vector, say) that cannot flip a correct row.

        By the Cauchy-Schwarz inequality in the tangent model, |J_n delta| <= |J_n| |delta|. The bound is about these
        rows only.
        """
        right = self.edits[self.values > 0]
        return float(right.min()) if len(right) else math.inf


def margins(kernel: Kernel, solution: DualSolution, signs: Tensor, start: Tensor | None = None) -> Margins:
    """Support set, margin and robustness bounds of a solution of `solve_hinge`, over its own kernel.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> kernel, signs = DenseKernel(torch.eye(2).double()), torch.tensor([1, -1])
        >>> found = margins(kernel, solve_hinge(kernel, signs, 0.1), signs)
        >>> found.support.tolist(), round(found.margin, 3), round(found.safe_edit, 3)
        ([0, 1], 0.707, 1.0)
    """
    signs, base = signs_for(kernel, signs), start_for(kernel, start)
    moved = kernel.matvec(vector_for(kernel, solution.alpha, "the solution"))
    values = signs * (base + moved)
    norm = math.sqrt(max(float(solution.alpha @ moved), 0.0))
    top = 1 / (kernel.samples * solution.ridge)
    size = solution.alpha.abs()
    return Margins(
        support=(size > 0).nonzero().flatten(),
        bounded=(size > (1 - 1e-12) * top).nonzero().flatten(),
        norm=norm,
        values=values,
        distances=values / norm if norm else torch.full_like(values, math.inf),
        edits=values / kernel.diag().double().sqrt(),
    )
