"""Functions of a kernel's spectrum, tr f(K), from products with random vectors by stochastic Lanczos quadrature.

For a random vector z of signs, E[z^T f(K) z] = tr f(K), and z^T f(K) z is an integral over the spectrum, which the
Lanczos process started at z turns into a quadrature rule (Golub and Meurant).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.kernel.solvers.base import Kernel
from tauspan.kernel.solvers.estimates import (
    Estimate,
    at_least,
    exactly,
    finite_entries,
    require_ridge,
    require_semidefinite,
    require_square,
    require_symmetric,
    signs,
    standard_error,
    times,
)
from tauspan.kernel.solvers.solution import cholesky

_COMPLETE = 1e-10  # share of K's norm below which the remainder of K q is rounding
_TINY = 1e-300  # keeps a division by 0, whose result is not used, from giving NaN
_TOGETHER = 8  # Lanczos processes that run at a time; each keeps its basis


@checked
def logdet(kernel: Kernel, ridge: float, probes: int | None = 32, steps: int = 30, seed: int = 0) -> Estimate:
    """Log det(K + ridge I) of a symmetric positive semi-definite kernel.

    Args:
        kernel: symmetric.
        ridge: above 0; 0 is allowed for the exact value where K is regular.
        probes: Lanczos processes; None takes the dense matrix, which is exact.
        steps: products of each process.
        seed: of their starts.

    Returns:
        The middle between the Gauss rule, which is above, and the Gauss-Radau rule with a node beside 0, which is
        below; `bound` is half their distance, and falls exponentially in `steps` over sqrt(condition number).

    Raises:
        UsageError: a kernel that is not square, symmetric or positive semi-definite, an impossible ridge or count, and
            a singular matrix.
        NonFiniteError: NaN in the kernel.

    Cost:
        probes * steps products; 8 bytes * rows * steps * 8 of memory.

    Example:
        >>> from tauspan.kernel import DenseKernel
        >>> round(logdet(DenseKernel(torch.eye(3, dtype=torch.float64)), ridge=1.0).value, 6)  # 3 log 2
        2.079442
    """
    if probes is None:
        require_square(kernel, "a log-determinant")
        lower = cholesky(kernel.dense(), ridge)
        return exactly(2 * float(lower.diagonal().log().sum()), "Cholesky")
    return _quadrature(kernel, lambda x: (x + ridge).log(), ridge, probes, steps, seed)


def effective_dimension(
    kernel: Kernel, ridge: float, probes: int | None = 32, steps: int = 30, seed: int = 0
) -> Estimate:
    """Tr K (K + ridge I)^-1: how many directions a ridge regression fits. Arguments and errors as for `logdet`."""
    require_ridge(ridge)
    if probes is None:
        values = _eigenvalues(kernel).clamp(min=0)
        return exactly(float((values / (values + ridge)).sum()), "eigenvalues")
    return _quadrature(kernel, lambda x: x / (x + ridge), ridge, probes, steps, seed)


def _eigenvalues(kernel: Kernel) -> Tensor:
    require_square(kernel, "a spectrum")
    matrix = finite_entries(kernel)
    require_symmetric(matrix)
    values: Tensor = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    require_semidefinite(float(values.min()), float(values.max()), "its spectrum")
    return values


def _quadrature(
    kernel: Kernel, function: Callable[[Tensor], Tensor], ridge: float, probes: int, steps: int, seed: int
) -> Estimate:
    """Tr f(K) for an f on [0, oo) whose even derivatives are negative and odd ones positive, as those of log.

    These signs make the Gauss rule an upper and the Gauss-Radau rule a lower bound of each z^T f(K) z.
    """
    n = require_square(kernel, "a function of the spectrum")
    require_ridge(ridge)
    if steps < 1:
        raise UsageError(f"steps={steps}: a Lanczos process takes at least 1.")
    start = signs(n, at_least(probes, 2), seed)
    upper, lower = [], []
    for alpha, beta in _lanczos(kernel, start, min(steps, n)):
        gauss, radau = _rules(alpha, beta, -1e-3 * ridge, function)
        upper.append(n * gauss)
        lower.append(n * radau)
    high, low = torch.cat(upper), torch.cat(lower)
    middle = (high + low) / 2
    bound = abs(float((high - low).mean())) / 2
    return Estimate(
        float(middle.mean()), False, "stochastic Lanczos quadrature", standard_error(middle), bound
    )


def _rules(
    alpha: Tensor, beta: Tensor, node: float, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The Gauss rule of each row's Jacobi matrix, and the Gauss-Radau rule with `node` as one more node."""
    inner = torch.diag_embed(alpha)
    inner = inner + torch.diag_embed(beta[:, :-1], offset=1) + torch.diag_embed(beta[:, :-1], offset=-1)
    values, vectors = torch.linalg.eigh(inner)
    require_semidefinite(float(values.min()), float(values.max()), "its spectrum")
    values = values.clamp(min=0)
    gauss = (vectors[:, 0].square() * function(values)).sum(1)
    # the last diagonal entry that makes the node an eigenvalue: node + beta^2 [(T - node I)^-1]_mm
    last = node + beta[:, -1].square() * (vectors[:, -1].square() / (values - node)).sum(1)
    longer = torch.diag_embed(torch.cat([alpha, last[:, None]], 1))
    longer = longer + torch.diag_embed(beta, offset=1) + torch.diag_embed(beta, offset=-1)
    nodes, vectors = torch.linalg.eigh(longer)
    return gauss, (vectors[:, 0].square() * function(nodes.clamp(min=node))).sum(1)


def _lanczos(kernel: Kernel, start: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Diagonals (k, steps) and off-diagonals (k, steps) of the Jacobi matrices of k starts, some starts at a time.

    Every vector is orthogonalised twice against all before it, since eigenvalues would otherwise be repeated. A process
    whose space is complete continues with zeros, which have no weight in the rules.
    """
    for some in torch.split(start.T, _TOGETHER):
        current = some / some.norm(dim=1, keepdim=True)
        basis = some.new_zeros(len(some), steps, some.shape[1])
        alpha, beta = some.new_zeros(len(some), steps), some.new_zeros(len(some), steps)
        for j in range(steps):
            basis[:, j] = current
            following = times(kernel, current.T).T
            if j == 0:
                require_symmetric(current @ following.T)
            alpha[:, j] = (current * following).sum(1)
            for _ in range(2):
                before = basis[:, : j + 1]
                inside = before @ following[:, :, None]
                following = following - (before.mT @ inside).squeeze(2)
            size = following.norm(dim=1)
            scale = torch.maximum(alpha.abs().amax(1), beta.amax(1))
            beta[:, j] = torch.where(size > _COMPLETE * scale, size, 0.0)
            current = torch.where(beta[:, j, None] > 0, following / size.clamp(min=_TINY)[:, None], 0.0)
        yield alpha, beta
