"""Sequence-to-sequence models: an encoder reads the source, and the decoder's states predict the target's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.models.chats import Messages
from tauspan.models.inputs import Inputs, require_tokens
from tauspan.models.language import Language, as_passage
from tauspan.objectives.passages import Passage
from tauspan.objectives.tokens import IGNORED, Table


@dataclass(frozen=True, eq=False)
class Seq2Seq(Language):
    """An encoder-decoder: a row's prompt is the source, and what follows it the target.

    Source and target are cut at L tokens each. The decoder reads the start token and the target without its last token,
    as in transformers.

    Args:
        start: the token that the decoder begins with.
    """

    start: int
    kind: ClassVar[str] = "a sequence-to-sequence model"
    words: ClassVar[tuple[str, ...]] = ("next-token", "preference")
    family: ClassVar[str] = "AutoModelForSeq2SeqLM"
    sample: ClassVar[Passage] = Passage.after("The quick brown fox jumps over the lazy dog.", 20)

    @classmethod
    def made(cls, full: Any, table: Table, inputs: Inputs, name: str, source: str) -> Self:
        """With the configuration's start token.

        Raises:
            ModelError: it has none that is the same for all rows.
        """
        start = getattr(full.config, "decoder_start_token_id", None)
        if not isinstance(start, int):
            raise ModelError(
                f"{source}: the configuration of {type(full).__name__} names no `decoder_start_token_id`, so its decoder "
                "begins with another token for each language: write the one that is meant into config.json."
            )
        return cls(table, inputs, None, name, (), start)

    def read(self, rows: Sequence[Any], max_tokens: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """Every token of a target counts, its end too."""
        sources, targets = zip(*map(_parts, rows), strict=True)
        made = self.inputs.tokens(sources, max_tokens, self.table.length)
        require_tokens(made, sources)
        ahead = self.inputs.tokens(targets, max_tokens, self.table.length, targets=True)
        require_tokens(ahead, targets)
        ids = ahead["input_ids"]
        start = ids.new_full((len(ids), 1), self.start)
        batch = {name: made[name] for name in ("input_ids", "attention_mask")}
        batch["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], 1)
        return batch, ids.masked_fill(ahead["attention_mask"] == 0, IGNORED)

    def begun(self, prompt: str | Messages) -> tuple[dict[str, Tensor], Tensor]:
        """The tokens of the source, and the start token."""
        if not isinstance(prompt, str):
            raise UsageError(f"{self.kind} reads a source, and this is a conversation: give its text.")
        made = self.inputs.tokenizer([prompt], return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "attention_mask")}, torch.tensor([self.start])

    def said(self, ids: Sequence[int]) -> str:
        """The text without marks of its beginning and end."""
        return str(self.inputs.tokenizer.decode(list(ids), skip_special_tokens=True))


def _parts(row: Any) -> tuple[str, str]:
    """Source and target of a row.

    Raises:
        DataError: it has no source.
    """
    passage = as_passage(row)
    if passage.parts is None:
        raise DataError(
            f"the text {passage.text[:60]!r} has no source: a row of a sequence-to-sequence model is a source and a "
            "target. Name the column of sources (`prompt=`, --prompt)."
        )
    return passage.parts
