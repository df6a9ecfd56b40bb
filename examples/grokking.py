"""Grokking as the transition from lazy to rich training: a net that fits at once and generalises late.

Claim: Kumar, Bordelon, Gershman and Pehlevan, "Grokking as the Transition from Lazy to Rich Training Dynamics", ICLR
2024, arXiv 2310.06110, on their polynomial toy:

    f(x) = alpha/N sum_i phi(w_i . x) - (the same at the start),   phi(h) = h + eps/2 h^2,   y = (beta . x)^2 / 2

x ~ N(0, I/D), beta and w_i ~ N(0, I), W alone is trained, by full-batch gradient descent on the mean squared error with
learning rate N / alpha^2. The first kernel prefers linear functions and the target is quadratic, so the tangent model
interpolates the training rows without learning the target; the net does the same at first, and learns it once its
kernel moves, later for larger alpha.

Checked here, for eps = 0.25, three alphas and three seeds, in D = 50 dimensions (the paper's code has 100) with as many
rows for each dimension as there, P = 275:

1. For every seed, a larger alpha takes longer from a training loss below 10 % of the null loss to a test loss below 50 %.
2. The tangent model (`Modes.descent`, the same steps) fits the training rows, and its population loss never falls below
   the null loss, that of the best constant.
3. The population loss falls below half while the alignment of the net's kernel with the targets rises: between 10 % and
   90 % of its rise.
4. The kernel of every net that generalises has changed by more than 5 %, relative to the first one.
5. For every seed, a net with a larger alpha leaves its linearisation later (`trajectory`, tolerance 10 %).

Every w_i moves by one affine map, w_i(t) = Q_t w_i(0) + q_t, because phi' is affine. So a step costs the same for any N:
it needs the means wbar = mean w_i and M = mean w_i w_i^T alone. Everything is float64.

    python examples/grokking.py [FOLDER]   # 1.5 minutes on one core; report.json goes into the folder
    python examples/grokking.py --short    # seconds: one seed, smaller sizes
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tauspan import Report, Table
from tauspan.kernel import DenseKernel, Modes
from tauspan.kernel.diagnose import (
    GradientDescent,
    Trajectory,
    centred_alignment,
    kernel_change,
    kernel_distance,
    spaced_steps,
    trajectory,
)

EPS = 0.25
OTHERS = 100  # test rows of `trajectory`; other test losses are of the whole population


@dataclass(frozen=True)
class Sizes:
    """How large the toy is: dimensions D, training rows P, units N, steps, and marks at which kernels are looked at."""

    size: int = 50
    rows: int = 275
    width: int = 500
    steps: int = 5000
    marks: int = 24
    alphas: tuple[float, ...] = (0.25, 1.0, 4.0)
    seeds: int = 3


SHORT = Sizes(16, 88, 100, 400, 12, (0.25, 1.0), 1)


class Toy(nn.Module):
    """alpha/N sum_i (phi(w_i . x) - phi(w_i(0) . x)), of which W is trained; outputs have shape (P, 1)."""

    def __init__(self, start: Tensor, alpha: float, eps: float = EPS) -> None:
        super().__init__()
        self.layer = nn.Linear(start.shape[1], len(start), bias=False, dtype=start.dtype)
        self.layer.weight = nn.Parameter(start.clone())
        self.start: Tensor
        self.register_buffer("start", start.clone())
        self.alpha, self.eps = alpha, eps

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self._units(self.layer(x)) - self._units(x @ self.start.T))

    def _units(self, h: Tensor) -> Tensor:
        return (h + self.eps / 2 * h.square()).mean(1, keepdim=True)


@dataclass(frozen=True)
class Means:
    """The sufficient statistics of W: wbar, shape (D,), and M, shape (D, D)."""

    first: Tensor
    second: Tensor

    def values(self, x: Tensor, eps: float = EPS) -> Tensor:
        """Mean phi(w_i . x) = wbar . x + eps/2 x^T M x."""
        return x @ self.first + eps / 2 * ((x @ self.second) * x).sum(1)

    def kernel(self, x: Tensor, y: Tensor, eps: float = EPS) -> Tensor:
        """x.y (1 + eps wbar.(x + y) + eps^2 x^T M y): the tangent kernel over alpha^2 / N."""
        first, second = x @ self.first, y @ self.first
        return (x @ y.T) * (1 + eps * (first[:, None] + second[None]) + eps**2 * (x @ self.second @ y.T))


def population_loss(b: Tensor, a: Tensor, beta: Tensor) -> float:
    """E (b . x + x^T a x / 2 - y)^2 over x ~ N(0, I/D), exactly: |b|^2 / D + (tr(A)^2 + 2 tr(A^2)) / (4 D^2).

    By Gaussian moments, with A = a - beta beta^T and a symmetric.
    """
    size, apart = len(beta), a - torch.outer(beta, beta)
    return float(b @ b / size + (apart.trace() ** 2 + 2 * apart.square().sum()) / (4 * size**2))


def of_net(now: Means, start: Means, alpha: float, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """The net as b . x + x^T a x / 2."""
    return alpha * (now.first - start.first), alpha * eps * (now.second - start.second)


def of_tangent(start: Means, x: Tensor, dual: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """The tangent model K_0(., x) dual in the same form: its kernel is of second degree in the row."""
    weighted = x.T @ dual
    b = weighted + eps * (x.T @ (dual * (x @ start.first)))
    a = 2 * eps * torch.outer(start.first, weighted) + 2 * eps**2 * start.second @ (x.T @ (dual[:, None] * x))
    return b, (a + a.T) / 2


@dataclass(frozen=True)
class World:
    """Rows, targets and first weights of a seed."""

    x: Tensor
    y: Tensor
    other: Tensor
    wanted: Tensor
    beta: Tensor
    weights: Tensor

    @staticmethod
    def of(sizes: Sizes, seed: int) -> "World":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x, other = (normal(count, sizes.size) / math.sqrt(sizes.size) for count in (sizes.rows, OTHERS))
        beta, weights = normal(sizes.size), normal(sizes.width, sizes.size)
        return World(x, (x @ beta).square() / 2, other, (other @ beta).square() / 2, beta, weights)

    def means(self, q: Tensor, shift: Tensor) -> Means:
        """The statistics of the weights Q w_i + q."""
        first = self.weights.mean(0)
        second = self.weights.T @ self.weights / len(self.weights)
        moved = q @ first
        crossed = torch.outer(moved, shift)
        return Means(moved + shift, q @ second @ q.T + crossed + crossed.T + torch.outer(shift, shift))


def steps_of(world: World, alpha: float, count: int) -> Iterator[tuple[int, Tensor, Tensor, Means, Tensor]]:
    """Gradient descent: (step, Q, q, means, f - y on the training rows).

    dL/dw_i = 2 alpha / (N P) sum_p (f_p - y_p) (1 + eps w_i . x_p) x_p, so that with learning rate N / alpha^2
    w_i <- (I - c eps A) w_i - c g, c = 2 / alpha, A = mean (f - y) x x^T, g = mean (f - y) x.
    """
    size = world.x.shape[1]
    q, shift = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    start = world.means(q, shift).values(world.x)
    for step in range(count + 1):
        now = world.means(q, shift)
        residual = alpha * (now.values(world.x) - start) - world.y
        yield step, q, shift, now, residual
        weighted = residual[:, None] * world.x
        a, g, c = world.x.T @ weighted / len(world.x), weighted.mean(0), 2 / alpha
        q, shift = q - c * EPS * (a @ q), shift - c * EPS * (a @ shift) - c * g


@dataclass
class Run:
    """One alpha and one seed.

    Args:
        nulls: the variance of the targets, of the training rows and of the population: losses of the best constants.
        fits: the first step with a training loss below 10 % of the null loss.
        generalises: the first step with a population loss below half of the null loss.
        train, test: of the last step over the null loss; test is that of the whole population.
        lazy_train, lazy_test, lazy_least: of the tangent model after the same steps; its least test loss of all steps.
        aligned: the kernel's alignment at the start and at the end.
        rises: between which steps it goes from 10 % to 90 % of its rise.
        change, distance: |K - K_0| / |K_0| and 1 - cosine at the end.
        path: what `trajectory` found on every second mark.
    """

    alpha: float
    seed: int
    fits: int | None = None
    generalises: int | None = None
    nulls: tuple[float, float] = (1.0, 1.0)
    train: float = 0.0
    test: float = 0.0
    lazy_train: float = 0.0
    lazy_test: float = 0.0
    lazy_least: float = math.inf
    aligned: tuple[float, float] = (0.0, 0.0)
    rises: tuple[float, float] = (0.0, 0.0)
    change: float = 0.0
    distance: float = 0.0
    path: Trajectory | None = None

    @property
    def delay(self) -> int | None:
        """Steps between fitting and generalising."""
        return None if self.fits is None or self.generalises is None else self.generalises - self.fits

    @property
    def delay_or_inf(self) -> float:
        """The delay; infinite where the net does not generalise in these steps."""
        return math.inf if self.delay is None else self.delay

    @property
    def left(self) -> float:
        """The step at which the net leaves its linearisation; infinite where it does not."""
        step = None if self.path is None else self.path.leaves.step
        return math.inf if step is None else step


def trained(sizes: Sizes, alpha: float, seed: int) -> Run:
    """Train one net, and its tangent model in closed form."""
    world, run = World.of(sizes, seed), Run(alpha, seed)
    marks, kernels, points = spaced_steps(sizes.steps, sizes.marks), [], []
    run.nulls = float(world.y.var(correction=0)), float(world.beta.square().mean() ** 2 / 2)
    first: Means | None = None
    for step, q, shift, now, residual in steps_of(world, alpha, sizes.steps):
        first = first or now
        run.train = float(residual.square().mean()) / run.nulls[0]
        run.test = population_loss(*of_net(now, first, alpha), world.beta) / run.nulls[1]
        if run.fits is None and run.train < 0.1:
            run.fits = step
        if run.generalises is None and run.test < 0.5:
            run.generalises = step
        if step in marks:
            kernels.append((step, DenseKernel(now.kernel(world.x, world.x))))
            points.append((step, {"layer.weight": world.weights @ q.T + shift}))
    assert first is not None
    lazy(run, world, first, range(0, sizes.steps + 1, max(1, sizes.steps // 200)))
    moved(run, world, kernels)
    followed = (world.other, world.wanted[:, None])
    run.path = trajectory(
        Toy(world.weights, alpha), [*points[:-1:2], points[-1]], world.x, world.y[:, None], test=followed,
        descent=GradientDescent(sizes.width / alpha**2), batch_size=sizes.rows,
    )  # fmt: skip
    return run


def lazy(run: Run, world: World, start: Means, marks: Sequence[int]) -> None:
    """The tangent model's losses; its kernel is alpha^2 / N of `Means.kernel`, and so is 1 / (the learning rate)."""
    kernel = start.kernel(world.x, world.x)
    modes = Modes.of(DenseKernel(kernel))
    for step in marks:
        dual = modes.descent(world.y, step, 2 / len(world.y))
        run.lazy_train = float((kernel @ dual - world.y).square().mean()) / run.nulls[0]
        run.lazy_test = population_loss(*of_tangent(start, world.x, dual), world.beta) / run.nulls[1]
        run.lazy_least = min(run.lazy_least, run.lazy_test) if step else math.inf


