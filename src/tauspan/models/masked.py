"""Masked language models: some tokens of a text are hidden, and their states predict them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import DataError, ModelError
from tauspan.models.inputs import Inputs, require_tokens
from tauspan.models.language import Language
from tauspan.objectives.passages import Cloze
from tauspan.objectives.tokens import IGNORED, Table


@dataclass(frozen=True, eq=False)
class Masked(Language):
    """BERT and its like, with the head that predicts tokens: the table reads states after the head's transform.

    Args:
        mask: the token that hides others.
        special: tokens that are never hidden.
    """

    mask: int
    special: tuple[int, ...]
    kind: ClassVar[str] = "a masked language model"
    words: ClassVar[tuple[str, ...]] = ("masked-token",)
    family: ClassVar[str] = "AutoModelForMaskedLM"
    decoder: ClassVar[bool] = False

    @classmethod
    def made(cls, full: Any, table: Table, inputs: Inputs, name: str, source: str) -> Self:
        """With the tokenizer's mask token.

        Raises:
            ModelError: it has none.
        """
        mask = inputs.tokenizer.mask_token_id
        if mask is None:
            raise ModelError(
                f"{source}: its tokenizer has no mask token, so nothing can be hidden. Name the model's `mask_token` in "
                "its tokenizer_config.json."
            )
        return cls(table, inputs, None, name, (), mask, tuple(inputs.tokenizer.all_special_ids))

    def read(self, rows: Sequence[Any], max_tokens: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """Hidden tokens count; a row that is no cloze hides none."""
        texts = [row if isinstance(row, str) else row.text for row in rows]
        made = self.inputs.tokens(texts, max_tokens, self.table.length)
        require_tokens(made, texts)
        ids = made["input_ids"]
        words = made["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(self.special))
        hidden = torch.zeros_like(words)
        for place, row in enumerate(rows):
            if isinstance(row, Cloze):
                where = words[place].nonzero().flatten()
                hidden[place, where[_drawn(row, len(where))]] = True
        wanted = ids.masked_fill(~hidden, IGNORED)
        return {**made, "input_ids": ids.masked_fill(hidden, self.mask)}, wanted


def _drawn(row: Cloze, count: int) -> list[int]:
    """Which of so many tokens are hidden: by seed, text and place, at least one and never all.

    Raises:
        DataError: with fewer than two tokens there is no such choice.
    """
    if count < 2:
        raise DataError(
            f"nothing is left to predict from in the text {row.text[:60]!r}: it has {count} token"
            f"{'' if count == 1 else 's'}, and one is hidden and one is read. Allow more tokens, or take the row out."
        )
    key = hashlib.sha256(f"{row.seed}/{row.text}".encode()).digest()[:8]
    draws = np.random.default_rng(int.from_bytes(key, "big")).random(count)
    bound = min(max(row.share, float(draws.min())), float(np.sort(draws)[-2]))
    return [place for place, draw in enumerate(draws.tolist()) if draw <= bound]
