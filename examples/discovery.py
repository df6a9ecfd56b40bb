"""Rounds of discovery whose vectors are merged: coloured digits, where the easiest feature misleads.

Claim: Zhang, Lopez-Paz and Bottou, "Rich Feature Construction for the Optimization-Generalization Dilemma", ICML 2022
(arXiv 2203.15516). Plain training learns the colour. A second round on what it has right and wrong finds the shape.
One net distilled from both rounds has rich features, on which methods that ask for the same predictor in every
environment work, where they fail from a random start. Asked here besides: does *merging* the rounds' vectors do what
distilling them does?

scikit-learn's digits, 8 x 8 in one of two colours: the label is whether the digit is 5 or more, wrong for 25 % of the
rows. The colour is the label, wrong for 10 % and 20 % of the rows of two training environments (600 rows each) and for
90 % in a third one. The 597 other rows are shown in all three; the worst of the three accuracies counts. Colour alone has
0.1, chance 0.5, and the best that shape can have is 0.75. No test row chooses anything here; steps, learning rate and the
rate of the groups were set while looking at three other seeds.

The net is 128-64-64 with ReLU, from a random start, under a frozen head that all rounds share. The paper has 14 x 14
MNIST, 390 units, nets of their own for the rounds, 50 and 500 steps, and five weights of a penalty; here it is one.

    python examples/discovery.py [--seeds 10] [--regime linear]   # under four minutes on one core
    python examples/discovery.py --short                          # half a minute: two seeds, a quarter of the steps
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

import tauspan as ts
from tauspan.sequence import WorstGroup, discover

FLIPS = (0.1, 0.2, 0.9)  # how often the colour is not the label, by environment; the first two train
EACH, STEPS, BATCH = 600, 200, 300
FIRST = 100  # the first seed
PENALTY = 1e3  # of IRMv1
T_95 = {2: 12.706, 3: 4.303, 5: 2.776, 10: 2.262}  # Student's, two-sided, by seeds

Rows = tuple[Tensor, Tensor]
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class World:
    """One seed: training rows of two environments, test rows of three, a base and two frozen heads."""

    train: Rows
    tests: Mapping[str, Rows]
    base: ts.Encoder
    heads: Sequence[ts.Head]

    @staticmethod
    def of(seed: int) -> "World":
        """Everything that the seed decides."""
        draw = torch.Generator().manual_seed(seed)
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=draw)
        x = torch.tensor(digits.images / 16, dtype=torch.float32).flatten(1)[order]
        clean = torch.tensor(digits.target)[order] >= 5
        y = (clean ^ (torch.rand(len(x), generator=draw) < 0.25)).long()

        def coloured(rows: slice, flip: float) -> Rows:
            colour = y[rows] ^ (torch.rand(len(y[rows]), generator=draw) < flip)
            shown = torch.zeros(len(colour), 2, x.shape[1])
            shown[torch.arange(len(colour)), colour] = x[rows]
            return shown.flatten(1), y[rows]

        parts = [coloured(slice(place * EACH, (place + 1) * EACH), FLIPS[place]) for place in (0, 1)]
        tests = {f"{flip:g}": coloured(slice(2 * EACH, None), flip) for flip in FLIPS}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        heads = [ts.Head(torch.randn(2, 64, generator=draw) / 8, scale=4.0) for _ in range(2)]
        x_train, y_train = (torch.cat(part) for part in zip(*parts, strict=True))
        return World((x_train, y_train), tests, ts.load(net), heads)

    def task(self, labels: Tensor | None = None, head: int = 0, name: str = "digits") -> ts.Task:
        """The training rows, with labels of their own if they are given; a few of them stand for validation."""
        x, y = self.train[0], self.train[1] if labels is None else labels
        few = (x[:32], y[:32])
        return ts.Task.from_tensors(
            name, ["low", "high"], head=self.heads[head], train=(x, y), validation=few, test=few
        )

    def features(self, vector: ts.TaskVector) -> Features:
        """What the edited encoder makes of rows."""
        edited = ts.apply(self.base, vector)
        return lambda x: edited(x).detach()

    def scores(self, logits: Features) -> list[float]:
        """The accuracy in each test environment."""
        return [float((logits(x).argmax(1) == y).double().mean()) for x, y in self.tests.values()]


def distilled(world: World, rights: Sequence[Tensor], settings: ts.Settings) -> ts.TaskVector:
    """One vector under a head for each of two rounds, from their own labels; half the weight is where they differ."""
    y = world.train[1]
    given = [torch.where(right, y, 1 - y) for right in rights]
    apart = given[0] != given[1]
    weights = torch.where(apart, 0.5 / apart.double().mean(), 0.5 / (~apart).double().mean())
    tasks = [world.task(labels, place, f"round {place}") for place, labels in enumerate(given)]
    return ts.finetune(world.base, tasks, settings, weights=weights.repeat(2)).task_vector


def read(features: Features, rows: Rows, method: str, groups: Sequence[Tensor], steps: int) -> Features:
    """A linear map of frozen features, standardised, by full-batch Adam: ERM, IRMv1 or the worst of the found groups."""
    z, y = features(rows[0]), rows[1]
    mean, spread = z.mean(0), z.std(0) + 1e-3
    z = (z - mean) / spread
    weight, bias = torch.zeros(2, z.shape[1], requires_grad=True), torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(steps):
        logits = z @ weight.T + bias
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = losses.mean()
        if method == "worst group":
            loss = torch.stack([losses[group].mean() for group in groups]).max()
        if method == "IRMv1":  # the derivative of an environment's loss in a factor of its logits, squared
            slopes = ((logits.softmax(1) - F.one_hot(y, 2)) * logits).sum(1).view(2, EACH).mean(1)
            loss = (loss + PENALTY * slopes.square().mean()) / PENALTY
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return lambda x: (((features(x) - mean) / spread) @ weight.T + bias).detach()


def found_in(world: World, seed: int, regime: str, steps: int) -> tuple[dict[str, list[float]], list[float]]:
    """By method the accuracies in the three environments; and how right round 1 is where round 0 is wrong, and right."""
    settings = ts.Settings(
        regime, seed=seed, lr=1e-3, batch_size=BATCH, epochs=steps, max_steps=steps, warmup=0.0
    )  # type: ignore[arg-type]
    task, head = world.task(), world.heads[0]
    environments = WorstGroup([range(EACH), range(EACH, 2 * EACH)])
    found = discover(world.base, task, settings, rounds=3)
    pair, three = list(found.vectors.values())[:2], list(found.vectors.values())
    rights = list(found.right.values())
    groups = [rights[0].nonzero()[:, 0], (~rights[0]).nonzero()[:, 0]]
    vectors = {
        "plain training": ts.finetune(world.base, task, settings).task_vector,
        "the worse of two environments": ts.finetune(world.base, task, settings, weights=environments).task_vector,
        "round 0": three[0], "round 1": three[1], "round 2": three[2],
        "rounds 0 and 1, sum": ts.merge(pair, "task_arithmetic"),
        "rounds 0 and 1, mean": ts.merge(pair, "linear"),
        "rounds 0 and 1, TIES": ts.merge(pair, "ties"),
        "rounds 0 to 2, sum": ts.merge(three, "task_arithmetic"),
        "rounds 0 to 2, TIES": ts.merge(three, "ties"),
        "round 1 less half of round 0": pair[1] - 0.5 * pair[0],
    }  # fmt: skip
    scores = {}
    for name, vector in vectors.items():
        features = world.features(vector)
        scores[name] = world.scores(lambda x, features=features: head(features(x)))
    both = [world.features(vector) for vector in pair]
    frozen: dict[str, Features] = {
        "the base": lambda x: world.base(x).detach(),
        "round 1": both[1],
        "the sum": world.features(vectors["rounds 0 and 1, sum"]),
        "TIES": world.features(vectors["rounds 0 and 1, TIES"]),
        "the distilled": world.features(distilled(world, rights[:2], settings)),
        "both rounds, side by side": lambda x: torch.cat([one(x) for one in both], 1),
    }
    for name, features in frozen.items():
        for method in ("ERM", "IRMv1", "worst group"):
            scores[f"{method} on {name}"] = world.scores(read(features, world.train, method, groups, steps))
    caught = [float(rights[1][rows].double().mean()) for rows in (~rights[0], rights[0])]
    return scores, caught


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval over seeds."""
    mean = statistics.mean(values)
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} +- {half:.3f}"


