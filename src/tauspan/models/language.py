"""Causal language models: states of every position as features, the token table behind them, and the tokens of texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.errors import DataError, ModelError, UsageError, listed
from tauspan.models.encoder import Batch, Head
from tauspan.models.inputs import Inputs
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
        table: the frozen table that makes logits of states.
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
        return torch.tensor(ids, dtype=torch.long)

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

    def require_frozen(self, names: Iterable[str], label: str) -> None:
        """Raise if a vector moves the token table.

        Raises:
            UsageError: it does; its logits are not those of the frozen table.
        """
        moved = [name for name in names if name in (self.tied, self.name)]
        if moved:
            raise UsageError(
                f"the vector {label!r} moves {moved[0]!r}, the table that makes logits of states, and next-token "
                "losses are "
                "computed with the pre-trained one. Fine-tune without it (it does not train in a model that "
                "`ts.load(source, language=L)` gave), or measure the saved model with lm-eval."
            )


def language_of(full: Any, backbone: nn.Module, inputs: Inputs, length: int, source: str) -> Language:
    """The table of a transformers causal language model, checked against the model's own logits.

    The table does not train: where the input embedding is the same tensor, that is frozen too.

    Raises:
        ModelError: the logits are no affine function of the last states.
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
    name = next(name for name, p in full.named_parameters(remove_duplicate=False) if p is out.weight)
    return Language(table, inputs, tied, name)
