"""Does a recurrent net that starts at a low rank leave the lazy regime further than one of full rank?

Claim: Liu and others, "How connectivity structure shapes rich and lazy learning in neural circuits" (ICLR 2024).
Recurrent weights W = 1.25 randn(n, n) / sqrt(n) are cut to their leading singular values and scaled to their old
Frobenius norm; nets that start at a low rank end further from their first kernel, representation and weights.

A net h_t = relu(W h + U x_t) with a linear readout of h at the last of 8 steps says which of two noisy channels is
stronger (as the task 2AF of neurogym). Reduced here: n = 100 (theirs: 300), 1,000 steps of batches of 32 (10,000), 5
seeds, a generator of our own for the task, and kernels at the decision instead of at all times. Their optimiser: SGD,
momentum 0.9, rate 0.003.

A rank-one matrix of the same Frobenius norm has a spectral norm that is larger by about sqrt(n) / 2, which alone could
be what makes it rich; so each rank is tried with the spectral norm kept, too. Low rank may also train more slowly, so
that nets are compared
twice: after all steps, and when each of them first has a loss of 0.45 or less on rows of its own.

    python examples/rank_of_start.py [--short]
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import kendalltau
from torch import Tensor, nn
from torch.nn import functional

from tauspan import Table
from tauspan.kernel import TangentKernel
from tauspan.kernel.diagnose import kernel_distance, low_rank_start, start_ranks

STEPS_OF_TIME, BATCH, ROWS = 8, 32, 24
NORMS = ("frobenius", "spectral")
MEASURES = ("kernel alignment", "representation alignment", "weight change")


class Recurrent(nn.Module):
    """The net; only the logits at the last step are given."""

    def __init__(self, units: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def uniform(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(rows, columns, generator=generator) - 1) / columns**0.5)

        self.recurrent = nn.Parameter(1.25 * torch.randn(units, units, generator=generator) / units**0.5)
        self.input, self.readout = uniform(units, 2), uniform(2, units)

    def states(self, x: Tensor) -> Tensor:
        """h at the last step, shape (N, n)."""
        state = x.new_zeros(len(x), len(self.recurrent))
        for step in x.unbind(1):
            state = torch.relu(functional.linear(step, self.input) + functional.linear(state, self.recurrent))
        return state

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.states(x), self.readout)


def trials(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two noisy channels, shape (count, 8, 2), and which of them is stronger on average."""
    label = torch.randint(2, (count,), generator=generator)
    strength = torch.tensor([0.1, 0.2, 0.4, 0.8])[torch.randint(4, (count,), generator=generator)]
    apart = (2 * label - 1) * strength / 2
    noise = 0.5 * torch.randn(count, STEPS_OF_TIME, 2, generator=generator)
    return noise + 0.5 + torch.stack([-apart, apart], 1)[:, None], label


def alignments(start: Recurrent, end: Recurrent, x: Tensor) -> dict[str, float]:
    """The paper's three measures between two points of one net."""
    first_kernel, last_kernel = (
        TangentKernel(net, x, params="recurrent", batch_size=len(x)) for net in (start, end)
    )
    with torch.no_grad():
        first, last = (net.states(x) @ net.states(x).T for net in (start, end))
        moved = (end.recurrent - start.recurrent).norm()
        turned = (first * last).sum() / (first.norm() * last.norm())
    return dict(
        zip(
            MEASURES,
            (1 - kernel_distance(first_kernel, last_kernel).value, float(turned), float(moved)),
            strict=True,
        )
    )


@dataclass(frozen=True)
class Run:
    """A net after training: at the end, and when it first had the loss that all are compared at."""

    seed: int
    rank: int
    keep: str
    loss: float
    reached: int | None
    end: Mapping[str, float]
    at_loss: Mapping[str, float] | None
    stable: float
    right: float


class Stack:
    """All nets as one, each trained on its own batches."""

    def __init__(self, nets: Sequence[Recurrent]) -> None:
        self.nets = nets
        self.state, _ = torch.func.stack_module_state(list(nets))
        self.optimizer = torch.optim.SGD(self.state.values(), lr=0.003, momentum=0.9)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of each net on its own rows."""

        def loss(one: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return functional.cross_entropy(torch.func.functional_call(self.nets[0], one, (x,)), y)

        return torch.func.vmap(loss)(self.state, x, y)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step of each net."""
        self.optimizer.zero_grad()
        self.losses(x, y).sum().backward()
        self.optimizer.step()

    def net(self, place: int) -> Recurrent:
        """One net as it is now."""
        made = Recurrent(len(self.nets[0].recurrent), 0)
        made.load_state_dict({name: value[place].detach() for name, value in self.state.items()})
        return made


