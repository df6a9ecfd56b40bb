"""Two layers whose tangent kernels are known, in small tangent spaces: a trained prefix, and scalable kernel features.

1. A query x attends to m trained keys w_r with fixed values a_r = +-1, F(x) = sqrt(m) <a, softmax(W^T x)> (Liang et al.,
   "Towards infinite-long prefix in transformer", 2024, arXiv 2406.14036; sqrt(m) in place of their m). With
   S = softmax(W^T x) the kernel of the keys in a set R is <x, x'> m sum_{r in R} S_r S'_r (a_r - <a, S>)(a_r - <a, S'>).
   It tends to |R|/m <x, x'> exp(<x, x'>). Claim: a long prefix stays near its start, where it is linear.
2. A layer <Phi(x), Psi> with Phi(x) = relu(G x)/sqrt(m), of which Psi trains (Sehanobish et al., "Scalable neural network
   kernels", 2024, arXiv 2310.13225). In a space of k random orthonormal directions its kernel tends to k/m times the
   arc-cosine kernel. Claim: the layer is linear in what it trains, whatever the space.

Each layer is restricted (`tauspan.restrict`): 1 to half of its keys, 2 to a quarter of the directions. Its kernel is
compared with the formula and with the limit; then tau = J^T K^{-1} 1 moves every output by 1 in the tangent model, and
`from linear` is how far the layer itself is from that.

    python examples/known_kernels.py [--widths 64 256 1024] [--seeds 8]
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import tauspan as ts
from tauspan.kernel.analytic import leaky_relu

DIM, ROWS = 3, 4


def drawn(*shape: int, seed: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = drawn(ROWS, DIM, seed=3) / 4


class Prefix(nn.Module):
    """sqrt(m) <a, softmax(W^T x)>."""

    name, limit = "half of a prefix", X @ X.T * (X @ X.T).exp()

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.w = nn.Parameter(drawn(DIM, width, seed=seed))
        self.register_buffer("a", drawn(width, seed=seed + 1000).sign())

    def forward(self, x: Tensor) -> Tensor:
        """(N, d) to (N, 1)."""
        return math.sqrt(len(self.a)) * ((x @ self.w).softmax(-1) @ self.a)[:, None]

    def space(self) -> tuple[dict[str, Tensor], float, Tensor]:
        """A basis, the share of the numbers that it has, and the kernel by its formula."""
        width = len(self.a)
        mask = (torch.arange(width) < width // 2).expand(DIM, width).clone()
        s = (X @ self.w.detach()).softmax(-1)
        part = (s * (self.a - (s @ self.a)[:, None]))[:, : width // 2]
        return {"w": mask}, 0.5, X @ X.T * (width * part @ part.T)


class Features(nn.Module):
    """<relu(G x), Psi> / sqrt(m)."""

    name = "quarter of SNNK features"
    limit = leaky_relu(0.0).dual(X.square().sum(1)[:, None], X.square().sum(1)[None], X @ X.T)

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.register_buffer("g", drawn(width, DIM, seed=seed))
        self.psi, self.seed = nn.Parameter(drawn(width, 1, seed=seed + 1000)), seed

    def features(self, x: Tensor) -> Tensor:
        """Phi, (N, m)."""
        return (x @ self.g.T).relu() / math.sqrt(len(self.g))

    def forward(self, x: Tensor) -> Tensor:
        """(N, d) to (N, 1)."""
        return self.features(x) @ self.psi

    def space(self) -> tuple[dict[str, Tensor], float, Tensor]:
        """As in `Prefix`."""
        width = len(self.g)
        basis = torch.linalg.qr(drawn(width, width // 4, seed=self.seed + 2000)).Q
        phi = self.features(X) @ basis
        return {"psi": basis.T[:, :, None].contiguous()}, 0.25, phi @ phi.T


def checked(layer: Prefix | Features) -> tuple[float, float, float]:
    """Relative distances of the kernel from its formula and its limit, and what the layer misses of a step of 1."""
    space, share, formula = layer.space()
    small = ts.restrict(ts.load(layer), space).backbone
    operator = ts.TangentKernel(small, X)
    kernel = operator.dense()
    delta = operator.pullback(torch.linalg.solve(kernel, torch.ones(ROWS, dtype=torch.float64)))
    with torch.no_grad():
        moved = torch.func.functional_call(small, dict(delta), (X,)) - small(X)
    limit = share * layer.limit
    return (
        float((kernel - formula).norm() / formula.norm()),
        float((kernel - limit).norm() / limit.norm()),
        float((moved - 1).square().mean().sqrt()),
    )


def main(widths: Sequence[int] = (64, 256, 1024), seeds: int = 8) -> list[dict[str, float | str]]:
    """Print a row for each layer and width: root mean squares over seeds, with the standard error of the last two."""
    rows: list[dict[str, float | str]] = []
    for kind in (Prefix, Features):
        for width in widths:
            found = torch.tensor([checked(kind(width, seed)) for seed in range(seeds)], dtype=torch.float64)
            square = found.square()
            mean = square.mean(0).sqrt()
            error = square.std(0) / (2 * mean * seeds**0.5)
            rows.append({
                "layer": kind.name, "m": width, "to the formula": f"{mean[0]:.0e}",
                "to the limit": float(mean[1]), "+-": float(error[1]),
                "from linear": f"{mean[2]:.2e}", "+- of it": f"{error[2]:.0e}",
            })  # fmt: skip
    note = f"root mean squares over {seeds} seeds, with their standard errors; {ROWS} rows of {DIM} numbers"
    print(ts.Table("Kernels in small spaces", rows, note).to_markdown())
    return rows


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024])
    asked.add_argument("--seeds", type=int, default=8)
    main(**vars(asked.parse_args()))
