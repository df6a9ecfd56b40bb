"""`reproduce`: run every part of an experiment, and compare the results with published numbers in one report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.processes import world
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.editing.model.edit import load
from tauspan.experiments.reproduce.leaks import check_leaks
from tauspan.experiments.reproduce.planning import Plan, preset_name
from tauspan.experiments.reproduce.published import Ours, beside
from tauspan.experiments.reproduce.rates import chosen, trials
from tauspan.experiments.run.runner import measured, numbered, write
from tauspan.experiments.run.spread import spread

_ADDED = ("added", "added norm.", "alpha 1", "alpha 1 norm.")


@noted
@checked
def reproduce(plan: Plan, *, allow_leaks: bool = False) -> Report:
    """Carry a plan out and write `report.json`, `report.md` and figures into its folder.

    Each part is a run of `tauspan.run` in `OUT/PART`, with its recipe beside it as `recipe.yaml`. Results that are in
    the folder already are reused, so an interrupted reproduction continues where it stopped.

    Args:
        plan: what `tauspan.experiments.reproduce.plan` prepared.
        allow_leaks: go on where rows of a data set are in two of its splits.

    Returns:
        Ours beside published numbers, then every part's own tables.

    Raises:
        TauspanError: whatever loading, data, training or writing raises; what was finished is kept.
    """
    load(plan.model, plan.device)  # an unusable model is refused before gigabytes of data are fetched
    leaks = check_leaks(plan.recipes.values(), plan.out, allow=allow_leaks)
    done: dict[str, Report] = {}
    tried: dict[str, Table] = {}
    for part, recipe in plan.recipes.items():
        out = plan.out / part
        if plan.rates is not None and trials(recipe, plan.rates, out):
            recipe, tried[part] = chosen(recipe, plan.rates, out, workers=plan.workers, device=plan.device)
        with world() as processes:
            if processes.first:
                store.write_text(out / "recipe.yaml", recipe.to_yaml())
            processes.wait()
        done[part] = measured(recipe, out, workers=plan.workers, device=plan.device)
        write(numbered(done[part]), recipe, out)
    report = numbered(combined(plan, done, tried, leaks))
    write(report, next(iter(plan.recipes.values())), plan.out)
    return report


def combined(
    plan: Plan, done: Mapping[str, Report], tried: Mapping[str, Table], leaks: Table | None = None
) -> Report:
    """One report of all parts: the comparison first, then each part's tables under its name.

    Args:
        plan: what was carried out.
        done: each part's own report, before its tables are numbered.
        tried: each part's learning rates, where they were chosen.
        leaks: the result of the leak check.
    """
    first = next(iter(done.values()))
    published = [_beside(plan, first)] if plan.experiment.measures else []
    tables = [*published, *([leaks] if leaks else [])]
    series: list[dict[str, Any]] = []
    for part, report in done.items():
        whose = f"{part}: " if len(done) > 1 else ""
        own = [*([tried[part]] if part in tried else []), *report.tables]
        tables += [dataclasses.replace(table, title=whose + table.title) for table in own]
        series += [{**one, "title": whose + one["title"]} for one in report.series]
    facts = provenance(
        reproduces=f"{plan.experiment.reproduces} ({plan.experiment.where})",
        variant=f"{plan.variant}: {plan.what}",
        parts={part: report.provenance for part, report in done.items()},
    )
    result = {**first.result, "parts": {part: report.result for part, report in done.items()}}
    return Report(f"{plan.experiment.title} ({plan.variant})", tables, facts, series, result)


def _beside(plan: Plan, report: Report) -> Table:
    """The comparison with published numbers; for a subset of the tasks only single-task numbers are compared."""
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
    """The numbers of a run that the paper's tables contain, as means over seeds with their spread.

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
    """Target and control accuracies before and after negation: for each seed the mean over targets."""
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
