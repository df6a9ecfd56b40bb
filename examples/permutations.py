"""Shown only the k basis vectors, an ensemble in the kernel regime learns a permutation on all 2^k - 1 inputs.

Claim: "Exact Learning of Permutations for Nonzero Binary Inputs with Logarithmic Training Size and Quadratic Ensemble
Complexity", 2025.

A ReLU net with one hidden layer is trained on e_i -> e_pi(i). Its tangent kernel gives the ensemble's mean in closed
form; for an input with n ones and c = 1/(2 pi),

    k_in = (sqrt(n - 1) + 2 (pi - acos(n^-1/2))) / (2 pi),  k_out = sqrt(n) / (2 pi),
    mean_j = (k_j - c (n k_in + (k - n) k_out) / (1 - c + c k)) / (1 - c).

Checked here:

1. For k = 4, 6, 8, 10 the sign of the mean is right on every input: above 0 on the permuted ones, 0 or below elsewhere (0
   only at the training rows). The smallest mean of a one is 0.638, 0.551, 0.490, 0.444.
2. An ensemble of 200 linearised nets of width 4000, k = 5: rounding its mean at half the smallest mean of a one is right
   everywhere, from 10 members on. Rounding at 0 is not: zeros have means near 0, and a finite ensemble has noise.

    python examples/permutations.py
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tauspan import Table
from tauspan.kernel.analytic import ensemble, network, ntk, posterior

ZERO = 1e-14  # the zeros of the training rows, after a solve in float64


def problem(k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The basis vectors and their images, and all inputs but zero and their images."""
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    basis = torch.eye(k, dtype=torch.float64)
    inputs = (torch.arange(1, 2**k)[:, None] >> torch.arange(k) & 1).double()
    images = torch.zeros_like(inputs)
    images[:, order] = inputs
    targets = torch.zeros_like(basis)
    targets[:, order] = basis
    return basis, targets, inputs, images


def mean(k: int) -> tuple[Tensor, Tensor]:
    """The ensemble's mean on all inputs, (2^k - 1, k), and the right outputs."""
    x, y, z, images = problem(k)
    return posterior(ntk(x), ntk(z, x), ntk(z), y).mean, images


def formula(k: int) -> Tensor:
    """The mean of the ones and of the zeros of an input with n = 1 to k ones, shape (k, 2)."""
    n = torch.arange(1, k + 1, dtype=torch.float64)
    c = 1 / (2 * math.pi)
    inside = c * ((n - 1).sqrt() + 2 * (math.pi - torch.acos(n**-0.5)))
    outside = c * n.sqrt()
    common = c * (n * inside + (k - n) * outside) / (1 - c + c * k)
    return torch.stack([inside - common, outside - common], 1) / (1 - c)


def exact(sizes: Sequence[int]) -> list[dict[str, float]]:
    """One row for each k: how many inputs the sign decides rightly, and the means that decide it."""
    table = []
    for k in sizes:
        found, images = mean(k)
        ones = images > 0
        wanted = formula(k)[images.sum(1).long() - 1]
        right = ((found > ZERO) == ones).all(1)
        table.append(
            {
                "k": k,
                "inputs": len(images),
                "right by sign": int(right.sum()),
                "smallest one": float(found[ones].min()),
                "largest zero": float(found[~ones].max()),
                "off the formula": float(
                    (found - torch.where(ones, wanted[:, :1], wanted[:, 1:])).abs().max()
                ),
            }
        )
    return table


def finite(k: int, members: int, width: int, counts: Sequence[int]) -> list[dict[str, float]]:
    """One row for each size of an ensemble of linearised nets: how many inputs two ways of rounding get right."""
    x, y, z, images = problem(k)
    wanted, _ = mean(k)
    half = float(wanted[images > 0].min()) / 2
    outputs = ensemble(lambda seed: network(k, k, width=width, seed=seed), x, y, z, members=members)
    table = []
    for count in counts:
        found = outputs[:count].mean(0)
        share = {cut: float(((found > cut) == (images > 0)).all(1).double().mean()) for cut in (half, 0.0)}
        table.append(
            {
                "members": count,
                "largest deviation": float((found - wanted).abs().max()),
                "right, rounded at half": share[half],
                "right, rounded at 0": share[0.0],
            }
        )
    return table


def main(
    sizes: Sequence[int] = (4, 6, 8, 10), k: int = 5, members: int = 200, width: int = 4000
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    infinite = exact(sizes)
    small = [
        {k: f"{v:.0e}" if k in ("largest zero", "off the formula") else v for k, v in row.items()}
        for row in infinite
    ]
    print(Table("Infinitely many, infinitely wide nets", small).to_markdown(), end="\n\n")
    counts = [count for count in (10, 50, 200) if count <= members]
    ensembles = finite(k, members, width, counts)
    print(
        Table(f"Linearised nets of width {width}, k = {k}", ensembles, "Shares of the inputs.").to_markdown()
    )
    return infinite, ensembles


if __name__ == "__main__":
    main()
