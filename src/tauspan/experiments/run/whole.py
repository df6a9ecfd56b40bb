"""A recipe from data to report: its parts in turn, numbered, with where they come from."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.launch import launch
from tauspan.core.measure import underway
from tauspan.core.notices import heard, once
from tauspan.core.processes import world
from tauspan.core.report import Report, Table, provenance
from tauspan.experiments import figures
from tauspan.experiments.recipe import Recipe
from tauspan.experiments.run.addition import addition
from tauspan.experiments.run.courses import finetunings
from tauspan.experiments.run.energies import energies
from tauspan.experiments.run.jobs import evaluations, spread_evaluations, spread_finetunings
from tauspan.experiments.run.maps import maps
from tauspan.experiments.run.merging import merging
from tauspan.experiments.run.negation import negation
from tauspan.experiments.run.references import references
from tauspan.experiments.run.spread import in_words
from tauspan.experiments.run.workshop import Workshop

log = logging.getLogger(__name__)
_PARTS = (addition, references, negation, maps, energies, merging)


@checked
def run(
    recipe: Recipe, out: str | Path, *, workers: int = 1, device: str | None = None, ) -> Report:  # fmt: skip
    """Carry a recipe out and write `report.json`, `report.md` and figures into `out`.

    Vectors and stage results found in `out` are reused if their keys (settings, base fingerprint, data
    checksums) are the same. A vector made with other settings is an error, never overwritten; evaluations and
    the report are made anew. A run that was killed goes on where it stopped, and two runs on one folder share the
    work: each stage is done by one of them.

    Args:
        recipe: what to do.
        out: the output folder.
        workers: processes that fine-tune, and then measure, at the same time, each with this process's number of threads
            (`OMP_NUM_THREADS`); vectors and numbers are the same to the bit however many there are.
        device: where it computes, such as `"cuda"`; of several workers each has a GPU of its own while there are enough.

    Returns:
        Tables: addition per regime and task; references, negation, disentanglement error, local energy and merging
        methods where the recipe asks for them; and what each stage took.

    Raises:
        UsageError: fewer than one worker; several workers inside several processes; a model that was edited.
        StoreError: `out` holds vectors of another recipe, or cannot be written.
    """
    if workers < 1:
        raise UsageError(f"workers={workers}: it must be at least 1.")
    if workers > 1 and launch().size > 1:
        raise UsageError(
            f"workers={workers} in one of {launch().size} processes of a launcher: several processes train "
            "one vector together, several workers one each. Choose one of the two."
        )
    out = Path(out)
    with heard() as warned:
        shop = Workshop(recipe, out, device)
        if workers > 1:
            spread_finetunings(shop, workers)
            spread_evaluations(shop, workers)
        stages = len([*finetunings(recipe), *evaluations(shop)])
        with underway("stages", total=stages) as shop.stages.advance:
            report = _report(shop)
    report = dataclasses.replace(report, warnings=once(shop.stages.warnings, warned))
    with world() as processes:
        if processes.first:
            store.write_text(out / "report.json", report.to_json())
            store.write_text(out / "report.md", report.to_markdown())
            for path in figures.draw(report, out):
                log.info("wrote %s", path)
        processes.wait()
    return report


def _report(shop: Workshop) -> Report:
    """Everything the recipe asks for, a table for each part."""
    recipe = shop.recipe
    tables: list[Table] = []
    series: list[dict[str, Any]] = []
    result: dict[str, Any] = {"seeds": in_words(recipe.seeds), "start": recipe.start}
    for part in _PARTS:
        found = part(shop)
        tables += found.tables
        series += found.series
        result |= {**found.result, "alpha": {**result.get("alpha", {}), **found.result.get("alpha", {})}}
    tables.append(Table("Cost", shop.stages.rows(), "peak memory is the whole process's"))
    facts: dict[str, Any] = {"recipe": recipe.as_dict(), "base": shop.pretrained.source}
    title = recipe.title
    if recipe.start == "random":
        title += ", random initialisation"
        facts["start"] = (
            "random initialisation: the vectors of a seed start from the model re-initialised with it"
        )
        facts["fingerprint"] = {f"seed {seed}": shop.base(seed) for seed in recipe.seeds}
    else:
        facts["fingerprint"] = shop.base(recipe.seeds[0])
    numbered = [dataclasses.replace(table, title=f"{n}. {table.title}") for n, table in enumerate(tables, 1)]
    return Report(title, numbered, provenance(**facts), series, result)
