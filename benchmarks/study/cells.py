"""`study`: fine-tune and measure cell by cell, each piece of work once, and report whatever there is."""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import measure
from benchmarks.study.picture import draw
from benchmarks.study.plan import Cell, Plan, Variant
from benchmarks.study.tables import Found, tables_of

from tauspan import store
from tauspan.core.arguments import checked
from tauspan.core.report import Report, noted, provenance
from tauspan.models import Encoder, fingerprint_of
from tauspan.store.stages import DeadlineError, Stages
from tauspan.tasks import Task
from tauspan.train import finetune
from tauspan.vector import FILE, TaskVector

log = logging.getLogger(__name__)


@noted
@checked
def study(
    encoder: Encoder,
    tasks: Sequence[Task],
    out: str | Path,
    plan: Plan | None = None,
    *,
    minutes: float | None = None,
) -> Report:
    """When does linear fine-tuning give better task arithmetic than ordinary fine-tuning?

    For every cell (training length, training rows, seed) and every regime: single-task accuracy, addition at alpha
    chosen on a wide grid, at 1 and at 1/T, negation of one target, xi over a box at equal alpha and at matched drift
    (the drift of the same cell's ordinary vectors at alpha = 1), and how long, how aligned and how curved the vectors
    are. One learning rate serves all tasks: the one with the best mean single-task accuracy on validation, the smallest
    of equals, chosen with the first seed. All rates are tried at the shortest length, the chosen one and its neighbours
    at each next, up to `plan.tune_to`; beyond it the last choice is kept.

    Args:
        encoder: the pre-trained encoder.
        tasks: at least two; rows are drawn from them as the plan says.
        out: the folder: vectors, stages, `report.json`, `report.md`, `study.png`. Work found there is not done again.
        plan: what to cover; None takes the defaults of `Plan`.
        minutes: begin nothing after so many; 0 only reports what is in `out`. None: no limit.

    Returns:
        A `Report` of all finished cells, a table for each question; `report.result["cells"]` has every number of each
        cell. The files are written after every cell, so that an interrupted study leaves its report.

    Raises:
        UsageError: tasks that do not fit the plan.
        StoreError: `out` holds vectors of other settings.

    Cost:
        Per cell: a fine-tuning for each trained regime and task, 2 to 3 where rates are tried; about as many forward
        passes over validation and test rows as the grid of alpha has points; twice the map's points over `map_rows`.

    Example:
        >>> import tempfile, torch, tauspan as ts
        >>> x = torch.randn(60, 4)
        >>> def task(name, column):
        ...     rows = (x, (x[:, column] > 0).long())
        ...     return ts.Task.from_tensors(name, ["no", "yes"], train=rows, validation=rows, test=rows)
        >>> plan = Plan(lengths=(4,), tune_to=4, rates={"standard": (0.01,), "linear": (0.01,)}, rows=(60,), params="all")
        >>> with tempfile.TemporaryDirectory() as out:
        ...     report = study(ts.load(torch.nn.Linear(4, 3)), [task("one", 0), task("two", 1)], out, plan)
        >>> [cell["regime"] for cell in report.result["cells"]]
        ['standard', 'linear', 'posthoc']
    """
    plan = Plan() if plan is None else plan
    plan.require_tasks(tasks)
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    return _Study(encoder, tasks, Path(out), plan, until).carry_out()


