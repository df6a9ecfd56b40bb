"""Tangent rules of matrix inverses, logarithms of determinants, linear systems and eigenvalues.

Torch's forward mode factorises the matrix once more for each tangent. The value already has what these tangents need
(Giles, An extended collection of matrix derivative results, 2008), so that a push is two or three matrix products.
Cholesky, QR, SVD and the matrix exponential stay with forward mode, whose cost their formulas share; so do determinants,
which have a derivative where there is no inverse.
"""

from typing import Any

import torch
from torch import Tensor

from tauspan.tangent.engine.fallback import by_forward_mode
from tauspan.tangent.engine.rules import Push, total


def inverse(func: Any, a: Tensor) -> tuple[Any, Push]:
    """X = A^-1: dX = -X dA X."""
    value = func(a)
    x = value.detach()
    return value, lambda da: -(x @ da @ x)


def inverse_of_factor(func: Any, factor: Tensor, upper: bool = False) -> tuple[Any, Push]:
    """X = (L L^H)^-1 of a triangular L: dX = -X (dL L^H + L dL^H) X, the adjoint of torch's backward.

    Torch's own forward mode of it is wrong (in 2.13).
    """
    value = func(factor, upper)
    x = value.detach()

    def push(dfactor: Tensor, *_: Any) -> Any:
        half = dfactor.mH @ factor if upper else dfactor @ factor.mH
        return -(x @ (half + half.mH) @ x)

    return value, push


def solution(func: Any, a: Tensor, b: Tensor, *, left: bool = True) -> tuple[Any, Push]:
    """A X = B: A dX = dB - dA X, with one factorisation for all tangents; X A = B by forward mode."""
    if not left:
        return by_forward_mode(func, a, b, left=left)
    value = func(a, b)
    x, vector = value.detach(), b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])
    factors = torch.linalg.lu_factor(a.detach())
    if vector:
        x = x.unsqueeze(-1)

    def push(da: Tensor | None, db: Tensor | None, **_: Any) -> Any:
        if db is not None and vector:
            db = db.unsqueeze(-1)
        right = total(db, None if da is None else -(da @ x))
        if right is None:
            return None
        dx = torch.linalg.lu_solve(*factors, right.expand(x.shape))
        return dx.squeeze(-1) if vector else dx

    return value, push


def _relative(a: Tensor) -> Push:
    """The push of log det A, tr(A^-1 dA)."""
    # transposed, so that the trace of the product is a sum of entries
    x = torch.linalg.inv_ex(a.detach()).inverse.mT
    return lambda da: (x * da).sum((-2, -1))


def log_determinant(func: Any, a: Tensor) -> tuple[Any, Push]:
    """The real log det A: tr(A^-1 dA); complex matrices by forward mode."""
    if a.is_complex():
        return by_forward_mode(func, a)
    return func(a), _relative(a)


def sign_and_log_determinant(func: Any, a: Tensor) -> tuple[Any, Push]:
    """The sign of det A, which does not move, and log |det A|: tr(A^-1 dA); complex matrices by forward mode."""
    if a.is_complex():
        return by_forward_mode(func, a)
    value, relative = func(a), _relative(a)
    return value, lambda da: (None, relative(da))


def eigenpairs(func: Any, a: Tensor, UPLO: str = "L") -> tuple[Any, Push]:  # noqa: N803 - torch's name
    """A = V diag(w) V^H: with P = V^H dA V, dw = diag P and dV_ij = sum_k V_ik P_kj / (w_j - w_k), k != j.

    Equal eigenvalues have no derivative of their vectors: the quotient is then infinite, as torch's is.
    """
    value = func(a, UPLO)
    w, v = (part.detach() for part in value)
    gaps = w.unsqueeze(-2) - w.unsqueeze(-1)
    gaps.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)

    def push(da: Tensor, *_: Any) -> Any:
        inner = v.mH @ da @ v
        return torch.real(inner.diagonal(dim1=-2, dim2=-1)), v @ (inner / gaps)

    return value, push


def eigenvalues(func: Any, a: Tensor, UPLO: str = "L") -> tuple[Any, Push]:  # noqa: N803 - torch's name
    """The eigenvalues alone: dw = diag V^H dA V, with V computed once."""
    value, v = func(a, UPLO), torch.linalg.eigh(a.detach(), UPLO).eigenvectors
    return value, lambda da, *_: torch.real((v.mH @ da * v.mT).sum(-1))