def gradient(net: Recurrent, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of the loss at the start, in the recurrent weights."""
    loss = functional.cross_entropy(net(x), y)
    return {"recurrent": torch.autograd.grad(loss, net.recurrent)[0]}


def study(
    ranks: Sequence[int], units: int, seeds: int, steps: int, goal: float, every: int = 25
) -> list[Run]:
    """All ranks, norms and seeds, trained together."""
    cases = [
        (seed, rank, keep)
        for seed in range(seeds) for rank in ranks for keep in NORMS if rank < units or keep == NORMS[0]
    ]  # fmt: skip
    starts = [low_rank_start(Recurrent(units, seed), rank, "recurrent", keep) for seed, rank, keep in cases]
    streams = [torch.Generator().manual_seed(100 + seed) for seed in range(seeds)]
    tests = [trials(512, torch.Generator().manual_seed(200 + seed)) for seed in range(seeds)]

    def each(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Rows of each seed for each of its nets."""
        return torch.stack([found[case[0]][0] for case in cases]), torch.stack(
            [found[case[0]][1] for case in cases]
        )

    stack, own, reached, snapshots = Stack(starts), each(tests), {}, {}
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                losses = stack.losses(*own).tolist()
            for place, loss in enumerate(losses):
                if loss <= goal and place not in reached:
                    reached[place], snapshots[place] = step, stack.net(place)
        if step < steps:
            stack.step(*each([trials(BATCH, stream) for stream in streams]))
    runs = []
    for place, (seed, rank, keep) in enumerate(cases):
        (x, y), start = tests[seed], starts[place]
        (matrix,) = start_ranks(start, "recurrent", gradient=gradient(start, x, y), top=5).matrices
        at_loss = alignments(start, snapshots[place], x[:ROWS]) if place in snapshots else None
        end = alignments(start, stack.net(place), x[:ROWS])
        aligned = matrix.alignment
        share = aligned.right / aligned.right_by_chance if aligned else 1.0
        runs.append(
            Run(seed, rank, keep, losses[place], reached.get(place), end, at_loss, matrix.stable, share)
        )
    return runs


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard error; nothing of no values."""
    if not values:
        return ""
    found = torch.tensor(values, dtype=torch.float64)
    error = f" ± {float(found.std()) / len(found) ** 0.5:.{digits}f}" if len(found) > 1 else ""
    return f"{float(found.mean()):.{digits}f}{error}"


def of_norm(runs: Sequence[Run], keep: str) -> list[Run]:
    """The runs of one norm; full rank, where both are the same, belongs to both."""
    full = max(run.rank for run in runs)
    return [run for run in runs if run.keep == keep or run.rank == full]


def order(runs: Sequence[Run], measure: str, at_loss: bool) -> list[float]:
    """Kendall's tau of rank and measure, for each seed."""
    found = []
    for seed in sorted({run.seed for run in runs}):
        mine = [(run.rank, run.at_loss if at_loss else run.end) for run in runs if run.seed == seed]
        pairs = [(rank, numbers[measure]) for rank, numbers in mine if numbers is not None]
        if len({number for _, number in pairs}) > 1:
            found.append(float(kendalltau(*zip(*pairs, strict=True)).statistic))
    return found


def main(
    ranks: Sequence[int] = (1, 5, 20, 100),
    units: int = 100,
    seeds: int = 5,
    steps: int = 1000,
    goal: float = 0.45,
) -> list[Run]:
    """Prints a table for each norm."""
    runs = study(ranks, units, seeds, steps, goal)
    for keep in NORMS:
        mine, rows = of_norm(runs, keep), []
        for rank in ranks:
            some = [run for run in mine if run.rank == rank]
            equal = [run.at_loss for run in some if run.at_loss is not None]
            steps_to = [run.reached for run in some if run.reached is not None]
            rows.append({
                "rank": rank, "stable rank": spread([run.stable for run in some], 1),
                "gradient right": spread([run.right for run in some]), "loss": spread([run.loss for run in some], 3),
                **{name: spread([run.end[name] for run in some]) for name in MEASURES},
                "step of equal loss": f"{spread(steps_to, 0)} ({len(equal)})",
                "kernel alignment then": spread([one[MEASURES[0]] for one in equal]) if equal else "",
            })  # fmt: skip
        taus = ", ".join(f"{name} {spread(order(mine, name, False))}" for name in MEASURES)
        note = (
            f"Mean and standard error of {seeds} seeds after {steps} steps. Gradient right: share of the first "
            "gradient in the 5 leading right singular vectors (of rank 1 in one), over that by chance. Step of equal "
            f"loss: the first with {goal} or less, and how many nets had it. Kendall's tau with the rank: {taus}; "
            f"kernel alignment at equal loss {spread(order(mine, MEASURES[0], True))}."
        )
        print(Table(f"{keep.capitalize()} norm kept", rows, note).to_markdown(), end="\n\n")
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="16 units, 2 seeds, 40 steps: seconds")
    if parser.parse_args().short:
        main((1, 4, 16), 16, 2, 40, 0.75)
    else:
        main()
