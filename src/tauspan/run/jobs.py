"""Fine-tunings spread over worker processes; each writes what the same run in one process would."""

import functools
import hashlib
import os
from pathlib import Path

import torch

from tauspan.recipe import Recipe
from tauspan.run.workshop import Course, Finetuning, Workshop, finetunings
from tauspan.sweep import Job, sweep
from tauspan.sweep.pool import DEVICE

FOLDER = "sweep"


def spread_finetunings(shop: Workshop, workers: int) -> None:
    """Make the vectors that are not there yet, several at a time.

    Every worker computes with as many threads as this process, because sums over threads round differently: so the
    vectors are the same to the bit however many workers there are.
    """
    recipe = shop.recipe.to_yaml()
    folder = shop.out / FOLDER / hashlib.sha256(recipe.encode()).hexdigest()[:12]
    shared = {"recipe": recipe, "out": str(shop.out.resolve())}
    jobs = []
    for which in finetunings(shop.recipe):
        if not shop.finished(which):
            name = shop.folder(which).name
            (folder / f"{name}.json").unlink(missing_ok=True)  # of a vector that was removed since
            jobs.append(Job(name, "tauspan.run.jobs:finetune", {**shared, **which._asdict()}))
    if jobs:
        sweep(
            jobs,
            folder,
            workers,
            threads=torch.get_num_threads(),
            show_progress=shop.show,
            device=shop.device,
        )
        shop.stages.fresh |= {f"finetune-{job.name}" for job in jobs}


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


@functools.lru_cache(maxsize=1)
def _shop(recipe: str, out: str, device: str | None) -> Workshop:
    """A worker's own encoder and tasks, loaded with its first job."""
    return Workshop(Recipe.parse(recipe), Path(out), show=False, device=device)
