"""A learning rate for each regime, chosen on validation among a short list; every accuracy is reported."""

import dataclasses
import json
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from tauspan import store
from tauspan.core.processes import world
from tauspan.core.report import Cell, Table
from tauspan.experiments.recipe import Maps, Negation, Recipe, Training
from tauspan.experiments.reproduce.experiment import Rates
from tauspan.experiments.run.courses import Course, course_of
from tauspan.experiments.run.jobs import finetune
from tauspan.experiments.sweep import Job, sweep
from tauspan.train.loop import LOG
from tauspan.vector import FILE

Tuned = Literal["standard", "linear"]
FOLDER = "rates"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One learning rate of one regime: a recipe with the subset of tasks and the first seed, and where it runs."""

    regime: Tuned
    rate: float
    recipe: Recipe
    out: Path


def trials(recipe: Recipe, rates: Rates, out: Path) -> list[Trial]:
    """Every learning rate that is tried for a recipe; posthoc and the references take the ordinary one's."""
    regimes: list[Course] = [course_of(regime) for regime in recipe.regimes]
    if recipe.references:
        regimes.append("standard")
    tasks = tuple(name for name in rates.tasks if name in recipe.tasks) or recipe.tasks
    found = []
    for regime in ("standard", "linear"):
        for rate in getattr(rates, regime) if regime in regimes else ():
            found.append(Trial(regime, rate, _alone(recipe, regime, rate, tasks), out / f"{regime}-{rate:g}"))
    return found


def chosen(
    recipe: Recipe,
    rates: Rates,
    out: Path,
    *,
    workers: int = 1,
    device: str | None = None,
) -> tuple[Recipe, Table]:
    """The recipe with the learning rates that validation prefers, and the table of all that were tried.

    Every rate fine-tunes the subset of tasks once, with the first seed; of each regime the rate with the largest mean
    validation accuracy at the last step is taken, of equal ones the smallest. The chosen rate's vectors are linked into
    the run's folder, so that they are not made twice.

    Args:
        recipe: of one part.
        rates: the lists, and the tasks they are tried on.
        out: the part's folder; trials lie in `out/rates`.
        workers: fine-tunings at the same time.
        device: where they compute.
    """
    tried = trials(recipe, rates, out / FOLDER)
    _finetune(tried, out / FOLDER, workers, device)
    rows: list[dict[str, Cell]] = []
    best: dict[Tuned, Trial] = {}
    for regime in dict.fromkeys(trial.regime for trial in tried):
        here = [trial for trial in tried if trial.regime == regime]
        accuracies = {trial.rate: _accuracies(trial) for trial in here}
        mean = {rate: statistics.fmean(found.values()) for rate, found in accuracies.items()}
        best[regime] = min(here, key=lambda trial: (-mean[trial.rate], trial.rate))
        for trial in here:
            rows.append({
                "regime": regime, "learning rate": f"{trial.rate:g}", **accuracies[trial.rate],
                "mean": mean[trial.rate], "chosen": trial is best[regime],
            })  # fmt: skip
    tuned = recipe.finetune
    for trial in best.values():
        _adopt(trial, out)
        tuned = _at(tuned, trial.regime, trial.rate)
    return dataclasses.replace(recipe, finetune=tuned), Table(
        "Learning rates tried, validation accuracy", rows, _note(recipe, tried, best)
    )


def _alone(recipe: Recipe, regime: Tuned, rate: float, tasks: Sequence[str]) -> Recipe:
    """A recipe that only fine-tunes some tasks, once, in one regime."""
    epochs = {name: count for name, count in recipe.finetune.epochs_by_task.items() if name in tasks}
    tuned = dataclasses.replace(_at(recipe.finetune, regime, rate), epochs_by_task=epochs)
    return dataclasses.replace(
        recipe, tasks=tuple(tasks), regimes=(regime,), seeds=recipe.seeds[:1], finetune=tuned, references=(),
        negate=Negation(), disentangle=Maps(), energy=None,
    )  # fmt: skip


def _at(tuned: Training, regime: Tuned, rate: float) -> Training:
    """The same fine-tuning with another learning rate of one regime."""
    if regime == "standard":
        return dataclasses.replace(tuned, lr_standard=rate)
    return dataclasses.replace(tuned, lr_linear=rate)


def _finetune(
    tried: Sequence[Trial], folder: Path, workers: int, device: str | None
) -> None:  # fmt: skip
    """Make every trial's vectors, several at a time."""
    jobs = [
        Job(
            f"{trial.regime}-{trial.rate:g}-{name}",
            "tauspan.experiments.run.jobs:finetune",
            {"recipe": trial.recipe.to_yaml(), "out": str(trial.out), "course": trial.regime, "task": name,
             "seed": trial.recipe.seeds[0]},
        )
        for trial in tried
        for name in trial.recipe.tasks
    ]  # fmt: skip
    if workers > 1:
        sweep(
            jobs, folder / "sweep", workers, threads=torch.get_num_threads(), device=device
        )  # fmt: skip
        return
    for job in jobs:
        finetune(**job.arguments, device=device)


def _vector_folder(trial: Trial, task: str) -> str:
    return f"{trial.regime}-{task}-seed{trial.recipe.seeds[0]}"


def _accuracies(trial: Trial) -> dict[str, float]:
    """The last validation accuracy of each task of a trial."""
    found = {}
    for name in trial.recipe.tasks:
        file = trial.out / "vectors" / _vector_folder(trial, name) / LOG
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[name] = float([entry for entry in entries if entry["split"] == "validation"][-1]["accuracy"])
    return found


def _adopt(trial: Trial, out: Path) -> None:
    """Link a trial's vectors, and what is known of their making, into the run's folder."""
    with world() as processes:
        for name in trial.recipe.tasks if processes.first else ():
            _adopt_one(trial, name, out)
        processes.wait()


def _adopt_one(trial: Trial, task: str, out: Path) -> None:
    folder = _vector_folder(trial, task)
    stage = Path("stages") / f"finetune-{folder}.json"
    pairs = [
        (path, out / "vectors" / folder / path.name) for path in (trial.out / "vectors" / folder).iterdir()
    ]
    pairs.append((trial.out / stage, out / stage))
    pairs.sort(key=lambda pair: pair[0].name == FILE)  # last: its presence says that a run is finished
    for source, target in pairs:
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target)


def _link(source: Path, target: Path) -> None:
    """One file under two names where the file system can, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        with store.atomic(target) as temporary:
            shutil.copyfile(source, temporary)


def _note(recipe: Recipe, tried: Sequence[Trial], best: dict[Tuned, Trial]) -> str:
    tasks = tried[0].recipe.tasks
    whose = "all tasks" if set(tasks) == set(recipe.tasks) else ", ".join(tasks)
    note = f"seed {recipe.seeds[0]}, {whose}; the largest mean is taken"
    for regime, trial in best.items():
        listed = sorted(other.rate for other in tried if other.regime == regime)
        if len(listed) > 1 and trial.rate in (listed[0], listed[-1]):
            note += f"; the {regime} rate is an end of its list, so a better one may lie outside"
    return note
