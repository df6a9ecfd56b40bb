"""Metrics of several tasks beside one another: what may be averaged, and what an edit keeps."""

import math
from collections.abc import Sequence

from tauspan.core.errors import UsageError, listed
from tauspan.objectives import Objective
from tauspan.tasks import Task


def normalised_metric(task: Task, value: float, single: float) -> float:
    """A task's metric relative to that of its own vector alone; where the ratio has no meaning, the metric itself."""
    found = task.objective.compared(value, single)
    return task.objective.rank(value) if found is None else found


def require_one_objective(tasks: Sequence[Task], why: str) -> None:
    """Raise unless tasks have one objective; `why` says what needs it.

    Raises:
        UsageError: their losses or metrics have several units.
    """
    if len({repr(task.objective) for task in tasks}) > 1:
        kinds = listed([f"{task.name} ({task.objective.word})" for task in tasks])
        raise UsageError(
            f"{why}, and the tasks have several units: {kinds}. Give tasks of one objective; `add` takes several, since "
            "it compares each task with its own vector."
        )


def least_kept(objective: Objective, before: float, floor: float) -> float:
    """The worst value of a metric that keeps a share of it: floor * before, or before / floor where less is better.

    Example:
        >>> from tauspan.objectives import Classification, Regression
        >>> least_kept(Classification(), 0.8, 0.5), least_kept(Regression(), 0.8, 0.5)
        (0.4, 1.6)
    """
    if objective.higher:
        return floor * before
    return before / floor if floor else math.inf


def keeps(objective: Objective, value: float, least: float) -> bool:
    """Whether a value of the metric is at least as good as another."""
    return objective.rank(value) >= objective.rank(least)