def moved(run: Run, world: World, kernels: Sequence[tuple[int, DenseKernel]]) -> None:
    """How the kernel moves, and between which steps its alignment goes from 10 % to 90 % of its rise."""
    start, last = kernels[0][1], kernels[-1][1]
    steps = [math.log(1 + step) for step, _ in kernels]
    found = [centred_alignment(kernel, world.y).value for _, kernel in kernels]
    run.aligned = found[0], found[-1]

    def at(share: float) -> float:
        wanted = found[0] + share * (found[-1] - found[0])
        place = next(place for place in range(1, len(found)) if found[place] >= wanted)
        part = (wanted - found[place - 1]) / (found[place] - found[place - 1])
        return math.exp(steps[place - 1] + part * (steps[place] - steps[place - 1])) - 1

    run.rises = at(0.1), at(0.9)
    run.change, run.distance = kernel_change(start, last).value, kernel_distance(start, last).value


def lines(sizes: Sizes, runs: Sequence[Run]) -> list[tuple[str, list[bool]]]:
    """The claims, each with whether a pair of neighbouring alphas, or a run, bears it out."""
    pairs = [
        pair for seed in range(sizes.seeds) for pair in pairwise([run for run in runs if run.seed == seed])
    ]
    later = [run for run in runs if run.delay is not None]
    return [
        (
            "1 a larger alpha delays generalisation",
            [one.delay_or_inf < two.delay_or_inf for one, two in pairs],
        ),
        (
            "2 the tangent model fits and never generalises",
            [run.lazy_train < 0.1 and run.lazy_least > 1 for run in runs],
        ),
        (
            "3 the test loss halves while the alignment rises",
            [run.rises[0] < (run.generalises or math.inf) < run.rises[1] for run in runs],
        ),
        ("4 the kernel of a net that generalises has changed", [run.change > 0.05 for run in later]),
        ("5 a larger alpha leaves the linearisation later", [one.left < two.left for one, two in pairs]),
    ]


