"""`prompt_vector`: the prefix vector of a real prompt, made without training, with the error that it makes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauspan.core.arguments import checked
from tauspan.core.errors import ModelError, UsageError
from tauspan.core.params import Params, require_finite_rows
from tauspan.core.report import versions
from tauspan.models import Encoder, fingerprint_of, names_of
from tauspan.models.at import call_at
from tauspan.models.encoder import Batch
from tauspan.models.trial import sample_pictures
from tauspan.prefix.attention import Attended, Prefix, grouped, watching
from tauspan.vector import TaskVector

BOUND = 0.25  # the largest error by default
ROWS = (
    "The train leaves at nine in the morning.",
    "I would not watch this film again.",
    "Please send me the report before Friday.",
    "A library that reads and writes compressed files",
)
Kept = dict[nn.Module, Attended]  # how each layer read the prompt


@checked
def prompt_vector(
    encoder: Encoder,
    prompt: Any,
    *,
    rows: Sequence[Any] | None = None,
    bound: float = BOUND,
    label: str | None = None,
) -> TaskVector:
    """The vector of a prompt that stands in front of every input: Z = sum_p phi(k_p) v_p^T, kappa = sum_p phi(k_p).

    The prompt is read once, alone; k_p and v_p are its keys and values in each layer. The *real* prompt is those keys and
    values in front of each row's own, in every layer, with exact attention, as a decoder reads a prompt from its cache;
    positions of the row start at 0 with or without it. The vector replaces e^{s q.k} by phi(q).phi(k). What that costs is
    measured on `rows`:

        error = |f_vector - f_real| / |f_real - f_0|,   f the encoder's features

    0 is the real prompt, and 1 is as far from it as no prompt at all. Above `bound` there is no vector, since it would
    not stand for the prompt. `"taylor"` follows small scores s q.k; `"elu"` follows no real prompt, and is for training.

    Vectors of prompts add like any others: the sum is the vector of both prompts, one behind the other and each read
    alone, and a negative coefficient takes one away.

    Args:
        encoder: with a prefix (`tauspan.with_prefix`), of a model with absolute or learned positions.
        prompt: a text, or a picture for a model that reads pictures; as the encoder reads a row.
        rows: inputs on which the error is measured; None takes four English sentences, or a picture of noise.
        bound: the largest error.
        label: of the vector; None names the prompt.

    Returns:
        A vector of regime `standard`; `info["prompt"]` holds the prompt, the error, and the share of the features that
        the real prompt changes, |f_real - f_0| / |f_0|.

    Raises:
        UsageError: the error is above `bound`, the encoder has no prefix, or there are no rows to measure on.
        ModelError: a model whose scores depend on distances (rotary or relative positions), where the keys of a prompt
            stand for one distance alone.
        NonFiniteError: NaN or infinity in the features.

    Cost:
        Four forward passes: of the prompt, and three of the rows.

    Example:
        >>> import tauspan as ts
        >>> from tauspan.prefix import prompt_vector
        >>> encoder = ts.with_prefix(ts.load("minilm"), "taylor")
        >>> vector = prompt_vector(encoder, "Classify the topic of this text:", bound=0.5)
        >>> vector.regime, round(vector.info["prompt"]["error"], 1)
        ('standard', 0.4)
    """
    if not bound > 0:
        raise UsageError(f"bound={bound}: it must be above 0.")
    if isinstance(prompt, str) and not prompt.strip():
        raise UsageError("the prompt is empty: give the text that the vector is to stand for.")
    _require_empty(encoder)
    _require_absolute(encoder)
    with torch.no_grad():
        kept = _read(encoder, prompt)
        deltas = _sums(encoder, kept)
        said = _measured(encoder, deltas, kept, _batch(encoder, rows))
    named = prompt if isinstance(prompt, str) else "a picture"
    if not said["error"] <= bound:
        raise UsageError(_refusal(encoder, named, said, bound))
    info = {**encoder.facts, "versions": versions(), "prompt": {"text": named, **said}}
    stored = names_of(encoder).to_files({name: delta.cpu() for name, delta in deltas.items()})
    return TaskVector(stored, fingerprint_of(encoder), "standard", label or f"prompt {named[:40]!r}", info)


def _require_empty(encoder: Encoder) -> None:
    if encoder.added is None:
        raise UsageError(
            f"{encoder.source} has no prefix that a prompt could be put into: give "
            "`tauspan.with_prefix(ENCODER, 'taylor')`."
        )
    known = dict(encoder.backbone.named_parameters())
    if any(bool(known[name].any()) for name in encoder.added.names):
        raise UsageError(
            f"the prefix of {encoder.source} was edited ({encoder.edit or 'by hand'}), and a vector starts where it is "
            f"0: give the encoder as `{encoder.added.words}` made it."
        )


def _refusal(encoder: Encoder, named: str, said: dict[str, Any], bound: float) -> str:
    phi = encoder.facts["prefix"]["phi"]
    way = "" if phi == "taylor" else "`tauspan.with_prefix(ENCODER, 'taylor')` follows small scores; else "
    return (
        f"by the feature map {phi!r} the vector of {named[:40]!r} makes an error of {said['error']:.2f} of what the real "
        f"prompt changes, measured on {said['rows']} rows of features of {encoder.source}, above bound={bound:g}: it "
        f"would not stand for the prompt. {way}train a prefix on rows that were read with the prompt, or, if you mean "
        f"it, pass bound={1.1 * said['error']:.2g}."
    )


def _require_absolute(encoder: Encoder) -> None:
    for name, part in encoder.backbone.named_modules():
        if "rotary" in type(part).__name__.lower():
            raise ModelError(
                f"{encoder.source} has rotary positions ({name!r}), so that the keys of a prompt stand for one distance "
                "to a query alone. Train a prefix instead, with `finetune`; make vectors of prompts for models with "
                "absolute or learned positions."
            )


def _read(encoder: Encoder, prompt: Any) -> Kept:
    """How each layer reads a prompt alone: its keys and values are those of the prefix."""
    kept: Kept = {}

    def note(attended: Attended) -> None:
        if attended.biased:
            raise ModelError(
                f"{encoder.source} adds a bias of positions to its scores, which a prompt's keys do not hold. Train a "
                "prefix instead, with `finetune`."
            )
        kept[attended.module] = attended

    with watching(note):
        encoder(encoder.encode([prompt]))
    return kept


def _sums(encoder: Encoder, kept: Kept) -> dict[str, Tensor]:
    """Z and kappa of each layer, by the names of the parameters."""
    found: dict[str, Tensor] = {}
    for name, part in encoder.backbone.named_modules():
        if isinstance(part, Prefix):
            prompt = kept[encoder.backbone.get_submodule(name.rpartition(".")[0])]
            phi = part.features(prompt.key[0], prompt.scaling)
            found |= {f"{name}.z": phi.mT @ prompt.value[0].to(phi.dtype), f"{name}.kappa": phi.sum(-2)}
    return found


def _batch(encoder: Encoder, rows: Sequence[Any] | None) -> Batch:
    if rows is None and encoder.inputs.modality == "tensor":
        raise UsageError(
            f"{encoder.source} reads tensors, and the error is measured on rows: give some, "
            'rows=task.split("validation").inputs[:8].'
        )
    if rows is None:
        rows = sample_pictures(encoder) if encoder.inputs.modality == "image" else ROWS
    if not len(rows):
        raise UsageError("`rows` is empty: give at least one on which the error is measured.")
    return encoder.encode(rows)


def _measured(encoder: Encoder, deltas: Params, kept: Kept, batch: Batch) -> dict[str, float]:
    """The error of the vector and the effect of the real prompt, on a batch."""

    def before(attended: Attended) -> Tensor:
        return in_front(attended, kept[attended.module].key, kept[attended.module].value)

    plain = encoder(batch).double()
    with watching(before):
        real = encoder(batch).double()
    own = call_at(encoder, {f"backbone.{name}": delta for name, delta in deltas.items()}, [batch], {})
    for name, found in (("the real prompt", real), ("the prompt's vector", own)):
        require_finite_rows(found, f"the features under {name}")
    changed, missed = float((real - plain).norm()), float((own.double() - real).norm())
    error = missed / changed if changed else float(missed > 0)
    return {"error": error, "effect": changed / float(plain.norm()), "rows": len(plain)}


def in_front(attended: Attended, key: Tensor, value: Tensor) -> Tensor:
    """The output of a layer with keys (1, H_kv, m, d) and values (1, H_kv, m, d_v) in front of every row's own."""
    rows, heads = attended.query.shape[:2]
    scores = attended.scores()
    first = attended.query.to(scores.dtype) * attended.scaling @ grouped(key, heads).to(scores.dtype).mT
    weights = torch.cat([first, scores], -1).softmax(-1)
    values = torch.cat([value.expand(rows, -1, -1, -1), attended.value], 2)
    out = weights @ grouped(values, heads).to(weights.dtype)
    return out.transpose(1, 2).to(attended.out.dtype)
