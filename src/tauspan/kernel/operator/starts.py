"""`Forecast`: what the tangent kernels of several starts predict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import Result
from tauspan.kernel.operator.budget import Budget
from tauspan.kernel.solvers.estimates import Estimate, standard_error

Criterion = Literal["loss", "held_out"]
_CLOSE = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Outcome:
    """What the kernel of one start predicts. Errors are means of (f - y)^2 over rows and outputs.

    Args:
        start: the error on the training rows before training.
        loss: after the budget, on the training rows; infinite where descent diverges.
        held_out: after the budget, on the held-out rows; None without any.
        lr_max: 2/lambda_max, of descent on 1/2 |f - y|^2.
        median: the median eigenvalue over the largest: near 0, half of all directions are hardly learned.
        fingerprint: of the start's tensors.
    """

    start: float
    loss: float
    held_out: float | None
    lr_max: float
    median: float
    fingerprint: str = field(repr=False, default="")


@dataclass(frozen=True)
class Start:
    """One combination of scales, with what is predicted of it.

    Args:
        scales: by name.
        outcomes: one for each seed.
    """

    scales: Mapping[str, float]
    outcomes: tuple[Outcome, ...]

    @property
    def loss(self) -> Estimate:
        """The predicted error on the training rows, mean over seeds."""
        return over_seeds([one.loss for one in self.outcomes])

    @property
    def held_out(self) -> Estimate | None:
        """The predicted error on the held-out rows, mean over seeds; None without such rows."""
        found = [one.held_out for one in self.outcomes if one.held_out is not None]
        return over_seeds(found) if found else None

    @property
    def criterion(self) -> Criterion:
        """What it is judged by: held-out rows, where there are any."""
        return "loss" if self.outcomes[0].held_out is None else "held_out"

    @property
    def errors(self) -> tuple[float, ...]:
        """The numbers of the criterion, one for each seed."""
        found = [one.loss if one.held_out is None else one.held_out for one in self.outcomes]
        return tuple(found)

    @property
    def value(self) -> float:
        """The mean of the criterion; infinite where a seed diverges."""
        return sum(self.errors) / len(self.errors)

    @property
    def label(self) -> str:
        """The scales in words."""
        return ", ".join(f"{name} = {value:g}" for name, value in self.scales.items())


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast(Result):
    """The starts that were tried, in the order in which they were given, and the one with the least predicted error.

    Args:
        starts: at least one of them trains without diverging.
        budget: for how long they would be trained.
    """

    starts: tuple[Start, ...]
    budget: Budget

    def __repr__(self) -> str:
        return f"Forecast({len(self.starts)} starts, {self.chosen.label}: {self.chosen.value:.3g})"

    @property
    def chosen(self) -> Start:
        """The start with the least mean error, on held-out rows where they were given; of equal ones the first."""
        return min(self.starts, key=lambda one: one.value)

    @property
    def close(self) -> list[Start]:
        """Other starts whose error, seed by seed, is within two standard errors of the chosen one's; none of one seed."""
        best = self.chosen
        others = [one for one in self.starts if one is not best and math.isfinite(one.value)]
        return [one for one in others if _within(one.errors, best.errors)]

    @property
    def ends(self) -> dict[str, float]:
        """The scales whose chosen value is the largest or the smallest that was tried, of more than one."""
        found = {}
        for name, value in self.chosen.scales.items():
            tried = {one.scales[name] for one in self.starts}
            if len(tried) > 1 and value in (min(tried), max(tried)):
                found[name] = value
        return found

    @property
    def verdict(self) -> str:
        """The choice, how sure it is, and whether the range was wide enough."""
        best, seeds = self.chosen, len(self.chosen.outcomes)
        where = "held-out rows" if best.criterion == "held_out" else "the training rows"
        before = sum(one.start for one in best.outcomes) / seeds
        parts = [
            f"{best.label} is the start of {len(self.starts)} with the least predicted error: "
            f"{_spread(over_seeds(best.errors))} on {where} after {self.budget}"
            + (f" (training rows {best.loss.value:.3g}, before training {before:.3g})" if best.held_out
               else f" (before training {before:.3g})")
            + (f", mean of {seeds} seeds." if seeds > 1 else ", one seed.")
        ]  # fmt: skip
        if seeds > 1:
            parts.append(
                f"{len(self.close) or 'No'} other start{' is' if len(self.close) == 1 else 's are'} within two standard "
                "errors of it."
            )
        if self.ends:
            ends = ", ".join(f"{name} = {value:g}" for name, value in self.ends.items())
            parts.append(
                f"It lies at an end of what was tried ({ends}): try values beyond, where they make sense."
            )
        return " ".join(parts)

    def report(self) -> Report:
        """The verdict, a row for each start, and a picture of the predicted errors."""
        unseen = self.chosen.held_out is not None
        rows: list[dict[str, Cell]] = []
        for one in self.starts:
            errors = {"loss": _spread(one.loss), **({"held out": _spread(one.held_out)} if unseen else {})}
            rows.append({
                **{name: f"{value:g}" for name, value in one.scales.items()}, **errors,
                "before": f"{_mean(one, 'start'):.3g}", "median": f"{_mean(one, 'median'):.1e}",
                "lr max": f"{_mean(one, 'lr_max'):.3g}", "": "chosen" if one is self.chosen else "",
            })  # fmt: skip
        note = (
            f"Predicted mean squared error after {self.budget}; ± standard error over seeds. Median: median eigenvalue "
            "of the kernel over the largest. Lr max: 2/lambda_max, of descent on half the summed squared error."
        )
        numbers = [
            {
                **one.scales, "loss": _finite(one.loss.value), "loss_stderr": one.loss.standard_error,
                "held_out": None if one.held_out is None else _finite(one.held_out.value),
                "held_out_stderr": None if one.held_out is None else one.held_out.standard_error,
                "start": _mean(one, "start"), "median": _mean(one, "median"), "lr_max": _finite(_mean(one, "lr_max")),
            }
            for one in self.starts
        ]  # fmt: skip
        result = {"chosen": dict(self.chosen.scales), "by": self.chosen.criterion, "starts": numbers}
        return Report(
            "Forecast of starts", [Table("Predicted error of each start", rows, note)], dict(self.provenance),
            self.series(), result, self.warnings, self.verdict,
        )  # fmt: skip

    def series(self) -> list[dict[str, Any]]:
        """The points of the picture: a panel for the training rows, and one for held-out rows."""
        kinds: list[tuple[str, list[Estimate | None]]] = [
            ("predicted, training rows", [one.loss for one in self.starts])
        ]
        if self.chosen.held_out is not None:
            kinds.append(("predicted, held-out rows", [one.held_out for one in self.starts]))
        return [
            starts_series(
                title, self.starts, [(one.value, one.standard_error) for one in found if one], self.chosen
            )
            for title, found in kinds
        ]


