"""From a vision model's output to one vector for each image."""

import torch
from torch import Tensor, nn

from tauspan.core.errors import ModelError
from tauspan.models.encoder import Batch

_CLASS_TOKENS = {"cls_token", "class_embedding", "class_token", "cls_embedding", "cls_tokens"}
_WIDTHS = (
    "hidden_size",
    "hidden_sizes",
    "embed_dim",
    "embed_dims",
    "neck_hidden_sizes",
    "num_features",
    "last_hidden_size",
)


def vision_features(model: nn.Module, batch: Batch) -> Tensor:
    """One vector for each image, shape (N, d).

    It is the first of these that the model gives: its projected embedding (`image_embeds`), its pooled output
    (`pooler_output`), its class token (`cls_token_value` or the first position), the mean state over positions.

    Raises:
        ModelError: four-dimensional states of which neither axis is known to hold the channels.
    """
    output = model(pixel_values=batch)
    for name in ("image_embeds", "pooler_output", "cls_token_value"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found.flatten(1)
    states: Tensor = output.last_hidden_state
    if states.ndim == 4:
        return states.mean((2, 3) if _channels_first(model, states) else (1, 2))
    return states[:, 0] if _has_class_token(model) else states.mean(1)


@torch.no_grad()
def told(model: nn.Module, batch: Batch) -> str:
    """What `vision_features` takes of a model's output, in words."""
    output = model(pixel_values=batch)
    if isinstance(getattr(output, "image_embeds", None), Tensor):
        return "the projected embedding"
    if isinstance(getattr(output, "pooler_output", None), Tensor):
        return "the pooled output"
    if isinstance(getattr(output, "cls_token_value", None), Tensor):
        return "the class token's state"
    first = output.last_hidden_state.ndim == 3 and _has_class_token(model)
    return "the class token's state" if first else "the mean state over positions"


def _has_class_token(model: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in model.named_parameters())


def _channels_first(model: nn.Module, states: Tensor) -> bool:
    """Whether states are (N, C, H, W), not (N, H, W, C): the configuration names the width of the channel axis."""
    config = getattr(model, "config", None)
    widths: set[int] = set()
    for name in _WIDTHS:
        value = getattr(config, name, None)
        widths |= (
            {value}
            if isinstance(value, int)
            else set(value[-1:])
            if isinstance(value, list | tuple)
            else set()
        )
    first, last = states.shape[1] in widths, states.shape[3] in widths
    if first == last:
        raise ModelError(
            f"{type(model).__name__} gives states of shape {tuple(states.shape)}, and its configuration does not say "
            "which axis holds the channels. Wrap it in an Encoder whose `features` pools them."
        )
    return first
