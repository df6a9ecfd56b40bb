"""Causal language models: states of every position as features, the token table behind them, and the tokens of texts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.errors import DataError, ModelError, NonFiniteError, UsageError, listed
from tauspan.core.params import Params, moved
from tauspan.models.encoder import Batch, Head
from tauspan.models.inputs import Inputs, require_known
from tauspan.models.pooling import hidden_states
from tauspan.objectives.tokens import IGNORED, Table

_CLOSE = 1e-4  # relative: float32 logits by the table against the model's own


@dataclass(frozen=True)
class States:
    """The last layer's states of every position, shape (N, L d): 0 after the longest text of the batch.

    Args:
        length: L.
    """

    length: int

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """States of texts of at most L tokens."""
        states = hidden_states(model, batch)
        return F.pad(states, (0, 0, 0, self.length - states.shape[1])).flatten(1)

    def __str__(self) -> str:
        return f"the last states of {self.length} positions"


@dataclass(frozen=True, eq=False)
class Language:
    """What a causal language model has besides its states.

    Args:
        table: what makes logits of states; it does not train.
        inputs: how texts become tokens.
        tied: the name of the table among the backbone's parameters, where it is one of them.
        name: the name of the table in the whole model, as files have it.
    """

    table: Table
    inputs: Inputs
    tied: str | None
    name: str

    def __deepcopy__(self, memo: dict[int, Any]) -> "Language":
        return self

    def targets(self, texts: Sequence[str], prompts: Tensor, max_tokens: int | None) -> Tensor:
        """The ids of the tokens that count, shape (N, L): not the first, nor padding, nor those of the prompt.

        Args:
            texts: as the model reads them.
            prompts: how many characters of each are its prompt.
            max_tokens: where texts are cut.

        Raises:
            DataError: nothing of a text counts.
            ModelError: prompts, and a tokenizer that does not say which characters a token is made of.
        """
        spans = bool((prompts > 0).any())
        made = self._tokens(texts, max_tokens, spans)
        ids, mask = made["input_ids"], made["attention_mask"].bool()
        require_known(ids, len(self.table.weight), self.inputs.tokenizer)
        counts = mask.clone()
        counts[:, 0] = False
        if spans:
            # a token that the tokenizer adds, such as an end, has no characters: it ends where the last one did
            ends = made["offset_mapping"][:, :, 1].cummax(1).values - len(self.inputs.prompt)
            counts &= (prompts[:, None] == 0) | (ends > prompts[:, None])
        empty = (~counts.any(1)).nonzero().flatten().tolist()
        if empty:
            row = empty[0]
            raise DataError(
                f"nothing is left to predict in the text {texts[row][:60]!r}: it has {int(mask[row].sum())} tokens of "
                "at most "
                f"{ids.shape[1]}, of which its prompt has {int(prompts[row])} characters. Allow more tokens, shorten the "
                "prompt, or take the row out."
            )
        found = torch.full((len(ids), self.table.length), IGNORED)
        found[:, : ids.shape[1]] = torch.where(counts, ids, IGNORED)
        return found

    def beginning(self, prompt: str) -> Tensor:
        """The tokens of a text that goes on: without those that the tokenizer puts at an end, shape (n,)."""
        made = self.inputs.tokenizer(self.inputs.prompt + prompt, return_special_tokens_mask=True)
        ids, added = list(made["input_ids"]), list(made["special_tokens_mask"])
        if not all(added):  # else it is a beginning alone
            while added[-1] and not prompt.endswith(self.inputs.tokenizer.decode(ids[-1:])):
                ids.pop()
                added.pop()
        found = torch.tensor(ids, dtype=torch.long)
        require_known(found, len(self.table.weight), self.inputs.tokenizer)
        return found

    def head(self, words: Sequence[str]) -> Head:
        """A frozen head whose classes are words: logits of the next token, W h + b at their tokens.

        It reads the state of a text's last token, which an encoder of the same model loaded without `language` gives, and
        makes the language model a classifier (a verbaliser).

        Args:
            words: one for each class, with the space before it where the text needs one, such as `" yes"`.

        Raises:
            DataError: a word is not one token, or two words are one.
        """
        if isinstance(words, str) or len(words) < 2 or not all(isinstance(word, str) for word in words):
            raise DataError(f"words={words!r}: a list of at least two texts is wanted, one for each class.")
        found = []
        for word in words:
            ids = self.inputs.tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise DataError(
                    f"the word {word!r} is {len(ids)} tokens of this model, and a class has one: take a shorter word, "
                    "with or "
                    "without the space before it."
                )
            found += ids
        if len(set(found)) < len(found):
            raise DataError(f"two of the words {listed(words)} are the same token: give each class its own.")
        bias = None if self.table.bias is None else self.table.bias[found]
        return Head(self.table.weight[found], bias)

    def _tokens(self, texts: Sequence[str], max_tokens: int | None, spans: bool) -> dict[str, Tensor]:
        if not spans:
            return self.inputs.tokens(self._whole(texts), max_tokens, self.table.length)
        if not getattr(self.inputs.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.inputs.tokenizer).__name__} does not say which characters a token is made of, so prompts "
                "cannot "
                "be told from completions: save the model with a fast tokenizer (tokenizer.json)."
            )
        return self.inputs.tokens(self._whole(texts), max_tokens, self.table.length, spans=True)

    def _whole(self, texts: Sequence[str]) -> list[str]:
        return [self.inputs.prompt + text for text in texts]

    def move(self, deltas: Params) -> Tensor | None:
        """How a displacement moves the table, dW of shape (V, d), or [dW, db] of shape (V, d + 1) of a table with b.

        Args:
            deltas: by names in memory; a table that the backbone lacks has its name in the files.

        Returns:
            None if it does not move it.
        """
        found = [deltas.get(name) for name in self._names]
        if not any(delta is not None and bool(delta.any()) for delta in found):
            return None
        own = [part for part in (self.table.weight, self.table.bias) if part is not None]
        known = zip(own, found, strict=True)
        parts = [torch.zeros_like(part) if delta is None else delta for part, delta in known]
        return torch.cat([part.view(len(part), -1).to(parts[0]) for part in parts], 1)

    @property
    def _names(self) -> list[str]:
        """The names of W, and of b if there is one, in a displacement."""
        beside = self.name.removesuffix("weight") + "bias"
        return [self.tied or self.name] + ([] if self.table.bias is None else [beside])

    def moved(self, deltas: Params, scale: float = 1.0) -> "Language":
        """The language model at theta0 + scale * tau: with its own table."""
        move = self.move(deltas)
        if move is None:
            return self
        weight, bias = self.table.weight, self.table.bias
        wide, width = torch.promote_types(weight.dtype, move.dtype), weight.shape[1]
        new = moved(weight.to(wide), move[:, :width], scale)
        beside = None if bias is None else moved(bias.to(wide), move[:, width], scale)
        return replace(self, table=replace(self.table, weight=new, bias=beside))

    def require_untrained(self, names: Collection[str]) -> None:
        """Raise if the token table is among the parameters that train.

        Raises:
            UsageError: it is; losses of training are computed with the table as it is.
        """
        if self.tied is not None and self.tied in names:
            raise UsageError(
                f"{self.tied!r} is also the table that makes logits of states, which does not train here: name other "
                "parameters (`params=`), such as 'all', which leaves it out."
            )


def language_of(
    full: Any, backbone: nn.Module, inputs: Inputs, length: int, source: str, carried: Params
) -> Language:
    """The table of a transformers causal language model, checked against the model's own logits.

    `carried` holds the tensors of its files that the backbone lacks, the table among them unless it is tied.

    The table does not train: where the input embedding is the same tensor, that is frozen too.

    Raises:
        ModelError: the logits are no affine function of the last states.
        NonFiniteError: they are NaN or infinite.
    """
    out = full.get_output_embeddings()
    if not isinstance(out, nn.Linear):
        raise ModelError(f"{source}: {type(full).__name__} has no linear table from states to tokens.")
    bias = None if out.bias is None else out.bias.detach()
    table = Table(out.weight.detach(), bias, length)
    batch = inputs.tokens(["The quick brown fox jumps over the lazy dog."], None, length)
    with torch.no_grad():
        wanted = full(**batch, use_cache=False).logits
        found = F.linear(hidden_states(backbone, batch), table.weight, table.bias)
    if not bool(wanted.isfinite().all()):
        raise NonFiniteError(
            f"{source}: the logits of {type(full).__name__} hold NaN or infinity on a sample text: its weights are "
            "broken. `tauspan doctor MODEL --values` names the tensor; get the files again."
        )
    apart = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    if not apart <= _CLOSE:
        raise ModelError(
            f"{source}: logits by the table differ from those of {type(full).__name__} by {apart:.2g} of their size: it "
            "scales or caps them. Such models can be merged and edited, and their next-token losses cannot be computed "
            "yet."
        )
    tied = next(
        (name for name, p in backbone.named_parameters() if p.data_ptr() == table.weight.data_ptr()), None
    )
    if tied is not None:
        backbone.get_parameter(tied).requires_grad_(False)
    named = (name for name, p in full.named_parameters(remove_duplicate=False) if p is out.weight)
    stored = (  # the files may call it otherwise
        name
        for name, t in carried.items()
        if t.shape == table.weight.shape and torch.equal(t.to(out.weight), table.weight)
    )
    name = next(named) if tied is not None else next(stored, None) or next(named)
    return Language(table, inputs, tied, name)
