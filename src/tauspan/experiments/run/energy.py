"""Local energy of each task's eigenfunctions, from pre-trained and from random weights side by side."""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from tauspan.core.errors import RecipeError
from tauspan.core.measure import progress
from tauspan.core.reading import Reading
from tauspan.core.report import Table
from tauspan.experiments.run.part import Evaluation, Findings, Part
from tauspan.experiments.run.spread import Row, in_words, means, over_seeds

if TYPE_CHECKING:
    from tauspan.experiments.run.context import RunContext
    from tauspan.experiments.run.recipe import Recipe

_STARTS = {"pretrained": "pre-trained", "random": "random"}  # as stages and as tables call them
_OUTPUTS = {"contrast": "of a contrast of logits", "sum": "of the sum of logits", "all": "of all logits"}
_COLUMNS = {"own": "support", "held out": "held_out", "control": "control", "ratio": "ratio"}


@dataclasses.dataclass(frozen=True)
class Energies(Part):
    """Local energy of each task's leading eigenfunctions, pre-trained and from random weights; see `local_energy`.

    Args:
        eigenfunctions: how many of the largest eigenvalues.
        rows: of each task, drawn for each seed.
        outputs: of the logits: a `"contrast"` or the `"sum"`, which cost as one output, or `"all"`.
        params: whose kernel; None takes the parameters that are fine-tuned.
    """

    eigenfunctions: int = 10
    rows: int = 64
    outputs: Literal["contrast", "sum", "all"] = "contrast"
    params: str | tuple[str, ...] | None = None
    key: ClassVar[str] = "energy"
    vectorless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.eigenfunctions < 1:
            raise RecipeError(f"energy.eigenfunctions: {self.eigenfunctions}: it must be at least 1.")
        if self.rows < 2:
            raise RecipeError(f"energy.rows: {self.rows}: a kernel says something about 2 rows or more.")

    def check(self, recipe: "Recipe") -> None:
        """The other tasks are the controls."""
        if len(recipe.tasks) < 2:
            raise RecipeError("energy: local energy needs at least one other task as its control.")

    def fewer(self, rows: int) -> Self:
        """Kernels of at most so many rows."""
        return dataclasses.replace(self, rows=max(2, min(rows, self.rows)))

    def evaluations(self, run: "RunContext") -> list[Evaluation]:
        """One for each seed and start."""
        return [Evaluation("energy", (start,), seed) for seed in run.recipe.seeds for start in _STARTS]

    def measure(self, run: "RunContext", which: Evaluation) -> dict[str, Any]:
        """Numbers and histograms of all tasks at one start; the seed draws the rows, and random weights."""
        from tauspan.kernel.diagnose import KernelSettings, task_energies, task_kernels
        from tauspan.models import fingerprint_of, reinitialised

        start = _STARTS[which.about[0]]
        params = run.recipe.finetune.params if self.params is None else self.params
        reading = Reading(32, run.recipe.max_tokens)
        settings = KernelSettings(rows=self.rows, outputs=self.outputs, reading=reading, seed=which.seed)

        def work() -> dict[str, Any]:
            model = run.pretrained if start == "pre-trained" else reinitialised(run.pretrained, which.seed)
            kernels = task_kernels(model, run.tasks, params, settings)
            with progress(f"local energy, {start}", len(kernels)) as advance:
                each = task_energies(kernels, self.eigenfunctions, advance)
            return {"energy": [one.facts() for one in each], "series": [one.series() for one in each]}

        about = [self.eigenfunctions, params if isinstance(params, str) else list(params), vars(settings)]
        checksums = [task.checksum() for task in run.tasks]
        key = [fingerprint_of(run.pretrained), run.pretrained.describe(), start, about, checksums]
        found: dict[str, Any] = run.stages.do(start, "energy", which.name, key, work).content
        return found

    def findings(self, run: "RunContext") -> Findings:
        """The energy on own rows and on the other tasks' rows, for each task and their mean."""
        rows: list[dict[str, Any]] = []
        series: list[dict[str, Any]] = []
        found: dict[str, Any] = {}
        for place, start in _STARTS.items():
            done = [self.measure(run, Evaluation("energy", (place,), seed)) for seed in run.recipe.seeds]
            seeds = [_rows(one["energy"]) for one in done]
            more, found[start] = over_seeds({"start": start}, run.names, seeds, tuple(_COLUMNS))
            rows += more
            series += [
                {**one, "title": f"{one['title']}, {start}", "group": f"energy-{one['title']}"}
                for one in done[0]["series"]
            ]
        note = (
            f"{in_words(run.recipe.seeds)}; sum of the squares of the {self.eigenfunctions} leading eigenfunctions of a "
            f"task's kernel ({_OUTPUTS[self.outputs]}), mean over at most {self.rows} rows: own training "
            "rows, own held-out rows, the others' rows (control); ratio: control over own, 0 where they live on the task "
            "alone; random: re-initialised with the seed; "
            "linearised at the logits, under the task's head from the same weights"
        )
        return Findings([Table("Local energy", rows, note)], series, {"energy": found})


def _rows(numbers: list[dict[str, Any]]) -> list[Row]:
    """Each task's columns, then their means over tasks."""
    rows: list[Row] = [{name: one[key] for name, key in _COLUMNS.items()} for one in numbers]
    return [*rows, dict(means(rows, tuple(_COLUMNS)))]
