"""Merging methods side by side, each with an alpha of its own."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

from tauspan.core.choices import EditRegime
from tauspan.core.errors import RecipeError
from tauspan.core.report import Table
from tauspan.experiments.run.addition import COLUMNS
from tauspan.experiments.run.part import Evaluation, Findings, Part
from tauspan.experiments.run.spread import in_words, spread
from tauspan.experiments.run.vectors import kind_of

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.merge.data.compare import Comparison


@dataclasses.dataclass(frozen=True)
class Merging(Part):
    """Which merging methods are compared, with their default options and an alpha each.

    Args:
        methods: names of `tauspan.METHODS`, or those that installed packages give; see `tauspan.merge.data.compare`.
        grid: the coefficients; None takes the default ones.
        regimes: None takes all of the recipe's.
    """

    methods: tuple[str, ...] = ()
    grid: tuple[float, ...] | None = None
    regimes: tuple[EditRegime, ...] | None = None
    key: ClassVar[str] = "merge"

    def __post_init__(self) -> None:
        if len(set(self.methods)) < len(self.methods):
            raise RecipeError(f"merge.methods: {list(self.methods)}: one method stands twice.")
        if self.grid is not None and not (self.grid and all(map(math.isfinite, self.grid))):
            raise RecipeError(
                f"merge.grid: {list(self.grid)}: it needs at least one coefficient, all finite."
            )

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each regime and seed."""
        regimes = self.regimes or run.recipe.regimes
        return [Evaluation("merge", (regime,), seed) for regime in regimes for seed in run.recipe.seeds]

    def measure(self, run: "RunContext", which: Evaluation) -> "Comparison":
        """The methods side by side, for one regime and seed."""
        regime, seed = cast(EditRegime, which.about[0]), which.seed
        vectors = run.vectors(kind_of(regime), seed)
        from tauspan.merge.data import compare as comparing

        shared: dict[str, Any] = {"grid": self.grid or comparing.WIDE_GRID, "seed": seed}
        methods: comparing.Methods = {name: (name, {}) for name in self.methods}

        def work() -> comparing.Comparison:
            encoder = run.encoder(seed)
            return comparing.compare(encoder, vectors, methods, regime, reading=run.reading, **shared)

        key = run.key(vectors, regime, {**run.shared(), **shared}, list(methods))
        return run.stages.result(comparing.Comparison, regime, "merge", which.name, key, work)

    def findings(self, run: "RunContext") -> Findings:
        """One row for each regime and method: means over tasks."""
        rows: list[dict[str, Any]] = []
        for regime in self.regimes or run.recipe.regimes:
            wanted = [which for which in self.evaluations(run) if which.about == (regime,)]
            done = [self.measure(run, which).cells() for which in wanted]
            for place, method in enumerate(self.methods):
                columns = spread([found[place] for found in done], ("alpha", *COLUMNS[1:]))
                rows.append({"regime": regime, "method": method, **columns})
        note = (
            f"{in_words(run.recipe.seeds)}; test split; means over tasks, methods with their default options, alpha "
            f"chosen on validation by mean normalised {run.metric}; norm.: over single, in the same regime"
        )
        return Findings([Table(f"Merging, test {run.metric}", rows, note)])
