"""What an infinite net predicts: the Gaussian process, the trained ensemble, and linearised nets that sample it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel.operator.tangent import TangentKernel


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the outputs at M rows.

    Args:
        mean: shape (M) or (M, C), as the targets are.
        covariance: shape (M, M), the same for each of the C outputs.
    """

    mean: Tensor
    covariance: Tensor


def posterior(
    kernel_xx: Tensor, kernel_zx: Tensor, kernel_zz: Tensor, y: Tensor, noise: float = 0.0
) -> Posterior:
    """The Gaussian process given targets y: the Bayesian infinite net where the kernels are `nngp`.

    mean = K_zx (K_xx + noise I)^-1 y, covariance = K_zz - K_zx (K_xx + noise I)^-1 K_xz.

    Args:
        kernel_xx: shape (N, N), symmetric.
        kernel_zx: shape (M, N).
        kernel_zz: shape (M, M).
        y: targets (N) or (N, C).
        noise: variance of the targets' noise.

    Raises:
        MismatchError: shapes that do not fit together.
        UsageError: a negative noise, or a singular K_xx without noise.
        NonFiniteError: NaN or infinity.

    Cost:
        O(N^3 + N^2 M + N M^2).

    Example:
        >>> k = torch.eye(2, dtype=torch.float64)
        >>> posterior(k, k[:1], k[:1, :1], torch.tensor([1.0, -1.0]), noise=1.0)
        Posterior(mean=tensor([0.5000], dtype=torch.float64), covariance=tensor([[0.5000]], dtype=torch.float64))
    """
    _require_fit(kernel_xx, kernel_zx, y, kernel_zz=kernel_zz)
    gain = kernel_zx.double() @ response(kernel_xx, ridge=noise)
    return Posterior(gain @ y.double(), kernel_zz.double() - gain @ kernel_zx.double().T)


def ensemble_posterior(
    ntk_xx: Tensor,
    ntk_zx: Tensor,
    nngp_xx: Tensor,
    nngp_zx: Tensor,
    nngp_zz: Tensor,
    y: Tensor,
    *,
    time: float = math.inf,
    ridge: float = 0.0,
) -> Posterior:
    """Mean and covariance of infinitely wide nets trained by gradient flow from random weights (Lee et al. 2019).

    Each net starts as a draw f_0 of the process with covariance K = nngp. Gradient flow on the loss 1/2 sum (f - y)^2 +
    ridge/2 |tau|^2 takes it to f_0(z) + R (y - f_0(x)), where R = Theta_zx (Theta_xx + ridge I)^-1 (I - exp(-t
    (Theta_xx + ridge I))). So the mean is R y and the covariance K_zz + R K_xx R^T - R K_xz - K_zx R^T.

    Args:
        ntk_xx: Theta of the training rows, (N, N); need not be symmetric.
        ntk_zx: Theta of other rows with them, (M, N).
        nngp_xx: K of the training rows.
        nngp_zx: K of other rows with them.
        nngp_zz: K of the other rows, (M, M).
        y: targets (N) or (N, C).
        time: t, steps times learning rate; infinity for the end.
        ridge: pull of the weights to where they began.

    Raises:
        MismatchError, UsageError, NonFiniteError: as in `posterior`; a negative time.

    Example:
        >>> k = torch.eye(1, dtype=torch.float64)
        >>> ensemble_posterior(k, k, k, k, k, torch.ones(1), time=math.log(2.0)).mean
        tensor([0.5000], dtype=torch.float64)
    """
    _require_fit(ntk_xx, ntk_zx, y, nngp_xx=nngp_xx, nngp_zx=nngp_zx, nngp_zz=nngp_zz)
    r = ntk_zx.double() @ response(ntk_xx, ridge, time)
    cross = r @ nngp_zx.double().T
    covariance = nngp_zz.double() + r @ nngp_xx.double() @ r.T - cross - cross.T
    return Posterior(r @ y.double(), covariance)


def response(kernel: Tensor, ridge: float = 0.0, time: float = math.inf) -> Tensor:
    """(K + ridge I)^-1 (I - exp(-t (K + ridge I))), shape (N, N), which maps initial residuals to alpha at time t.

    At a finite time a singular kernel is allowed too. A kernel that is not symmetric is exponentiated as it is.

    Raises:
        UsageError: a negative ridge or time, or a singular kernel with time infinite and no ridge.
        NonFiniteError: NaN or infinity in the kernel.

    Example:
        >>> response(torch.full((1, 1), 2.0))
        tensor([[0.5000]], dtype=torch.float64)
    """
    if kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1]:
        raise MismatchError(f"a kernel of shape {tuple(kernel.shape)}: the training rows' kernel is square.")
    if not bool(torch.isfinite(kernel).all()):
        raise NonFiniteError("the training rows' kernel holds NaN or infinity.")
    if not 0 <= ridge < math.inf or not time >= 0:
        raise UsageError(f"ridge={ridge}, time={time}: both must be at least 0, and the ridge finite.")
    eye = torch.eye(len(kernel), dtype=torch.float64)
    shifted = kernel.double() + ridge * eye
    if time == math.inf:
        _require_regular(shifted)
        inverse: Tensor = torch.linalg.solve(shifted, eye)
        return inverse
    if torch.equal(shifted, shifted.T):
        values, vectors = torch.linalg.eigh(shifted)
        filtered = torch.where(values == 0, time, -torch.expm1(-time * values) / values)
        found: Tensor = vectors * filtered @ vectors.T
        return found
    # the integral of exp(-s K) from 0 to t, by one exponential of a block matrix, singular or not
    whole = torch.cat([torch.cat([-shifted, eye], 1), torch.zeros(len(eye), 2 * len(eye)).double()])
    power: Tensor = torch.linalg.matrix_exp(time * whole)
    return power[: len(eye), len(eye) :]


