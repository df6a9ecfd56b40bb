"""What a study covers, checked once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tauspan.core.choices import EDIT_REGIMES, CacheKind, EditRegime, Point, Regime
from tauspan.core.errors import UsageError, listed, nearest
from tauspan.core.reading import Reading
from tauspan.tasks import Task
from tauspan.train import Settings

RATES: dict[Regime, tuple[float, ...]] = {"standard": (5e-5, 1.5e-4, 5e-4), "linear": (1e-4, 3e-4, 1e-3)}
GRID = (0.05, *(round(0.1 * step, 1) for step in range(1, 11)), 1.2, 1.5, 2.0, 2.5, 3.0)


class Cell(NamedTuple):
    """One training length at one number of training rows, with one seed."""

    rows: int
    steps: int
    seed: int


class Variant(NamedTuple):
    """A regime; in the tangent regimes also where the model is linearised."""

    regime: EditRegime
    point: Point | None

    @property
    def trained(self) -> "Variant":
        """The variant whose vectors this one reads: posthoc takes the ordinary ones."""
        return self if self.regime == "linear" else Variant("standard", None)

    def __str__(self) -> str:
        return self.regime if self.point is None else f"{self.regime}-{self.point}"


@dataclass(frozen=True)
class Plan:
    """What a study covers.

    Args:
        lengths: optimiser steps of each fine-tuning.
        rates: learning rates to choose from for each trained regime, rising.
        tune_to: the longest length at which rates are tried; longer ones take the rate chosen there.
        regimes: `"standard"`, `"posthoc"`, `"linear"`.
        points: where the tangent models are linearised.
        seeds: of the order of rows; rates are chosen with the first.
        rows: numbers of training rows.
        validation: rows that rates and coefficients are chosen on.
        test: rows behind every reported accuracy.
        params: which parameters train.
        batch_size: rows of a step.
        cache: what the tangent model keeps of each batch, from the third epoch on (see `tauspan.train.Settings`).
        max_tokens: where texts are cut; None takes each task's own value.
        grid: coefficients of addition and negation; it should reach beyond 1.
        target: the task to forget; None takes the last.
        floor: share of the controls' accuracy that forgetting must keep.
        pairs: pairs of tasks for xi; None takes the first two pairs.
        axis: coefficients, and multiples of the ordinary model's drift, of the maps of xi.
        map_rows: test rows of each task in the maps.

    Raises:
        UsageError: an empty, falling or impossible value.
    """

    lengths: tuple[int, ...] = (40, 150, 600, 2000)
    rates: Mapping[Regime, Sequence[float]] = field(default_factory=lambda: dict(RATES))
    tune_to: int = 150
    regimes: tuple[EditRegime, ...] = EDIT_REGIMES
    points: tuple[Point, ...] = ("logits",)
    seeds: tuple[int, ...] = (0,)
    rows: tuple[int, ...] = (640,)
    validation: int = 128
    test: int = 200
    params: str | tuple[str, ...] = "encoder.*"
    batch_size: int = 16
    cache: CacheKind | Literal["auto"] = "auto"
    max_tokens: int | None = 32
    grid: tuple[float, ...] = GRID
    target: str | None = None
    floor: float = 0.95
    pairs: tuple[tuple[str, str], ...] | None = None
    axis: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    map_rows: int = 128

    def __post_init__(self) -> None:
        for name in ("lengths", "rows", "seeds", "regimes", "points"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{name}={list(values)}: it needs at least one entry and none twice.")
        for name in ("lengths", "rows"):
            values = getattr(self, name)
            if list(values) != sorted(values) or values[0] < 1:
                raise UsageError(f"{name}={list(values)}: it needs whole numbers from 1 in rising order.")
        for known, given in ((EDIT_REGIMES, self.regimes), (("encoder", "logits"), self.points)):
            for value in given:
                if value not in known:
                    raise UsageError(f"unknown {value!r}. {nearest(str(value), known)}")
        for regime in {self.settings(self.cells()[0], variant, 1.0).regime for variant in self.variants()}:
            rates = list(self.rates.get(regime, ()))
            if not rates or rates != sorted(set(rates)) or not all(0 < rate < math.inf for rate in rates):
                raise UsageError(
                    f"rates[{regime!r}]={rates}: it needs learning rates above 0 in rising order."
                )
        if self.tune_to < self.lengths[0]:
            raise UsageError(
                f"tune_to={self.tune_to} is less than the shortest length, {self.lengths[0]}: no rate could be chosen."
            )

    def variants(self) -> list[Variant]:
        """The regimes with their points, in the order in which they are measured: the ordinary model first."""
        found = [Variant("standard", None)] if "standard" in self.regimes else []
        tangent: list[EditRegime] = [regime for regime in ("linear", "posthoc") if regime in self.regimes]
        return found + [Variant(regime, point) for regime in tangent for point in self.points]

    def cells(self) -> list[Cell]:
        """The first seed at every length, then the other seeds, short lengths first: partial results say something."""
        first = [Cell(rows, steps, self.seeds[0]) for rows in self.rows for steps in self.lengths]
        rest = [
            (steps, seed, rows) for steps in self.lengths for seed in self.seeds[1:] for rows in self.rows
        ]
        return first + [Cell(rows, steps, seed) for steps, seed, rows in rest]

    def settings(self, cell: Cell, variant: Variant, rate: float) -> Settings:
        """How a vector of this cell and variant is fine-tuned."""
        linear = variant.regime == "linear"
        an_epoch = math.ceil(cell.rows / self.batch_size)
        return Settings(
            regime="linear" if linear else "standard", seed=cell.seed, params=self.params, point=variant.point,
            epochs=math.ceil(cell.steps / an_epoch), max_steps=cell.steps, batch_size=self.batch_size, lr=rate,
            max_tokens=self.max_tokens, cache=self.cache if linear and cell.steps > 2 * an_epoch else "none",
        )  # fmt: skip

    def reading(self, variant: Variant) -> Reading:
        """How a variant's model runs over rows."""
        return Reading(point=variant.point, max_tokens=self.max_tokens)

    def shorter(self, steps: int) -> int | None:
        """The length before this one at which rates were tried; None at the shortest."""
        return max((one for one in self.lengths if one < steps and one <= self.tune_to), default=None)

    def require_tasks(self, tasks: Sequence[Task]) -> None:
        """Raise unless the tasks fit the plan."""
        names = [task.name for task in tasks]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UsageError(f"tasks {listed(names)}: a study needs at least two, of different names.")
        for name in [self.target or names[0], *(name for pair in self.pairs or () for name in pair)]:
            if name not in names:
                raise UsageError(f"{name!r} is not among the tasks. {nearest(name, names)}")
        for task in tasks:
            if len(task.split("train")) < self.rows[-1]:
                raise UsageError(
                    f"task {task.name!r} has {len(task.split('train'))} training rows, fewer than the {self.rows[-1]} of "
                    f"rows={list(self.rows)}. Ask for fewer, or leave the task out."
                )
