"""`run`: a recipe from data to report; `plan`: what it has to do."""

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.launch import launch
from tauspan.core.measure import underway
from tauspan.core.notices import heard, once
from tauspan.core.processes import world
from tauspan.core.report import Cell, Report, Table, duration, noted, provenance
from tauspan.experiments import figures
from tauspan.experiments.run.context import RunContext
from tauspan.experiments.run.jobs import in_workers
from tauspan.experiments.run.part import laid_over
from tauspan.experiments.run.recipe import Recipe
from tauspan.experiments.run.spread import in_words
from tauspan.experiments.run.vectors import Finetuning, finetunings
from tauspan.experiments.sweep.driver import BackendName
from tauspan.experiments.sweep.executors import Makes, Submits
from tauspan.store import write_text
from tauspan.train.timing import pace

log = logging.getLogger(__name__)


@checked
def run(
    recipe: Recipe,
    out: str | Path,
    *,
    workers: int = 1,
    device: str | None = None,
    backend: BackendName | Submits | Makes = "processes",
) -> Report:
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
        backend: where the workers are, as for `sweep`: an executor, such as submitit's for Slurm, on a folder that all of
            its machines share. `workers` is then how many jobs it is given at a time.

    Returns:
        The tables of the recipe's parts, in the order of `PARTS`, and what each stage took.

    Raises:
        UsageError: fewer than one worker; several workers inside several processes; a model that was edited.
        StoreError: `out` holds vectors of another recipe, or cannot be written.
    """
    if workers < 1:
        raise UsageError(f"workers={workers}: it must be at least 1.")
    if (workers > 1 or backend != "processes") and launch().size > 1:
        raise UsageError(
            f"workers={workers} in one of {launch().size} processes of a launcher: several processes train "
            "one vector together, several workers one each. Choose one of the two."
        )
    report = numbered(measured(recipe, Path(out), workers=workers, device=device, backend=backend))
    write(report, recipe, Path(out))
    return report


def measured(
    recipe: Recipe,
    out: Path,
    *,
    workers: int = 1,
    device: str | None = None,
    backend: BackendName | Submits | Makes = "processes",
) -> Report:
    """Carry a recipe out; the report, before its tables are numbered and it is written."""
    with heard() as warned:
        context = RunContext(recipe, out, device)
        if workers > 1 or backend != "processes":
            in_workers([context], out, workers, vectors=True, backend=backend)
            in_workers([context], out, workers, vectors=False, backend=backend)
        with underway("stages", total=len(context.steps())) as context.stages.advance:
            report = _report(context)
    return dataclasses.replace(report, warnings=once(context.stages.warnings, warned))


def _report(context: RunContext) -> Report:
    """Everything the recipe asks for, a table for each part."""
    recipe = context.recipe
    found = [part.findings(context) for part in recipe.parts if part.asked]
    tables = [table for one in found for table in one.tables]
    tables.append(Table("Cost", context.stages.rows(), "peak memory is the whole process's"))
    facts: dict[str, Any] = {"recipe": recipe.as_dict(), "base": context.pretrained.source}
    title = recipe.title
    if recipe.start == "random":
        title += ", random initialisation"
        facts["start"] = (
            "random initialisation: the vectors of a seed start from the model re-initialised with it"
        )
        facts["fingerprint"] = {f"seed {seed}": context.base(seed) for seed in recipe.seeds}
    else:
        facts["fingerprint"] = context.base(recipe.seeds[0])
    first: dict[str, Any] = {"seeds": in_words(recipe.seeds), "start": recipe.start, "alpha": {}}
    result = functools.reduce(laid_over, (one.result for one in found), first)
    series = [entry for one in found for entry in one.series]
    series += [dict(entry) for part in recipe.parts for entry in part.pictures(result)]
    return Report(title, tables, provenance(**facts), series, result)


def numbered(report: Report) -> Report:
    """The report with numbers before the titles of its tables."""
    tables = [
        dataclasses.replace(table, title=f"{number}. {table.title}")
        for number, table in enumerate(report.tables, 1)
    ]
    return dataclasses.replace(report, tables=tables)


def write(report: Report, recipe: Recipe, folder: Path) -> None:
    """Write a report with its figures; of a group of processes the first one does."""
    with world() as processes:
        if processes.first:
            write_text(folder / "report.json", report.to_json())
            write_text(folder / "report.md", report.to_markdown())
            kinds = {kind: picture for part in recipe.parts for kind, picture in part.drawn.items()}
            for path in figures.draw(report, folder, kinds):
                log.info("wrote %s", path)
        processes.wait()


@noted
@checked
def plan(recipe: Recipe, out: str | Path, *, device: str | None = None, timed: bool = False) -> Report:
    """The stages of a recipe: how many there are of each kind, and how many are done; nothing is kept or written.

    A fine-tuning counts as done if its vector is there and was made with these settings, data and model. A stage that
    measures counts if its file is there; whether it is out of date is known only when its vectors are.

    Args:
        recipe: what to do.
        out: the output folder.
        device: where the model would compute; it is loaded for its fingerprint.
        timed: also run a few steps of one fine-tuning of each kind that is left, and say how long all of them take.

    Returns:
        A `Report` with one row for each kind of stage; `report.result` has the numbers `stages` and `done`, and with
        `timed` the `seconds` of the fine-tunings that are left, in one worker.
    """
    context = RunContext(recipe, Path(out), device)
    steps = context.steps().values()
    number = Counter((step.label, step.kind) for step in steps)
    finished = Counter((step.label, step.kind) for step in steps if step.finished())
    rows: list[dict[str, Cell]] = [
        {"regime": label, "stage": kind, "number": count, "done": finished[label, kind]}
        for (label, kind), count in number.items()
    ]
    tables = [Table("Stages", rows, f"what is done is in {out} and is not done again")]
    facts = provenance(recipe=recipe.as_dict(), base=context.pretrained.source)
    result: dict[str, Any] = {"stages": number.total(), "done": finished.total()}
    if timed and finetunings(recipe):
        times = list(_times(context))
        result["seconds"] = sum(one.seconds for one in times)
        note = (
            f"about {duration(result['seconds'])} of fine-tuning in one worker, from steps of one of each kind, without "
            "caches; evaluations, and what the part `made` trains, are not counted"
        )
        if times:
            tables.append(Table("Time", [one.cells() for one in times], note))
    return Report(f"{recipe.title}: plan", tables, facts, result=result)


@dataclasses.dataclass(frozen=True)
class _Time:
    """What is left of one kind of fine-tunings.

    Args:
        kind: of the vectors.
        number: of fine-tunings that are left.
        steps: of all of them.
        step: seconds of one.
        seconds: of all of them, with what comes before the first step and with validation.
    """

    kind: str
    number: int
    steps: int
    step: float
    seconds: float

    def cells(self) -> dict[str, Cell]:
        """A row of the table."""
        return {
            "fine-tuning": self.kind, "left": self.number, "steps": self.steps, "a step": f"{self.step:.3g} s",
            "in all": duration(self.seconds),
        }  # fmt: skip


def _times(context: RunContext) -> Iterator[_Time]:
    """For each kind of fine-tunings that are left; one of them is timed."""
    left: dict[str, list[Finetuning]] = {}
    for which in finetunings(context.recipe):
        if not context.finished(which):
            left.setdefault(which.kind, []).append(which)
    for kind, some in left.items():
        tasks = context.tasks_of(some[0])
        found = pace(
            context.encoder(some[0].seed), tasks, dataclasses.replace(context.settings(some[0]), cache="none")
        )
        each = [
            context.settings(which).steps(sum(len(task.split("train")) for task in context.tasks_of(which)))
            for which in some
        ]
        share = sum(each) / found.steps  # validation follows steps, since each epoch has one
        seconds = len(some) * found.first + found.step * (sum(each) - len(some))
        yield _Time(
            kind, len(some), sum(each), found.step, seconds + share * found.validations * found.validation
        )