def _require_regular(kernel: Tensor) -> None:
    values = torch.linalg.svdvals(kernel)
    if float(values[-1]) > len(values) * torch.finfo(kernel.dtype).eps * float(values[0]):
        return
    scale = kernel.diagonal().clamp_min(torch.finfo(kernel.dtype).tiny).sqrt()
    alike = (kernel / scale / scale[:, None]).fill_diagonal_(-math.inf)
    first, second = divmod(int(alike.argmax()), len(kernel))
    raise UsageError(
        f"the training rows' kernel is singular: rows {first} and {second} are the most alike. Drop duplicates, or give "
        "noise or a ridge above 0."
    )


def _require_fit(xx: Tensor, zx: Tensor, y: Tensor, **others: Tensor) -> None:
    n, m = xx.shape[0], zx.shape[0]
    shapes = {"xx": (n, n), "zx": (m, n), "zz": (m, m)}
    for name, kernel in {"kernel_xx": xx, "kernel_zx": zx, **others}.items():
        wanted = shapes[name[-2:]]
        if tuple(kernel.shape) != wanted:
            raise MismatchError(
                f"{name} has the shape {tuple(kernel.shape)}, and {n} training rows with {m} others need {wanted}."
            )
        if not bool(torch.isfinite(kernel).all()):
            raise NonFiniteError(f"{name} holds NaN or infinity.")
    if y.dim() not in (1, 2) or len(y) != n:
        raise MismatchError(
            f"targets of shape {tuple(y.shape)} for {n} training rows: give ({n},) or ({n}, C)."
        )
    if not bool(torch.isfinite(y).all()):
        raise NonFiniteError("the targets hold NaN or infinity.")


def ensemble(
    build: Callable[[int], nn.Module],
    x: Tensor,
    y: Tensor,
    z: Tensor,
    *,
    members: int,
    seed: int = 0,
    time: float = math.inf,
    ridge: float = 0.0,
) -> Tensor:
    """Outputs at z of independent linearised nets, each trained on (x, y) by gradient flow, shape (members, M, O).

    f_0(z) + K_zx response(K_xx) (y - f_0(x)) with each net's own tangent kernel: exact, without a training loop.

    Args:
        build: a seed -> a net.
        x: training rows.
        y: targets (N, O).
        z: other rows.
        members: how many nets; they get the seeds seed, seed + 1, ...
        seed: the first.
        time: as in `ensemble_posterior`.
        ridge: as in `ensemble_posterior`.

    Raises:
        UsageError: fewer than one member, or a singular kernel, as when N O exceeds a net's parameters.
        MismatchError: targets that are no (N, O).

    Cost:
        For each member one kernel of (N + M) O by N O entries and O((N O)^3).

    Example:
        >>> from tauspan.kernel.analytic.parametrize import network
        >>> x = torch.eye(2, dtype=torch.float64)
        >>> found = ensemble(lambda seed: network(2, width=16, seed=seed), x, x[:, :1], x, members=3)
        >>> tuple(found.shape), bool(torch.allclose(found, x[:, :1].expand(3, 2, 1)))
        ((3, 2, 1), True)
    """
    if members < 1:
        raise UsageError(f"members={members}: an ensemble has at least one.")
    both, found = torch.cat([x, z]), []
    for number in range(seed, seed + members):
        net = build(number)
        with torch.no_grad():
            start = net(both).double()
        if start[: len(x)].shape != y.shape:
            raise MismatchError(
                f"targets of shape {tuple(y.shape)} for outputs of shape {tuple(start[: len(x)].shape)}."
            )
        kernel = TangentKernel(net, both, x, batch_size=len(both)).dense()
        alpha = response(kernel[: y.numel()], ridge, time) @ (y.double() - start[: len(x)]).flatten()
        found.append(start[len(x) :] + (kernel[y.numel() :] @ alpha).view(len(z), -1))
    return torch.stack(found)


def lr_max(kernel: Tensor) -> float:
    """2 / lambda_max: gradient descent on 1/2 sum (f - y)^2 converges below this learning rate, and diverges above.

    Raises:
        MismatchError: a kernel that is not square.
        UsageError: one that is not symmetric, or without a positive eigenvalue.
        NonFiniteError: NaN or infinity.

    Example:
        >>> lr_max(torch.diag(torch.tensor([1.0, 4.0])))
        0.5
    """
    if kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1]:
        raise MismatchError(f"a kernel of shape {tuple(kernel.shape)}: give a square one.")
    if not bool(torch.isfinite(kernel).all()):
        raise NonFiniteError("the kernel holds NaN or infinity.")
    if not torch.allclose(kernel, kernel.T, rtol=1e-6):
        raise UsageError("the kernel is not symmetric: its largest eigenvalue does not decide stability.")
    largest = float(torch.linalg.eigvalsh(kernel.double())[-1])
    if largest <= 0:
        raise UsageError(f"the largest eigenvalue is {largest}: no learning rate is too large.")
    return 2 / largest
