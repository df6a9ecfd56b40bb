"""Local energy of each task's eigenfunctions, from pre-trained and from random weights side by side."""

from typing import Any

from tauspan.core.measure import progress
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Table
from tauspan.experiments.recipe import Energies
from tauspan.experiments.run.spread import in_words, means, spread
from tauspan.experiments.run.workshop import Evaluation, Workshop
from tauspan.kernel.diagnose import Findings, KernelSettings, task_energies, task_kernels
from tauspan.models import fingerprint_of, reinitialised

STARTS = {"pretrained": "pre-trained", "random": "random"}  # as stages and as tables call them
_OUTPUTS = {"contrast": "of a contrast of logits", "sum": "of the sum of logits", "all": "of all logits"}
_COLUMNS = {"own": "support", "held out": "held_out", "control": "control", "ratio": "ratio"}


def energies(shop: Workshop) -> Findings:
    """Own rows' energy against the other tasks' rows, per task and mean; nothing where the recipe does not ask for it."""
    asked = shop.recipe.energy
    if asked is None:
        return Findings([], [], {})
    rows: list[dict[str, Cell]] = []
    series: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for place, start in STARTS.items():
        done = [energy(shop, Evaluation("energy", (place,), seed)) for seed in shop.recipe.seeds]
        found[start] = {}
        for row, task in enumerate([*(task.name for task in shop.tasks), "mean"]):
            here = [_columns(one["energy"])[row] for one in done]
            rows.append({"start": start, "task": task, **spread(here, tuple(_COLUMNS))})
            found[start][task] = means(here, tuple(_COLUMNS))
        first = done[0]["series"]
        series += [
            {**one, "title": f"{one['title']}, {start}", "group": f"energy-{one['title']}"} for one in first
        ]
    note = (
        f"{in_words(shop.recipe.seeds)}; sum of the squares of the {asked.eigenfunctions} leading eigenfunctions of a "
        f"task's kernel ({_OUTPUTS[asked.outputs]}), mean over at most {asked.rows} rows: own training "
        "rows, own held-out rows, the others' rows (control); ratio: control over own, 0 where they live on the task "
        "alone; random: re-initialised with the seed; "
        "linearised at the logits, under the task's head from the same weights"
    )
    return Findings([Table("Local energy", rows, note)], series, {"energy": found})


def _columns(numbers: list[dict[str, Any]]) -> list[dict[str, Cell]]:
    """Each task's columns, then their means over tasks."""
    rows: list[dict[str, Cell]] = [{name: one[key] for name, key in _COLUMNS.items()} for one in numbers]
    return [*rows, dict(means(rows, tuple(_COLUMNS)))]


def energy(shop: Workshop, which: Evaluation) -> dict[str, Any]:
    """Numbers and histograms of all tasks at one start; the seed draws the rows, and random weights."""
    asked, start, seed = shop.recipe.energy or Energies(), STARTS[which.about[0]], which.seed
    params = shop.recipe.finetune.params if asked.params is None else asked.params
    settings = KernelSettings(
        rows=asked.rows, outputs=asked.outputs, reading=Reading(32, shop.recipe.max_tokens), seed=seed
    )  # fmt: skip

    def work() -> dict[str, Any]:
        model = shop.pretrained if start == "pre-trained" else reinitialised(shop.pretrained, seed)
        kernels = task_kernels(model, shop.tasks, params, settings)
        with progress(f"local energy, {start}", len(kernels)) as advance:
            each = task_energies(kernels, asked.eigenfunctions, advance)
        return {"energy": [one.facts() for one in each], "series": [one.series() for one in each]}

    of = [asked.eigenfunctions, params if isinstance(params, str) else list(params), vars(settings)]
    checksums = [task.checksum() for task in shop.tasks]
    key = [fingerprint_of(shop.pretrained), shop.pretrained.describe(), start, of, checksums]
    return shop.stages.do(start, "energy", which.name, key, work).content
