"""Convex minimisation over coefficients, with a certificate: scipy's solvers on cached contributions."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import optimize

from tauspan.core.arguments import checked
from tauspan.core.errors import NonFiniteError, UsageError, listed
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.minimisers import require_minimum, shortest, span
from tauspan.editing.search.numbers import Vector, require_at_least
from tauspan.editing.search.objective import Objective, objective
from tauspan.tangent.contributions import Contributions

_ROUNDS = 20
_EQUAL = 1e-12  # losses this near are one loss


@dataclass(frozen=True)
class Solution:
    """The coefficients that minimise an objective, and how it is known that they do.

    Args:
        names: the T directions.
        values: their coefficients, shape (T,), float64.
        loss: the weighted mean cross-entropy there, without ridge and l1, in nats.
        objective: the loss with ridge and l1.
        certificate: the KKT residual in the infinity norm, the distance from 0 to the objective's subdifferential plus
            the normal cone of the bounds. Zero exactly at a minimum of a convex objective.
        tolerance: what the certificate was asked to be at most.
        convex: False where a head normalises features: the certificate then speaks of a stationary point.
        flat: the dimension of the set of coefficients that change no prediction; with ridge 0 the shortest
            minimiser was taken.
        at_bound: directions whose coefficient ended on a bound.
        evaluations: how often the objective was computed.
    """

    names: tuple[str, ...]
    values: torch.Tensor
    loss: float
    objective: float
    certificate: float
    tolerance: float
    convex: bool
    flat: int
    at_bound: tuple[str, ...]
    evaluations: int

    @property
    def certified(self) -> bool:
        """Whether the certificate is within its tolerance."""
        return self.certificate <= self.tolerance

    @property
    def coefficients(self) -> dict[str, float]:
        """The coefficients by direction."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


@checked
def minimise(
    parts: Sequence[Contributions],
    *,
    weights: Sequence[float] | None = None,
    bounds: Bounds | None = None,
    ridge: float = 0.0,
    l1: float = 0.0,
    centre: Sequence[float] | None = None,
    start: Sequence[float] | None = None,
    tolerance: float = 1e-8,
) -> Solution:
    """The coefficients a that minimise the cross-entropy of a combination of directions.

    sum_p w_p mean_n CE(f_n(a), y_n) + ridge/2 |a - centre|^2 + l1 |a|_1 subject to lo <= a_t <= hi, in float64,
    f(a) = f(x; theta0) + sum_t a_t J(x) tau_t. MINPACK's root finder takes the gradient to zero with the exact Hessian,
    in few evaluations where the set of coefficients on a bound is known; L-BFGS-B finds that set. They take turns
    until the certificate is small enough.

    Ties: coefficients that change no prediction (a zero vector, equal vectors) do not decide the loss. Among the
    minimisers the shortest is taken, so a zero vector gets 0 and equal vectors get equal shares, as far as the bounds
    allow.

    Args:
        parts: one per task, with the same directions.
        weights: w_p; None is the mean over the parts.
        bounds: (lo, hi) of every coefficient; None leaves them free.
        ridge: the pull to `centre`.
        l1: the pull to exact zeros.
        centre: where the ridge pulls to, shape (T,); None is 0.
        start: where to begin, shape (T,); None is 0. It matters only where the objective is not convex.
        tolerance: what the certificate should reach; see `Solution.certified`.

    Raises:
        UsageError: no finite minimum exists because a combination of the directions separates the classes (or may, with
            a normalising head), and neither bounds, ridge nor l1 hold the coefficients; or an argument does not fit.
        NonFiniteError: the contributions hold NaN or infinity.

    Cost:
        Memory 8 T N C bytes a part; an evaluation is one pass over them, the Hessian T of them.

    Example:
        >>> x = torch.tensor([[1.0], [1.0], [-1.0]])
        >>> part = Contributions(torch.zeros(3, 2), torch.stack([torch.cat([x, -x], 1)]), torch.tensor([0, 1, 1]), ("t",))
        >>> found = minimise([part])
        >>> round(found.coefficients["t"], 6), found.certified  # log(2) / 2: right two times of three
        (0.346574, True)
    """
    goal = objective(parts, weights=weights, ridge=ridge, centre=centre)
    return solve(goal, Box.of(len(goal.names), bounds, l1), start, tolerance)


