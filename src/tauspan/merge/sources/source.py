"""`Source`: named tensors of a model or a displacement in files, and what their names say of them.

transformers stores a tied tensor once and drops its other names. What ties them is code, which a file does not hold;
known here are the usual pairs of input and output embeddings, and what safetensors itself notes when it drops a name.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from tauspan import store
from tauspan.core.errors import StoreError, listed
from tauspan.models import folders
from tauspan.store import Stored

LOOK = 1 << 20  # entries; larger than a merge's block, since nothing of it has to stay in a core's cache
Kind: TypeAlias = Literal["point", "delta"]


class Source(Protocol):
    """Named tensors of one model, or of one displacement, whose values are read in pieces.

    `tensors` are in file order. `aliases` maps names that are not stored, because they are tied, to the stored
    name. `identity` is JSON: what was read and how to recognise it.
    """

    @property
    def label(self) -> str:
        """A short name for tables, errors and the keys of random masks."""

    @property
    def path(self) -> Path:
        """The file or directory."""

    @property
    def kind(self) -> Kind:
        """Whether the values are weights or displacements."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The position of each tensor in its file; for a low-rank displacement, the dense tensor that it is equal to."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """Tied names that are not stored, each with the stored name, as far as known."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Path, files with size and hash of the header; of displacements the base and the regime."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The entries `start` to `stop` of the flattened tensor; threads may read at once."""

    def close(self) -> None:
        """Close the files."""


def ranges(entries: int) -> Iterator[tuple[int, int]]:
    """The ranges in which a tensor is read that is examined and not merged: at most `LOOK` entries at once."""
    return ((start, min(start + LOOK, entries)) for start in range(0, entries, LOOK))


def same_values(one: Source, name: str, two: Source, other: str) -> bool:
    """Whether two tensors of one size hold the same bits."""
    return all(
        torch.equal(one.read(name, *cut).view(torch.uint8), two.read(other, *cut).view(torch.uint8))
        for cut in ranges(one.tensors[name].shape.numel())
    )


def found(source: Source, name: str) -> Stored:
    """Where a tensor is stored, under its own name or the one it is tied to; a `StoreError` if it is not."""
    stored = source.tensors.get(source.aliases.get(name, name))
    if stored is None:
        raise StoreError(f"{source.path} has no tensor {name!r}; it has {listed(source.tensors)}.")
    return stored


def config_of(place: Path) -> Mapping[str, Any]:
    """The model's `config.json`, of a directory or beside a file of its usual name; empty if there is none."""
    folder = model_folder(place)
    folder = None if folder is None else folders.main_folder(folder)
    if folder is None or not (folder / "config.json").is_file():
        return {}
    if not folders.inside(folder, folder / "config.json"):
        raise StoreError(
            f"{folder / 'config.json'} is a link to {(folder / 'config.json').resolve()}, outside its folder, and no "
            "such link is followed: put a copy of the file there."
        )
    content = store.read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise StoreError(
            f"{folder / 'config.json'} is not a JSON object; save the model's configuration again."
        )
    return content


def model_folder(place: Path) -> Path | None:
    """The directory whose configuration and tokenizer belong to the weights; None for a file on its own."""
    if place.is_dir():
        return place
    usual = place.name.startswith(tuple(f"{stem}." for stem in store.STEMS)) or place.name.endswith(
        store.INDEX_SUFFIX
    )
    return place.parent if usual else None


class SourceView:
    """Another source's properties passed on; a subclass presents other tensors.

    Attributes:
        inner: the source.
    """

    inner: Source

    @property
    def label(self) -> str:
        """The label of the inner source."""
        return self.inner.label

    @property
    def path(self) -> Path:
        """The path of the inner source."""
        return self.inner.path

    @property
    def kind(self) -> Kind:
        """The kind of the inner source."""
        return self.inner.kind

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identity of the inner source."""
        return self.inner.identity

    def close(self) -> None:
        """Close the files of the inner source."""
        self.inner.close()


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
    """The other spelling of a norm's tensor: old checkpoints call its parts `LayerNorm.gamma` and `LayerNorm.beta`.

    Example:
        >>> spelled_before("bert.LayerNorm.gamma"), spelled_before("bert.LayerNorm.bias"), spelled_before("norm.gamma")
        ('bert.LayerNorm.weight', 'bert.LayerNorm.beta', None)
    """
    stem, dot, kind = name.rpartition(".")
    return f"{stem}.{_SPELLINGS[kind]}" if kind in _SPELLINGS and stem.endswith("LayerNorm") and dot else None


def spellings_in(aliases: Mapping[str, str]) -> dict[str, str]:
    """The aliases that are another spelling of the same tensor; all others are second tensors that are tied to one."""
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


_COUNTERS = re.compile(r"(?:^|\.)num_batches_tracked$")
_CONSTANTS = re.compile(
    r"(?:^|\.)(?:(?:original_)?inv_freq|cos_cached|sin_cached|position_ids|relative_position_index|token_type_ids)$"
)
_MASKS = re.compile(r"(?:^|\.)(?:attn|attention|self_attention)\.(?:bias|masked_bias|causal_mask)$")
_RUN = re.compile(r"(?:^|\.)v_head\.")  # the value head that TRL trains beside a model


def counts(stored: Stored) -> bool:
    """Whether the tensor is a counter, such as the batches that a norm has seen, which is not taken from other models."""
    return not stored.dtype.is_floating_point and _COUNTERS.search(stored.name) is not None


def computed(stored: Stored) -> bool:
    """Whether the model computes the tensor again when it is made, so that what is stored is ignored.

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
