"""Which nets keep learning features when they get wider, and at which learning rate.

Claims: Yang and Hu, "Feature learning in infinite-width neural networks", 2021 (1, 3, 4); Yang et al., "Tensor programs
V: tuning large neural networks via zero-shot hyperparameter transfer", 2022 (2).

Checked here, each with its seeds:

1. Coordinate check, widths 64 to 2048: after three steps of SGD the hidden layer that moves most has moved as n^-r, with
   r = 0 under muP, and 1/2 in the NTK parametrisation and in the standard one at the rate 1/n; at a rate that is the same
   for all widths the standard one blows up.
2. The best learning rate of Adam against width: under muP it stays, in the standard parametrisation it falls.
3. Sixty steps of a linear net end in those of a net with d + c units, with an error as 1/sqrt(n).
4. Word vectors (CBOW) of a made-up language with analogies: accuracy rises with width to that of the limit.

    python examples/width.py          # minutes
    python examples/width.py --short  # seconds
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tauspan import Table
from tauspan.kernel.diagnose import LinearNet, Parametrisation, coordinate_check, linear_limit, mup

BASE, DIM, CLASSES = 64, 20, 10
SMALL = 32  # the base width of the learning rates


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- 1. coordinates ------------------------------------------------------------------------------------------------


def coordinates(widths: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """The check for four parametrisations of a net with two hidden layers, which are one net at the base width."""
    rows = classes(128, seed=1_000)
    table = []
    for name, made in {
        "standard": Parametrisation.standard(2),
        "standard, rate 1/n": Parametrisation.standard(2, c=1),
        "NTK": Parametrisation.ntk(2),
        "muP": Parametrisation.mup(2),
    }.items():

        def build(width: int, seed: int, made: Parametrisation = made) -> nn.Module:
            return made.network(DIM, CLASSES, width, base=BASE, seed=seed)

        def optimiser(net: nn.Module, width: int, made: Parametrisation = made) -> torch.optim.Optimizer:
            return torch.optim.SGD(net.parameters(), made.rate(width, 0.5, base=BASE))

        found = coordinate_check(
            build, widths, [rows], loss=F.cross_entropy, optimiser=optimiser, seeds=seeds
        )
        slopes = {layer: found.slope(layer) for layer in ("hidden1", "hidden2", "output")}
        table.append(
            {"net": name, "says": made.regime, "r": made.r, "found": found.regime}
            | {
                layer: f"{one.value:.2f} ± {one.standard_error or 0:.2f}"
                for layer, one in slopes.items()
                if one
            }
        )
    return table


# -- 2. learning rates ---------------------------------------------------------------------------------------------


def classes(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows and the classes that a random net with one hidden layer of 32 units gives them."""
    x = gaussian(rows, DIM, seed=seed)
    first, second = gaussian(DIM, 32, seed=2_000), gaussian(32, CLASSES, seed=2_001)
    return x, (torch.tanh(x @ first / 2) @ second).argmax(1)


