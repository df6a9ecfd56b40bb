"""Addition in every regime: one model for all tasks, the sum of their vectors under one coefficient."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from tauspan import editing
from tauspan.core.choices import EditRegime
from tauspan.core.report import Table
from tauspan.experiments.run.part import Evaluation, Findings, Part
from tauspan.experiments.run.spread import Row, in_words, listed_alphas, one_series, over_seeds, stems
from tauspan.experiments.run.vectors import Finetuning, VectorKind, kind_of, one_per_task

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe

COLUMNS = ("zero shot", "single", "added", "added norm.", "alpha 1", "alpha 1 norm.")
_INTERVALS = ("added 95 %", "less single")


@dataclasses.dataclass(frozen=True)
class Addition(Part):
    """Accuracies of the sum of all vectors, for each regime of the recipe. Every run with regimes has this part."""

    def finetunings(self, recipe: "Recipe") -> Iterator[Finetuning]:
        """The vectors of every regime."""
        for kind in map(kind_of, recipe.regimes):
            yield from one_per_task(recipe, kind)

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One addition for each regime and seed."""
        return [added(regime, seed) for regime in run.recipe.regimes for seed in run.recipe.seeds]

    def measure(self, run: "RunContext", which: Evaluation) -> "editing.Addition":
        """The addition of one seed's vectors."""
        return add(run, which)

    def findings(self, run: "RunContext") -> Findings:
        """Absolute and normalised accuracies, for each task and their mean."""
        rows: list[dict[str, Any]] = []
        series: list[dict[str, Any]] = []
        alphas: dict[str, list[float]] = {}
        found: dict[str, Any] = {}
        by_seed: dict[str, Any] = {}
        right: dict[str, list[list[str]]] = {}
        for regime in run.recipe.regimes:
            done = [add(run, added(regime, seed)) for seed in run.recipe.seeds]
            alphas[regime] = [one.alpha for one in done]
            seeds = [rows_of(one) for one in done]
            more, found[regime] = over_seeds({"regime": regime}, run.names, seeds, COLUMNS)
            if len(seeds) == 1:  # with several seeds each number has its spread over them instead
                more = [
                    {**row, **{name: own[name] for name in _INTERVALS}}
                    for row, own in zip(more, seeds[0], strict=True)
                ]
            rows += more
            right[regime] = [[row.right for row in one.tasks] for one in done]
            by_seed[regime] = {
                name: {column: [one[place][column] for one in seeds] for column in COLUMNS}
                for place, name in enumerate(run.names)
            }
            curves = [entry for one in done for entry in one.report().series]
            series.append({**one_series(curves, run.recipe.seeds), "group": "alpha-addition"})
        note = (
            f"{in_words(run.recipe.seeds)}; test split; absolute {run.metrics}: zero shot, single (a task's own vector "
            "at "
            "alpha 1), added (the sum of all vectors), alpha 1 (the sum at alpha 1); norm.: over single, in the same "
            f"regime; alpha chosen on validation by mean normalised {run.metric}: {listed_alphas(alphas)}"
        )
        counted = {task.name: len(task.split("test")) for task in run.tasks if task.classes}
        result = {
            "alpha": alphas, "addition": found, "addition_by_seed": by_seed, "addition_rows": counted,
            **run.metric_facts,
        }  # fmt: skip
        tables = [Table(f"Addition, test {run.metric}", rows, note)] if rows else []
        return Findings([*tables, *_differences(run, right)], series, result)

    def pictures(self, result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
        """The bars of `addition.png`, with the accuracy of joint training where it was measured."""
        if not result.get("addition"):
            return ()
        joint = result.get("references", {}).get("joint", {})
        start = ", random initialisation" if result.get("start") == "random" else ""
        by_seed, rows = result.get("addition_by_seed", {}), result.get("addition_rows", {})
        bars: list[dict[str, Any]] = []
        metric = result.get("metric", "accuracy")
        for column, title in (("added", f"absolute {metric}"), ("added norm.", f"normalised {metric}")):
            spread, words = stems(by_seed, rows, column)
            bars.append({
                "kind": "bars", "group": "addition", "title": title, "column": column, "means": result["addition"],
                "joint": [row["one model"] for row in joint.values()] if column == "added" else [],
                "spread": spread, "spread_words": words,
                "caption": f"One model for all tasks: the sum of their vectors ({_short(result['seeds'])}{start})",
            })  # fmt: skip
        return bars


def _differences(run: "RunContext", right: Mapping[str, Sequence[Sequence[str]]]) -> list[Table]:
    """The sum of each regime against that of each other one, in pairs of rows; none of tasks without classes."""
    if len(right) < 2 or not all(task.classes for task in run.tasks):
        return []
    from tauspan.experiments.run.paired import difference, note  # torch, which a list of recipes does without

    rows: list[dict[str, Any]] = [
        {
            "added in": first,
            "less added in": second,
            "difference": difference(run.tasks, right[first], right[second]),
        }
        for second, first in itertools.combinations(right, 2)
    ]
    told = f"{in_words(run.recipe.seeds)}; mean accuracy of the sums, each at its chosen alpha; {note(run.recipe.seeds)}"
    return [Table("Addition, differences between regimes", rows, told)]


def added(label: str, seed: int) -> Evaluation:
    """The addition of one seed's vectors: those of a regime, or `"attention"`, ordinary ones of attention alone."""
    return Evaluation("add", (label,), seed)


def add(run: "RunContext", which: Evaluation) -> "editing.Addition":
    """Do one addition, or read it from its file."""
    (label,) = which.about
    regime = cast(EditRegime, "standard" if label == "attention" else label)
    kind: VectorKind = "attention" if label == "attention" else kind_of(regime)
    vectors = run.vectors(kind, which.seed)

    def work() -> "editing.Addition":
        return run.editor(kind, regime, which.seed).add(grid=run.recipe.grid)

    key = run.key(vectors, regime, run.shared())
    return run.stages.result(
        editing.Addition, label, "add", which.name, key, work, **run.edited(which.seed, vectors)
    )


def rows_of(addition: "editing.Addition") -> Sequence[Row]:
    """The rows of an addition: one for each task, then the mean."""
    return [row.cells() for row in (*addition.tasks, addition.mean)]


def _short(seeds: str) -> str:
    """The number of seeds, without what is said of their spread."""
    return seeds.partition(",")[0].partition(":")[0]
