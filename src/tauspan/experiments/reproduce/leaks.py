"""The leak check before anything is trained: rows of a data set that are in two of its splits."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tauspan.core.errors import DataError
from tauspan.core.notices import tell
from tauspan.core.report import Cell, Table
from tauspan.experiments.run import Recipe
from tauspan.store.stages import Stages
from tauspan.tasks import Task
from tauspan.tasks.data import catalog, find_leaks
from tauspan.tasks.data.suite import find_task

_FEW = 0.01  # of a split's rows


def check_leaks(recipes: Collection[Recipe], out: Path, *, allow: bool = False) -> Table | None:
    """Check every catalog data set that the recipes name for rows that are in two of its splits.

    All rows are checked, even if a recipe uses fewer of them. Controls are never trained on, so only their validation
    and test rows count.

    A data set is refused if a test row equals a row of an earlier split, if more than 1 % of the test rows are nearly
    equal to earlier ones, or if more than 1 % of the validation rows equal earlier ones. The table counts all cases.

    Args:
        recipes: name tasks and controls.
        out: results are kept in `out/stages`, under the tasks' checksums.
        allow: report leaks and go on.

    Returns:
        Counts for each data set and pair of splits; None where all tasks ship with the package.

    Raises:
        DataError: too many rows are in two splits, and `allow` is false.
    """
    stages = Stages(out / "stages")
    rows: list[dict[str, Cell]] = []
    trained = {name: recipe.data for recipe in recipes for name in recipe.tasks}
    controls = {name: recipe.data for recipe in recipes for name in recipe.controls}
    for name, root in {**controls, **trained}.items():
        if name not in catalog():
            continue
        task = find_task(name, root)
        if name not in trained:
            task = task.subset(train=1)
        near = task.extra.get("near")

        def work(task: Task = task, near: int | None = near) -> dict[str, Any]:
            return _found(task, near)

        found = stages.do(name, "leak check", f"leaks-{name}", [task.checksum(), near], work).content
        if found["refusal"] and not allow:
            raise DataError(found["refusal"])
        if found["refusal"]:
            tell(f"let pass by allow_leaks (--allow-leaks): {found['refusal']}")
        rows.append({"data set": name, **found["counts"]})
    if not rows:
        return None
    note = "rows of the second split that stand in the first: equal, and nearly equal where distinct images look distinct"
    return Table("Leak check", rows, note)


def _found(task: Task, near: int | None) -> dict[str, Any]:
    """The counts of leaks, and the message that refuses the data set; None in its place if few enough rows leak."""
    leaks = find_leaks(task, near)
    counts = {f"{second} in {first}, {kind}": count for (kind, first, second), count in leaks.counts.items()}
    refused = any(
        count > _tolerated(kind, second, len(task.split(second)))
        for (kind, _, second), count in leaks.counts.items()
    )
    refusal = None
    if refused:
        try:
            leaks.require_none()
        except DataError as error:
            refusal = str(error)
    return {"counts": counts, "refusal": refusal}


def _tolerated(kind: str, second: str, rows: int) -> float:
    """How many rows of the split `second` may also be in an earlier split.

    Public data sets hold some near-duplicates, and a random split separates frames of one sequence. So only test rows
    that are exactly equal to earlier rows are never tolerated.
    """
    if second == "test":
        return 0 if kind == "equal" else _FEW * rows
    return _FEW * rows if kind == "equal" else rows
