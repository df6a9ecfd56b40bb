"""Is a short net that was trained to be stretched a good start for nets of several depths?

Claims: TLEG (Xia and others, AAAI 2024, arXiv:2312.05614) trains blocks that are linear in depth, theta_l = B + (l / L)
A, and expands them to any depth; SWS (IJCAI 2024, arXiv:2404.16897) trains stages whose layers share their weights, and
repeats these. Both report faster training than from random weights, and better accuracy than other starts.

Here, reduced: transformers of width 32 on scikit-learn's digits, whose 8 rows of pixels are 8 tokens. Digits 0 to 4 are
learnt first, by an ordinary net of 6 layers, and, from its soft labels and the true ones, by a TLEG net and an SWS net of
3 stages that run with 6 layers (`tauspan.surgery.TiedDepth`). Then nets of 3, 6 and 9 layers learn digits 5 to 9 from 200
rows, with a new readout, from random weights, from the first layers of the ordinary net, from layers on straight lines
between its layers, from B and A, and from the stages. All layers train, with AdamW.

    python examples/depths.py [--seeds N]  # three seeds: minutes
    python examples/depths.py --short      # seconds
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from tauspan import Table
from tauspan.surgery import TiedDepth

WIDTH, CLASSES = 32, 5


class Sizes(NamedTuple):
    """How much is trained."""

    first: int = 15  # epochs on digits 0 to 4
    rows: int = 200  # of digits 5 to 9
    marks: tuple[int, ...] = (1, 5, 20)  # epochs at which accuracy is measured
    depth: int = 6  # of the nets that learn first
    depths: tuple[int, ...] = (3, 6, 9)


FULL, SHORT = Sizes(), Sizes(1, 40, (1, 2), 3, (3, 4))


class Net(nn.Module):
    """A transformer of so many layers over the rows of pixels of an image."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(8, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(8, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.readout = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.tokens(x) + self.places
        for layer in self.layers:
            z = layer(z)
        logits: Tensor = self.readout(self.norm(z.mean(1)))
        return logits


class Rows(NamedTuple):
    """Some images (N, 8, 8) and their classes."""

    x: Tensor
    y: Tensor


def digits(seed: int) -> tuple[Rows, Rows]:
    """Rows of digits 0 to 4 and of 5 to 9, in an order of the seed; classes count from 0 in both."""
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = (x[order].view(-1, 8, 8) / 16).float(), y[order]
    low, high = y < CLASSES, y >= CLASSES
    return Rows(x[low], y[low]), Rows(x[high], y[high] - CLASSES)


def epochs(net: nn.Module, rows: Rows, seed: int, teacher: nn.Module | None = None) -> Iterator[int]:
    """Trains without end, on the labels or on them and a teacher's soft labels alike; the number of epochs after each."""
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    draw = torch.Generator().manual_seed(seed)
    for epoch in count(1):
        for some in torch.randperm(len(rows.x), generator=draw).split(32):
            logits = net(rows.x[some])
            loss = functional.cross_entropy(logits, rows.y[some])
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(rows.x[some]).softmax(1)
                loss = (loss + functional.cross_entropy(logits, soft)) / 2
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        yield epoch


