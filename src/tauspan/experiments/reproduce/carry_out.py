"""`reproduce`: every part of an experiment, and one report that sets ours beside what others published."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.processes import world
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.editing.model.edit import load
from tauspan.experiments import figures
from tauspan.experiments.reproduce.leaks import checked as without_leaks
from tauspan.experiments.reproduce.planning import Plan, preset_name
from tauspan.experiments.reproduce.published import Ours, beside
from tauspan.experiments.reproduce.rates import chosen, trials
from tauspan.experiments.run import run
from tauspan.experiments.run.spread import spread

log = logging.getLogger(__name__)
_ADDED = ("added", "added norm.", "alpha 1", "alpha 1 norm.")


@noted
@checked
def reproduce(
    plan: Plan,
    *,
    allow_leaks: bool = False,
) -> Report:
    """Carry a plan out and write `report.json`, `report.md` and figures into its folder.

    Each part is a run of `tauspan.run` in `OUT/PART`, with its recipe beside it as `recipe.yaml`. What is there
    already is reused, so an interrupted reproduction goes on where it stopped.

    Args:
        plan: what `tauspan.experiments.reproduce.plan` prepared.
        allow_leaks: go on where rows of a data set stand in two of its splits.

    Returns:
        Ours beside published numbers, then every part's own tables.

    Raises:
        TauspanError: whatever loading, data, training or writing raises; what was finished is kept.
    """
    load(
        plan.model, plan.device
    )  # a model that cannot be had is refused before gigabytes of data are fetched
    done: dict[str, Report] = {}
    leaks = without_leaks(
        plan.recipes.values(),
        plan.out,
        allow=allow_leaks,
    )
    tried: dict[str, Table] = {}
    for part, recipe in plan.recipes.items():
        out = plan.out / part
        if plan.rates is not None and trials(recipe, plan.rates, out):
            recipe, tried[part] = chosen(
                recipe,
                plan.rates,
                out,
                workers=plan.workers,
                device=plan.device,
            )
        _write({out / "recipe.yaml": recipe.to_yaml()})
        done[part] = run(
            recipe, out, workers=plan.workers, device=plan.device, )  # fmt: skip
    report = combined(plan, done, tried, leaks)
    _write({plan.out / "report.json": report.to_json(), plan.out / "report.md": report.to_markdown()}, report)
    return report


def _write(texts: Mapping[Path, str], drawn: Report | None = None) -> None:
    """Write files, and a report's figures beside the first; one process of a group does."""
    with world() as processes:
        if processes.first:
            for path, text in texts.items():
                store.write_text(path, text)
            folder = next(iter(texts)).parent
            for path in figures.draw(drawn, folder) if drawn else ():
                log.info("wrote %s", path)
        processes.wait()


def combined(
    plan: Plan, done: Mapping[str, Report], tried: Mapping[str, Table], leaks: Table | None = None
) -> Report:
    """One report of all parts: the comparison first, then each part's tables under its name.

    Args:
        plan: what was carried out.
        done: each part's own report.
        tried: each part's learning rates, where they were chosen.
        leaks: what the leak check found.
    """
    several = len(done) > 1
    first = next(iter(done.values()))
    published = [_beside(plan, first)] if plan.experiment.measures else []
    tables = [*published, *([leaks] if leaks else [])]
    series: list[dict[str, Any]] = []
    for part, report in done.items():
        whose = f"{part}: " if several else ""
        own = [*([tried[part]] if part in tried else []), *report.tables]
        tables += [dataclasses.replace(table, title=f"{whose}{_unnumbered(table.title)}") for table in own]
        series += [{**one, "title": f"{whose}{one['title']}"} for one in report.series]
    numbered = [dataclasses.replace(table, title=f"{n}. {table.title}") for n, table in enumerate(tables, 1)]
    facts = provenance(
        reproduces=f"{plan.experiment.reproduces} ({plan.experiment.where})",
        variant=f"{plan.variant}: {plan.what}",
        parts={part: report.provenance for part, report in done.items()},
    )
    result = {**first.result, "parts": {part: report.result for part, report in done.items()}}
    return Report(f"{plan.experiment.title} ({plan.variant})", numbered, facts, series, result)


def _beside(plan: Plan, report: Report) -> Table:
    """The comparison with published numbers; with other tasks only their single-task numbers have counterparts."""
    recipe = next(iter(plan.recipes.values()))
    whole = recipe.tasks == tuple(plan.experiment.recipe["tasks"])
    reasons = [] if whole else [f"only the tasks {', '.join(recipe.tasks)}"]
    if recipe.rows.train is not None:
        reasons.append(f"at most {recipe.rows.train} training rows")
    if recipe.finetune.max_steps is not None:
        reasons.append(f"at most {recipe.finetune.max_steps} steps")
    note = f"not the paper's setting, so not comparable: {'; '.join(reasons)}" if reasons else ""
    found = ours(plan.experiment.measures, report)
    return beside(found, preset_name(plan.model), None if whole else recipe.tasks, note)


def ours(measures: Sequence[str], report: Report) -> list[Ours]:
    """The numbers of a run that the paper's tables have, as means over seeds with their spread.

    Args:
        measures: of the experiment.
        report: of `tauspan.run`.
    """
    found: list[Ours] = []
    for measure in measures:
        found += _OURS[measure](report.result)
    return found


def _addition(result: Mapping[str, Any]) -> list[Ours]:
    found: list[Ours] = []
    for regime, tasks in result["addition_by_seed"].items():
        cells = _over_seeds(tasks["mean"])
        if not found:
            found.append(Ours("addition", "pretrained", "zero shot", cells["zero shot"]))
        found += [Ours("addition", regime, column, cells[column]) for column in _ADDED]
    for reference, tasks in result.get("references", {}).items():
        found.append(Ours("addition", reference, "added", tasks["mean"]["one model"]))
    return found


def _single(result: Mapping[str, Any]) -> list[Ours]:
    return [
        Ours("single-task", regime, task, _over_seeds(columns)["single"])
        for regime, tasks in result["addition_by_seed"].items()
        for task, columns in tasks.items()
    ]


def _negation(result: Mapping[str, Any]) -> list[Ours]:
    """Means over targets, seed by seed."""
    found: list[Ours] = []
    for regime, targets in result["negation"].items():
        seeds = list(zip(*targets.values(), strict=True))
        for model, label in (("pre-trained", "pretrained"), ("negated", regime)):
            if model == "pre-trained" and found:
                continue
            for column in ("target", "control"):
                means = [sum(one[model][column] for one in seed) / len(seed) for seed in seeds]
                found.append(Ours("negation", label, column, _over_seeds({column: means})[column]))
    return found


_OURS = {"addition": _addition, "single-task": _single, "negation": _negation}


def _over_seeds(columns: Mapping[str, Sequence[float]]) -> dict[str, Cell]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return spread(rows, tuple(columns))


def _unnumbered(title: str) -> str:
    number, point, rest = title.partition(". ")
    return rest if point and number.isdigit() else title