def starts_series(
    title: str, starts: Sequence[Start], values: Sequence[tuple[float, float | None]], chosen: Start
) -> dict[str, Any]:
    """A panel of the picture `starts`: a number for each start, with its standard error."""
    points = [
        {**one.scales, "value": _finite(value), "error": error}
        for one, (value, error) in zip(starts, values, strict=True)
    ]
    return {
        "kind": "starts", "group": "starts", "title": title, "names": list(chosen.scales), "points": points,
        "chosen": dict(chosen.scales), "measure": "mean squared error",
    }  # fmt: skip


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean with its standard error, which one value does not have."""
    several = len(values) > 1 and all(map(math.isfinite, values))
    error = standard_error(torch.tensor(values, dtype=torch.float64)) if several else None
    return Estimate(sum(values) / len(values), False, f"mean of {len(values)} starts", error)


def _within(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two lists, paired by seed, differ by less than two standard errors on average."""
    apart = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    return len(apart) > 1 and abs(float(apart.mean())) <= _CLOSE * standard_error(apart)


def _mean(one: Start, name: str) -> float:
    return sum(float(getattr(outcome, name)) for outcome in one.outcomes) / len(one.outcomes)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(one: Estimate | None) -> str:
    if one is None:
        return ""
    if not math.isfinite(one.value):
        return "diverges"
    return f"{one.value:.3g}" + ("" if one.standard_error is None else f" ± {one.standard_error:.2g}")
