"""The stages of a run in worker processes; each writes what the same run in one process would."""

import functools
import hashlib
import importlib
import os
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path

import torch

from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.part import Part
from tauspan.experiments.run.parts import PARTS
from tauspan.experiments.run.recipe import Recipe
from tauspan.experiments.sweep import Job, sweep
from tauspan.experiments.sweep.driver import BackendName
from tauspan.experiments.sweep.executors import Makes, Submits
from tauspan.experiments.sweep.pool import DEVICE

FOLDER = "sweep"


def in_workers(
    runs: Iterable[RunContext],
    out: Path,
    workers: int,
    *,
    vectors: bool,
    backend: BackendName | Submits | Makes = "processes",
) -> None:
    """Do the stages of some runs that are not done yet, several at a time.

    Every worker computes with as many threads as this process, because sums over threads round differently: so the
    results are the same to the bit however many workers there are. A stage that was done under another key is left to
    the run itself, which alone knows what is out of date.

    Args:
        runs: the recipes, each with a folder of its own.
        out: the folder for the sweep's results and logs.
        workers: how many at a time.
        vectors: whether the vectors are made, or all other stages, which need them.
        backend: where the workers are; see `sweep`.
    """
    runs = list(runs)
    texts = {run.out: run.recipe.to_yaml() for run in runs}
    folder = out / FOLDER / hashlib.sha256("".join(sorted(set(texts.values()))).encode()).hexdigest()[:12]
    jobs = []
    for run in runs:
        own = [_spelled(type(part)) for part in run.recipe.parts if type(part) not in PARTS]
        shared = {"recipe": texts[run.out], "out": str(run.out.resolve()), "parts": own}
        for stage, step in run.steps().items():
            if (step.kind == "fine-tune") == vectors and not step.finished():
                name = stage if len(runs) == 1 else f"{run.out.name}-{stage}"
                (folder / f"{name}.json").unlink(missing_ok=True)  # the stage was removed since
                jobs.append(Job(name, f"{__name__}:do", {**shared, "stage": stage}))
                run.stages.by_workers.add(stage)
    if jobs:
        sweep(jobs, folder, workers, backend, torch.get_num_threads(), device=runs[0].device)


def do(recipe: str, out: str, stage: str, parts: Sequence[str] = ()) -> str:
    """One stage of a run, as a job; returns its name.

    Args:
        recipe: the recipe's text.
        out: the run's output folder.
        stage: its name.
        parts: the recipe's parts that are not among `PARTS`, as `module:class`.
    """
    _context(recipe, out, tuple(parts)).steps()[stage].do()
    return stage


@functools.lru_cache(maxsize=1)
def _context(recipe: str, out: str, parts: tuple[str, ...]) -> RunContext:
    """A worker's own encoder and tasks, loaded with its first job."""
    own = [_part(spelled) for spelled in parts]
    return RunContext(Recipe.parse(recipe, parts=(*PARTS, *own)), Path(out), os.environ.get(DEVICE))


def _spelled(kind: type[Part]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _part(spelled: str) -> type[Part]:
    """The class that `_spelled` names."""
    module, _, name = spelled.partition(":")
    kind: type[Part] = attrgetter(name)(importlib.import_module(module))
    return kind
