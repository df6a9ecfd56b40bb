"""Learning rates of parameters: which multiplier of `Settings.lr_multipliers` belongs to which one."""

import fnmatch
from typing import Any

from torch import Tensor

from tauspan import models
from tauspan.core.errors import UsageError, nearest
from tauspan.core.params import Params
from tauspan.models import Encoder
from tauspan.train.settings import Settings
from tauspan.train.trainee import as_parameters


def groups(parameters: Params, settings: Settings, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters with one multiplier of the learning rate each; all of them together where none is set.

    Args:
        parameters: that train, by name.
        settings: whose `lr_multipliers` are read.
        weight_decay: AdamW's own, which is times the learning rate: a group's is divided by its multiplier, so that decay
            takes the same share of every parameter in a step.
    """
    by: dict[float, dict[str, Tensor]] = {}
    for name, tensor in parameters.items():
        by.setdefault(settings.multiplier(name), {})[name] = tensor
    return [
        {"params": as_parameters(members), "weight_decay": weight_decay / times, "multiplier": times}
        for times, members in by.items()
    ]


def require_known(settings: Settings, encoder: Encoder) -> None:
    """Raise if `lr_multipliers` names parameters that the encoder does not have.

    Raises:
        UsageError: a name or pattern that fits none.
    """
    known = [name for name, _ in models.core(encoder)[0].named_parameters()]
    for pattern in settings.lr_multipliers or {}:
        if not fnmatch.filter(known, pattern):
            raise UsageError(f"lr_multipliers: no parameter matches {pattern!r}. {nearest(pattern, known)}")
