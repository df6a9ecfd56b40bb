"""Tied tensors that a checkpoint leaves out: which names stand for which stored ones.

transformers stores a tied tensor once and drops its other names. What ties them is code, which a file does not hold;
known here are the usual pairs of input and output embeddings, and what safetensors itself notes when it drops a name.
"""

import re
from collections.abc import Mapping
from typing import Any

from tauspan.store.headers import Stored

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")
"""How the names of input embeddings end; their rows are the vocabulary."""

# stored input embedding -> names that tie to it; \1 is the model's own prefix
_USUAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"(?:model\.)?language_model\.(?:model\.)?embed_tokens\.weight",
        ("language_model.lm_head.weight", "lm_head.weight"),
    ),
    (r"(?:model\.|transformer\.)?(?:decoder\.)?embed_tokens\.weight", ("lm_head.weight",)),
    (r"(?:transformer\.)?wte\.weight", ("lm_head.weight",)),
    (r"transformer\.word_embeddings\.weight", ("lm_head.weight",)),
    (r"bert\.embeddings\.word_embeddings\.weight", ("cls.predictions.decoder.weight",)),
    (r"(?:roberta|xlm_roberta|camembert)\.embeddings\.word_embeddings\.weight", ("lm_head.decoder.weight",)),
    (r"distilbert\.embeddings\.word_embeddings\.weight", ("vocab_projector.weight",)),
    (
        r"((?:model\.)?)shared\.weight",
        (r"\1encoder.embed_tokens.weight", r"\1decoder.embed_tokens.weight", "lm_head.weight"),
    ),
)


_SPELLINGS = {"gamma": "weight", "beta": "bias"}
_SPELLINGS |= {new: old for old, new in _SPELLINGS.items()}


def spelled_before(name: str) -> str | None:
    """The other spelling of a norm's tensor: checkpoints of the first years call it `LayerNorm.gamma` and `.beta`.

    Example:
        >>> spelled_before("bert.LayerNorm.gamma"), spelled_before("bert.LayerNorm.bias"), spelled_before("norm.gamma")
        ('bert.LayerNorm.weight', 'bert.LayerNorm.beta', None)
    """
    stem, dot, kind = name.rpartition(".")
    return f"{stem}.{_SPELLINGS[kind]}" if kind in _SPELLINGS and stem.endswith("LayerNorm") and dot else None


def spellings_in(aliases: Mapping[str, str]) -> dict[str, str]:
    """Of some aliases, those that spell one tensor in another way; the others are second tensors that are tied to one."""
    return {alias: kept for alias, kept in aliases.items() if spelled_before(alias) == kept}


def aliases_of(
    tensors: Mapping[str, Stored], metadata: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, str]:
    """Names that the model may use and the checkpoint does not store, each with the stored name it is tied to.

    Args:
        tensors: what is stored.
        metadata: of the files: safetensors' `save_model` notes there each name it dropped.
        config: `config.json`; without it, or with `tie_word_embeddings: false`, the usual pairs are not assumed.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> stored = Stored("model.embed_tokens.weight", torch.float32, torch.Size([3, 2]), Path("m"), 0, 24)
        >>> aliases_of({stored.name: stored}, {}, {"tie_word_embeddings": True})
        {'lm_head.weight': 'model.embed_tokens.weight'}
    """
    aliases = {name: kept for name, kept in metadata.items() if kept in tensors and name not in tensors}
    aliases |= {old: name for name in tensors if (old := spelled_before(name)) and old not in tensors}
    nested = config.get("text_config")
    settings = {**nested, **config} if isinstance(nested, dict) else config
    if not config or settings.get("tie_word_embeddings", True) is not True:
        return aliases
    for pattern, names in _USUAL:
        for stored in tensors:
            match = re.fullmatch(pattern, stored)
            if match:
                tied = (match.expand(name) for name in names)
                aliases |= {name: stored for name in tied if name not in tensors}
    return aliases
