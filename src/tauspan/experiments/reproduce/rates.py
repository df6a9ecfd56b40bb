"""A learning rate for each regime, chosen on validation among a short list; every accuracy is reported."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tauspan.core.choices import Regime
from tauspan.core.processes import world
from tauspan.core.report import Cell, Table
from tauspan.experiments.reproduce.experiment import Rates
from tauspan.experiments.run import Recipe
from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.jobs import in_workers
from tauspan.experiments.run.vectors import finetunings
from tauspan.train.loop import LOG

FOLDER = "rates"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One learning rate in one regime: a recipe with a subset of the tasks and the first seed, and its folder."""

    regime: Regime
    rate: float
    recipe: Recipe
    out: Path


def trials(recipe: Recipe, rates: Rates, out: Path) -> list[Trial]:
    """Every learning rate that is tried for a recipe.

    Post-hoc linearisation and the references use the rate that is chosen for the standard regime.
    """
    needed = {which.regime for which in finetunings(recipe)}
    tasks = tuple(name for name in rates.tasks if name in recipe.tasks) or recipe.tasks
    regimes: tuple[Regime, ...] = ("standard", "linear")
    return [
        Trial(regime, rate, recipe.alone(regime, rate, tasks), out / f"{regime}-{rate:g}")
        for regime in regimes
        for rate in getattr(rates, regime)
        if regime in needed
    ]


def chosen(
    recipe: Recipe, rates: Rates, out: Path, *, workers: int = 1, device: str | None = None
) -> tuple[Recipe, Table]:
    """The recipe with the learning rates that are best on validation, and the table of all that were tried.

    Each rate fine-tunes the subset of tasks once, with the first seed. For each regime, the rate with the largest mean
    validation accuracy at the last step is chosen; of equally good rates, the smallest. The vectors of the chosen rate
    are linked into the run's folder, so that they are not trained again.

    Args:
        recipe: of one part.
        rates: the lists, and the tasks they are tried on.
        out: the part's folder; trials are in `out/rates`.
        workers: fine-tunings at the same time.
        device: where they compute.
    """
    tried = trials(recipe, rates, out / FOLDER)
    target = RunContext(recipe, out, device)
    runs = {trial.out: RunContext(trial.recipe, trial.out, device, target.pretrained) for trial in tried}
    if workers > 1:
        in_workers(runs.values(), out / FOLDER, workers, vectors=True)
    for run in runs.values():
        for which in finetunings(run.recipe):
            run.finetune(which)
    accuracies = {trial.out: _accuracies(runs[trial.out]) for trial in tried}
    mean = {folder: statistics.fmean(found.values()) for folder, found in accuracies.items()}
    best = {
        regime: min(
            (t for t in tried if t.regime == regime), key=lambda trial: (-mean[trial.out], trial.rate)
        )
        for regime in dict.fromkeys(trial.regime for trial in tried)
    }
    rows: list[dict[str, Cell]] = [
        {"regime": trial.regime, "learning rate": f"{trial.rate:g}", **accuracies[trial.out],
         "mean": mean[trial.out], "chosen": trial is best[trial.regime]}
        for trial in tried
    ]  # fmt: skip
    tuned = recipe.finetune
    for trial in best.values():
        _adopt(runs[trial.out], target)
        tuned = tuned.at(trial.regime, trial.rate)
    table = Table("Learning rates tried, validation accuracy", rows, _note(recipe, tried, best))
    return dataclasses.replace(recipe, finetune=tuned), table


def _accuracies(run: RunContext) -> dict[str, float]:
    """The last validation accuracy of each task of a trial."""
    found = {}
    for which in finetunings(run.recipe):
        lines = (run.folder(which) / LOG).read_text(encoding="utf-8").splitlines()
        entries = [entry for entry in map(json.loads, lines) if entry["split"] == "validation"]
        found[str(which.task)] = float(entries[-1]["accuracy"])
    return found


def _adopt(trial: RunContext, target: RunContext) -> None:
    """Link a trial's vectors, and the records of their training, into the run's folder."""
    with world() as processes:
        for which in finetunings(trial.recipe) if processes.first else ():
            target.adopt(trial, which)
        processes.wait()


def _note(recipe: Recipe, tried: Sequence[Trial], best: Mapping[Regime, Trial]) -> str:
    tasks = tried[0].recipe.tasks
    whose = "all tasks" if set(tasks) == set(recipe.tasks) else ", ".join(tasks)
    note = f"seed {recipe.seeds[0]}, {whose}; the largest mean is taken"
    for regime, trial in best.items():
        listed = sorted(other.rate for other in tried if other.regime == regime)
        if len(listed) > 1 and trial.rate in (listed[0], listed[-1]):
            note += f"; the {regime} rate is an end of its list, so a better one may lie outside"
    return note
