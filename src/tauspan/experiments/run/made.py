"""`Made`: ways to make task vectors side by side: alone, added without a search, merged, subtracted; with their cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tauspan.core.errors import RecipeError, listed, nearest
from tauspan.experiments.run.part import Evaluation, Findings, Part, refuse_twice

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
            the metric of the function (`tauspan.drift.merge_in_metric`).
        merged: the ways whose vectors the rules merge; None takes all.
        grid: coefficients, for the sum and the rules, and for negation.
        rates: learning rates to try, by way, or by regime for the ways that have none of their own; a regime that is not
            named keeps the recipe's.
        weights: weights to try, by way, in place of the way's own.
        ridge: of closed forms; None chooses it by leave-one-out.
        reference: a task of whose training inputs, without labels, the ghosts of `superposed-reference` are; none of the
            recipe's.
        references: how many.
        xi: coefficients of the maps of xi.
        xi_rows: at most so many test rows of each task are read for the maps of ordinary models.
        floor: the share of the controls' accuracy that negation has to keep on validation.
    """

    ways: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    merged: tuple[str, ...] | None = None
    grid: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    rates: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    ridge: float | None = None
    reference: str | None = None
    references: int = 32
    xi: tuple[float, ...] = (0.5, 1.0)
    xi_rows: int = 40
    floor: float = 0.99
    key: ClassVar[str] = "made"
    vectorless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.ways:
            return
        from tauspan.experiments.made.ways import WAYS  # here, so that a list of recipes needs no torch
        from tauspan.merge import METHODS

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
            known = [way for way in self.ways if WAYS[way].tries == "rate"]
            if name not in (*known, "standard", "linear"):
                raise RecipeError(f"made.rates: {name!r}. {nearest(name, known or ['standard', 'linear'])}")
        if not 0 <= self.floor <= 1:
            raise RecipeError(f"made.floor: {self.floor}: it is a share, between 0 and 1.")
        for way in self.ways:
            for needed in WAYS[way].needs:
                if needed not in self.ways:
                    raise RecipeError(f"made.ways: {way!r} takes what {needed!r} gives: add {needed!r}.")
            if WAYS[way].referenced and self.reference is None:
                raise RecipeError(
                    f"made.ways: {way!r} takes rows of no task of the recipe: name a task in made.reference."
                )

    def check(self, recipe: "Recipe") -> None:
        """There is something to add."""
        if self.ways and len(recipe.tasks) < 2:
            raise RecipeError("made.ways: vectors are compared by their sum: name at least two tasks.")
        if self.ways and recipe.finetune.epochs_by_task:
            raise RecipeError(
                "finetune.epochs_by_task: the ways of `made` train all tasks alike: leave it out."
            )

        if self.reference is not None and self.reference in recipe.tasks:
            raise RecipeError(
                f"made.reference: {self.reference!r} is a task of the recipe: name another one."
            )

    def reference_rows(self, run: "RunContext") -> Sequence[str]:
        """The inputs of the reference, as the model reads them."""
        from tauspan.tasks.data.suite import find_task  # here, so that a list of recipes needs no torch

        if self.reference is None:
            return []
        task = find_task(self.reference, run.recipe.data).subset(train=self.references)
        return list(task.split("train").inputs)

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each seed and way, those that others need first."""
        from tauspan.experiments.made.ways import WAYS

        ordered = sorted(self.ways, key=lambda name: (len(WAYS[name].needs), self.ways.index(name)))
        return [Evaluation("made", (name,), seed) for seed in run.recipe.seeds for name in ordered]

    def measure(self, run: "RunContext", which: Evaluation) -> dict[str, Any]:
        """What one way gives with one seed."""
        from tauspan.experiments.run.made_work import Work

        return Work(self, run, which.about[0], which.seed).found()

    def pictures(self, result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
        """What each way gives alone and added."""
        if not result.get("made"):
            return ()
        from tauspan.experiments.run.made_tables import picture

        return [picture(result["made"])]

    def findings(self, run: "RunContext") -> Findings:
        """The tables of the comparison, and every number by way and seed."""
        from tauspan.experiments.run.made_tables import tables

        done = {
            name: [self.measure(run, Evaluation("made", (name,), seed)) for seed in run.recipe.seeds]
            for name in self.ways
        }
        plain = {
            name: [{key: value for key, value in one.items() if key != "cost"} for one in found]
            for name, found in done.items()
        }
        return Findings(tables(run.recipe.seeds, run.tasks, done, self.floor), [], {"made": plain})