def mlp(width: int, seed: int) -> nn.Sequential:
    """A net of torch with its usual start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(DIM, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
        )


def trained(width: int, rate: float, seed: int, scaled: bool, steps: int) -> float:
    """The training loss after some steps of Adam, over all rows; at most log(classes), what no training gives."""
    x, y = classes(1024, seed=3_000 + seed)
    net, base = mlp(width, seed), mlp(SMALL, seed)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    if scaled:
        found = mup(net, base)
        found.rescale(net, base)
        optimiser = torch.optim.Adam(found.groups(net, rate), rate)
    order = torch.randint(len(x), (steps, 64), generator=torch.Generator().manual_seed(4_000 + seed))
    for batch in order:
        optimiser.zero_grad()
        F.cross_entropy(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        loss = float(F.cross_entropy(net(x), y))
    return min(loss, float(np.log(CLASSES)))  # also where it is not a number


class Best(NamedTuple):
    """Losses by rate, and the place of the best rate for each seed."""

    net: str
    width: int
    losses: list[float]
    best: list[int]


def rates(widths: Sequence[int], grid: Sequence[float], seeds: int, steps: int) -> list[Best]:
    """Both parametrisations at every width, rate and seed."""
    found = []
    for name, scaled in (("standard", False), ("muP", True)):
        for width in widths:
            losses = np.array([[trained(width, r, s, scaled, steps) for r in grid] for s in range(seeds)])
            found.append(Best(name, width, losses.mean(0).tolist(), losses.argmin(1).tolist()))
    return found


# -- 3. the linear limit -------------------------------------------------------------------------------------------


def path(net: LinearNet, x: Tensor, y: Tensor, steps: int = 60) -> Tensor:
    """Outputs along SGD."""
    optimiser, found = torch.optim.SGD(net.parameters(), 0.3), []
    for _ in range(steps):
        optimiser.zero_grad()
        ((net(x) - y).square().sum() / (2 * len(x))).backward()
        optimiser.step()
        found.append(net(x).detach())
    return torch.stack(found)


def linear_errors(widths: Sequence[int], seeds: int) -> list[dict[str, float]]:
    """The relative error of the whole path at each width."""
    x, y = gaussian(20, 6, seed=5_000).double(), gaussian(20, 2, seed=5_001).double()
    start, limit = linear_limit(6, 2), linear_limit(6, 2)
    wanted, rows = path(limit, x, y), []
    for width in widths:
        errors = [
            float((path(start.sample(width, seed), x, y) - wanted).norm() / wanted.norm())
            for seed in range(seeds)
        ]
        mean = float(np.mean(errors))
        rows.append(
            {
                "width": width,
                "error": mean,
                "sd": float(np.std(errors, ddof=1)),
                "error x sqrt(n)": mean * width**0.5,
            }
        )
    return rows


# -- 4. word vectors -----------------------------------------------------------------------------------------------


class Language(NamedTuple):
    """Bags of words with the word in their middle, as rows that are weighted by how often they occur."""

    bags: Tensor
    middle: Tensor
    pairs: int


def language(pairs: int = 24, sentences: int = 2_000, seed: int = 0) -> Language:
    """Pairs of words, a city and its state: a pair has marks of its own, and a kind has marks that all pairs share.

    The middle word of a bag is a city or a state; the others are marks of its pair and of its kind, and noise. In half of
    the bags it is inside, and one of the others is asked for.
    """
    generator = np.random.default_rng(seed)
    per, kinds, noise = 3, 8, 40
    words = 2 * pairs + per * pairs + 2 * kinds + noise
    bags, middle = np.zeros((sentences, words)), np.zeros(sentences, dtype=np.int64)
    for row in range(sentences):
        pair, kind = int(generator.integers(pairs)), int(generator.integers(2))
        middle[row] = 2 * pair + kind
        own = 2 * pairs + per * pair + generator.integers(per, size=2)
        shared = 2 * pairs + per * pairs + kinds * kind + generator.integers(kinds, size=2)
        rest = words - noise + generator.integers(noise, size=2)
        for word in (*own, *shared, *rest):
            bags[row, word] += 1 / 6
    swapped = generator.random(sentences) < 0.5
    for row in np.flatnonzero(swapped).tolist():
        asked = int(generator.choice(np.flatnonzero(bags[row])))
        bags[row, asked] -= 1 / 6
        bags[row, middle[row]] += 1 / 6
        middle[row] = asked
    return Language(torch.tensor(bags, dtype=torch.float32), torch.tensor(middle), pairs)


def analogies(net: LinearNet, known: Language) -> float:
    """How often state a - city a + city b is nearest to state b, among all words but these three."""
    vectors = F.normalize(net.embedding.detach().T, dim=1)
    city, state = vectors[0 : 2 * known.pairs : 2], vectors[1 : 2 * known.pairs : 2]
    asked = state[:, None] - city[:, None] + city[None]  # pairs a, b
    scores = asked @ vectors.T
    for a in range(known.pairs):  # the three words of the question are no answers
        scores[a, :, [2 * a, 2 * a + 1]] = -torch.inf
        scores[a, torch.arange(known.pairs), 2 * torch.arange(known.pairs)] = -torch.inf
    right = scores.argmax(2) == (2 * torch.arange(known.pairs) + 1)
    return float(right[~torch.eye(known.pairs, dtype=torch.bool)].float().mean())


def cbow(net: LinearNet, known: Language, steps: int, rate: float = 40.0) -> float:
    """Analogies right after steps of SGD on all bags; many more steps than here make them worse, in the limit too."""
    optimiser = torch.optim.SGD(net.parameters(), rate)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(net(known.bags), known.middle).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return analogies(net, known)


def word_vectors(widths: Sequence[int], seeds: int, steps: int, known: Language) -> list[dict[str, Any]]:
    """The accuracy at each width, and that of the limit."""
    words = known.bags.shape[1]

    def start() -> LinearNet:
        return linear_limit(words, words, readout_std=0, dtype=torch.float32)

    rows: list[dict[str, Any]] = []
    for width in widths:
        found = [cbow(start().sample(width, seed), known, steps) for seed in range(seeds)]
        rows.append({"units": str(width), "right": float(np.mean(found)), "sd": float(np.std(found, ddof=1))})
    rows.append({"units": f"limit ({words})", "right": cbow(start(), known, steps), "sd": None})
    return rows


# -- all of it -----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What `main` found."""

    coordinates: list[dict[str, Any]]
    rates: list[Best]
    linear: list[dict[str, float]]
    words: list[dict[str, Any]]


