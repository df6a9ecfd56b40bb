"""Noise on a sinusoidal net's first two layers lets it learn high frequencies; the tangent kernel says so beforehand.

Claim: Chandravamsi and others, "Spectral Bottleneck in Deep Neural Networks: Noise is All You Need" (arXiv 2509.09719). A
SIREN, layers sin(30 (W x + b)), stays at the zero function where the target has high frequencies alone. WINNER adds
N(0, (s0/30)^2) to its first weight matrix and N(0, (s1/30)^2) to its second,

    psi = 2 sum_k nu_k |y_k| / sum_k |y_k|,  s0 = most (1 - exp(-a psi)),  s1 = b psi,

y_k the target's Fourier coefficients at the frequencies nu_k in [0, 1/2]; (most, a, b) = (3500, 7, 3) for audio and
(50, 5, 0.4) for images, with the signs of the authors' code.

Reduced here: one-dimensional signals of 512 samples (theirs: 150,000), nets of 3 layers of 32 units (4 of 222), 300 steps
of Adam at 1e-3. Held-out rows are the values of the signal, which is band-limited, half-way between the samples.

1. PSNR on samples and half-way between them: without noise, with both of WINNER's, and from the start of a grid of (s0,
   s1) that `forecast` chooses; with the median over the largest eigenvalue of the kernel at the start.
2. The rank correlation of predicted and trained error over the grid, after Adam, and after as many steps of descent at
   1/lambda_max, which is what the forecast is about.

    python examples/spectral_bottleneck.py [--short] [--out FOLDER]

With --out the high band's forecast is written there as report.json, with what training gave beside it.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

import tauspan as ts
from tauspan import Report, Table
from tauspan.kernel import Flow, Forecast, Start, forecast

OMEGA = 30.0
BANDS = {"low band": (0.0, 0.02), "high band": (0.30, 0.45)}  # of the sampling rate
WINNERS = {"WINNER, audio": (3500.0, 7.0, 3.0), "WINNER, images": (50.0, 5.0, 0.4)}
GRID = {"s0": [0.0, 50.0, 200.0, 800.0], "s1": [0.0, 0.3, 1.0]}


class Siren(nn.Module):
    """Layers sin(30 (W x + b)) with noise on the first two weight matrices, and a linear readout."""

    def __init__(self, s0: float, s1: float, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int, bound: float) -> Tensor:
            return (2 * torch.rand(*shape, generator=generator) - 1) * bound

        bound = math.sqrt(6 / width) / OMEGA
        weights = [uniform(width, 1, bound=1.0), *(uniform(width, width, bound=bound) for _ in range(2))]
        readout, biases = (
            uniform(1, width, bound=bound),
            [uniform(width, bound=width**-0.5) for _ in range(3)],
        )
        for place, scale in enumerate((s0, s1)):  # the same noise whatever its size
            weights[place] += torch.randn(weights[place].shape, generator=generator) * scale / OMEGA
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)
        self.readout = nn.Parameter(readout)

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.sin(OMEGA * functional.linear(x, weight, bias))
        return functional.linear(x, self.readout)


@dataclass(frozen=True)
class Signal:
    """A band-limited signal at the samples and half-way between them."""

    x: Tensor
    y: Tensor
    between: Tensor
    wanted: Tensor
    psi: float

    def psnr(self, error: float) -> float:
        """Peak signal to noise ratio in decibels."""
        return 10 * math.log10(float(self.y.max() - self.y.min()) ** 2 / error)


def signal(band: tuple[float, float], samples: int, seed: int) -> Signal:
    """A random signal with all frequencies of a band, given in parts of the sampling rate."""
    generator = torch.Generator().manual_seed(1000 + seed)
    waves = torch.arange(max(1, round(band[0] * samples)), round(band[1] * samples) + 1).double()
    size = torch.randn(len(waves), generator=generator, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(len(waves), generator=generator, dtype=torch.float64)
    place = torch.arange(2 * samples) / (2 * samples)
    y = (size * torch.cos(2 * math.pi * place[:, None] * waves + phase)).sum(1)
    x, y = (2 * place - 1)[:, None], (y / y.abs().max()).float()[:, None]
    found = torch.fft.rfft(y[::2, 0]).abs()
    centre = float((found * torch.arange(len(found))).sum() / (samples * found.sum()))
    return Signal(x[::2], y[::2], x[1::2], y[1::2], 2 * centre)


def winner(psi: float, most: float, a: float, b: float) -> dict[str, float]:
    """The noise that WINNER's formula chooses."""
    return {"s0": most * (1 - math.exp(-a * psi)), "s1": b * psi}


