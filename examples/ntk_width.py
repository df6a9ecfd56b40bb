"""The tangent kernel of a random net tends to a fixed one as 1/sqrt(width), and training follows that kernel.

Claim: Jacot, Gabriel and Hongler, "Neural Tangent Kernel: Convergence and Generalization in Neural Networks", 2018.

Checked here, on a ReLU net with one hidden layer and 40 Gaussian rows in 10 dimensions:

1. The relative Frobenius error |K_width - Theta| / |Theta| falls with a log-log slope in the width within [-0.56, -0.44].
2. 500 steps of gradient descent on the weights of the linearised net end at
   f_0 + U (1 - (1 - eta lambda)^500) U^T (y - f_0), K = U lambda U^T, to 1e-10.

    python examples/ntk_width.py
"""

from collections.abc import Sequence

import numpy as np
import torch

import tauspan as ts
from tauspan import Table
from tauspan.kernel import TangentKernel
from tauspan.kernel.analytic import lr_max, network, ntk

ROWS, SIZE = 40, 10


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def errors(widths: Sequence[int], seeds: int) -> list[dict[str, float]]:
    """The error at each width: mean and standard deviation over seeds, of rows and weights."""
    table = []
    for width in widths:
        found = []
        for seed in range(seeds):
            x = gaussian(ROWS, SIZE, seed=10_000 + seed)  # a net of the same seed would hold the same numbers
            wanted = ntk(x)
            kernel = TangentKernel(network(SIZE, width=width, seed=seed), x, batch_size=ROWS).dense()
            found.append(float((kernel - wanted).norm() / wanted.norm()))
        error = float(np.mean(found))
        table.append(
            {
                "width": width,
                "error": error,
                "sd": float(np.std(found, ddof=1)),
                "error x sqrt(width)": error * width**0.5,
            }
        )
    return table


def slope(table: Sequence[dict[str, float]]) -> float:
    """Of log error in log width, by least squares."""
    return float(
        np.polyfit(np.log([row["width"] for row in table]), np.log([row["error"] for row in table]), 1)[0]
    )


def descent_gap(width: int = 256, steps: int = 500) -> float:
    """The largest difference between descent in weights and the closed form, over the training rows."""
    x, y = gaussian(ROWS, SIZE, seed=1), gaussian(ROWS, 1, seed=2)
    net = network(SIZE, width=width)
    kernel = TangentKernel(net, x).dense()
    rate = 0.5 * lr_max(kernel)
    start = net(x).detach()
    tangent = ts.linearize(net)
    optimizer = torch.optim.SGD(tangent.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        ((tangent(x) - y).square().sum() / 2).backward()
        optimizer.step()
    values, vectors = torch.linalg.eigh(kernel)
    learned = vectors @ ((1 - (1 - rate * values) ** steps)[:, None] * (vectors.T @ (y - start)))
    return float((tangent(x).detach() - start - learned).abs().max())


def main(widths: Sequence[int] = (64, 256, 1024, 4096, 16384), seeds: int = 20) -> tuple[float, float]:
    table = errors(widths, seeds)
    fitted, gap = slope(table), descent_gap()
    note = f"Slope {fitted:.3f} ({seeds} seeds; 1/sqrt(width) is -0.5). Descent against the closed form: {gap:.1e}."
    print(Table("Error of the finite kernel", table, note).to_markdown())
    return fitted, gap


if __name__ == "__main__":
    main()
