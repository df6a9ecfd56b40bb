"""An infinitely wide and deep net is one of three classifiers, and its activation decides which.

Claim: Radhakrishnan, Belkin and Uhler, "Wide and Deep Neural Networks Achieve Optimality for Classification", 2023.

With p the dual activation, p(1) = 1, A = p(0), B = p'(0), C = p'(1): A > 0 is a majority vote, A = B = 0 the nearest
neighbour, and A = 0 < B < 1 a singular kernel with the pole |x - x'|^-alpha, alpha = -2 log B / log C, which is
Bayes-consistent where alpha is the dimension.

Checked here:

1. p(s) = a s + (1 - a) s^q for (a, q) = (0.5, 3), (0.7, 3), (0.3, 2): the exponent measured on lim S_L / B^L is the
   predicted 2.0000, 1.5178, 4.5379. The raw tangent kernel at finite depth shows alpha + 2 near its pole instead.
2. The tangent kernel classifier of a deep net agrees with the limit its activation predicts, on noisy labels on a circle.
   The depth needed differs: it is approached as 1/L by ReLU and the singular kernels, doubly exponentially by s^2, whose
   entries underflow soon after.

    python examples/wide_and_deep.py
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tauspan import Table
from tauspan.kernel.analytic import Activation, depth_limit, dual_activation, limit_kernel, on_sphere


def mixture(a: float, q: int) -> Activation:
    """The activation whose dual is a s + (1 - a) s^q."""
    hermite = [0.0] * (q + 1)
    hermite[1], hermite[q] = math.sqrt(a), math.sqrt(1 - a)
    return dual_activation(hermite, name=f"{a} s + {1 - a:.1f} s^{q}")


def measured(kernel: Tensor, distance: Tensor) -> float:
    """alpha of |x - x'|^-alpha, by least squares in logarithms."""
    return -float(np.polyfit(distance.log().numpy(), kernel.log().numpy(), 1)[0])


def exponents(cases: Sequence[tuple[float, int]], points: int = 64) -> list[dict[str, float | str]]:
    """Predicted and measured poles. The limit is periodic in log distance around its power; whole periods cancel it."""
    table: list[dict[str, float | str]] = []
    for a, q in cases:
        act = mixture(a, q)
        limit = depth_limit(act)
        assert limit.alpha is not None
        period = math.log(limit.slope_at_one) / 2  # p takes distance to sqrt(C) distance
        periods = max(1, int(4 / period))
        logs = math.log(1e-4) + period * periods * torch.arange(points * periods + 1).double() / (
            points * periods
        )
        distance = logs.exp()
        cosine = 1 - distance.square() / 2
        _, raw = on_sphere(act, cosine, depth=60)
        table.append(
            {
                "p(s)": act.name,
                "predicted": limit.alpha,
                "measured": measured(limit_kernel(act, cosine), distance),
                "raw kernel, depth 60": measured(raw, distance),
            }
        )
    return table


def circle(count: int, seed: int, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Points on the unit circle and labels +-1: three arcs each, flipped with the probability given, one class larger."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    label = torch.where(torch.sin(3 * angle) > -0.7, 1.0, -1.0).double()
    flip = torch.rand(count, generator=generator) < noise
    return torch.stack([angle.cos(), angle.sin()], 1), torch.where(flip, -label, label)


def limiting(activation: str | Activation, cosine: Tensor, y: Tensor) -> Tensor:
    """The labels that the limit in depth gives."""
    limit = depth_limit(activation)
    if limit.kind == "majority vote":
        return y.sum().sign().expand(len(cosine))
    if limit.kind == "nearest neighbour":
        return y[cosine.abs().argmax(1)]
    return (limit_kernel(activation, cosine) @ y).sign()


def agreement(cases: Sequence[tuple[str | Activation, int]], count: int = 40) -> list[dict[str, object]]:
    """The classifier sign(K(z, X) K(X, X)^-1 y) of a deep net against its limit, on 200 new points."""
    (x, y), (z, truth) = circle(count, seed=0, noise=0.2), circle(200, seed=1)
    table: list[dict[str, object]] = []
    for act, depth in cases:
        limit = depth_limit(act)
        (_, inner), (_, outer) = on_sphere(act, x @ x.T, depth), on_sphere(act, z @ x.T, depth)
        deep = (outer @ torch.linalg.solve(inner, y)).sign()
        table.append(
            {
                "activation": act if isinstance(act, str) else act.name,
                "depth": depth,
                "limit": limit.kind,
                "alpha": limit.alpha,
                "agrees with the limit": float((deep == limiting(act, z @ x.T, y)).double().mean()),
                "accuracy": float((deep == truth).double().mean()),
            }
        )
    return table


def main() -> tuple[list[dict[str, float | str]], list[dict[str, object]]]:
    poles = exponents([(0.5, 3), (0.7, 3), (0.3, 2)])
    digits = [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in poles]
    print(Table("Poles", digits).to_markdown(), end="\n\n")
    square = dual_activation([0, 0, 1.0], name="s^2")
    classes = agreement([("relu", 1000), (square, 14), ("erf", 600), (mixture(0.7, 3), 600)])
    note = "40 training points on a circle, 20 % of their labels flipped; one seed."
    print(Table("Deep classifiers", classes, note).to_markdown())
    return poles, classes


if __name__ == "__main__":
    main()
