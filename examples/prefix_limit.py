"""Does a long prefix of an attention layer train as its tangent kernel, and is NTK-Attention its limit?

Claims: Liang, Shi, Song and Yang, "Toward infinite-long prefix in transformer", 2024 (arXiv 2406.14036). A prefix of m
keys k_p and values v_p gives f(q) = (D0 out0 + sum_p e^{s q.k_p} v_p) / (D0 + sum_p e^{s q.k_p}), where D0 and out0 come
from the row's own tokens. As m grows, training it tends to descent along a neural tangent kernel; NTK-Attention puts
phi(q) Z and phi(q).kappa in the place of both sums, with phi(q) = ELU(q) + 1, and is "equivalent" to any length.

Checked here, in one head with 8 entries, rows of one query (s |q| = 0.7) with 8 own tokens, and scalar values:

1. The tangent kernel of a normal prefix has a limit, at rate 1/sqrt(m). For keys N(0, I) and values N(0, 1), m K tends to
   e^{s^2 q.q'} (1 + s^2 q.q').
2. A prefix that is trained on 12 rows comes near the descent along that limit, on 48 others. With the output as it is
   (scale 1), and with the output times sqrt(m), as the NTK parametrisation has it.
3. Trained NTK-Attention gives what a trained long prefix gives.
4. (Z, kappa) that are made of a given prefix give its output, with an error that falls with m.

    python examples/prefix_limit.py          # minutes
    python examples/prefix_limit.py --short  # seconds
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tauspan import Table
from tauspan.kernel import TangentKernel
from tauspan.prefix import FeatureMap

SIZE, OWN, TRAIN, TEST = 8, 8, 12, 48
SCALE = SIZE**-0.5  # s
QUERY = 2.0  # |q|
RATE = 0.2  # of descent, times the largest eigenvalue of the kernel
MAPS = {
    "ELU + 1": FeatureMap("elu"),
    "Taylor 2": FeatureMap("taylor"),
    "positive, r = 256": FeatureMap("positive", 256),
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(count: int, seed: int) -> Tensor:
    """A query and own tokens, each with its value: (count, 1 + OWN, SIZE + 1)."""
    x = normal(count, 1 + OWN, SIZE + 1, seed=seed)
    x[:, 0] *= QUERY / x[:, :1, :SIZE].norm(dim=2)
    return x


def own(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (N, SIZE), and D0 and D0 out0 of the rows' own tokens, (N)."""
    query = x[:, 0, :SIZE]
    weights = (SCALE * x[:, 1:, :SIZE] @ query[..., None])[..., 0].exp()
    return query, weights.sum(1), (weights * x[:, 1:, SIZE]).sum(1)


class LongPrefix(nn.Module):
    """scale f of a prefix of m keys and values."""

    def __init__(self, length: int, scale: float, seed: int) -> None:
        super().__init__()
        self.scale, self.tokens = scale, nn.Parameter(normal(length, SIZE + 1, seed=seed))

    def forward(self, x: Tensor) -> Tensor:
        query, mass, sums = own(x)
        weights = (SCALE * query @ self.tokens[:, :SIZE].T).exp()
        return self.scale * ((sums + weights @ self.tokens[:, SIZE]) / (mass + weights.sum(1)))[:, None]

    def share(self, x: Tensor) -> float:
        """The attention that the rows' own tokens get, in the mean."""
        query, mass, _ = own(x)
        weights = (SCALE * query @ self.tokens.detach()[:, :SIZE].T).exp()
        return float((mass / (mass + weights.sum(1))).mean())


class NtkAttention(nn.Module):
    """f of (Z, kappa), which start at 0."""

    def __init__(self, phi: FeatureMap) -> None:
        super().__init__()
        self.phi, start = phi, torch.zeros(phi.width(SIZE), dtype=torch.float64)
        self.z, self.kappa = nn.Parameter(start.clone()), nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        query, mass, sums = own(x)
        features = self.phi(query * SCALE**0.5)
        return ((sums + features @ self.z) / (mass + features @ self.kappa))[:, None]


def limit(x: Tensor, z: Tensor) -> Tensor:
    """lim m K."""
    products = SCALE**2 * x[:, 0, :SIZE] @ z[:, 0, :SIZE].T
    return products.exp() * (1 + products)


def target(x: Tensor, seed: int) -> Tensor:
    """A wave of the query, of root mean square near 0.35."""
    return 0.5 * torch.sin(x[:, 0, :SIZE] @ normal(SIZE, seed=seed) / 2)


def descended(kernel: Tensor, cross: Tensor, y: Tensor, steps: int) -> Tensor:
    """What descent along a fixed kernel gives on other rows, at the rate RATE / its largest eigenvalue."""
    rate, alpha = RATE / float(torch.linalg.eigvalsh(kernel)[-1]), torch.zeros_like(y)
    for _ in range(steps):
        alpha = alpha + rate * (y - kernel @ alpha)
    return cross @ alpha


