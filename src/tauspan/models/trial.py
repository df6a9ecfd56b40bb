"""Try a loaded model on one input: its features must be one finite vector, and the same in two calls."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tauspan.core.errors import DataError, ModelError, NonFiniteError, TauspanError
from tauspan.models.encoder import Batch, Encoder

_WORDS = ("The cat sat on the mat.", "a")
_SAME = 1e-5  # of the largest entry: threads may add in another order


@torch.no_grad()
def tried(encoder: Encoder) -> Encoder:
    """The encoder, if its features for one sample input have the right shape, are finite and do not change.

    Cost: two forward passes of one row, a text of a word or a picture of the model's size.

    Raises:
        ModelError: the model cannot read such an input, gives no vector of shape (N, d), or draws random numbers.
        NonFiniteError: NaN or infinity in the features.
    """
    batch = sample(encoder)
    if batch is None:
        return encoder
    name = type(encoder.backbone).__name__
    with torch.random.fork_rng(devices=[]):
        try:
            first, second = encoder(batch), encoder(batch)
        except TauspanError:
            raise
        except Exception as error:  # a model can raise any error on an input of the wrong kind
            raise ModelError(
                f"{encoder.source}: {name} does not turn {encoder.inputs.modality}s alone into features "
                f"({type(error).__name__}: {error}). {_way_out(encoder, batch)}"
            ) from error
    _require_vector(encoder, first, name)
    if float((first - second).abs().max()) > _SAME * float(first.abs().max()):
        raise ModelError(
            f"{encoder.source}: {name} gives other features for the same input at each call, so it draws random "
            "numbers, and no edit of it could be measured. Switch that off in its configuration, or load a variety that "
            "does not."
        )
    return encoder


def _way_out(encoder: Encoder, batch: Batch) -> str:
    """Advice for the error: save another processor if this one makes pictures of a wrong size, else use the library."""
    wanted = getattr(getattr(encoder.backbone, "config", None), "image_size", None)
    made = batch.shape[-1] if isinstance(batch, Tensor) else None
    if isinstance(wanted, int) and made not in (None, wanted):
        return (
            f"Its image processor makes pictures of {made} pixels, and its configuration says {wanted}: save a "
            "processor beside it whose `size` and `crop_size` fit."
        )
    return "Load it with its own library, and pass a module that does."


def _require_vector(encoder: Encoder, found: Any, name: str) -> None:
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"{encoder.source}: {name} gives features of shape {shape} for one input, and one vector is read. Pass a "
            "module that pools them to (N, d)."
        )
    if not bool(found.isfinite().all()):
        raise NonFiniteError(
            f"{encoder.source}: the features of {name} hold NaN or infinity on a sample input: its weights are broken."
        )


def sample_pictures(encoder: Encoder) -> list[NDArray[np.uint8]]:
    """One picture of the size that a model reads."""
    size = encoder.inputs.size
    return [np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)]


def sample(encoder: Encoder) -> Batch | None:
    """One encoded input; None where no word has a token for the tokenizer."""
    if encoder.inputs.modality == "image":
        return encoder.encode(sample_pictures(encoder))
    for word in _WORDS if encoder.language is None else (encoder.language.sample,):
        try:
            return encoder.encode([word])
        except DataError:
            continue
    return None
