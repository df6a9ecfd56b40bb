"""Stored tensors that are no weights: counters, constants that a model computes again, and parts of a training run."""

import re

from tauspan.store.headers import Stored

_COUNTERS = re.compile(r"(?:^|\.)num_batches_tracked$")
_CONSTANTS = re.compile(
    r"(?:^|\.)(?:(?:original_)?inv_freq|cos_cached|sin_cached|position_ids|relative_position_index|token_type_ids)$"
)
_MASKS = re.compile(r"(?:^|\.)(?:attn|attention|self_attention)\.(?:bias|masked_bias|causal_mask)$")
_RUN = re.compile(r"(?:^|\.)v_head\.")  # the value head that TRL trains beside a model


def counts(stored: Stored) -> bool:
    """Whether the tensor counts something: batches that a norm has seen. Another model's count means nothing here."""
    return not stored.dtype.is_floating_point and _COUNTERS.search(stored.name) is not None


def computed(stored: Stored) -> bool:
    """Whether the model computes the tensor again when it is made, so that what is stored is not looked at.

    Rotary frequencies and tables, positions, and causal masks: older versions of the libraries stored them.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> mask = torch.Size([1, 1, 8, 8])
        >>> [computed(Stored(name, torch.float32, shape, Path("m"), 0, 0))
        ...  for name, shape in (("h.0.attn.bias", mask), ("h.0.attn.bias", mask[2:3]), ("rope.inv_freq", mask[2:3]))]
        [True, False, True]
    """
    if _CONSTANTS.search(stored.name):
        return True
    square = len(stored.shape) > 1 and stored.shape[-1] == stored.shape[-2] and stored.shape[:-2].numel() == 1
    return _MASKS.search(stored.name) is not None and ((square and len(stored.shape) > 2) or not stored.shape)


def of_the_run(name: str) -> bool:
    """Whether the tensor belongs to a training run and to no model that is used after it."""
    return _RUN.search(name) is not None