def tables(sizes: Sizes, runs: Sequence[Run]) -> list[Table]:
    """What came out, run by run, and claim by claim."""
    fitted: list[dict[str, Any]] = [
        {
            "alpha": run.alpha, "seed": run.seed, "fits": run.fits, "halves": run.generalises, "delay": run.delay,
            "train": run.train, "test": run.test, "lazy train": run.lazy_train, "lazy test": run.lazy_least,
        }
        for run in runs
    ]  # fmt: skip
    kernels: list[dict[str, Any]] = [
        {
            "alpha": run.alpha, "seed": run.seed, "start": run.aligned[0], "end": run.aligned[1],
            "10 %": round(run.rises[0]), "halves": run.generalises, "90 %": round(run.rises[1]), "change": run.change,
            "turned": run.distance, "leaves": None if math.isinf(run.left) else round(run.left),
        }
        for run in runs
    ]  # fmt: skip
    said: list[dict[str, Any]] = [
        {
            "claim": words,
            "borne out": f"{sum(held)} of {len(held)}",
            "": "confirmed" if all(held) else "not confirmed",
        }
        for words, held in lines(sizes, runs)
    ]
    about = (
        f"D = {sizes.size}, P = {sizes.rows}, N = {sizes.width}, eps = {EPS:g}, {sizes.steps} steps; losses over the "
        "null loss, that of the best constant. fits: first step with a training loss below 10 %; halves: with a loss "
        "on the population below 50 %; train, test: at the last step; lazy: the tangent model, its training loss at "
        "the last step, its least population loss of all steps."
    )
    meant = (
        "start, end: the kernel's centred alignment with the targets; 10 %, 90 %: steps between which it rises by that "
        "much of the whole rise; change: |K - K_0| / |K_0|, turned: 1 - cosine, at the end; leaves: the step at which "
        "the net leaves its linearisation by 10 %."
    )
    return [
        Table("Losses", fitted, about), Table("Kernels", kernels, meant),
        Table("Line by line", said, "1 and 5: pairs of neighbouring alphas; the others: runs."),
    ]  # fmt: skip


def main(sizes: Sizes = Sizes(), folder: str | None = None) -> list[Run]:
    runs = [trained(sizes, alpha, seed) for seed in range(sizes.seeds) for alpha in sizes.alphas]
    series = [
        {**run.path.report().series[0], "title": f"alpha = {run.alpha:g}"}
        for run in runs
        if run.seed == 0 and run.path is not None
    ]
    report = Report("Grokking as lazy to rich", tables(sizes, runs), {"sizes": vars(sizes)}, series)
    for table in report.tables:
        print(table.to_markdown(), end="\n\n")
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "report.json").write_text(report.to_json(), encoding="utf-8")
    return runs


if __name__ == "__main__":
    named = [one for one in sys.argv[1:] if one != "--short"]
    main(SHORT if "--short" in sys.argv else Sizes(), named[0] if named else None)
