"""The set of minimisers: whether there is one, and which of several is taken."""

import numpy as np
import torch
from scipy import optimize

from tauspan.core.errors import UsageError, listed
from tauspan.editing.search.box import Box
from tauspan.editing.search.numbers import Vector
from tauspan.editing.search.objective import Objective

_FLAT = 1e-12  # of the largest eigenvalue: directions equal to float32 precision count as equal
_SEPARATING = 1e-5  # the least margin, of the largest logit change, that counts as separation
_PRESSED = 1e-7  # a multiplier above this is not 0
_FIXING = 1e6  # how much more the minimisers' span weighs than the length, when the shortest is looked for


def span(goal: Objective) -> tuple[Vector, int]:
    """An orthonormal basis (rows) of the coefficients that predictions depend on, and the dimension of the rest."""
    gram = sum(torch.tensordot(c, c, ([1, 2], [1, 2])) for c, _, _ in goal.used())
    assert isinstance(gram, torch.Tensor)  # noqa: S101 - there is at least one term
    sizes = gram.diagonal().sqrt()
    scale = torch.where(sizes > 0, sizes, 1.0)
    values, vectors = torch.linalg.eigh(gram / torch.outer(scale, scale))
    kept = values > _FLAT * max(float(values.max()), 1.0)
    rows = (vectors[:, kept] * scale[:, None]).T
    basis = torch.linalg.qr(rows.T).Q.T if len(rows) else rows
    return basis.numpy(), int((~kept).sum())


def shortest(goal: Objective, box: Box, a: Vector, seen: Vector) -> Vector:
    """The shortest of the points that predict, and cost, the same as `a`: bounded least squares.

    The gradient is one and the same at all minimisers, so a bound that it presses on holds for each of them.
    """
    lo, hi, fixed = box.lo.copy(), box.hi.copy(), seen
    slope = goal.gradient(a)
    pressed = ((a <= lo) | (a >= hi)) & (np.abs(slope + box.l1 * np.sign(a)) > _PRESSED)
    if box.l1:  # |a|_1 stays: no coefficient changes its sign, and their signed sum is kept
        signs = np.where(
            a != 0, np.sign(a), np.where(np.abs(slope) > box.l1 - _PRESSED, -np.sign(slope), 0.0)
        )
        lo = np.where(signs < 0, lo, np.maximum(lo, 0.0))
        hi = np.where(signs > 0, hi, np.minimum(hi, 0.0))
        fixed = np.vstack([seen, signs])
    moving = (lo < hi) & ~pressed
    if not moving.any():
        return a
    part = fixed[:, moving]
    matrix = np.vstack([_FIXING * part, np.eye(part.shape[1])])
    wanted = np.concatenate([_FIXING * (part @ a[moving]), np.zeros(part.shape[1])])
    found = optimize.lsq_linear(matrix, wanted, (lo[moving], hi[moving]), method="bvls", tol=1e-15)
    moved = a.copy()
    moved[moving] = found.x
    return box.clipped(moved)


def require_minimum(goal: Objective, box: Box) -> None:
    """Refuse data without a finite minimum: a linear program looks for a ray along which no row's loss rises."""
    if np.isfinite(box.lo).all() and np.isfinite(box.hi).all():
        return
    repair = "Give bounds such as (0, 1), or a ridge such as 1e-3."
    if not goal.convex:
        raise UsageError(
            "a normalising head, or a loss that is not convex, may be flat far out, so coefficients need a hold. "
            f"{repair}"
        )
    lifts = [loss.lifts(tangents, targets) for tangents, targets, loss in goal.used()]
    known = [one.T.numpy() for one in lifts if one is not None]
    if len(known) < len(lifts):
        raise UsageError(
            f"it is not known whether this loss has a finite minimum, so coefficients need a hold. {repair}"
        )
    if any(not one.size for one in known):  # a loss that rises wherever an output moves
        return
    margins = np.concatenate(known)
    sizes = np.abs(margins).max(0, initial=0.0)
    margins = margins / np.where(sizes > 0, sizes, 1.0)
    ray_lo, ray_hi = np.where(np.isfinite(box.lo), 0.0, -1.0), np.where(np.isfinite(box.hi), 0.0, 1.0)
    found = optimize.linprog(
        -margins.sum(0),
        A_ub=-margins,
        b_ub=np.zeros(len(margins)),
        bounds=np.stack([ray_lo, ray_hi], 1),
        method="highs",
    )
    if found.x is not None and float((margins @ found.x).max(initial=0.0)) > _SEPARATING:
        raise UsageError(
            f"the combination of {listed(goal.names)} that separates the rows' classes has no finite best length: "
            f"cross-entropy falls for ever as coefficients grow. {repair}"
        )
