"""`Made`: ways to make task vectors side by side: alone, added without a search, merged, subtracted; with their cost."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tauspan.core.choices import Regime
from tauspan.core.errors import RecipeError, listed, nearest
from tauspan.core.measure import progress
from tauspan.drift import Factors
from tauspan.experiments.made.outcome import Asked, outcome, validated
from tauspan.experiments.made.ways import WAYS, Making, Vectors
from tauspan.experiments.run.made_tables import tables
from tauspan.experiments.run.part import Evaluation, Findings, Part, refuse_twice
from tauspan.experiments.run.vectors import Finetuning
from tauspan.merge import METHODS
from tauspan.train import Settings
from tauspan.vector import FILE, TaskVector

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe


_METRICS = ("reduce", "expand")


@dataclasses.dataclass(frozen=True)
class Made(Part):
    """Ways to make vectors that are added: regimes, penalties, closed forms; and rules that merge what they make.

    Learning rates and weights are chosen with the first seed, on validation rows: rates by the accuracy of single
    vectors, weights by that of their sum at 1. The other seeds take them.

    Args:
        ways: names of `tauspan.experiments.made.WAYS`, such as `linear`, `linear-exact`, `superposed`.
        rules: merging methods beside the sum, with their default options; `METHOD@reduce` or `METHOD@expand` merges in
        the
            metric of the function (`tauspan.drift.merge_in_metric`).
        merged: the ways whose vectors the rules merge; None takes all.
        grid: coefficients, for the sum and the rules, and for negation.
        rates: learning rates to try, by regime; one that is not named keeps the recipe's.
        weights: weights to try, by way, in place of the way's own.
        ridge: of closed forms; None chooses it by leave-one-out.
        xi: coefficients of the maps of xi.
        xi_rows: at most so many test rows of each task are read for the maps of ordinary models.
        floor: the share of the controls' accuracy that negation has to keep on validation.
    """

    ways: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    merged: tuple[str, ...] | None = None
    grid: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
    rates: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    ridge: float | None = None
    xi: tuple[float, ...] = (0.5, 1.0)
    xi_rows: int = 40
    floor: float = 0.99
    key: ClassVar[str] = "made"
    vectorless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_twice("made.ways", self.ways)
        refuse_twice("made.rules", self.rules)
        for name in self.ways:
            if name not in WAYS:
                raise RecipeError(f"made.ways: {name!r}. {nearest(name, list(WAYS))}")
        for name in self.rules:
            method, at, kind = name.partition("@")
            if method not in METHODS:
                raise RecipeError(f"made.rules: {method!r}. {nearest(method, list(METHODS))}")
            if at and kind not in _METRICS:
                raise RecipeError(f"made.rules: {name!r}: after @ comes one of {listed(_METRICS)}.")
        for name in self.merged or ():
            if name not in self.ways:
                raise RecipeError(f"made.merged: {name!r}. {nearest(name, self.ways)}")
        for name in self.weights:
            if name not in self.ways or WAYS[name].tries != "weight":
                raise RecipeError(f"made.weights: {name!r} is no way of this recipe that has a weight.")
        for name in self.rates:
            if name not in ("standard", "linear"):
                raise RecipeError(f"made.rates: {name!r}: rates are of 'standard' or 'linear'.")
        if not 0 <= self.floor <= 1:
            raise RecipeError(f"made.floor: {self.floor}: it is a share, between 0 and 1.")
        for way in self.ways:
            for needed in WAYS[way].needs:
                if needed not in self.ways:
                    raise RecipeError(f"made.ways: {way!r} takes what {needed!r} gives: add {needed!r}.")

    def check(self, recipe: "Recipe") -> None:
        """There is something to add."""
        if self.ways and len(recipe.tasks) < 2:
            raise RecipeError("made.ways: vectors are compared by their sum: name at least two tasks.")
        if self.ways and recipe.finetune.epochs_by_task:
            raise RecipeError(
                "finetune.epochs_by_task: the ways of `made` train all tasks alike: leave it out."
            )

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each seed and way, those that others need first."""
        ordered = sorted(self.ways, key=lambda name: (len(WAYS[name].needs), self.ways.index(name)))
        return [Evaluation("made", (name,), seed) for seed in run.recipe.seeds for name in ordered]

    def measure(self, run: "RunContext", which: Evaluation) -> dict[str, Any]:
        """What one way gives with one seed."""
        (name,) = which.about

        def work() -> dict[str, Any]:
            return self._made(run, name, which.seed)

        return {**self._stage(run, which, work).content, "cost": self._stage(run, which, work).cost}

    def findings(self, run: "RunContext") -> Findings:
        """The tables of the comparison, and every number by way and seed."""
        done = {
            name: [self.measure(run, Evaluation("made", (name,), seed)) for seed in run.recipe.seeds]
            for name in self.ways
        }
        plain = {
            name: [{key: value for key, value in one.items() if key != "cost"} for one in found]
            for name, found in done.items()
        }
        return Findings(tables(run.recipe.seeds, run.tasks, done, self.floor), [], {"made": plain})

    # -- one way ---------------------------------------------------------------------------------------------

    def _stage(self, run: "RunContext", which: Evaluation, work: Callable[[], dict[str, Any]]) -> Any:
        (name,) = which.about
        facts = dataclasses.asdict(self) | {
            "ways": None,
            "merged": self.merged is None or name in self.merged,
        }
        facts["weights"] = self._values(name)
        key = [
            name, facts, run.recipe.as_dict()["finetune"], run.shared(), run.base(which.seed),
            [task.checksum() for task in run.tasks],
        ]  # fmt: skip
        made = self._folder(run, name, which.seed, run.tasks[-1].name) / FILE
        return run.stages.do(name, "made", which.name, key, work, made)

    def _values(self, name: str) -> tuple[float | None, ...]:
        """What is tried for a way."""
        way = WAYS[name]
        if way.tries == "rate":
            return tuple(self.rates.get(way.regime, ())) or (None,)
        return self.weights.get(name, way.values) or (None,)

    def _made(self, run: "RunContext", name: str, seed: int) -> dict[str, Any]:
        """Make the vectors, at what is chosen for the way, and measure them."""
        way, given, first = WAYS[name], self._making(run, seed, name), run.recipe.seeds[0]
        for needed in way.needs:  # so that the seconds below are the way's own
            self.measure(run, Evaluation("made", (needed,), seed))
        tried: dict[str, dict[str, float]] = {}
        values = self._values(name)
        if seed != first:
            values = (self.measure(run, Evaluation("made", (name,), first))["value"],)
        best: tuple[float, float | None, Vectors, float] | None = None
        with progress(f"{name}, seed {seed}", len(values)) as advance:
            for value in values:
                begun = time.perf_counter()
                vectors = way.make(given, value)
                seconds = time.perf_counter() - begun
                if len(values) > 1:
                    found = validated(given.encoder, vectors, way.regime, run.reading)
                    tried[f"{value:g}"] = found
                score = 0.0 if len(values) == 1 else found["single" if way.tries == "rate" else "sum"]
                if best is None or score > best[0]:
                    best = score, value, vectors, seconds
                advance(1, "" if value is None else f"{way.tries} {value:g}")
        assert best is not None  # noqa: S101 - there is at least one value
        _, value, vectors, seconds = best
        for task, vector in vectors.items():
            vector.save_pretrained(self._folder(run, name, seed, task.name) / FILE, overwrite=True)
        rules = self.rules if self.merged is None or name in self.merged else ()
        merged = {} if way.together else {rule: given.merged(rule, vectors, seed) for rule in rules}
        asked = Asked(self.grid, self.xi, self.xi_rows, self.floor)
        found_out = outcome(given.encoder, vectors, merged, way.regime, run.reading, asked)
        ratios = [one for vector in vectors.values() for one in _ratios(vector)]
        return {
            "value": value,
            "tried": tried,
            "seconds": seconds,
            "ratio": sum(ratios) / len(ratios) if ratios else None,
            **found_out,
        }

    def _making(self, run: "RunContext", seed: int, name: str) -> Making:
        """What a way is given, for one seed."""

        def rate_of(regime: Regime, rate: float | None) -> dict[str, Any]:
            first = run.recipe.seeds[0]
            if rate is None and regime in self.ways and regime != name:
                rate = self.measure(run, Evaluation("made", (regime,), first))["value"]
            return {} if rate is None else {"lr": rate}

        def settings(regime: Regime, rate: float | None) -> Settings:
            tuned = run.recipe.finetune
            if regime == "linear" and tuned.augment == "none" and not tuned.checkpointing:
                return run.recipe.settings(
                    Finetuning(regime, None, seed), cache="auto", **rate_of(regime, rate)
                )
            return run.recipe.settings(Finetuning(regime, None, seed), **rate_of(regime, rate))

        def joint(regime: Regime, rate: float | None) -> Settings:
            chosen = run.settings(Finetuning("joint", None, seed))
            return dataclasses.replace(
                settings(regime, rate), epochs=chosen.epochs, max_steps=chosen.max_steps
            )

        def others(name: str) -> Vectors:
            self.measure(run, Evaluation("made", (name,), seed))
            return {
                task: TaskVector.from_pretrained(self._folder(run, name, seed, task.name) / FILE)
                for task in run.tasks
            }

        curvature: dict[tuple[str, str], Factors] = {}
        return Making(run.encoder(seed), run.tasks, settings, joint, self.ridge, others, curvature)

    def _folder(self, run: "RunContext", name: str, seed: int, task: str) -> Path:
        return run.out / "vectors" / f"made-{name}-{task}-seed{seed}"


def _ratios(vector: TaskVector) -> list[float]:
    """Approximate over exact drift of a vector, for each other task, where its penalty measured that."""
    found = (vector.info.get("penalty") or {}).get("ratio") or {}
    return [value for value in found.values() if value is not None]
