"""Does the activation decide whether features take the geometry of the targets or keep that of the inputs?

Claim: Alleman, Lindsey and Fusi, "Task structure and nonlinearity jointly determine learned representational geometry"
(ICLR 2024, arXiv 2401.13558): in nets with one hidden layer tanh units take the geometry of the targets, ReLU units keep
more of the inputs'. With few target dimensions tanh features are therefore more abstract.

Here: two latents s, t = -1 or 1, and inputs x = s a + t b + sqrt(delta) s t c + noise, scaled to the same length for each
delta; a, b, c are orthonormal. At delta = 1 the four conditions are equally far apart, at 0 they are a parallelogram on
which s t is not linear. Targets: s, the product s t (XOR), or both s and t. 100 units, all weights trained by gradient
descent on the logistic loss until it is 0.05, so that all nets are compared at one loss, from torch's own start and from
a tenth of it, which is richer. Measured on rows of their own: the centred alignment of the hidden kernel with targets and
with inputs; of each target, the parallelism score (mean cosine of the differences between the conditions of two pairs)
and cross-condition generalisation (accuracy of a linear classifier on the pair that it did not see), both for the better
way of pairing; and our own question, the distance of the first and the last tangent kernel.

    python examples/task_geometry.py [--short]
"""

import sys
from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from tauspan import Table
from tauspan.kernel import DenseKernel, TangentKernel
from tauspan.kernel.diagnose import centred_alignment, kernel_distance

WIDTH, NOISE, ROWS, MOST = 20, 0.3, 80, 40_000
CONDITIONS = torch.tensor(list(product((-1.0, 1.0), repeat=2)))  # s, t
TARGETS = {"s": (0,), "s t": (2,), "s and t": (0, 1)}
ACTIVATIONS = {"tanh": nn.Tanh, "ReLU": nn.ReLU}
MEASURES = (
    "alignment with targets",
    "alignment with inputs",
    "parallelism",
    "unseen pair",
    "kernel distance",
)


def rows(delta: float, seed: int, part: int) -> tuple[Tensor, Tensor]:
    """Inputs (80, 20), and s, t, s t for each; the conditions come in turn."""
    axes, _ = torch.linalg.qr(torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(seed)))
    draw = torch.Generator().manual_seed(1000 * (part + 1) + seed)
    latents = torch.cat([CONDITIONS, CONDITIONS.prod(1, keepdim=True)], 1).repeat(ROWS // 4, 1)
    sizes = torch.tensor([1.0, 1.0, delta**0.5]) * (3 / (2 + delta)) ** 0.5
    return (latents * sizes) @ axes.T + NOISE * torch.randn(ROWS, WIDTH, generator=draw), latents


def trained(net: nn.Sequential, x: Tensor, y: Tensor, goal: float) -> float:
    """Full-batch descent until the loss is `goal`; the loss that is reached."""
    optimiser, loss = torch.optim.SGD(net.parameters(), lr=0.1), torch.tensor(torch.inf)
    for _ in range(MOST):
        loss = functional.soft_margin_loss(net(x), y)
        if loss.item() <= goal:
            break
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return float(loss.item())


def abstract(hidden: Tensor, label: Tensor) -> tuple[float, float]:
    """Parallelism score and cross-condition generalisation of a label that two of the four conditions have."""
    one, two = ((label[:4] == side).nonzero().flatten().tolist() for side in (1, -1))
    means, place = [hidden[start::4].mean(0) for start in range(4)], torch.arange(len(label)) % 4
    cosines, right = [], []
    for other in (two, two[::-1]):
        pairs = list(zip(one, other, strict=True))
        apart = [means[a] - means[b] for a, b in pairs]
        cosines.append(float(functional.cosine_similarity(apart[0], apart[1], dim=0)))
        scores = []
        for pair in pairs:
            unseen = torch.isin(place, torch.tensor(pair))
            fitted = LogisticRegression(max_iter=2000).fit(hidden[~unseen].numpy(), label[~unseen].numpy())
            scores.append(float(fitted.score(hidden[unseen].numpy(), label[unseen].numpy())))
        right.append(fmean(scores))
    return max(cosines), max(right)


def measured(
    activation: str, target: str, delta: float, start: float, seed: int, goal: float
) -> dict[str, float]:
    """One net, on rows that it was not trained on."""
    (x, latents), (z, fresh) = rows(delta, seed, 0), rows(delta, seed, 1)
    y, wanted = latents[:, TARGETS[target]], fresh[:, TARGETS[target]]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(WIDTH, 100), ACTIVATIONS[activation](), nn.Linear(100, y.shape[1]))
        for parameter in net.parameters():
            parameter.mul_(start)
    before = TangentKernel(net, z, batch_size=ROWS).dense()
    loss = trained(net, x, y, goal)
    after = TangentKernel(net, z, batch_size=ROWS).dense()
    with torch.no_grad():
        hidden = net[:2](z).double()
    kernel, abstracts = DenseKernel(hidden @ hidden.T), [abstract(hidden, label) for label in wanted.T]
    found = (
        centred_alignment(kernel, wanted).value, centred_alignment(kernel, z).value,
        fmean(one for one, _ in abstracts), fmean(two for _, two in abstracts),
        kernel_distance(DenseKernel(before), DenseKernel(after)).value, loss,
    )  # fmt: skip
    return dict(zip((*MEASURES, "loss"), found, strict=True))


def interval(values: Sequence[float]) -> str:
    """The mean, and the 95 % interval of Student's t."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.3f} ± {half:.3f}"


def main(
    deltas: Sequence[float] = (0.0, 1.0),
    starts: Sequence[float] = (1.0, 0.1),
    seeds: int = 5,
    goal: float = 0.05,
) -> dict[str, list[dict[str, Any]]]:
    """By measure, a row for each start, target and delta, with the difference of the activations seed by seed."""
    tables: dict[str, list[dict[str, Any]]] = {what: [] for what in MEASURES}
    worst = 0.0
    for start, target, delta in product(starts, TARGETS, deltas):
        runs = {
            name: [measured(name, target, delta, start, seed, goal) for seed in range(seeds)]
            for name in ACTIVATIONS
        }
        worst = max([worst, *(run["loss"] for several in runs.values() for run in several)])
        for what, table in tables.items():
            tanh, relu = ([run[what] for run in several] for several in runs.values())
            apart = [a - b for a, b in zip(tanh, relu, strict=True)]
            cells = dict(zip((*ACTIVATIONS, "tanh - ReLU"), map(interval, (tanh, relu, apart)), strict=True))
            table.append({"start": start, "target": target, "delta": delta, **cells})
    told = f"mean and 95 % interval of {seeds} seeds" if seeds > 1 else "one seed"
    for what, table in tables.items():
        print(Table(what, table, f"{told}; largest training loss {worst:.3f}").to_markdown(), end="\n\n")
    return tables


if __name__ == "__main__":
    main(*((1.0,), (1.0, 0.1), 1, 0.2) if "--short" in sys.argv[1:] else ())
