"""What a model gives on rows: logits over a split."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from tauspan.core.params import require_finite_rows
from tauspan.models import Batch
from tauspan.models.intact import Intact
from tauspan.tangent import Linearized
from tauspan.tangent.contributions import Advance, by_batch, in_order, silent
from tauspan.tasks.batches import Batches

Targets: TypeAlias = Literal["label", "wrong"]


@torch.no_grad()
def outputs(
    model: Callable[[Batch], Tensor], prepared: Batches, advance: Advance = silent, what: str = "the logits",
    run: Callable[[Batch], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """A model's logits over prepared batches, shape (N, K), in the rows' order, on the CPU; processes share batches.

    Args:
        model: what is left as it was.
        prepared: the batches.
        advance: told of rows that are done.
        what: whose logits they are, in words.
        run: how the model is called; None calls it.

    Raises:
        NonFiniteError: a row has NaN or infinity among them.
    """
    called = run or model
    # a tangent model looks after the module itself
    ordinary = isinstance(model, nn.Module) and not isinstance(model, Linearized)
    with Intact(cast(nn.Module, model))() if ordinary else nullcontext():
        logits = in_order(by_batch(lambda batch: called(batch).detach().cpu(), prepared, advance), 0)
    require_finite_rows(logits, what)
    return logits
