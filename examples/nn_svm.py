"""Soft-margin training of a wide net is a support vector machine with the net's tangent kernel.

Claim: Chen, Huang, Nguyen and Weng, "On the Equivalence between Neural Network and Support Vector Machine", 2021.

A ReLU net with one hidden layer, linearised, is trained on (1/n) sum max(0, 1 - y g) + (lam/2) |tau|^2, g = f - f_0, by
subgradient steps in its weights. In function space the same steps are a -> (1 - eta lam) a + (eta/n) [y g < 1] y.

Checked here, with n = 40 rows in 10 dimensions, width 512 and lam = 0.01, in float64:

1. After 5000 steps of rate 0.5, g agrees in both spaces to 5e-14, and tau with J^T alpha to 1e-14.
2. Steps of rate 1/(lam t) reach the optimum of the box-constrained quadratic program, to 4e-5 after 200,000. At a
   constant rate they stay off.
3. No displacement shorter than the stated bound flips a row that is right, and one that is longer does.

The weights' steps take a pass through the net each: 5000 of them are half a minute.

    python examples/nn_svm.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan import Table
from tauspan.kernel import Margins, Rate, TangentKernel, dual_steps, margins, primal_steps, solve_hinge
from tauspan.kernel.analytic import network

ROWS, SIZE, RIDGE, RATE = 40, 10, 1e-2, 0.5


@dataclass(frozen=True)
class Checked:
    """The largest differences, of g and tau between the spaces and of g to the optimum; rows flipped below and above."""

    functions: float
    vectors: float
    falling: float
    constant: float
    margins: Margins
    flips: tuple[int, int]


def problem(width: int) -> tuple[TangentKernel, Tensor]:
    """The kernel of Gaussian rows, and the labels of a noisy half-space."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)
    noisy = x[:, 0] + 0.5 * torch.randn(ROWS, generator=generator, dtype=torch.float64)
    labels = torch.where(noisy > 0, 1.0, -1.0).double()
    return TangentKernel(network(SIZE, width=width), x, batch_size=ROWS), labels


def flat(tau: dict[str, Tensor]) -> Tensor:
    return torch.cat([delta.flatten() for delta in tau.values()])


def flips(kernel: TangentKernel, labels: Tensor, alpha: Tensor, found: Margins, share: float) -> int:
    """Rows that change sign under the worst displacement of `share` times the bound's length."""
    right = found.values > 0
    row = int(torch.where(right, found.edits, torch.inf).argmin())
    unit = torch.zeros_like(alpha)
    unit[row] = -labels[row]
    tau, worst = kernel.pullback(alpha), kernel.pullback(unit)
    size = share * found.safe_edit / float(flat(worst).norm())
    moved = kernel.push({name: delta + size * worst[name] for name, delta in tau.items()})
    return int(((labels * moved <= 0) & right).sum())


def main(width: int = 512, steps: int = 5000, falling: Sequence[int] = (2000, 20_000, 200_000)) -> Checked:
    kernel, labels = problem(width)
    dual = dual_steps(kernel, labels, RIDGE, steps, RATE)
    primal = primal_steps(kernel, labels, RIDGE, steps, RATE)
    functions = float((kernel.push(primal) - kernel.matvec(dual)).abs().max())
    vectors = float((flat(primal) - flat(kernel.pullback(dual))).abs().max())

    solved = solve_hinge(kernel, labels, RIDGE, tolerance=1e-14)
    best = kernel.matvec(solved.alpha)

    def off(count: int, rate: Rate) -> float:
        reached = dual_steps(kernel, labels, RIDGE, count, rate)
        return float((kernel.matvec(reached) - best).abs().max())

    away = [off(count, "1/(ridge t)") for count in falling]
    constant = off(steps, RATE)
    table: list[dict[str, str | int | float | bool | None]] = [
        {"rate": "1/(lam t)", "steps": count, "g from the optimum": f"{gap:.1e}"}
        for count, gap in zip(falling, away, strict=True)
    ]
    table.append({"rate": str(RATE), "steps": steps, "g from the optimum": f"{constant:.1e}"})
    found = margins(kernel, solved, labels)
    below, above = (flips(kernel, labels, solved.alpha, found, share) for share in (0.999, 1.001))
    note = (
        f"Weights against function space after {steps} steps: g {functions:.1e}, tau {vectors:.1e}. "
        f"Duality gap {solved.duality_gap:.1e}; {len(found.support)} of {ROWS} rows support the vector, "
        f"{len(found.bounded)} at the box; margin {found.margin:.3f}. The worst displacement of length "
        f"{found.safe_edit:.4f} flips {below} rows when a little shorter, {above} when a little longer."
    )
    print(Table("Subgradient steps and the optimum", table, note).to_markdown())
    return Checked(functions, vectors, away[-1], constant, found, (below, above))


if __name__ == "__main__":
    main()
