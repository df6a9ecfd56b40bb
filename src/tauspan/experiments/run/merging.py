"""Merging methods side by side, each with an alpha of its own."""

from typing import Any, cast

from tauspan.core.choices import EditRegime
from tauspan.core.report import Cell, Report, Table
from tauspan.experiments.run.addition import COLUMNS
from tauspan.experiments.run.courses import course_of
from tauspan.experiments.run.spread import in_words, spread
from tauspan.experiments.run.workshop import Evaluation, Workshop
from tauspan.kernel.diagnose.rows import Findings
from tauspan.merge.data import compare as comparing


def merging(shop: Workshop) -> Findings:
    """One row a regime and method; nothing where the recipe names no method."""
    asked = shop.recipe.merge
    rows: list[dict[str, Cell]] = []
    for regime in regimes_of(shop):
        made = [merged(shop, Evaluation("merge", (regime,), seed)) for seed in shop.recipe.seeds]
        done = [one.tables[0].rows for one in made]
        for place, method in enumerate(asked.methods):
            columns = spread([found[place] for found in done], ("alpha", *COLUMNS[1:]))
            rows.append({"regime": regime, "method": method, **columns})
    note = (
        f"{in_words(shop.recipe.seeds)}; test split; means over tasks, methods with their default options, alpha chosen "
        "on validation by mean normalised accuracy; norm.: over single, in the same regime"
    )
    return Findings([Table("Merging, test accuracy", rows, note)] if rows else [], [], {})


def regimes_of(shop: Workshop) -> tuple[EditRegime, ...]:
    """The regimes in which methods are compared; none where no method is named."""
    asked = shop.recipe.merge
    return asked.regimes or shop.recipe.regimes if asked.methods else ()


def merged(shop: Workshop, which: Evaluation) -> Report:
    """The methods side by side, for one regime and seed."""
    regime, seed = cast(EditRegime, which.about[0]), which.seed
    vectors = shop.vectors(course_of(regime), seed)
    shared: dict[str, Any] = {
        "grid": shop.recipe.merge.grid or comparing.WIDE_GRID,
        "seed": seed,
    }
    methods: comparing.Methods = {name: (name, {}) for name in shop.recipe.merge.methods}

    def work() -> Report:
        return comparing.compare(
            shop.encoder(seed), vectors, methods, regime, reading=shop.reading, **shared
        ).report()

    key = shop.key(vectors, regime, {**shop.shared(), **shared}, list(methods))
    return shop.stages.report(regime, "merge", which.name, key, work)
