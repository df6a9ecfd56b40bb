"""Fine-tunings and evaluations spread over worker processes; each writes what the same run in one process would."""

import functools
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from tauspan.experiments.run.context import RunContext, stage_of
from tauspan.experiments.run.part import Evaluation, Part
from tauspan.experiments.run.parts import PARTS
from tauspan.experiments.run.recipe import Recipe
from tauspan.experiments.run.vectors import Finetuning, VectorKind, finetunings
from tauspan.experiments.sweep import Job, sweep
from tauspan.experiments.sweep.pool import DEVICE

FOLDER = "sweep"


def finetune_all(runs: Iterable[RunContext], out: Path, workers: int, device: str | None) -> None:
    """Make the vectors of recipes that are not there yet, several at a time.

    Args:
        runs: the recipes, each with its own folder.
        out: the folder below which the sweep's results and logs are.
        workers: how many at a time; with one, this process makes them.
        device: where they compute.
    """
    wanted = [(run, which) for run in runs for which in finetunings(run.recipe)]
    if workers == 1:
        for run, which in wanted:
            run.finetune(which)
        return
    left = [(run, which) for run, which in wanted if not run.finished(which)]
    several = len({run.out for run, _ in left}) > 1
    jobs = {
        f"{run.out.name}-{run.folder(which).name}" if several else run.folder(which).name: (run, which)
        for run, which in left
    }
    _spread(
        out, finetune, {name: (run, which._asdict()) for name, (run, which) in jobs.items()}, workers, device
    )
    for run, which in left:
        run.stages.by_workers.add(stage_of(run.folder(which)))


def evaluate_all(run: RunContext, workers: int) -> None:
    """Do the stages that measure and are not there yet, several at a time; the vectors must be there.

    A stage that was done under another key is left to the run itself, which alone knows what is out of date.
    """
    left = {which.name: which for _, which in run.evaluations() if not run.stages.exists(which.name)}
    _spread(
        run.out, evaluate, {name: (run, which._asdict()) for name, which in left.items()}, workers, run.device
    )
    run.stages.by_workers |= set(left)


def _spread(
    out: Path, function: Callable[..., str], named: Mapping[str, tuple[RunContext, Mapping[str, Any]]],
    workers: int, device: str | None,
) -> None:  # fmt: skip
    """Do jobs by name, with the arguments of each.

    Every worker computes with as many threads as this process, because sums over threads round differently: so the
    results are the same to the bit however many workers there are.
    """
    if not named:
        return
    texts = {name: run.recipe.to_yaml() for name, (run, _) in named.items()}
    folder = out / FOLDER / hashlib.sha256("".join(sorted(set(texts.values()))).encode()).hexdigest()[:12]
    jobs = []
    for name, (run, arguments) in named.items():
        (folder / f"{name}.json").unlink(
            missing_ok=True
        )  # the vector or stage of an earlier job was removed since
        own = [
            f"{kind.__module__}:{kind.__qualname__}"
            for kind in map(type, run.recipe.parts)
            if kind not in PARTS
        ]
        shared = {"recipe": texts[name], "out": str(run.out.resolve()), **({"parts": own} if own else {})}
        jobs.append(Job(name, f"{__name__}:{function.__name__}", {**shared, **arguments}))
    sweep(jobs, folder, workers, threads=torch.get_num_threads(), device=device)


def finetune(
    recipe: str, out: str, kind: VectorKind, task: str | None, seed: int, parts: Sequence[str] = ()
) -> str:
    """One vector of a recipe, as a job; returns the name of its folder.

    Args:
        recipe: the recipe's text.
        out: the run's output folder.
        kind: a regime that is trained, or a reference.
        task: as the recipe names it; None for all tasks together.
        seed: one of the recipe's.
        parts: the recipe's parts that are not among `PARTS`, as `module:class`.
    """
    return _context(recipe, out, tuple(parts)).finetune(Finetuning(kind, task, seed)).name


def evaluate(
    recipe: str, out: str, kind: str, about: Sequence[str], seed: int, parts: Sequence[str] = ()
) -> str:
    """One stage that measures, as a job; returns its name. Arguments as of `finetune` and `Evaluation`."""
    run, which = _context(recipe, out, tuple(parts)), Evaluation(kind, tuple(about), seed)
    next(part for part, other in run.evaluations() if other == which).measure(run, which)
    return which.name


@functools.lru_cache(maxsize=1)
def _context(recipe: str, out: str, parts: tuple[str, ...]) -> RunContext:
    """A worker's own encoder and tasks, loaded with its first job."""
    own = [_part(spelled) for spelled in parts]
    return RunContext(Recipe.parse(recipe, parts=(*PARTS, *own)), Path(out), os.environ.get(DEVICE))


def _part(spelled: str) -> type[Part]:
    module, _, name = spelled.partition(":")
    kind: type[Part] = attrgetter(name)(importlib.import_module(module))
    return kind
