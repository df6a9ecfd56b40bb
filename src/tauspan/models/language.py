"""Language models: states of every position as features, the token table behind them, and the tokens of texts."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan.core.errors import DataError, UsageError
from tauspan.core.params import Params, moved
from tauspan.models.chats import Messages, rendered
from tauspan.models.encoder import Batch, Head
from tauspan.models.inputs import Inputs, require_known
from tauspan.models.thin import DELTA
from tauspan.objectives.passages import Passage
from tauspan.objectives.tokens import IGNORED, Table

MADE = "token_head.weight"  # the name of a table that `with_token_head` made; no file has it


@dataclass(frozen=True)
class States:
    """What the token table reads at every position, shape (N, L d): 0 after the longest text of the batch.

    Args:
        length: L.
        decoder: whether the model has a cache, which is left alone.
    """

    length: int
    decoder: bool = True

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """States of texts of at most L tokens."""
        states = self.read(model, batch)
        return F.pad(states, (0, 0, 0, self.length - states.shape[1])).flatten(1)

    def read(self, model: nn.Module, batch: Batch) -> Tensor:
        """States of the batch's own positions, shape (N, tokens, d)."""
        assert isinstance(batch, Mapping)  # noqa: S101 - texts always make mappings
        out = model(**batch, **({"use_cache": False} if self.decoder else {}))
        states = getattr(out, "logits", None)  # of a whole model whose table was taken out
        found: Tensor = out.last_hidden_state if states is None else states
        return found

    def __str__(self) -> str:
        return f"the last states of {self.length} positions"


@dataclass(frozen=True, eq=False)
class Language(ABC):
    """What a language model has besides its states; each kind of model is a class.

    Args:
        table: what makes logits of states; it does not train.
        inputs: how texts become tokens.
        tied: the name of the table among the backbone's parameters, where it is one of them.
        name: the name of the table in the whole model, as files have it.
        biases: the names of what adds up to its bias: in the backbone, or where that lacks them, as files have them.
    """

    table: Table
    inputs: Inputs
    tied: str | None
    name: str
    biases: tuple[str, ...]
    kind: ClassVar[str]  # in words
    words: ClassVar[tuple[str, ...]]  # of the objectives whose losses it has
    family: ClassVar[str]  # the automatic class of transformers
    decoder: ClassVar[bool] = True
    sample: ClassVar[Passage] = Passage("The quick brown fox jumps over the lazy dog.")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Language":
        return self

    @classmethod
    def made(cls, full: Any, table: Table, inputs: Inputs, name: str, source: str) -> Self:
        """Of a whole model of transformers, which it may read more of.

        Raises:
            ModelError: the model lacks what its kind needs.
        """
        return cls(table, inputs, None, name, ())

    # -- what a kind of model says ---------------------------------------------------------------------------

    @abstractmethod
    def read(self, rows: Sequence[Any], max_tokens: int | None) -> tuple[dict[str, Tensor], Tensor]:
        """A batch, and the token that each of its states is to predict, shape (N, tokens); -100 where none counts.

        Args:
            rows: what the objective makes of a task's rows; a plain text counts as a whole.
            max_tokens: where texts are cut.
        """

    def begun(self, prompt: str | Messages) -> tuple[dict[str, Tensor], Tensor]:
        """What stays fixed while a text is decoded, and the tokens that it begins with, shape (n,).

        Raises:
            UsageError: the model writes no texts.
        """
        raise UsageError(f"{self.kind} does not write texts from left to right: decode with another model.")

    def head(self, words: Sequence[str]) -> Head:
        """A frozen head whose classes are words, of a causal language model.

        Raises:
            UsageError: another kind of model.
        """
        raise UsageError(
            f"a head of words reads the next token of a causal language model, and this is {self.kind}."
        )

    def chat(self, messages: Messages) -> Passage:
        """A conversation as a text, by the tokenizer's chat template; see `tauspan.models.chats`.

        Raises:
            DataError: the template refuses it.
            ModelError: there is no template.
        """
        return rendered(self.inputs.tokenizer, messages)

    def said(self, ids: Sequence[int]) -> str:
        """Tokens that were decoded as a text."""
        return str(self.inputs.tokenizer.decode(list(ids)))

    # -- what follows ----------------------------------------------------------------------------------------

    def batch(self, rows: Sequence[Any], max_tokens: int | None) -> dict[str, Tensor]:
        """What the model reads of rows."""
        return self.read(rows, max_tokens)[0]

    def targets(self, rows: Sequence[Any], max_tokens: int | None) -> Tensor:
        """The token that each state is to predict, shape (N, L); -100 where none counts.

        Raises:
            DataError: nothing of a text counts.
            ModelError: prompts, and a tokenizer that does not say which characters a token is made of.
        """
        batch, wanted = self.read(rows, max_tokens)
        require_known(wanted, len(self.table.weight), self.inputs.tokenizer)
        empty = (wanted == IGNORED).all(1).nonzero().flatten().tolist()
        if empty:
            passage = as_passage(rows[empty[0]])
            begin = passage.spans[0][0] if passage.spans else 0
            raise DataError(
                f"nothing is left to predict in the text {passage.text[:60]!r}: it has "
                f"{int(batch['attention_mask'][empty[0]].sum())} tokens of at most {self.table.length}, and what counts "
                f"begins after {begin} characters. Allow more tokens, shorten the prompt, or take the row out."
            )
        return F.pad(wanted, (0, self.table.length - wanted.shape[1]), value=IGNORED)

    def require_kind(self, word: str) -> None:
        """Raise unless the model has losses of this objective.

        Raises:
            UsageError: it has not.
        """
        if word not in self.words:
            raise UsageError(
                f"{word} tasks are not for {self.kind}, whose objective is {' or '.join(self.words)}: say that of the "
                "task (`objective=`), or load another model."
            )

    def move(self, deltas: Params) -> Tensor | None:
        """How a displacement moves the table, dW of shape (V, d), or [dW, db] of shape (V, d + 1) of a table with b.

        Args:
            deltas: by names in memory; a table that the backbone lacks has its name in the files.

        Returns:
            None if it does not move it.
        """
        moving = {name: delta for name, delta in deltas.items() if name in self.names and bool(delta.any())}
        if not moving:
            return None
        weight, bias = self.table.weight, self.table.bias
        own = moving.pop(self.tied or self.name, torch.zeros_like(weight))
        if bias is None:
            return own
        beside = [delta.to(own).flatten() for name, delta in moving.items() if name in self.biases]
        return torch.cat([own, torch.stack([torch.zeros_like(own[:, 0]), *beside]).sum(0)[:, None]], 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of W, and of parts of b, in a displacement."""
        return (self.tied or self.name, *self.biases)

    def moved(self, deltas: Params, scale: float = 1.0) -> Self:
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
        trained = next((name for name in self.names if {name, name + DELTA} & {*names}), None)
        if trained is not None:
            raise UsageError(
                f"{trained!r} is also the table that makes logits of states, which does not train here: name other "
                "parameters (`params=`), such as 'all', which leaves it out."
            )


def as_passage(row: Any) -> Passage:
    """A row as a passage: a plain text counts as a whole."""
    return Passage(row) if isinstance(row, str) else cast(Passage, row)
