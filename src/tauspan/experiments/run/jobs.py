"""Fine-tunings and evaluations spread over worker processes; each writes what the same run in one process would."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tauspan.experiments.recipe import Recipe
from tauspan.experiments.run.addition import added
from tauspan.experiments.run.courses import Course, Finetuning, finetunings
from tauspan.experiments.run.energies import STARTS, energy
from tauspan.experiments.run.maps import mapped
from tauspan.experiments.run.maps import regimes_of as mapped_regimes
from tauspan.experiments.run.merging import merged
from tauspan.experiments.run.merging import regimes_of as merged_regimes
from tauspan.experiments.run.negation import negated, targets_of
from tauspan.experiments.run.references import together
from tauspan.experiments.run.workshop import Evaluation, Kind, Workshop
from tauspan.experiments.sweep import Job, sweep
from tauspan.experiments.sweep.pool import DEVICE

FOLDER = "sweep"
_MAKERS: Mapping[Kind, Callable[[Workshop, Evaluation], object]] = {
    "add": added, "evaluate": together, "negate": negated, "disentangle": mapped, "energy": energy, "merge": merged,
}  # fmt: skip


def spread_finetunings(shop: Workshop, workers: int) -> None:
    """Make the vectors that are not there yet, several at a time."""
    left = [which for which in finetunings(shop.recipe) if not shop.finished(which)]
    made = {shop.folder(which).name: which._asdict() for which in left}
    _spread(shop, workers, finetune, made)
    shop.stages.fresh |= {f"finetune-{name}" for name in made}


def spread_evaluations(shop: Workshop, workers: int) -> None:
    """Measure what was not measured yet, several stages at a time; the vectors must be there.

    A stage that was measured under another key is left to the run itself, which alone says what is out of date.
    """
    left = [which for which in evaluations(shop) if not shop.stages.exists(which.name)]
    _spread(shop, workers, evaluate, {which.name: which._asdict() for which in left})
    shop.stages.fresh |= {which.name for which in left}


def evaluations(shop: Workshop) -> Iterator[Evaluation]:
    """Every stage that measures something of a recipe, a seed and regime after the other, since they share vectors."""
    recipe = shop.recipe
    for seed in recipe.seeds:
        if recipe.energy is not None:
            yield from (Evaluation("energy", (start,), seed) for start in STARTS)
        for reference in recipe.references:
            kind: Kind = "evaluate" if reference == "joint" else "add"
            yield Evaluation(kind, (reference,), seed)
        for regime in recipe.regimes:
            yield Evaluation("add", (regime,), seed)
            yield from (Evaluation("negate", (task.name, regime), seed) for task in targets_of(shop))
            if regime in merged_regimes(shop):
                yield Evaluation("merge", (regime,), seed)
            if regime in mapped_regimes(shop) and seed == recipe.seeds[0]:
                yield Evaluation("disentangle", (regime,), seed)


def _spread(
    shop: Workshop, workers: int, function: Callable[..., str], named: Mapping[str, Mapping[str, Any]]
) -> None:
    """Carry jobs out by name, with the arguments of each.

    Every worker computes with as many threads as this process, because sums over threads round differently: so the
    results are the same to the bit however many workers there are.
    """
    recipe = shop.recipe.to_yaml()
    folder = shop.out / FOLDER / hashlib.sha256(recipe.encode()).hexdigest()[:12]
    shared = {"recipe": recipe, "out": str(shop.out.resolve())}
    jobs = []
    for name, arguments in named.items():
        (folder / f"{name}.json").unlink(missing_ok=True)  # of a result that was removed since
        jobs.append(Job(name, f"{__name__}:{function.__name__}", {**shared, **arguments}))
    if jobs:
        threads = torch.get_num_threads()
        sweep(jobs, folder, workers, threads=threads, device=shop.device)


def finetune(
    recipe: str, out: str, course: Course, task: str | None, seed: int, device: str | None = None
) -> str:  # fmt: skip
    """One vector of a recipe, as a job; its folder's name.

    Args:
        recipe: the recipe's text.
        out: the run's output folder.
        course: a regime that is trained, or a reference.
        task: as the recipe names it; None for all tasks together.
        seed: one of the recipe's.
        device: where, as `tauspan.run` takes it; None is what the sweep says.
    """
    return _shop(recipe, out, device or os.environ.get(DEVICE)).finetune(Finetuning(course, task, seed)).name


def evaluate(recipe: str, out: str, kind: Kind, about: Sequence[str], seed: int) -> str:
    """One stage that measures, as a job; its name. Arguments as of `finetune` and `Evaluation`."""
    which = Evaluation(kind, tuple(about), seed)
    _MAKERS[kind](_shop(recipe, out, os.environ.get(DEVICE)), which)
    return which.name


@functools.lru_cache(maxsize=1)
def _shop(recipe: str, out: str, device: str | None) -> Workshop:
    """A worker's own encoder and tasks, loaded with its first job; how far it is, its log says."""
    return Workshop(Recipe.parse(recipe), Path(out), device=device)
