"""The features of a split's rows, in the order of the rows."""

import torch
from torch import Tensor, nn

from tauspan.core.errors import MismatchError, ModelError
from tauspan.core.params import require_finite_rows
from tauspan.models import Encoder, eval_mode
from tauspan.models.intact import Intact
from tauspan.tasks.split import Split


@torch.no_grad()
def features_of(
    encoder: Encoder,
    rows: Split,
    max_tokens: int | None = None,
    batch_size: int = 64,
    *,
    through: nn.Module | None = None,
) -> Tensor:
    """Features of shape (N, d), before any normalisation.

    Args:
        encoder: encodes the rows.
        rows: texts, images or tensors.
        max_tokens: where texts are cut; None leaves it to the tokenizer.
        batch_size: rows per forward pass.
        through: the module that reads the batches, such as the encoder's tangent model; None takes the encoder.

    Raises:
        MismatchError: rows of another shape than the model takes.
        ModelError: features that are not of shape (N, d).
        NonFiniteError: NaN or infinity in a row's features.
    """
    module = encoder if through is None else through
    parts = []
    for begin in range(0, len(rows), batch_size):
        some = rows.take(range(begin, min(begin + batch_size, len(rows))))
        with Intact(encoder.backbone)(), eval_mode(module):
            parts.append(_of_batch(encoder, module, some, max_tokens))
    return torch.cat(parts)


def _of_batch(encoder: Encoder, module: nn.Module, rows: Split, max_tokens: int | None) -> Tensor:
    batch = encoder.encode(rows.inputs, max_tokens)
    try:
        found: Tensor = module(batch).detach()
    except RuntimeError as error:
        if not isinstance(batch, Tensor) or isinstance(error, torch.OutOfMemoryError):
            raise
        way = "abs(row)" if batch.is_complex() else "torch.as_tensor(row).float()"
        raise MismatchError(
            f"{encoder.source} does not take the task's rows, a batch of shape {tuple(batch.shape)} and dtype "
            f"{batch.dtype}: {error}. Give rows as the model takes them, one entry of the first axis for each, such "
            f"as `[{way} for row in rows]`."
        ) from error
    if found.ndim != 2:
        raise ModelError(
            f"{encoder.source} gives features of shape {tuple(found.shape)} for {len(rows)} rows, and a head reads "
            "(N, d). Give the Encoder `features` that pool them."
        )
    require_finite_rows(found, "the features of the rows")
    return found