def show(title: str, rows: Sequence[dict[str, Any]], note: str) -> None:
    print(Table(title, rows, note).to_markdown(), "\n")


def show_rates(best: Sequence[Best], grid: Sequence[float]) -> None:
    names = [f"2^{np.log2(rate):.0f}" for rate in grid]
    rows: list[dict[str, Any]] = [
        {
            "net": one.net, "width": one.width, "best rate by seed": ", ".join(names[place] for place in one.best),
            "of the mean": names[int(np.argmin(one.losses))], "loss there": min(one.losses),
        }
        for one in best
    ]  # fmt: skip
    show("Best learning rate of Adam", rows, "By training loss.")
    rows = [{"net": f"{one.net} {one.width}", **dict(zip(names, one.losses, strict=True))} for one in best]
    show("Training loss by rate", rows, "Mean over seeds; log 10 is 2.303.")


def main(short: bool = False) -> Found:
    checked = coordinates((64, 256, 1024) if short else (64, 128, 256, 512, 1024, 2048), seeds=3)
    note = "Slopes of log RMS(h_3 - h_0) in log n, ± standard error over 3 seeds; the exponents say -r."
    show("Movement of features", checked, note)
    grid = [2.0**-k for k in ((9, 7, 5) if short else (10, 9, 8, 7, 6, 5, 4))]
    narrow = (SMALL, 256) if short else (SMALL, 128, 512)
    best = rates(narrow, grid, seeds=1 if short else 3, steps=20 if short else 50)
    show_rates(best, grid)
    errors = linear_errors(
        (64, 256, 1024) if short else (64, 256, 1024, 4096, 16384), seeds=3 if short else 5
    )
    sizes, means = (np.log([row[name] for row in errors]) for name in ("width", "error"))
    show("Linear net against its limit of 8 units", errors, f"Slope {np.polyfit(sizes, means, 1)[0]:.3f}.")
    known = language(pairs=10, sentences=500) if short else language()
    words = word_vectors((4, 64) if short else (4, 16, 64, 256), 3, 20 if short else 50, known)
    show("Analogies of word vectors", words, f"Nearest word by cosine; chance {1 / known.bags.shape[1]:.3f}.")
    return Found(checked, best, errors, words)


if __name__ == "__main__":
    main("--short" in sys.argv[1:])
