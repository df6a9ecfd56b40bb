"""Which kind of language model a directory holds, and where its token table is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.errors import ModelError, NonFiniteError
from tauspan.core.params import Params
from tauspan.models.causal import Causal
from tauspan.models.inputs import Inputs
from tauspan.models.language import Language, States
from tauspan.models.masked import Masked
from tauspan.models.seq2seq import Seq2Seq
from tauspan.objectives.tokens import Table

_CLOSE = 1e-4  # relative: float32 logits by the table against the model's own


def language_kind(config: Mapping[str, Any], source: str) -> type[Language]:
    """The kind of language model that a configuration describes.

    Raises:
        ModelError: none.
    """
    from transformers.models.auto import modeling_auto as known

    kind = config["model_type"]
    if kind in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return Seq2Seq
    if kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return Masked  # of BERT and its like transformers has decoders too
    if (
        kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    ):
        return Causal
    raise ModelError(f"{source} is no language model of transformers: load it without `language`.")


def language_of(
    full: Any, of: type[Language], inputs: Inputs, length: int, source: str
) -> tuple[nn.Module, Language]:
    """A transformers language model as a backbone that gives states, and the table that makes logits of them.

    The backbone is the model's base where the table reads the base's states as they are, else the whole model with the
    table taken out. The table does not train: where an embedding is the same tensor, that is frozen too.

    Raises:
        ModelError: the logits are no affine function of what the table reads.
    """
    out = full.get_output_embeddings()
    if not isinstance(out, nn.Linear):
        raise ModelError(f"{source}: {type(full).__name__} has no linear table from states to tokens.")
    added = getattr(full, "final_logits_bias", None)  # of BART and its like
    own = [part for part in (out.weight, out.bias, added) if part is not None]
    bias = [part.detach().flatten() for part in own[1:]]
    table = Table(out.weight.detach(), torch.stack(bias).sum(0) if bias else None, length)
    every = [*full.named_parameters(remove_duplicate=False), *full.named_buffers()]
    names = [next(name for name, tensor in every if tensor is part) for part in own]
    language = of.made(full, table, inputs, names[0], source)
    backbone = _backbone(full, language, source)
    there = dict(backbone.named_parameters())
    tied = [next((name for name, p in there.items() if p is part), None) for part in own]
    for name in filter(None, tied):
        there[name].requires_grad_(False)
    biases = tuple(inside or outside for inside, outside in zip(tied[1:], names[1:], strict=True))
    return backbone, replace(language, tied=tied[0], biases=biases)


def as_stored(language: Language, carried: Params) -> Language:
    """With the names that files give to a table, and to one bias, that the backbone lacks.

    Args:
        language: with names in memory, which the files need not use.
        carried: the tensors of the files that the backbone lacks.
    """
    if language.tied is not None:
        return language

    def stored(own: Tensor, name: str) -> str:
        same = (n for n, t in carried.items() if t.shape == own.shape and torch.equal(t.to(own), own))
        return name if name in carried else next(same, name)

    biases, bias = language.biases, language.table.bias
    if bias is not None and len(biases) == 1:
        biases = (stored(bias, biases[0]),)
    return replace(language, name=stored(language.table.weight, language.name), biases=biases)


def _backbone(full: Any, language: Language, source: str) -> nn.Module:
    """The part of the model whose states give its own logits by the table.

    Raises:
        ModelError: no part does.
        NonFiniteError: its logits are NaN or infinite.
    """
    batch = language.batch([language.sample], None)
    states, table = States(language.table.length, language.decoder), language.table
    parts: list[Callable[[], nn.Module]] = [lambda: _tableless(full)]
    if full.base_model is not full:
        parts.insert(0, lambda: full.base_model)
    apart = []
    with torch.no_grad():
        wanted = full(**batch).logits
        if not bool(wanted.isfinite().all()):
            raise NonFiniteError(
                f"{source}: the logits of {type(full).__name__} hold NaN or infinity on a sample text: its weights are "
                "broken. `tauspan doctor MODEL --values` names the tensor; get the files again."
            )
        for part in parts:
            backbone = part()
            apart.append(_apart(states.read(backbone, batch), table, wanted))
            if apart[-1] <= _CLOSE:
                return backbone
    raise ModelError(
        f"{source}: logits by the table differ from those of {type(full).__name__} by {min(apart):.2g} of their size: it "
        "caps them. Such models can be merged and edited, and their token losses cannot be computed yet."
    )


def _apart(states: Tensor, table: Table, wanted: Tensor) -> float:
    if states.shape[-1] != table.weight.shape[1]:  # the table reads a projection of them
        return float("inf")
    found = F.linear(states, table.weight, table.bias)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _tableless(full: Any) -> nn.Module:
    """The model, whose logits are now what its table would read, after a transform or a scale before or behind it."""
    out = full.get_output_embeddings()
    full.set_submodule(next(name for name, module in full.named_modules() if module is out), nn.Identity())
    model: nn.Module = full
    return model
