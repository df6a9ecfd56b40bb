"""Metrics of several tasks beside one another: what may be averaged, and what an edit keeps."""

import math
from collections.abc import Sequence

from tauspan.core.errors import UsageError, listed
from tauspan.objectives import Objective
from tauspan.tasks import Task


def normalised_metric(task: Task, value: float, single: float) -> float:
    """A task's metric relative to that of its own vector alone.

    Where the ratio divides by 0 it is the metric itself; where ratios have no meaning, the difference: 0 is as good.
    """
    rank = task.objective.rank
    if not task.objective.ratio:
        return rank(value) - rank(single)
    found = task.objective.compared(value, single)
    return rank(value) if found is None else found


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
    """The worst value of a metric that keeps a share: floor * before, or before / floor where less is better.

    Example:
        >>> from tauspan.objectives import Classification, Regression
        >>> least_kept(Classification(), 0.8, 0.5), least_kept(Regression(), 0.8, 0.5)
        (0.4, 1.6)
    """
    if not objective.ratio:
        raise UsageError(
            f"a share of the {objective.metric} of {objective.word} has no meaning, since it may be negative: give "
            "controls with a metric that is not, such as the loss itself."
        )
    objective.compared(before, before)  # raises for a negative one
    if objective.higher:
        return floor * before
    return before / floor if floor else math.inf


def keeps(objective: Objective, value: float, least: float) -> bool:
    """Whether a value of the metric is at least as good as another."""
    return objective.rank(value) >= objective.rank(least)