@dataclass
class _Search:
    """One minimisation: the objective, its box, and how often the objective was computed."""

    goal: Objective
    box: Box
    tolerance: float
    evaluations: int = field(default=0)

    def residual(self, a: Vector) -> float:
        return self.box.residual(a, self.goal.gradient(a))

    def total(self, a: Vector) -> float:
        return self.goal.value_and_gradient(a)[0] + self.box.penalty(a)

    def descend(self, a: Vector) -> Vector:
        """L-BFGS-B on a = p - n with p, n >= 0 where there is an l1 part, so that zeros are bounds and come out exact."""
        box, size = self.box, len(a)
        split = box.l1 > 0

        def joined(x: Vector) -> Vector:
            return x[:size] - x[size:] if split else x

        def value(x: Vector) -> tuple[float, Vector]:
            loss, gradient = self.goal.value_and_gradient(joined(x))
            if not split:
                return loss, gradient
            return loss + box.l1 * float(x.sum()), np.concatenate([gradient, -gradient]) + box.l1

        lo, hi, x = box.lo, box.hi, a
        if split:
            lo, hi = np.concatenate([lo.clip(0), (-hi).clip(0)]), np.concatenate([hi.clip(0), (-lo).clip(0)])
            x = np.concatenate([a.clip(0), (-a).clip(0)])
        options = {"ftol": 0.0, "gtol": self.tolerance / 2, "maxiter": 1000, "maxfun": 5000, "maxcor": 30}
        found = optimize.minimize(
            value, x, jac=True, method="L-BFGS-B", bounds=optimize.Bounds(lo, hi), options=options
        )
        self.evaluations += int(found.nfev)
        return box.clipped(joined(found.x))

    def polish(self, a: Vector) -> Vector:
        """The zero of the gradient over the coefficients inside; what would cross a bound or a kink stops there."""
        free = self.box.inside(a)
        if not free.any():
            return a
        slope = self.box.l1 * np.sign(a[free])

        def placed(x: Vector) -> Vector:
            whole = a.copy()
            whole[free] = x
            return whole

        def jacobian(x: Vector) -> Vector:
            return self.goal.hessian(placed(x))[np.ix_(free, free)]

        # a flat goal overflows in the covariance that scipy makes of the Jacobian, and that nobody asked for
        with np.errstate(over="ignore", invalid="ignore"):
            found = optimize.root(
                lambda x: self.goal.gradient(placed(x))[free] + slope, a[free], method="lm",
                jac=jacobian if self.goal.convex else None, options={"xtol": 1e-15, "ftol": 1e-15},
            )  # fmt: skip
        self.evaluations += int(found.nfev)
        if not np.isfinite(found.x).all():
            return a
        moved = placed(found.x)
        if self.box.l1:
            moved[moved * a < 0] = 0.0
        return self.box.clipped(moved)

    def _better(self, moved: Vector, a: Vector) -> bool:
        """Lower, or as low to rounding and nearer to the conditions of a minimum."""
        gain = self.total(a) - self.total(moved)
        return gain > _EQUAL or (gain >= -_EQUAL and self.residual(moved) < self.residual(a))

    def run(self, a: Vector) -> Vector:
        """Descend and polish in turn until the certificate is within tolerance or nothing helps."""
        for _ in range(_ROUNDS):
            before = a
            for step in (self.polish, self.descend):  # a warm start needs the first alone
                moved = step(a)
                if self._better(moved, a):
                    a = moved
                if self.residual(a) <= self.tolerance:
                    return a
            if np.array_equal(a, before):
                break
        return a


def solve(
    goal: Objective, box: Box, start: Sequence[float] | None = None, tolerance: float = 1e-8
) -> Solution:
    """`minimise` for an objective that is made already."""
    size = len(goal.names)
    require_at_least(1e-14, tolerance=tolerance)  # rounding leaves no less
    first = np.zeros(size) if start is None else np.asarray(start, dtype=np.float64)
    if first.shape != (size,) or not np.isfinite(first).all():
        raise UsageError(
            f"start={start}: one finite number for each of the {size} directions {listed(goal.names)}."
        )
    if goal.ridge == 0 and box.l1 == 0:
        require_minimum(goal, box)
    search = _Search(goal, box, tolerance)
    a = search.run(box.clipped(first))
    seen, flat = span(goal)
    if flat and goal.ridge == 0:
        least = shortest(goal, box, a, seen)
        if search.residual(least) <= max(tolerance, search.residual(a)):
            a = least
    if not np.isfinite(a).all():
        raise NonFiniteError("the solver ended at coefficients that are not finite: give bounds or a ridge.")
    ends = [name for name, x, lo, hi in zip(goal.names, a, box.lo, box.hi, strict=True) if x in (lo, hi)]
    return Solution(
        goal.names, torch.tensor(a), goal.loss(a), search.total(a), search.residual(a), tolerance, goal.convex, flat,
        tuple(ends), search.evaluations,
    )  # fmt: skip