def trained(net: nn.Module, x: Tensor, y: Tensor, z: Tensor, steps: int) -> Tensor:
    """What a net's outputs change by on other rows, in the same descent on all its parameters."""
    rate = RATE / float(torch.linalg.eigvalsh(TangentKernel(net, x, check="off").dense())[-1])
    with torch.no_grad():
        start, before = net(x), net(z)
    optimiser = torch.optim.SGD(net.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        (0.5 * ((net(x) - start)[:, 0] - y).square().sum()).backward()
        optimiser.step()
    with torch.no_grad():
        return (net(z) - before)[:, 0]


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


Found = dict[str, list[dict[int, float]]]  # by column, for each seed, by length


def slope(of: dict[int, float]) -> float:
    """Of log value in log length."""
    return float(np.polyfit(np.log(list(of)), np.log(list(of.values())), 1)[0])


def trainings(lengths: Sequence[int], steps: int, seeds: int) -> tuple[Found, Found]:
    """Distances to the limit, and distances to the trained prefix at scale 1."""
    near: Found = {name: [] for name in ("kernel", "scale 1", "scale sqrt(m)")}
    others: Found = {name: [] for name in ("another prefix", *MAPS, "share of own tokens")}
    for seed in range(seeds):
        x, z = rows(TRAIN, 1_000 + seed), rows(TEST, 2_000 + seed)
        y = target(x, 3_000 + seed)
        wanted = descended(limit(x, x), limit(z, x), y, steps)
        mapped = {name: trained(NtkAttention(phi), x, y, z, steps) for name, phi in MAPS.items()}
        for column in (*near.values(), *others.values()):
            column.append({})
        for m in lengths:
            net = LongPrefix(m, 1.0, seed)
            kernel, share = m * TangentKernel(net, x, check="off").dense(), net.share(x)
            real, other, scaled = (
                trained(LongPrefix(m, scale, draw), x, y, z, steps)
                for scale, draw in ((1.0, seed), (1.0, 500 + seed), (m**0.5, seed))
            )
            near["kernel"][-1][m] = apart(kernel, limit(x, x))
            near["scale 1"][-1][m], near["scale sqrt(m)"][-1][m] = apart(real, wanted), apart(scaled, wanted)
            others["another prefix"][-1][m], others["share of own tokens"][-1][m] = apart(other, real), share
            for name, found in mapped.items():
                others[name][-1][m] = apart(found, real)
    return near, others


def given(lengths: Sequence[int], seeds: int, related: bool) -> Found:
    """Root mean square errors of (Z, kappa) made of a prefix, and of its mean value in the place of attention.

    Args:
        lengths: of prefixes.
        seeds: of rows and prefixes.
        related: values that follow their keys; else they are normal.
    """
    errors: Found = {name: [] for name in ("mean value", *MAPS)}
    for seed in range(seeds):
        query, mass, sums = own(rows(TEST, 2_000 + seed))
        for column in errors.values():
            column.append({})
        for m in lengths:
            tokens = normal(m, SIZE + 1, seed=4_000 + seed)
            keys, values = tokens[:, :SIZE], tokens[:, SIZE]
            if related:
                values = torch.tanh(keys @ normal(SIZE, seed=5_000 + seed))
            weights = (SCALE * query @ keys.T).exp()
            exact = (sums + weights @ values) / (mass + weights.sum(1))
            found = {"mean value": values.mean().expand(TEST)}
            for name, phi in MAPS.items():
                features, kept = phi(query * SCALE**0.5), phi(keys * SCALE**0.5)
                found[name] = (sums + features @ (kept.T @ values)) / (mass + features @ kept.sum(0))
            for name, one in found.items():
                errors[name][-1][m] = float((one - exact).square().mean().sqrt())
    return errors


def show(title: str, found: Found, note: str) -> None:
    """A table of means ± standard deviations over seeds, with the mean slope in the last row."""
    lines: list[dict[str, Any]] = []
    for m in next(iter(found.values()))[0]:
        values = {name: np.array([one[m] for one in column]) for name, column in found.items()}
        lines.append(
            {"m": str(m)} | {name: f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for name, v in values.items()}
        )
    slopes = {name: np.array([slope(one) for one in column]) for name, column in found.items()}
    lines.append(
        {"m": "slope"} | {name: f"{v.mean():.2f} ± {v.std(ddof=1):.2f}" for name, v in slopes.items()}
    )
    print(Table(title, lines, note).to_markdown(), "\n")


class Limits(NamedTuple):
    """What `main` found."""

    near: Found
    others: Found
    related: Found
    unrelated: Found


def main(short: bool = False) -> Limits:
    lengths, steps, seeds = ((16, 256), 100, 2) if short else ((16, 64, 256, 1024, 4096), 800, 3)
    near, others = trainings(lengths, steps, seeds)
    about = f"{seeds} seeds, {steps} steps; relative distances, ± standard deviation over seeds"
    show("A prefix against the limit", near, f"{about}; of m K, and of outputs on {TEST} other rows.")
    show("Against the trained prefix at scale 1", others, f"{about}; the share at the start.")
    far = (16, 256) if short else (16, 256, 4096, 65536)
    related, unrelated = (given(far, seeds, one) for one in (True, False))
    note = f"{seeds} seeds; root mean square errors of the output, ± standard deviation over seeds."
    show("A given prefix as (Z, kappa), values that follow keys", related, note)
    show("A given prefix as (Z, kappa), values that do not", unrelated, note)
    return Limits(near, others, related, unrelated)


if __name__ == "__main__":
    main("--short" in sys.argv[1:])
