"""Sign nets that are trained with a surrogate derivative follow the surrogate tangent kernel.

Claim: Eilers, Memmesheimer and Goedeke, "A generalized neural tangent kernel for surrogate gradient learning", 2024
(arXiv 2405.15539). Checked here:

1. As erf(m u) tends to sign, the ordinary tangent kernel diverges on the diagonal, with slope 1 in log m for each hidden
   layer, and not beside it.
2. Sign nets 2-n-n-1, trained on 14 points of a circle by gradient descent with the derivative of erf in place of their
   own, have the mean and the spread that the surrogate kernel predicts (`ensemble_posterior`). Their mean is nearer to it
   than to that of the Gaussian process (NNGP). The place on the line through both predictions, 0 at the NNGP and 1 at
   the surrogate kernel, is a number for each net; its standard error over nets says what sampling leaves open.

    python examples/surrogate_gradients.py [--members 100] [--widths 20 50 100] [--steps 6000] [--seeds 0]

The paper takes 500 nets of up to 500 units for 30,000 steps; here 100 nets of 20 to 100 units for 6,000.
"""

import argparse
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tauspan import Table
from tauspan.kernel.analytic import ensemble_posterior, nngp, ntk, posterior, scaled_erf, surrogate

DEPTH, BIAS, RATE = 2, 0.1, 0.1
SLOPES = (1.0, 4.0, 16.0, 64.0, 256.0)


def circle(count: int = 100) -> Tensor:
    """Points at equal angles, shape (count, 2)."""
    angles = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return torch.stack([angles.cos(), angles.sin()], 1)


def target(x: Tensor) -> Tensor:
    """The paper's polynomial, shape (N, 1)."""
    a, b = x[:, :1], x[:, 1:]
    return 4 * a * b**2 - 0.8 * a**3 + 1.2 * b**2 - 0.8 * a**2 * b


def diverging() -> tuple[list[dict[str, float]], float, float]:
    """Theta_m on and beside the diagonal, and the slopes of their logarithms over the last step of m."""
    x = circle(8)[:2]
    rows = []
    for slope in SLOPES:
        found = ntk(x, depth=DEPTH, activation=scaled_erf(slope), bias_std=BIAS)
        rows.append({"m": slope, "on the diagonal": float(found[0, 0]), "beside it": float(found[0, 1])})
    step = math.log(SLOPES[-1] / SLOPES[-2])
    on, beside = (
        math.log(rows[-1][name] / rows[-2][name]) / step for name in ("on the diagonal", "beside it")
    )
    return rows, on, beside


def trained(width: int, members: int, steps: int, seed: int, x: Tensor, z: Tensor) -> Tensor:
    """What each of many nets gives on z after descent on x, shape (members, len(z)); all nets at once, in float32."""
    act, draw = surrogate().function, torch.Generator().manual_seed(1000 * seed + width)
    sizes = (x.shape[1], width, width, 1)
    weights = [
        torch.randn(members, n, m, generator=draw).requires_grad_() for n, m in itertools.pairwise(sizes)
    ]
    biases = [torch.randn(members, 1, m, generator=draw).requires_grad_() for m in sizes[1:]]

    def outputs(rows: Tensor) -> Tensor:
        h = rows.expand(members, *rows.shape)
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            h = torch.baddbmm(BIAS * bias, h, weight, alpha=weight.shape[1] ** -0.5)
            h = act(h) if layer < len(weights) - 1 else h
        return h[..., 0]

    rows, wanted = x.float(), target(x).float()[:, 0]
    optimiser = torch.optim.SGD([*weights, *biases], lr=RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        (0.5 * (outputs(rows) - wanted).square().mean(1).sum()).backward()
        optimiser.step()
    with torch.no_grad():
        return outputs(z.float()).double()


def compared(widths: Sequence[int], members: int, steps: int, seeds: Sequence[int]) -> list[dict[str, float]]:
    """The ensemble of each seed and width against both predictions; rms over the circle."""
    z = circle()
    x = z[3::7]
    shared = {"depth": DEPTH, "activation": "sign", "bias_std": BIAS}
    gaussian = {
        "kernel_xx": nngp(x, **shared),
        "kernel_zx": nngp(z, x, **shared),
        "kernel_zz": nngp(z, **shared),
    }
    prior = posterior(**gaussian, y=target(x))
    predicted = ensemble_posterior(
        ntk(x, x.clone(), **shared), ntk(z, x, **shared), *gaussian.values(), target(x),
        time=RATE * steps / len(x),
    )  # fmt: skip
    rows, line = [], (predicted.mean - prior.mean)[:, 0]
    for seed, width in itertools.product(seeds, widths):
        found = trained(width, members, steps, seed, x, z)
        mean, spread = found.mean(0), found.std(0)
        place = (found - prior.mean[:, 0]) @ line / line.square().sum()  # of each net
        rows.append({
            "seed": seed, "width": width, "to the surrogate kernel": _rms(mean - predicted.mean[:, 0]),
            "to the NNGP": _rms(mean - prior.mean[:, 0]), "standard error": _rms(spread / members**0.5),
            "spread": _rms(spread), "predicted spread": _rms(predicted.covariance.diagonal().sqrt()),
            "place": float(place.mean()), "its standard error": float(place.std() / members**0.5),
        })  # fmt: skip
    return rows


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def main(
    members: int = 100, widths: Sequence[int] = (20, 50, 100), steps: int = 6_000, seeds: Sequence[int] = (0,)
) -> tuple[tuple[float, float], list[dict[str, float]]]:
    """Print both tables; the slopes on and beside the diagonal, and the comparison."""
    table, on, beside = diverging()
    note = f"slope of the logarithm over the last step: {on:.3f} on the diagonal, {beside:.3f} beside it"
    print(Table("The ordinary kernel of erf(m u)", table, note).to_markdown())
    rows = compared(widths, members, steps, seeds)
    about = (
        f"{members} nets, {steps} steps; root mean squares over 100 points, distances of the ensemble's "
        "mean; place: of the mean on the line from the NNGP (0) to the surrogate kernel (1)"
    )
    print(Table("Sign nets with a surrogate derivative", rows, about).to_markdown())
    return (on, beside), rows


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--members", type=int, default=100)
    asked.add_argument("--widths", type=int, nargs="+", default=[20, 50, 100])
    asked.add_argument("--steps", type=int, default=6_000)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0], help="an ensemble for each")
    main(**vars(asked.parse_args()))
