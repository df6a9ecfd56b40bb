"""Causal language models: each state predicts the next token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tauspan.core.errors import DataError, ModelError, listed
from tauspan.models.chats import Messages, asked
from tauspan.models.encoder import Head
from tauspan.models.inputs import require_known, require_tokens
from tauspan.models.language import Language, as_passage
from tauspan.objectives.passages import Passage
from tauspan.objectives.tokens import IGNORED


@dataclass(frozen=True, eq=False)
class Causal(Language):
    """A decoder: each state predicts the next token."""

    kind: ClassVar[str] = "a causal language model"
    words: ClassVar[tuple[str, ...]] = ("next-token", "chat", "preference")
    family: ClassVar[str] = "AutoModelForCausalLM"

    def read(self, rows: Sequence[Any], max_tokens: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens that count are not the first, nor padding, nor those of the prompt."""
        passages = [as_passage(row) for row in rows]
        texts = [passage.text for passage in passages]
        spans = any(passage.spans is not None for passage in passages)
        if spans and not getattr(self.inputs.tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(self.inputs.tokenizer).__name__} does not say which characters a token is made of, so prompts "
                "cannot be told from completions: save the model with a fast tokenizer (tokenizer.json)."
            )
        marked = any(passage.marked for passage in passages)
        made = self.inputs.tokens(texts, max_tokens, self.table.length, spans=spans, marked=marked)
        require_tokens(made, texts)
        counts = made["attention_mask"].bool()
        if spans:
            counts &= _inside(made.pop("offset_mapping"), passages)
        wanted = torch.full_like(made["input_ids"], IGNORED)
        wanted[:, :-1] = torch.where(counts, made["input_ids"], IGNORED)[:, 1:]
        return made, wanted

    def begun(self, prompt: str | Messages) -> tuple[dict[str, Tensor], Tensor]:
        """The tokens of a text that goes on, without those that the tokenizer puts at an end; or of a question."""
        if not isinstance(prompt, str):
            made = self.inputs.tokenizer(asked(self.inputs.tokenizer, prompt), add_special_tokens=False)
            return {}, torch.tensor(made["input_ids"], dtype=torch.long)
        made = self.inputs.tokenizer(prompt, return_special_tokens_mask=True)
        ids, added = list(made["input_ids"]), list(made["special_tokens_mask"])
        if not all(added):  # else it is a beginning alone
            while added[-1] and not prompt.endswith(self.inputs.tokenizer.decode(ids[-1:])):
                ids.pop()
                added.pop()
        found = torch.tensor(ids, dtype=torch.long)
        require_known(found, len(self.table.weight), self.inputs.tokenizer)
        return {}, found

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
                    "with or without the space before it."
                )
            found += ids
        if len(set(found)) < len(found):
            raise DataError(f"two of the words {listed(words)} are the same token: give each class its own.")
        bias = None if self.table.bias is None else self.table.bias[found]
        return Head(self.table.weight[found], bias)


def _inside(characters: Tensor, passages: Sequence[Passage]) -> Tensor:
    """Which tokens are made of characters that count, shape (N, tokens), from the characters of each, (N, tokens, 2)."""
    # a token that the tokenizer adds, such as an end, has no characters: it ends where the last one did
    ends = characters[:, :, 1].cummax(1).values
    starts = torch.where(characters[:, :, 1] > characters[:, :, 0], characters[:, :, 0], ends - 1)
    found = torch.zeros_like(ends, dtype=torch.bool)
    for row, passage in enumerate(passages):
        if passage.spans is None:
            found[row] = True
        for begin, end in passage.spans or ():
            found[row] |= (ends[row] > begin) & (starts[row] < end)
    return found