def trained(nets: Sequence[Siren], data: Signal, steps: int, rates: Tensor | None = None) -> Tensor:
    """Errors on the samples and between them, shape (nets, 2); all nets at once, each on its own.

    With `rates` by descent on 1/2 |f - y|^2, one learning rate for each net; without by Adam.
    """
    state, _ = torch.func.stack_module_state(list(nets))

    def outputs(x: Tensor) -> Tensor:
        return torch.func.vmap(lambda one: torch.func.functional_call(nets[0], one, (x,)))(state)

    optimizer = torch.optim.Adam(state.values(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        error = (outputs(data.x) - data.y).square()
        if rates is None:
            error.mean((1, 2)).sum().backward()
            optimizer.step()
        else:
            (error.sum() / 2).backward()
            with torch.no_grad():
                for value in state.values():
                    value -= rates.view(-1, *[1] * (value.dim() - 1)) * value.grad
    with torch.no_grad():
        pairs = ((data.x, data.y), (data.between, data.wanted))
        return torch.stack([(outputs(x) - y).square().mean((1, 2)) for x, y in pairs], 1).double()


def correlation(predicted: Tensor, found: Tensor) -> Tensor:
    """Spearman's rank correlation over starts, for each seed; both of shape (starts, seeds)."""
    pairs = zip(predicted.T, found.nan_to_num(math.inf).T, strict=True)
    return torch.tensor([float(spearmanr(one, other).statistic) for one, other in pairs])


def spread(values: Tensor, digits: int = 1) -> str:
    """Mean and standard error."""
    error = f" ± {float(values.std()) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{float(values.mean()):.{digits}f}{error}"


def predicted(found: Forecast, name: str) -> Tensor:
    """A number of each start and seed, shape (starts, seeds)."""
    return torch.tensor([[getattr(one, name) for one in start.outcomes] for start in found.starts])


@dataclass(frozen=True)
class Band:
    """What one band gave."""

    forecast: Forecast
    rows: Sequence[dict[str, str]]
    correlations: Mapping[str, Tensor]
    adam: Tensor

    def report(self) -> Report:
        """The forecast, with panels of the errors after Adam."""
        report = self.forecast.report()
        errors, panel = self.adam.mean(1), report.series[0]
        trained_panels = [
            {
                **panel, "title": f"trained by Adam, {where}",
                "points": [
                    {**point, "value": float(error), "error": None}
                    for point, error in zip(panel["points"], errors[:, place], strict=True)
                ],
            }
            for place, where in enumerate(("training rows", "held-out rows"))
        ]  # fmt: skip
        return replace(report, series=[*report.series, *trained_panels])


def study(
    band: str, seeds: int, samples: int, width: int, steps: int, grid: Mapping[str, Sequence[float]]
) -> Band:
    """One signal: the forecast over the grid and of both formulas, and what training gives."""
    data = signal(BANDS[band], samples, 0)

    def build(s0: float, s1: float, seed: int) -> Siren:
        return Siren(s0, s1, seed, width)

    named = {name: winner(data.psi, *constants) for name, constants in WINNERS.items()}

    def asked(scales: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]]) -> Forecast:
        unseen = (data.between, data.wanted)
        return forecast(
            build,
            data.x,
            data.y,
            scales,
            budget=Flow(steps),
            held_out=unseen,
            seeds=seeds,
            batch_size=samples,
        )

    with ts.computing(check="off"):  # rows of such a net are apart
        found, formulas = asked(grid), asked(list(named.values()))
    starts = [*found.starts, *formulas.starts]
    nets = [build(**one.scales, seed=seed) for one in starts for seed in range(seeds)]
    rates = torch.cat([predicted(found, "lr_max"), predicted(formulas, "lr_max")]).float() / 2
    adam = trained(nets, data, steps).view(len(starts), seeds, 2)
    descent = trained(nets, data, steps, rates.flatten()).view(len(starts), seeds, 2)
    count = len(found.starts)
    correlations = {
        f"{how}, {where}": correlation(predicted(found, name), errors[:count, :, place])
        for how, errors in (("Adam", adam), ("descent", descent))
        for place, (where, name) in enumerate((("samples", "loss"), ("between", "held_out")))
    }
    least = min(range(count), key=lambda place: float(adam[place, :, 1].mean()))
    shown = {
        "no noise": 0, "forecast": found.starts.index(found.chosen), "best of the grid": least,
        **{name: count + place for place, name in enumerate(named)},
    }  # fmt: skip
    table = [_row(name, data, starts[at], adam[at]) for name, at in shown.items()]
    return Band(found, table, correlations, adam[:count])


def _row(name: str, data: Signal, start: Start, errors: Tensor) -> dict[str, str]:
    psnr = torch.tensor([[data.psnr(float(error)) for error in seed] for seed in errors])
    median = sum(one.median for one in start.outcomes) / len(start.outcomes)
    return {
        "start": name, "s0": f"{start.scales['s0']:.0f}", "s1": f"{start.scales['s1']:.2f}",
        "PSNR": spread(psnr[:, 0]), "between": spread(psnr[:, 1]), "median / largest": f"{median:.0e}",
    }  # fmt: skip


def main(
    seeds: int = 3,
    samples: int = 512,
    width: int = 32,
    steps: int = 300,
    grid: Mapping[str, Sequence[float]] = GRID,
    bands: Sequence[str] = tuple(BANDS),
) -> dict[str, Band]:
    """Prints two tables for each band."""
    found = {}
    for band in bands:
        one = found[band] = study(band, seeds, samples, width, steps, grid)
        data = signal(BANDS[band], samples, 0)
        zero, between = (data.psnr(float(values.square().mean())) for values in (data.y, data.wanted))
        note = (
            f"Decibels after {steps} steps of Adam, mean and standard error of {seeds} seeds; the zero function has "
            f"{zero:.1f}, and {between:.1f} between; best of the grid: by the trained error between samples, known "
            "afterwards."
        )
        print(Table(f"{band}: psi {data.psi:.2f}", one.rows, note).to_markdown(), end="\n\n")
        print(one.forecast.verdict, end="\n\n")
        ranks = [
            {"rank correlation": name, "Spearman": spread(rho, 2)} for name, rho in one.correlations.items()
        ]
        print(Table(f"{band}: predicted and trained error", ranks).to_markdown(), end="\n\n")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="64 samples, 2 seeds, 4 starts: seconds")
    parser.add_argument("--out", type=Path, help="where the high band's report is written")
    asked = parser.parse_args()
    bands = main(2, 64, 24, 100, {"s0": [0.0, 50.0], "s1": [0.0, 0.3]}) if asked.short else main()
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "report.json").write_text(bands["high band"].report().to_json(), encoding="utf-8")
