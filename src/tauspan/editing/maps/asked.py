"""What a map is asked for, checked: tasks, pairs, axes, the box, and the unit of drift."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tauspan.core.errors import DataError, UsageError, nearest
from tauspan.tasks import Task

GRID = tuple(round(0.2 * step - 2, 1) for step in range(21))
Axis = Sequence[float]
Pair: TypeAlias = tuple[Task, Task]
CLOSE = 1e-9  # 0.1 * 10 is 1 for whoever asks whether a grid reaches it


def tasks_of(vectors: Mapping[Task, Any]) -> dict[str, Task]:
    """The tasks by name, at least two."""
    tasks = {task.name: task for task in vectors}
    if len(tasks) < len(vectors):
        raise UsageError("two tasks have the same name; give each its own.")
    if len(tasks) < 2:
        raise UsageError(f"{len(tasks)} task(s) and vector(s): interference needs at least two.")
    return tasks


def pairs_of(tasks: Mapping[str, Task], pairs: Sequence[tuple[str, str]] | None) -> list[Pair]:
    """The pairs of tasks that were named, or all of them."""
    if pairs is None:
        return list(itertools.combinations(tasks.values(), 2))
    found = []
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
            raise UsageError(f"the pair {pair!r} must name two different tasks.")
        for name in pair:
            if name not in tasks:
                raise UsageError(f"the pair {tuple(pair)} names no task {name!r}. {nearest(name, tasks)}")
        found.append((tasks[pair[0]], tasks[pair[1]]))
    if not found or len(set(map(frozenset, found))) < len(found):
        raise UsageError(f"pairs={list(pairs)}: it needs at least one pair and none twice.")
    return found


def axes_of(grid: Axis | tuple[Axis, Axis]) -> tuple[Axis, Axis]:
    """The coefficients of both axes."""
    try:
        whole: list[Any] = list(grid)
        two = len(whole) == 2 and all(hasattr(axis, "__len__") for axis in whole)
        axes = [[float(a) for a in axis] for axis in (whole if two else (whole, whole))]
    except (TypeError, ValueError):
        axes = [[]]
    for axis in axes:
        rising = all(low < high for low, high in itertools.pairwise(axis))
        if not axis or not rising or not all(map(math.isfinite, axis)):
            raise UsageError(
                f"grid={grid!r}: it needs finite coefficients in rising order, one sequence for both axes or two."
            )
    return axes[0], axes[1]


def inside(axis: Axis, box: tuple[float, float]) -> Tensor:
    """Which points of an axis lie in the box."""
    values = torch.tensor(axis, dtype=torch.float64)
    return (values >= box[0] - CLOSE) & (values <= box[1] + CLOSE)


def require_box(box: tuple[float, float], axes: tuple[Axis, Axis]) -> None:
    """Raise unless the box is an interval that holds points of both axes."""
    if len(box) != 2 or not box[0] <= box[1] or not all(map(math.isfinite, box)):
        raise UsageError(f"box={box!r}: it is (low, high), two finite numbers.")
    if not all(inside(axis, box).any() for axis in axes):
        raise UsageError(
            f"box={box!r}: no point of the grid lies in it. Give the box you edit in, or a wider grid."
        )


def require_rows(tasks: Sequence[Task], split: str) -> None:
    """Raise unless every task has rows enough for a standard error."""
    for task in tasks:
        if len(task.split(split)) < 2:
            raise DataError(
                f"{split} of task {task.name!r} has one row: a standard error needs at least two."
            )


def units_of(
    drift: bool | float | Mapping[str, float], tasks: Sequence[Task]
) -> dict[str, float | None] | None:
    """The drift that counts as 1 on each task's axis; None for a vector's own at alpha 1; None if not asked for."""
    if drift is False:
        return None
    names = [task.name for task in tasks]
    if drift is True:
        return dict.fromkeys(names)
    if isinstance(drift, Mapping):
        for name in names:
            if name not in drift:
                raise UsageError(f"drift={dict(drift)}: it lacks the task {name!r}. {nearest(name, drift)}")
        given = {name: drift[name] for name in names}
    else:
        given = dict.fromkeys(names, drift)
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(f"drift of {name!r} is {value!r}: it must be a finite number above 0.")
    return {name: float(value) for name, value in given.items()}
