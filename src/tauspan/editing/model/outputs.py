"""What a model gives on rows: logits over a split, and the accuracy and loss that are read off them."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.errors import UsageError
from tauspan.core.params import require_finite_rows
from tauspan.models import Batch
from tauspan.models.intact import Intact
from tauspan.tangent import Linearized
from tauspan.tangent.contributions import Advance, by_batch, in_order, silent
from tauspan.tasks.batches import Batches

Targets: TypeAlias = Literal["label", "wrong"]


@torch.no_grad()
def outputs(
    model: Callable[[Batch], Tensor], prepared: Batches, advance: Advance = silent, what: str = "the logits"
) -> Tensor:
    """A model's logits over prepared batches, shape (N, K), in the rows' order, on the CPU; processes share batches.

    Raises:
        NonFiniteError: a row has NaN or infinity among them; `what` says in words whose logits they are.
    """
    # a tangent model looks after the module itself
    ordinary = isinstance(model, nn.Module) and not isinstance(model, Linearized)
    with Intact(cast(nn.Module, model))() if ordinary else nullcontext():
        logits = in_order(by_batch(lambda batch: model(batch).detach().cpu(), prepared, advance), 0)
    require_finite_rows(logits, what)
    return logits


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's.

    Raises:
        NonFiniteError: a row's logits hold NaN or infinity: it has no class.
    """
    require_finite_rows(logits, "the logits")
    return float((logits.argmax(-1) == labels).double().mean())


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """The mean cross-entropy in nats, in the logits' own precision."""
    return float(F.cross_entropy(logits, labels))


def target_rows(labels: Tensor, classes: int, targets: Targets) -> Tensor:
    """Target distributions of shape (N, K), float64: the labels, or the uniform distribution over the other classes.

    Raises:
        UsageError: `"wrong"` with one class.
    """
    rows = F.one_hot(labels, classes).double()
    if targets == "label":
        return rows
    if classes < 2:
        raise UsageError("forgetting needs a wrong class to move to: the task has one class.")
    return (1.0 - rows) / (classes - 1)