def main(seeds: int = 10, regime: str = "standard", short: bool = False) -> list[dict[str, str]]:
    """Print the tables; returns the rows of the first."""
    seeds, steps = (2, STEPS // 4) if short else (seeds, STEPS)
    runs = []
    with ts.quiet(), ts.computing(check="off"):
        for seed in range(FIRST, FIRST + seeds):
            runs.append(found_in(World.of(seed), seed, regime, steps))
    rows = []
    for name in runs[0][0]:
        by_seed = [scores[name] for scores, _ in runs]
        each = zip(*by_seed, strict=True)
        means = {
            f"flip {flip:g}": f"{statistics.mean(one):.3f}" for flip, one in zip(FLIPS, each, strict=True)
        }
        rows.append({"method": name, **means, "worst": interval([min(one) for one in by_seed])})
    note = f"{regime}, {seeds} seeds, {steps} steps; accuracy in three environments; worst: mean of the least, 95 %"
    print(ts.Table("Coloured digits", rows, note).to_markdown())
    wrong, right = (interval([caught[place] for _, caught in runs]) for place in (0, 1))
    print(
        f"Round 1 has right {wrong} of the training rows that round 0 has wrong, and {right} of the others.\n"
    )
    for name, other in (
        ("round 1", "plain training"), ("rounds 0 and 1, sum", "round 1"), ("rounds 0 and 1, TIES", "round 1"),
        ("IRMv1 on the sum", "IRMv1 on the base"), ("IRMv1 on the sum", "IRMv1 on the distilled"),
        ("IRMv1 on the distilled", "IRMv1 on the base"), ("worst group on the sum", "worst group on the base"),
        ("worst group on the sum", "worst group on round 1"), ("IRMv1 on the sum", "IRMv1 on round 1"),
    ):  # fmt: skip
        pairs = [min(scores[name]) - min(scores[other]) for scores, _ in runs]
        print(f"worst accuracy, {name} less {other}: {interval(pairs)}")
    return rows


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, default=10, choices=sorted(T_95))
    asked.add_argument("--regime", default="standard", choices=["standard", "linear"])
    asked.add_argument("--short", action="store_true")
    main(**vars(asked.parse_args()))