class _Study:
    """A study under way."""

    def __init__(self, encoder: Encoder, tasks: Sequence[Task], out: Path, plan: Plan, until: float) -> None:
        self.encoder, self.all_rows, self.out, self.plan = encoder, list(tasks), out, plan
        self.base = fingerprint_of(encoder)
        self.stages = Stages(out / "stages", deadline=until)
        self.found: list[Found] = []
        self.rates: dict[tuple[str, int, int], dict[float, float]] = {}

    def carry_out(self) -> Report:
        """All cells but those for which no time is left. The files are written after each cell with new stages."""
        for cell in self.plan.cells():
            before = self.stages.new
            for variant in self.plan.variants():
                try:
                    self.measure(cell, variant)
                except DeadlineError as missing:
                    log.info("not done: %s", missing)
            if self.stages.new > before:
                self.write()
        return self.write()

    # -- fine-tuning -----------------------------------------------------------------------------------------

    @functools.cache  # noqa: B019 - a study lives as long as its program
    def tasks(self, rows: int) -> list[Task]:
        """The tasks with the plan's rows."""
        wanted = {"train": rows, "validation": self.plan.validation, "test": self.plan.test}
        return [task.subset(**wanted) for task in self.all_rows]

    @functools.cache  # noqa: B019
    def checksum(self, task: Task) -> str:
        """The task's checksum, computed once."""
        return task.checksum()

    def folder(self, cell: Cell, variant: Variant, rate: float, task: Task) -> Path:
        """The folder of a vector."""
        name = f"{variant}-{task.name}-rows{cell.rows}-steps{cell.steps}-lr{rate:g}-seed{cell.seed}"
        return self.out / "vectors" / name

    def key(self, cell: Cell, variant: Variant, rate: float, task: Task) -> str:
        """What a vector depends on."""
        settings = self.plan.settings(cell, variant, rate)
        return settings.key(self.base + self.encoder.describe(), self.checksum(task))

    def fine_tuned(self, cell: Cell, variant: Variant, rate: float) -> list[dict[str, Any]]:
        """Each task's accuracy and loss on validation at the end of its fine-tuning."""
        settings = self.plan.settings(cell, variant, rate)

        def work(task: Task) -> dict[str, Any]:
            done = finetune(
                self.encoder, task, settings, out=self.folder(cell, variant, rate, task), resume=True
            )
            return {name: done.history[-1][name] for name in ("accuracy", "loss")}

        def stage(task: Task) -> dict[str, Any]:
            name = f"finetune-{self.folder(cell, variant, rate, task).name}"
            key = self.key(cell, variant, rate, task)
            found: dict[str, Any] = self.stages.do(
                str(variant), "finetune", name, key, functools.partial(work, task)
            ).content
            return found

        return [stage(task) for task in self.tasks(cell.rows)]

    def rate(self, cell: Cell, variant: Variant) -> float:
        """The learning rate of a cell: the best mean validation accuracy of single tasks, the smallest of equals."""
        cell = cell._replace(seed=self.plan.seeds[0])
        before = self.plan.shorter(cell.steps)
        earlier = None if before is None else self.rate(cell._replace(steps=before), variant)
        if earlier is not None and cell.steps > self.plan.tune_to:
            return earlier
        rates = list(self.plan.rates[self.plan.settings(cell, variant, 1.0).regime])
        if earlier is not None:
            place = rates.index(earlier)
            rates = rates[max(place - 1, 0) : place + 2]
        tried = {
            rate: sum(one["accuracy"] for one in self.fine_tuned(cell, variant, rate)) / len(self.all_rows)
            for rate in rates
        }
        self.rates[str(variant), cell.rows, cell.steps] = tried
        return min(tried, key=lambda rate: (-tried[rate], rate))

    # -- measuring -------------------------------------------------------------------------------------------

    def measure(self, cell: Cell, variant: Variant) -> None:
        """Every number of one variant in one cell, added to what was found."""
        rate = self.rate(cell, variant.trained)
        self.fine_tuned(cell, variant.trained, rate)
        made = Found(cell, variant, rate)
        name = f"{variant}-rows{cell.rows}-steps{cell.steps}-seed{cell.seed}"
        tasks = self.tasks(cell.rows)
        keys = [self.key(cell, variant.trained, rate, task) for task in tasks]
        plan = dataclasses.asdict(self.plan)
        self.found.append(made)

        @functools.cache
        def vectors() -> dict[Task, TaskVector]:
            folders = {task: self.folder(cell, variant.trained, rate, task) for task in tasks}
            return {task: TaskVector.from_pretrained(folder / FILE) for task, folder in folders.items()}

        def stage(
            kind: str, settings: Sequence[str], work: Callable[..., dict[str, Any]], *more: Any
        ) -> None:
            def measured() -> dict[str, Any]:
                return work(self.encoder, vectors(), variant, self.plan, *more)

            key = [keys, variant, {one: plan[one] for one in settings}, more[0] if more else None]
            made.numbers[kind] = self.stages.do(str(variant), kind, f"{kind}-{name}", key, measured).content

        stage("geometry", (), measure.geometry)
        stage("addition", ("grid", "max_tokens"), measure.addition)
        stage("negation", ("grid", "max_tokens", "target", "floor"), measure.negation)
        units = self.units(cell, variant)
        stage("interference", ("pairs", "axis", "map_rows", "max_tokens"), measure.interference, units)
        if variant.regime == "posthoc":
            stage("curvature", ("map_rows", "max_tokens"), measure.curvature)

    def units(self, cell: Cell, variant: Variant) -> Mapping[str, float] | None:
        """The drift that counts as 1 in a cell: that of the ordinary vectors, or of the first variant's."""
        first = next((one for one in self.found if one.cell == cell), None)
        if first is None or first.variant == variant:
            return None
        if "interference" not in first.numbers:
            raise DeadlineError(f"the drift of {first.variant} at {cell}")
        units: Mapping[str, float] = first.numbers["interference"]["at alpha 1"]
        return units

    # -- the report ------------------------------------------------------------------------------------------

    def write(self) -> Report:
        """The report of all that is there, after its files were written."""
        tables = tables_of(self.plan, self.found, self.rates, self.stages.rows())
        facts = provenance(
            base=self.encoder.source, fingerprint=self.base, tasks=[task.name for task in self.all_rows],
            plan=dataclasses.asdict(self.plan),
        )  # fmt: skip
        cells = [one.as_dict() for one in self.found]
        report = Report("When linear fine-tuning helps", tables, facts, result={"cells": cells})
        store.write_text(self.out / "report.json", report.to_json())
        store.write_text(self.out / "report.md", report.to_markdown())
        if self.found:
            draw(self.found, self.out / "study.png")
        return report
