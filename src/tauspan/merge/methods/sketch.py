"""Leading singular triplets by a randomised sketch, taken only with a certificate of what it may lose."""

import math

import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]

_PASSES = 6  # power iterations
_WORTH = 0.4  # of all triplets: beyond that share a whole decomposition costs as little
_CLOSE = 0.05  # how far above the estimate of the largest eigenvalue the true one may be ...
_CHANCE = 1e-9  # ... but for this probability
_ROUNDING = 100  # what is left of a vector by rounding, in units in the last place


def sketched(matrix: Tensor, count: int, loss: float) -> Triplets | None:
    """The leading `count` singular triplets of a matrix; None where their loss is not certified, or a sketch costs more.

    The loss is what the triplets lack of the squared norm of the best ones, sum_{i <= k} s_i^2, as a share of it. Halko,
    Martinsson and Tropp's range finder (2011) with power iterations, by `torch.svd_lowrank`; see `captured_at_most` for
    the certificate.

    Args:
        matrix: A, shape (m, n).
        count: k.
        loss: the largest loss that is accepted.

    Cost:
        About 40 m n k FLOPs, and 240 m n for the certificate, all in matrix products; a whole decomposition takes about
        20 m n min(m, n), half of it bound by memory.
    """
    least = min(matrix.shape)
    width = count + max(count // 4, 16)
    if not count or width > _WORTH * least or not torch.isfinite(matrix).all():
        return None
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(0)  # a merge is the same each time
        u, s, v = torch.svd_lowrank(matrix, q=width, niter=_PASSES)
    found = float(s[:count].double().square().sum())
    if captured_at_most(matrix, u, count) * (1 - loss) > found:
        return None
    return u[:, :count].clone(), s[:count].clone(), v[:, :count].mT.contiguous()


def captured_at_most(matrix: Tensor, u: Tensor, count: int) -> float:
    """An upper bound of sum_{i <= k} s_i^2, the squared norm that the best k directions hold.

    Let H = A A^T, U orthonormal, Theta = U^T H U, R = H U - U Theta, and mu the largest eigenvalue of H outside U. If
    lam_i(H) > mu, the Schur complement gives lam_i(H) <= lam_i(Theta + R^T R / (lam_i(H) - mu)). For i <= k lam_i(H) is
    at least theta_k, so that sum_{i <= k} lam_i(H) <= sum_{i <= k} lam_i(Theta + R^T R / (theta_k - mu)) if theta_k > mu;
    else nothing is known. mu comes from Lanczos iterations with a random start, which are within 5 % below it but for a
    probability of 1e-9 (Kuczynski and Wozniakowski 1992, theorem 4.2), and is taken 5 % larger.

    Args:
        matrix: A, shape (m, n).
        u: U, shape (m, l) with l >= k.
        count: k.

    Returns:
        The bound; infinity where nothing is known.

    Example:
        >>> a = torch.diag(torch.tensor([3.0, 2.0, 0.5, 0.1]))
        >>> round(captured_at_most(a, torch.eye(4)[:, :2], 2), 4)
        13.0
    """
    inner = matrix.mT @ u
    theta = (inner.mT @ inner).double()
    residual = _outside(matrix @ inner, u).double()
    lowest = float(torch.linalg.eigvalsh(theta)[-count])
    gap = lowest - (1 + _CLOSE) * largest_outside(matrix, u)
    if gap <= 0:
        return math.inf
    raised = torch.linalg.eigvalsh(theta + residual.mT @ residual / gap)
    return float(raised[-count:].sum())


def largest_outside(matrix: Tensor, u: Tensor) -> float:
    """The largest eigenvalue of (I - U U^T) A A^T (I - U U^T), by Lanczos iterations from a random start.

    It is never above the true one, and within 5 % below it; see `needed_steps`.
    """
    size = len(matrix)
    steps = min(needed_steps(size), size)
    start = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(matrix)
    diagonal, beside = [], []
    before, scale = torch.zeros_like(start), 0.0
    vector = _outside(start, u)
    vector /= vector.norm()
    for _ in range(steps):
        moved = _outside(matrix @ (matrix.mT @ vector), u) - scale * before
        diagonal.append(float(vector @ moved))
        moved -= diagonal[-1] * vector
        scale = float(moved.norm())
        if scale <= _ROUNDING * torch.finfo(matrix.dtype).eps * abs(diagonal[0]):
            break  # the start is in a subspace that is used up; more steps would add rounding alone
        beside.append(scale)
        before, vector = vector, _outside(moved / scale, u)
    return max(float(eigvalsh_tridiagonal(diagonal, beside[: len(diagonal) - 1])[-1]), 0.0)


def needed_steps(size: int) -> int:
    """Lanczos steps j with 1.648 sqrt(n) exp(-sqrt(e) (2 j - 1)) <= 1e-9, e = 0.05: within e of the largest eigenvalue.

    Example:
        >>> needed_steps(4096)
        58
    """
    wanted = math.log(1.648 * math.sqrt(size) / _CHANCE) / math.sqrt(_CLOSE)
    return math.ceil((wanted + 1) / 2)


def _outside(vectors: Tensor, u: Tensor) -> Tensor:
    return vectors - u @ (u.mT @ vectors)
