"""Tiny modules of rotations, groups, positive definite matrices and implicit layers, for `helpers.architectures`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sym(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def of_spectrum(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of a symmetric matrix, through its eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(function(values)) @ vectors.mT


class RotationByGramSchmidt(nn.Module):
    """6 numbers -> a rotation: two normalisations and a cross product (Zhou et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.out = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.net(x).view(-1, 2, 3).unbind(1)
        first = F.normalize(a, dim=-1)
        second = F.normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
        third = torch.linalg.cross(first, second, dim=-1)
        return self.out(torch.stack([first, second, third], -1).flatten(1))


class RotationBySVD(nn.Module):
    """9 numbers -> the nearest rotation U diag(1, 1, det U V^T) V^T (Levinson et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.out = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9)), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(self.net(x).view(-1, 3, 3))
        sign = torch.linalg.det(u @ vh)
        last = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
        return self.out((u @ torch.diag_embed(last) @ vh).flatten(1))


class RotationByQR(nn.Module):
    """An orthogonal frame and its triangle by QR, with positive diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.out = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9)), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, r = torch.linalg.qr(self.net(x).view(-1, 3, 3))
        diagonal = r.diagonal(dim1=-2, dim2=-1)
        q = q * diagonal.sign()[:, None]
        return self.out(torch.cat([q.flatten(1), diagonal.abs().log()], 1))


class LieGroup(nn.Module):
    """A point moved by exp of a combination of generators, given by the row (Mironenco and Forre 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.generators, self.point = nn.Parameter(0.4 * torch.randn(3, 3, 3)), nn.Parameter(torch.randn(3))
        self.net, self.out = nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        algebra = torch.einsum("nk,kij->nij", self.net(x).tanh(), self.generators)
        return self.out(torch.matrix_exp(algebra) @ self.point)


class OrthogonalByCayley(nn.Module):
    """A layer whose weight is the orthogonal (I + A)^-1 (I - A), A = B - B^T, and one with an inverse (Trockman 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c, self.out = (
            nn.Parameter(torch.randn(6, 6)),
            nn.Parameter(0.2 * torch.randn(6, 6)),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        eye, skew = torch.eye(6, dtype=x.dtype), self.b - self.b.T
        weight = torch.linalg.solve(eye + skew, eye - skew)
        return self.out((x @ weight.T).tanh() @ torch.linalg.inv(eye + self.c @ self.c.T))


class SPDNetwork(nn.Module):
    """Covariance -> W S W^T -> eigenvalues of at least eps -> matrix logarithm -> linear (Huang and Van Gool 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.w, self.out = nn.Linear(6, 12), nn.Parameter(torch.randn(3, 3)), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.lift(x).view(-1, 4, 3)
        cov = rows.mT @ rows / 4 + 0.1 * torch.eye(3, dtype=x.dtype)
        moved = of_spectrum(sym(self.w @ cov @ self.w.T), lambda values: values.clamp(min=0.05))
        return self.out(of_spectrum(sym(moved), torch.log).flatten(1))


class SPDNormalisation(nn.Module):
    """The Bures-Wasserstein transport of S to a learned mean: T S T with T = M^-1/2 (M^1/2 G M^1/2)^1/2 M^-1/2.

    M is the fixed running mean and G the learned one (after Wang et al. 2025); the Lyapunov equation L S + S L = S - G is
    solved in the basis of S.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.g, self.out = nn.Linear(6, 12), nn.Parameter(torch.randn(3, 3)), nn.Linear(9, 2)
        self.register_buffer("m", torch.diag(torch.tensor([1.0, 1.5, 2.0])))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.lift(x).view(-1, 4, 3)
        eye = torch.eye(3, dtype=x.dtype)
        s, g = rows.mT @ rows / 4 + 0.1 * eye, self.g @ self.g.T + eye
        root, inverse = of_spectrum(self.m, torch.sqrt), of_spectrum(self.m, torch.rsqrt)
        t = inverse @ of_spectrum(sym(root @ g @ root), torch.sqrt) @ inverse
        centred = sym(t @ s @ t)
        values, vectors = torch.linalg.eigh(centred)
        inner = vectors.mT @ (centred - g) @ vectors
        lyapunov = vectors @ (inner / (values[:, :, None] + values[:, None])) @ vectors.mT
        return self.out((lyapunov + torch.linalg.eigvalsh(centred).log().diag_embed()).flatten(1))


class CholeskyProcess(nn.Module):
    """The mean and log likelihood of a Gaussian process at learned inducing points: Cholesky and triangular solves."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.targets = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 2))
        self.log_noise = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor) -> Tensor:
        near = torch.exp(-((self.points[:, None] - self.points) ** 2).sum(-1) / 12)
        k = near + self.log_noise.exp() * torch.eye(4, dtype=x.dtype)
        factor = torch.linalg.cholesky(k)
        alpha = torch.cholesky_solve(self.targets, factor)
        cross = torch.exp(-((x[:, None] - self.points) ** 2).sum(-1) / 12)
        half = torch.linalg.solve_triangular(factor, cross.T, upper=False)
        logdet = torch.linalg.slogdet(k)[1] + torch.logdet(k)
        return cross @ alpha + (1 - half.square().sum(0))[:, None] + logdet + torch.det(k)


class DeepEquilibrium(nn.Module):
    """z = W z + U x, solved exactly; and a least-squares fit inside the layer (Bai et al. 2019, in its linear case)."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.gate = nn.Parameter(0.2 * torch.randn(4, 4)), nn.Linear(6, 4), nn.Linear(6, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(4, dtype=x.dtype)
        system = eye - self.gate(x).tanh()[:, :, None] * self.w
        z = torch.linalg.solve(system, self.u(x))
        ridge = torch.linalg.pinv(torch.cat([self.w, eye])) @ torch.cat([self.u.weight[:, :4], eye])
        fit = torch.linalg.lstsq(torch.cat([self.w, eye]), torch.cat([self.u.weight[:, :4], eye])).solution
        return self.out((z + z @ (ridge - 2 * fit)).tanh())
