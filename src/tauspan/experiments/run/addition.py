"""Addition in every regime: one model for all tasks, the sum of their vectors under one coefficient."""

from collections.abc import Mapping
from typing import Any, cast

from tauspan import editing
from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Report, Table
from tauspan.experiments.run.courses import Course, course_of
from tauspan.experiments.run.spread import in_words, listed_alphas, means, spread
from tauspan.experiments.run.workshop import Evaluation, Workshop
from tauspan.kernel.diagnose.rows import Findings
from tauspan.tasks import Task
from tauspan.vector import TaskVector

COLUMNS = ("zero shot", "single", "added", "added norm.", "alpha 1", "alpha 1 norm.")


def added(shop: Workshop, which: Evaluation) -> Report:
    """The addition of one seed's vectors: those of a regime, or `"attention"`, ordinary ones of attention alone."""
    (label,) = which.about
    regime = cast(EditRegime, "standard" if label == "attention" else label)
    course: Course = "attention" if label == "attention" else course_of(regime)
    vectors: Mapping[Task, TaskVector] = shop.vectors(course, which.seed)

    def work() -> Report:
        encoder = shop.encoder(which.seed)
        return editing.add(encoder, vectors, regime, grid=shop.recipe.grid, reading=shop.reading).report()

    key = shop.key(vectors, regime, shop.shared())
    return shop.stages.report(label, "add", which.name, key, work)


def addition(shop: Workshop) -> Findings:
    """Every regime's accuracies, absolute and normalised, per task and mean; nothing where there is no regime."""
    if not shop.recipe.regimes:
        return Findings([], [], {})
    rows: list[dict[str, Cell]] = []
    series: list[dict[str, Any]] = []
    alphas: dict[str, list[float]] = {}
    found: dict[str, Any] = {}
    by_seed: dict[str, Any] = {}
    for regime in shop.recipe.regimes:
        done = [added(shop, Evaluation("add", (regime,), seed)) for seed in shop.recipe.seeds]
        alphas[regime] = [one.result["alpha"] for one in done]
        found[regime], by_seed[regime] = {}, {}
        for index, name in enumerate([*(task.name for task in shop.tasks), "mean"]):
            per_seed = [one.tables[0].rows[index] for one in done]
            rows.append({"regime": regime, "task": name, **spread(per_seed, COLUMNS)})
            found[regime][name] = means(per_seed, COLUMNS)
            by_seed[regime][name] = {column: [row[column] for row in per_seed] for column in COLUMNS}
        series += [{**entry, "group": "alpha-addition"} for entry in done[0].series]
    note = (
        f"{in_words(shop.recipe.seeds)}; test split; absolute accuracies: zero shot, single (a task's own vector at "
        "alpha 1), added (the sum of all vectors), alpha 1 (the sum at alpha 1); norm.: over single, in the same regime; "
        f"alpha chosen on validation by mean normalised accuracy: {listed_alphas(alphas)}"
    )
    result = {"alpha": alphas, "addition": found, "addition_by_seed": by_seed}
    return Findings([Table("Addition, test accuracy", rows, note)], series, result)
