"""The same architecture without pre-training: random weights, initialised as the model's own library does it."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError
from tauspan.models.encoder import Encoder
from tauspan.models.language import MADE, Language
from tauspan.models.select import state_of


@checked
def reinitialised(encoder: Encoder, seed: int = 0) -> Encoder:
    """A copy of an encoder with new random weights, as a comparison without pre-training.

    A transformers model is built anew from its configuration; in any other model every submodule that owns
    parameters draws them by its own `reset_parameters`. The token table of a language model is new too. The input is not
    changed, and neither is torch's global random state.

    Args:
        encoder: the pre-trained encoder.
        seed: of the random weights.

    Raises:
        ModelError: a submodule owns parameters and has no `reset_parameters`.
        UsageError: an encoder with a head of `with_token_head`, which is made of the weights that go.

    Cost:
        Memory for two copies of the weights.

    Example:
        >>> encoder = Encoder(nn.Linear(2, 3))
        >>> first, again, other = (reinitialised(encoder, seed).backbone.weight for seed in (0, 0, 1))
        >>> torch.equal(first, again), torch.equal(first, other)
        (True, False)
    """
    if encoder.language is not None and encoder.language.name == MADE:
        raise UsageError(
            f"{encoder.source} has a token head that was made of its embeddings: re-initialise the encoder first, and "
            "give the new one a head, `with_token_head(reinitialised(ENCODER, SEED), TOKENS)`."
        )
    device = next(encoder.parameters()).device
    made = copy.deepcopy(encoder).cpu()  # a seed gives the same weights on every device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if hasattr(made.backbone, "_from_config"):
            _draw_from_config(made.backbone)
        else:
            _draw_in_place(made.backbone)
        if made.language is not None:
            made.language = _with_new_table(made.language, made.backbone)
    made.to(device)
    made.frozen, made.origin, made.edit = {}, None, ""  # its heads are made from its own features
    made.source = f"{encoder.source} re-initialised with seed {seed}"
    return made


def _draw_from_config(backbone: Any) -> None:
    """Give the backbone the weights of a new model that transformers builds from the same configuration.

    `init_weights` is not enough: it does not change tensors that were loaded from a file.
    """
    fresh = state_of(type(backbone)._from_config(copy.deepcopy(backbone.config)))
    for name, tensor in state_of(backbone).items():
        if name in fresh:  # what was added to the model is 0 in one without an edit
            tensor.copy_(fresh[name])
        else:
            tensor.zero_()


def _with_new_table(language: Language, backbone: Any) -> Language:
    """The backbone's own table where the two are tied, else one drawn as transformers draws it; biases begin at 0."""
    weight, bias = language.table.weight, language.table.bias
    if language.tied is None:
        spread = getattr(backbone.config, "initializer_range", 0.02)
        new = torch.empty_like(weight, device="cpu").normal_(std=spread)
    else:
        new = dict(backbone.named_parameters(remove_duplicate=False))[language.tied].detach()
    begun = None if bias is None else torch.zeros_like(bias, device="cpu")
    return replace(language, table=replace(language.table, weight=new, bias=begun))


def _draw_in_place(backbone: nn.Module) -> None:
    for path, layer in backbone.named_modules():
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        reset = getattr(layer, "reset_parameters", None) or getattr(
            layer, "_reset_parameters", None
        )  # the name in torch's MultiheadAttention
        if own and reset is None:
            place = ".".join(filter(None, [path, own[0]]))
            raise ModelError(
                f"nothing says how {place!r} is initialised: {type(layer).__name__} has no `reset_parameters`. Give it "
                "that method, or build a fresh model yourself."
            )
        if reset is not None and (own or list(layer.buffers(recurse=False))):
            reset()
