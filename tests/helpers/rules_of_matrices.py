"""Calls of complex, spectral and matrix operations, for the tests of tangent rules."""

import torch
from torch import Tensor

from helpers.rules import case, normal

M, V, W = (3, 4), (4,), (4, 3)  # a matrix, a vector, the matrix the other way
MASK = torch.tensor([[True, False], [False, True], [True, True]])
PLACES = torch.tensor([[2, 0], [1, 2], [0, 2]])
S = (2, 3, 3)  # square matrices


def z(x: Tensor) -> Tensor:
    """The first half of the last axis as real parts, the second as imaginary ones."""
    return torch.complex(*x.chunk(2, -1))


def r(y: Tensor) -> Tensor:
    return torch.view_as_real(y.resolve_conj())


def spd(x: Tensor) -> Tensor:
    return x @ x.mH + torch.eye(3)


def mated(x: Tensor) -> Tensor:
    return (x + x.mH) / 2


CASES = [
    # complex numbers
    case("real", lambda x: torch.real(z(x) * z(x)), M),
    case("imag", lambda x: torch.imag(z(x) * z(x)), M),
    case("conj", lambda x: r(z(x).conj() * z(x).exp()), M),
    case("conj_physical", lambda x: r(torch.conj_physical(z(x))), M),
    case("resolve_conj", lambda x: torch.view_as_real(z(x).conj().resolve_conj()), M),
    case("resolve_neg", lambda x: z(x).conj().imag.resolve_neg(), M),
    case("polar", lambda x, y: r(torch.polar(x.exp(), y)), M, M),
    case("angle", lambda x: z(x).angle(), M),
    case("sgn", lambda x: r(torch.sgn(z(x))), M),
    case("abs", lambda x: z(x).abs(), M),
    case("vdot", lambda x, y: r(torch.vdot(z(x), z(y))), V, V),
    case("linalg_vecdot", lambda x, y: r(torch.linalg.vecdot(z(x), z(y))), M, M),
    *(
        case(name, lambda x, name=name: r(getattr(torch, name)(z(x) + 0.1)), M)
        for name in ("exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "tanh", "sigmoid")
    ),
    case("mul", lambda x, y: r(z(x) * y), M, (3, 2)),
    case("div", lambda x, y: r(z(x) / z(y)), M, M),
    case("pow", lambda x: r(z(x) ** 3), M),
    case("matmul", lambda x, y: r(z(x) @ z(y).mH), M, M),
    case("einsum", lambda x, y: r(torch.einsum("ij,kj->ik", z(x), z(y))), M, M),
    case("get H", lambda x: r(z(x).H), M),
    case("where", lambda x, y: r(torch.where(MASK, z(x), z(y))), M, M),
    case("cat", lambda x, y: r(torch.cat([z(x), y], 1)), M, M),
    # spectra
    *(
        case(f"fft_{name}", lambda x, name=name: r(getattr(torch.fft, name)(z(x))), (3, 4, 4))
        for name in ("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn")
    ),
    *(
        case(f"fft_{name}", lambda x, name=name: r(getattr(torch.fft, name)(x)), (3, 4, 4))
        for name in ("rfft", "rfft2", "rfftn", "ihfft", "ihfft2", "ihfftn")
    ),
    *(
        case(f"fft_{name}", lambda x, name=name: getattr(torch.fft, name)(z(x)), (3, 4, 4))
        for name in ("irfft", "irfft2", "irfftn", "hfft", "hfft2", "hfftn")
    ),
    case("fft_rfft", lambda x: r(torch.fft.rfft(x, n=7, dim=0, norm="ortho")), M),
    case("fft_fftshift", lambda x: torch.fft.fftshift(x, 1), M),
    case("fft_ifftshift", lambda x: torch.fft.ifftshift(x), M),
    case("stft", lambda x, w: r(torch.stft(x, 4, 2, window=w, return_complex=True)), (2, 12), V),
    case(
        "istft",
        lambda x: torch.istft(z(x), 4, 2, window=torch.ones(4).double(), length=8, center=False),
        (3, 8),
    ),
    # scans and scattered reductions
    case("logcumsumexp", lambda x: x.logcumsumexp(1), M),
    case("cummax", lambda x: x.cummax(1), M),
    case("cummin", lambda x: torch.cummin(x, 1), M),
    case("diff", lambda x: torch.diff(x, dim=1), M),
    case("diff", lambda x, y: torch.diff(x, prepend=y), M, (3, 1)),
    case("diff", lambda x: torch.diff(x, append=normal(3, 1)), M),
    *(
        case("scatter_reduce", lambda x, y, how=how: x.scatter_reduce(1, PLACES, y, how), M, (3, 2))
        for how in ("sum", "amax", "mean")
    ),
    # matrices
    case("diag", lambda x: torch.diag(x), V),
    case("diag_embed", lambda x: torch.diag_embed(x), M),
    case("diagonal_scatter", lambda x: torch.diagonal_scatter(x, normal(3)), M),
    case("diagonal_scatter", lambda x, y: torch.diagonal_scatter(x, y), M, (3,)),
    case("kron", lambda x, y: torch.kron(x, y), M, W),
    case("cross", lambda x, y: torch.cross(x, y, dim=1), (4, 3), (4, 3)),
    case("linalg_cross", lambda x, y: torch.linalg.cross(x, y), (4, 3), (1, 3)),
    case("inverse", lambda x: spd(x).inverse(), S),
    case("linalg_inv", lambda x: torch.linalg.inv(spd(x)), S),
    case("linalg_inv", lambda x: r(torch.linalg.inv(spd(z(x)))), (2, 3, 6)),
    case("linalg_solve", lambda x, y: torch.linalg.solve(spd(x), y), S, (2, 3, 4)),
    case("linalg_solve", lambda x, y: torch.linalg.solve(spd(x), y), S, (2, 3)),
    case("linalg_solve", lambda x, y: torch.linalg.solve(spd(x), y), (3, 3), (3,)),
    case("linalg_solve", lambda x: torch.linalg.solve(spd(x), normal(3, 4)), S),
    case("linalg_solve", lambda y: torch.linalg.solve(spd(normal(*S)), y), (3, 1)),
    case("linalg_solve", lambda x, y: torch.linalg.solve(spd(x), y, left=False), S, (2, 4, 3)),
    case("linalg_solve", lambda x, y: r(torch.linalg.solve(spd(z(x)), z(y))), (2, 3, 6), (2, 3, 4)),
    case("det", lambda x: x.det(), S),
    case("linalg_det", lambda x: torch.linalg.det(x), S),
    case("linalg_det", lambda x: torch.linalg.det(x * torch.tensor([1.0, 1.0, 0.0]).double()), S),
    case("linalg_det", lambda x: r(torch.linalg.det(z(x))), (2, 3, 6)),
    case("logdet", lambda x: spd(x).logdet(), S),
    case("logdet", lambda x: r(torch.logdet(z(x))), (3, 6)),
    case("slogdet", lambda x: x.slogdet()[1], S),
    case("linalg_slogdet", lambda x: torch.linalg.slogdet(x).logabsdet, S),
    case("linalg_slogdet", lambda x: torch.linalg.slogdet(z(x)).logabsdet, (2, 3, 6)),
    case("linalg_eigh", lambda x: torch.linalg.eigh(mated(x)), S),
    case("linalg_eigh", lambda x: torch.linalg.eigh(mated(x), UPLO="U")[1].square(), S),
    case("linalg_eigh", lambda x: torch.linalg.eigh(mated(z(x)))[1].abs(), (2, 3, 6)),
    case("linalg_eigvalsh", lambda x: torch.linalg.eigvalsh(mated(x)), S),
    case("linalg_eigvalsh", lambda x: torch.linalg.eigvalsh(mated(z(x))), (2, 3, 6)),
    case("linalg_cholesky", lambda x: torch.linalg.cholesky(spd(x)), S),
    case("cholesky_solve", lambda b, x: torch.cholesky_solve(b, x.tril()), (3, 2), (3, 3)),
    case(
        "linalg_solve_triangular",
        lambda x, b: torch.linalg.solve_triangular(x.tril() + 2 * torch.eye(3), b, upper=False),
        S,
        (2, 3, 2),
    ),
    case("linalg_qr", lambda x: torch.linalg.qr(x), S),
    case("svd", lambda x: x.svd(), S),
    case("linalg_svd", lambda x: torch.linalg.svd(x), S),
    case("linalg_svdvals", lambda x: torch.linalg.svdvals(x), M),
    case("linalg_eig", lambda x: torch.linalg.eig(x)[1].abs(), S),
    case("linalg_eigvals", lambda x: torch.linalg.eigvals(x).abs(), S),
    case("linalg_pinv", lambda x: torch.linalg.pinv(x), M),
    case("pinverse", lambda x: x.pinverse(), M),
    case("linalg_lstsq", lambda x, b: torch.linalg.lstsq(x, b).solution, (4, 3), (4, 2)),
    case("matrix_exp", lambda x: x.matrix_exp(), S),
    case("linalg_matrix_exp", lambda x: torch.linalg.matrix_exp(x), S),
    case("matrix_power", lambda x: x.matrix_power(3), S),
    case("linalg_matrix_power", lambda x: torch.linalg.matrix_power(x, 3), S),
    case("linalg_lu", lambda x: torch.linalg.lu(x)[1:], S),
    case("linalg_lu_factor", lambda x: torch.linalg.lu_factor(x)[0], S),
    case("linalg_lu_solve", lambda x, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(x), b), S, (2, 3, 2)),
    case("linalg_householder_product", lambda x, t: torch.linalg.householder_product(x, t), (4, 3), (3,)),
    case("linalg_multi_dot", lambda x, y: torch.linalg.multi_dot([x, y, x]), M, W),
    case("linalg_matrix_norm", lambda x: torch.linalg.matrix_norm(x), S),
    case("linalg_norm", lambda x: torch.linalg.norm(x), M),
]

# What torch has no forward mode for, or a wrong one.
BY_ROWS = [
    case("cholesky_inverse", lambda x: torch.cholesky_inverse(x.tril() + 3 * torch.eye(3)), (3, 3)),
    case("cholesky_inverse", lambda x: torch.cholesky_inverse(x.triu() + 3 * torch.eye(3), upper=True), S),
]
