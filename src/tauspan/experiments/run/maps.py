"""Maps of the disentanglement error, with the first seed's vectors."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from tauspan import editing
from tauspan.core.choices import Distance, EditRegime
from tauspan.core.errors import RecipeError
from tauspan.core.report import Table
from tauspan.experiments.run.part import Evaluation, Findings, Part
from tauspan.experiments.run.vectors import kind_of

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Maps(Part):
    """Which pairs of tasks get a map of the disentanglement error, with the first seed's vectors; see `disentanglement`.

    Args:
        pairs: two tasks each, or `"all"`.
        grid: the coefficients of both axes; None takes the default ones.
        regimes: None takes all of the recipe's.
        rows: at most so many test rows of each task; None takes all.
        distance: between two predictions; None takes the usual one of the tasks' objective.
        drift: also draw maps whose axes are the drift |J tau| / |f| of each vector alone instead of its coefficient,
            in the units of the first regime, so that regimes are compared where they move the outputs equally far.
    """

    pairs: tuple[tuple[str, ...], ...] | Literal["all"] = ()
    grid: tuple[float, ...] | None = None
    regimes: tuple[EditRegime, ...] | None = None
    rows: int | None = None
    distance: Distance | None = None
    drift: bool = False
    key: ClassVar[str] = "disentangle"

    def __post_init__(self) -> None:
        pairs = [] if self.pairs == "all" else [list(pair) for pair in self.pairs]
        for pair in pairs:
            if len(pair) != 2 or pair[0] == pair[1]:
                raise RecipeError(f"disentangle.pairs: {pair}: a pair is two different tasks.")
        if len(set(map(frozenset, pairs))) < len(pairs):
            raise RecipeError(f"disentangle.pairs: {pairs}: one pair stands twice.")
        if self.regimes is not None and not 0 < len(set(self.regimes)) == len(self.regimes):
            raise RecipeError(
                f"disentangle.regimes: {list(self.regimes)}: it needs at least one entry and none twice."
            )
        if self.grid is not None:
            rising = all(low < high for low, high in itertools.pairwise(self.grid))
            inside = any(0 <= alpha <= 1 for alpha in self.grid)
            if not (rising and inside and all(map(math.isfinite, self.grid))):
                raise RecipeError(
                    f"disentangle.grid: {list(self.grid)}: it needs finite coefficients in rising order, at least one "
                    "of them in [0, 1]."
                )
        if self.rows is not None and self.rows < 2:
            raise RecipeError(f"disentangle.rows: {self.rows}: a standard error needs at least two rows.")

    def check(self, recipe: "Recipe") -> None:
        """Pairs are of tasks, regimes of the recipe."""
        if self.pairs != "all":
            recipe.require_tasks("disentangle.pairs", itertools.chain.from_iterable(self.pairs))
        elif len(recipe.tasks) < 2:
            raise RecipeError("disentangle.pairs: all: a pair needs at least two tasks.")
        super().check(recipe)

    def fewer(self, rows: int) -> Self:
        """Maps over at most so many rows."""
        return dataclasses.replace(self, rows=max(2, min(rows, self.rows or rows)))

    def for_tasks(self, tasks: Sequence[str]) -> Self:
        """The pairs that are left, or all pairs."""
        if self.pairs == "all" or not self.pairs:
            return self
        left = tuple(pair for pair in self.pairs if set(pair) <= set(tasks))
        return dataclasses.replace(self, pairs=left or "all")

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each regime that is mapped."""
        return [_stage(run, regime) for regime in self.regimes or run.recipe.regimes]

    def measure(self, run: "RunContext", which: Evaluation) -> "editing.Maps":
        """The maps of one regime, in the units of the first one's, which are made before if they are not there."""
        first = self.evaluations(run)[0]
        if not self.drift or which == first:
            return self._map(run, which, self.drift)
        units = {one.task: one.unit for one in self._map(run, first, True).drifts}
        return self._map(run, which, units)

    def _map(self, run: "RunContext", which: Evaluation, drift: bool | Mapping[str, float]) -> "editing.Maps":
        regime = cast(EditRegime, which.about[0])
        pairs = None
        if self.pairs != "all":
            pairs = [(run.task(first).name, run.task(second).name) for first, second in self.pairs]
        shared: dict[str, Any] = {"distance": self.distance, "grid": self.grid or editing.GRID}
        if drift:  # the keys of maps without it are those of the first version
            shared["drift"] = drift
        vectors = run.vectors(kind_of(regime), which.seed)
        few = {run.fewer(task, self.rows): vector for task, vector in vectors.items()}

        def work() -> "editing.Maps":
            encoder = run.encoder(which.seed)
            return editing.disentanglement(encoder, few, regime, pairs=pairs, reading=run.reading, **shared)

        facts = {"point": run.recipe.point, "max_tokens": run.recipe.max_tokens, **shared}
        key = run.key(few, regime, pairs, facts)
        return run.stages.result(editing.Maps, regime, "disentangle", which.name, key, work)

    def findings(self, run: "RunContext") -> Findings:
        """The error of every pair and regime."""
        done = {which.about[0]: self.measure(run, which) for which in self.evaluations(run)}
        reports = {regime: one.report() for regime, one in done.items()}
        series = [entry for one in reports.values() for entry in one.series]
        result = {"disentanglement": {regime: one.result["pairs"] for regime, one in reports.items()}}
        if self.drift:
            result["disentanglement_drift"] = {regime: one.result["drift"] for regime, one in reports.items()}
        return Findings(self._tables(run, done), series, result)

    def _tables(self, run: "RunContext", done: "Mapping[str, editing.Maps]") -> list[Table]:
        seed, title = f"seed {run.recipe.seeds[0]}", "Disentanglement error"
        first = next(iter(done.values()))
        note = f"{seed}; {first.note()}"
        equal = [one.cells(pair) for one in done.values() for pair in one.pairs]
        if not self.drift:
            return [Table(title, equal, note)]
        units = f"axes: multiples of each task's unit, the drift that the {next(iter(done))} vectors have at alpha 1"
        matched = [one.cells(pair) for one in done.values() for pair in one.drift_pairs]
        drifts = [{"regime": key, **row.cells()} for key, one in done.items() for row in one.drifts]
        return [
            Table(f"{title} at equal alpha", equal, note),
            Table(f"{title} at matched drift", matched, f"{note}; {units}"),
            Table("Drift", drifts, f"{seed}; {first.drift_note}"),
        ]


def _stage(run: "RunContext", regime: str) -> Evaluation:
    return Evaluation("disentangle", (regime,), run.recipe.seeds[0])