def accuracy(net: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return float((net(rows.x).argmax(1) == rows.y).double().mean())


def ancestors(seed: int, sizes: Sizes) -> tuple[dict[str, TiedDepth], dict[str, float]]:
    """The nets that learnt the first digits, by the start that they give, and their accuracy on unseen rows of these."""
    rows, _ = digits(seed)
    train, test = Rows(rows.x[:600], rows.y[:600]), Rows(rows.x[600:], rows.y[600:])
    depth, found, right = sizes.depth, {}, {}
    each = ",".join([str(depth // 3)] * 3)
    for name, layers, words in (
        ("ordinary", depth, f"first:{depth}"), ("TLEG", 2, f"linear:{depth}"), ("SWS", 3, f"stages:{each}")
    ):  # fmt: skip
        torch.manual_seed(seed)
        found[name] = TiedDepth(Net(layers), words)
        training = epochs(found[name], train, seed, found.get("ordinary") if name != "ordinary" else None)
        next(islice(training, sizes.first - 1, None))
        right[name] = accuracy(found[name], test)
    return found, right


def starts(known: dict[str, TiedDepth], depth: int, most: int, seed: int) -> dict[str, nn.Module]:
    """Nets of one depth."""
    torch.manual_seed(seed + 1000)
    repeated = ",".join([str(depth // 3)] * 3) if depth % 3 == 0 else None
    made: dict[str, nn.Module] = {"random": Net(depth)}
    if depth <= most:
        made["first L"] = known["ordinary"].to_depth(f"first:{depth}")
    if depth != most:
        made["interpolated"] = known["ordinary"].to_depth(f"interpolate:{depth}")
    made["TLEG"] = known["TLEG"].to_depth(f"linear:{depth}")
    if repeated:
        made["SWS"] = known["SWS"].to_depth(f"stages:{repeated}")
    return made


def learnt(net: nn.Module, seed: int, sizes: Sizes) -> list[float]:
    """Test accuracy on the second digits at each mark."""
    _, rows = digits(seed)
    train = Rows(rows.x[: sizes.rows], rows.y[: sizes.rows])
    test = Rows(rows.x[sizes.rows :], rows.y[sizes.rows :])
    torch.manual_seed(seed)
    net.readout = nn.Linear(WIDTH, CLASSES)
    training = islice(epochs(net, train, seed), sizes.marks[-1])
    return [accuracy(net, test) for epoch in training if epoch in sizes.marks]


def interval(values: Sequence[float]) -> str:
    """The mean, and the 95 % interval of Student's t."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.3f} ± {half:.3f}"


def main(sizes: Sizes = FULL, seeds: int = 3) -> dict[tuple[int, str], list[list[float]]]:
    """By depth and start, the accuracies at the marks, seed by seed; prints them and what they are above random."""
    begun, found = time.process_time(), {}
    first: dict[str, list[float]] = {}
    for seed in range(seeds):
        known, right = ancestors(seed, sizes)
        for name, value in right.items():
            first.setdefault(name, []).append(value)
        for depth in sizes.depths:
            for name, net in starts(known, depth, sizes.depth, seed).items():
                found.setdefault((depth, name), []).append(learnt(net, seed, sizes))
    table: list[dict[str, Any]] = []
    for (depth, name), runs in found.items():
        row: dict[str, Any] = {"layers": depth, "start": name}
        for place, mark in enumerate(sizes.marks):
            row[f"epoch {mark}"] = interval([run[place] for run in runs])
        for place in (0, len(sizes.marks) - 1):
            apart = [
                run[place] - other[place] for run, other in zip(runs, found[depth, "random"], strict=True)
            ]
            row[f"above random, epoch {sizes.marks[place]}"] = None if name == "random" else interval(apart)
        table.append(row)
    told = f"mean and 95 % interval of {seeds} seeds" if seeds > 1 else "one seed"
    kept = {name: sum(one.numel() for one in net.parameters()) for name, net in known.items()}
    note = (
        f"{told}; digits 5 to 9, {sizes.rows} rows, accuracy on the others. On digits 0 to 4, {sizes.first} epochs: "
        + ", ".join(
            f"{name} {interval(values)} with {kept[name]:,} numbers" for name, values in first.items()
        )
        + f". {time.process_time() - begun:.0f} s of one core."
    )
    print(Table("Starts for nets of several depths", table, note).to_markdown())
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="one seed, few epochs, 3 and 4 layers: seconds")
    parser.add_argument("--seeds", type=int, default=3, help="of weights, rows and order (3)")
    asked = parser.parse_args()
    main(SHORT if asked.short else FULL, 1 if asked.short else asked.seeds)
