"""Vectors of what tokens read like, by which rows of new tokens are weighted."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tauspan.core.errors import ModelError
from tauspan.core.measure import progress
from tauspan.models import folders, load_model

_BATCH = 256
_TOKENS = 16


def embedding(
    given: Callable[[Sequence[str]], Tensor] | str | Path | None, folder: Path
) -> Callable[[Sequence[str]], Tensor] | None:
    """A function from texts to vectors (texts, d): the one given, or the sentence embedding of an encoder.

    Args:
        given: the function, or the name of an encoder of texts; None takes the model's own, if it embeds sentences.
        folder: of the model: it embeds sentences if its `modules.json` says how they are pooled.

    Returns:
        The function; None where the model gives no vector of a text.

    Raises:
        ModelError: the encoder reads no texts.

    Example:
        >>> from tauspan.models.sources import model_directory
        >>> embedding("minilm", model_directory("minilm"))(["a film", "a movie"]).shape
        torch.Size([2, 384])
    """
    if callable(given):
        return given
    if given is None and not folders.modules(folder):
        return None
    encoder = load_model(folder if given is None else given)
    if encoder.inputs.modality != "text":
        raise ModelError(
            f"{given or folder} reads {encoder.inputs.modality} inputs, and tokens are compared as texts: name an "
            "encoder of texts, such as minilm."
        )

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        # texts of a length together, so that little is padded
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        made = []
        with progress("embedding tokens", len(texts)) as advance:
            for start in range(0, len(order), _BATCH):
                some = order[start : start + _BATCH]
                made.append(encoder(encoder.encode([texts[place] for place in some], _TOKENS)).float())
                advance(len(some), "")
        back = torch.empty(len(order), dtype=torch.int64)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(made)[back]

    return embed
