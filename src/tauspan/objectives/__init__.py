"""What tasks are trained and measured by: a loss of outputs and targets with its derivatives, and a metric."""

from tauspan.core.errors import UsageError, nearest
from tauspan.objectives.classification import Classification, MultiLabel
from tauspan.objectives.objective import Apart, Objective
from tauspan.objectives.own import OwnLoss
from tauspan.objectives.regression import Regression
from tauspan.objectives.tokens import Chat, MaskedToken, NextToken

__all__ = [
    "OBJECTIVES",
    "Apart",
    "Chat",
    "Classification",
    "MaskedToken",
    "MultiLabel",
    "NextToken",
    "Objective",
    "OwnLoss",
    "Regression",
    "objective_of",
]

OBJECTIVES: dict[str, type[Objective]] = {
    one.word: one for one in (Classification, MultiLabel, Regression, NextToken, MaskedToken, Chat)
}


def objective_of(given: str | Objective) -> Objective:
    """An objective by its word, or itself.

    Raises:
        UsageError: no objective has this name.
    """
    if isinstance(given, Objective):
        return given
    if given not in OBJECTIVES:
        raise UsageError(f"objective={given!r}. {nearest(given, OBJECTIVES)}")
    return OBJECTIVES[given]()
