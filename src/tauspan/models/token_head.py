"""A token table for encoders that were published without one, so that they can be trained on hidden tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError
from tauspan.models.encoder import Encoder, positions
from tauspan.models.inputs import Inputs
from tauspan.models.language import MADE, States
from tauspan.models.languages import language_kind
from tauspan.models.masked import Masked
from tauspan.models.trial import tried
from tauspan.objectives.tokens import Table


@checked
def with_token_head(encoder: Encoder, language: int, texts: Sequence[str] = ()) -> Encoder:
    """An encoder of texts as a masked language model, with a frozen head that is tied to its embeddings.

    The logits of a hidden token with the state h are E h / s + b. E, shape (V, d), holds the embeddings at theta0, and s
    is the root of their mean squared length, so that a state of the usual length sqrt(d) gives logits of variance about
    1. b is 0, or the log frequency of each token in `texts`, so that nothing has to be learned of it: with n tokens of m
    kinds, p = (count + m / V) / (n + m), Witten and Bell's smoothing. Like every head, this one is made of the
    pre-trained encoder and does not move, so the embeddings themselves may train.

    The new encoder shares the old one's parameters and fingerprint. Vectors of both therefore fit one another, and
    `tauspan.save` writes the encoder without this head.

    Args:
        encoder: an encoder of texts that reads in both directions (BERT and its like), loaded without `language`.
        language: the most tokens of a text.
        texts: unlabelled texts for b.

    Raises:
        UsageError: an encoder of other inputs, a causal one, one with a head already, or more tokens than positions.
        ModelError: its tokenizer has no mask token, or its states are not as wide as its embeddings.

    Cost:
        The tokens of `texts`, and two forward passes of one row; a table of V d numbers.

    Example:
        >>> import tauspan as ts
        >>> encoder = with_token_head(ts.load("minilm"), 16)
        >>> hidden = ts.suite(["tweet_sentiment"])[0].subset(train=1, validation=1, test=2).as_texts()
        >>> ts.evaluate(encoder, [hidden]).tasks[0].metric
        'pseudo-perplexity'
    """
    backbone: Any = _readable(encoder, language)
    most = positions(backbone)
    if language < 2 or (most is not None and language > most):
        raise UsageError(
            f"language={language}: a text has from 2 to {most or 'any number of'} tokens in {encoder.source}."
        )
    inputs = Inputs("text", encoder.inputs.tokenizer, limit=language)
    weight: Tensor = _pretrained(encoder).get_input_embeddings().weight.detach()
    scaled = weight / weight.square().sum(1).mean().sqrt()
    made = Encoder(
        backbone, States(language, False), inputs, source=encoder.source, save_extras=encoder.save_extras,
        home=encoder.home,
    )  # fmt: skip
    bias = _log_frequencies(inputs, texts, language, len(weight)).to(scaled) if texts else None
    table = Table(scaled, bias, language)
    made.language = Masked.made(None, table, inputs, MADE, encoder.source)
    made.origin, made.edit = encoder.origin, encoder.edit
    tried(made)
    states = States(language, False).read(backbone, made.encode(["a"]))
    if states.shape[-1] != scaled.shape[1]:
        raise ModelError(
            f"{encoder.source}: its states have {states.shape[-1]} numbers and its token embeddings {scaled.shape[1]}, "
            "so these cannot be its head: take a checkpoint that was saved with its own head (`language=`)."
        )
    return made


def _pretrained(encoder: Encoder) -> Any:
    """The backbone that the head is made of: that of the pre-trained encoder, also where this one is edited."""
    return (encoder.origin.encoder() if encoder.origin is not None else encoder).backbone


def _readable(encoder: Encoder, language: int) -> nn.Module:
    """The backbone, if hidden tokens can be predicted from its states."""
    if encoder.inputs.modality != "text":
        raise UsageError(f"a token head is for texts, and {encoder.source} reads {encoder.inputs.modality}s.")
    if encoder.language is not None:
        raise UsageError(
            f"{encoder.source} was loaded as a language model and has its head: take it as it is."
        )
    config = getattr(encoder.backbone, "config", None)
    if config is None or language_kind(config.to_dict(), encoder.source) is not Masked:
        raise UsageError(
            f"{encoder.source} is no encoder that reads in both directions, so it has no hidden tokens to predict: load "
            f"a decoder as one, `tauspan.load({encoder.source!r}, language={language})`, for next tokens."
        )
    return encoder.backbone


def _log_frequencies(inputs: Inputs, texts: Sequence[str], language: int, words: int) -> Tensor:
    """Log p of every token, of texts that are cut as the model reads them."""
    made = inputs.tokens(texts, None, language)
    special = torch.tensor(inputs.tokenizer.all_special_ids)
    counted = made["attention_mask"].bool() & ~torch.isin(made["input_ids"], special)
    counts = torch.bincount(made["input_ids"][counted], minlength=words).double()
    kinds = (counts > 0).double().sum()
    return ((counts + kinds / words) / (counts.sum() + kinds)).log()
