"""Tokens: the objectives of language models, without ever holding all logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.objectives.conversations import messages_of
from tauspan.objectives.objective import Apart, Objective, Reads, told
from tauspan.objectives.passages import Cloze, Passage

IGNORED = -100  # the target of a position that does not count
LOGITS = 2**24  # that are held at a time: 64 MiB in float32


@dataclass(frozen=True, eq=False)
class Table:
    """What makes logits of a language model's last states: W h + b.

    Args:
        weight: W, shape (V, d).
        bias: b, shape (V,), or None.
        length: the L positions of every text's states.
    """

    weight: Tensor
    bias: Tensor | None
    length: int


def _tokens_differ(first: Tensor, second: Tensor) -> Tensor:
    there = first != IGNORED
    return ((first != second) & there).double().sum(1) / there.sum(1)


@dataclass(frozen=True)
class NextToken(Objective):
    """Each next token of a text: l = mean over the text's target tokens of -log softmax(W h + b)_y, and perplexity.

    The outputs of a row are the model's last states h before its table of tokens, shape (N, L d); the table is frozen,
    and logits are affine in h. So the loss is convex in the outputs, and with states that are affine in tau or in
    coefficients, in these too. Its targets are token ids, shape (N, L): at each position the one that its state is to
    predict, and -100 where none counts: before tokens of a prompt, and in padding. The metric is the perplexity of a
    text, exp of the mean loss: the geometric mean over texts. Every text weighs the same.

    At most `logits` numbers of logits are held at a time, whatever the vocabulary and the batch.

    Args:
        table: the model's; None until the objective is bound to a model.
        logits: how many logits are held at a time.
    """

    table: Table | None = field(default=None, repr=False, compare=False)
    logits: int = LOGITS
    word: ClassVar[str] = "next-token"
    metric: ClassVar[str] = "perplexity"
    higher: ClassVar[bool] = False
    headless: ClassVar[bool] = True
    about: ClassVar[str] = "Texts to be continued."
    distances: ClassVar[dict[str, Apart]] = {"tokens": _tokens_differ}

    def bound(self, model: Reads | None) -> "NextToken":
        """With the table of a language model.

        Raises:
            UsageError: it is none.
        """
        return replace(self, table=self._read(model).table)

    def _read(self, model: Reads | None) -> Reads:
        if model is None:
            raise UsageError(
                "a task of texts needs a language model, and this one was loaded for features: `ts.load(source, "
                "language=L)`, L the most tokens of a text."
            )
        model.require_kind(self.word)
        return model

    def rows(self, inputs: Sequence[Any], labels: Tensor, model: Reads | None) -> list[Any]:
        """Texts with the places where their prompts end."""
        self._read(model)
        return [Passage.after(text, prompt) for text, prompt in zip(inputs, labels.tolist(), strict=True)]

    def targets(
        self, inputs: Sequence[Any], labels: Tensor, model: Reads | None, max_tokens: int | None
    ) -> Tensor:
        """The token that each state is to predict, shape (N, L)."""
        return self._read(model).targets(self.rows(inputs, labels, model), max_tokens)

    # -- positions -------------------------------------------------------------------------------------------

    def _found(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The states (M, d) that predict a target, the targets (M,), and the row of each (M,)."""
        table = self._table()
        states = outputs.view(len(outputs), table.length, table.weight.shape[1])
        wanted = targets.to(outputs.device)
        there = wanted != IGNORED
        rows = there.nonzero()[:, 0]
        return states[there], wanted[there], rows

    def _table(self) -> Table:
        if self.table is None:
            raise UsageError(
                "next-token losses need the token table of a language model: load the model with `ts.load(source, "
                "language=L)`."
            )
        return self.table

    def _weights(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        table = self._table()
        return table.weight.to(like), None if table.bias is None else table.bias.to(like)

    def _chunks(self, count: int, tensors: int = 1) -> Iterator[slice]:
        """Slices of positions, so that `tensors` tensors of logits of a slice are within the bound."""
        step = max(1, self.logits // (len(self._table().weight) * tensors))
        yield from (slice(begin, begin + step) for begin in range(0, count, step))

    def _shares(self, rows: Tensor, count: int, like: Tensor) -> Tensor:
        """1 over the number of targets of each position's row, shape (M,)."""
        counts = torch.bincount(rows, minlength=count).to(like.dtype)
        return (1.0 / counts)[rows]

    # -- values and derivatives ------------------------------------------------------------------------------

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each text's targets, in nats; 0 for a text without one."""
        states, wanted, rows = self._found(outputs, targets)
        shares = self._shares(rows, len(outputs), outputs)
        each: Tensor = _Chunked.apply(self, states, wanted)  # type: ignore[no-untyped-call]
        return torch.zeros_like(outputs[:, 0]).index_add(0, rows, each * shares)

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """W^T (p - q) / n at each position that predicts one of n targets."""
        return self.with_gradients(outputs, targets)[1]

    def with_gradients(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Both from the same logits."""
        states, wanted, rows = self._found(outputs, targets)
        shares = self._shares(rows, len(outputs), outputs)
        each, slopes = self._with_slopes(states, wanted)
        losses = torch.zeros_like(outputs[:, 0]).index_add(0, rows, each * shares)
        return losses, self._placed(outputs, targets, slopes * shares[:, None])

    def _placed(self, outputs: Tensor, targets: Tensor, values: Tensor) -> Tensor:
        """Numbers of positions that predict a target at their places among the outputs, else 0."""
        table = self._table()
        found = torch.zeros_like(outputs).view(len(outputs), table.length, table.weight.shape[1])
        found[targets.to(outputs.device) != IGNORED] = values
        return found.view_as(outputs)

    def _with_slopes(self, states: Tensor, wanted: Tensor, needed: bool = True) -> tuple[Tensor, Tensor]:
        """The loss of each position, and its gradient in the states where it is needed, else nothing of use."""
        weight, bias = self._weights(states)
        losses, slopes = states.new_empty(len(states)), torch.empty_like(states)
        for some in self._chunks(len(states)):
            logp = F.linear(states[some], weight, bias).log_softmax(-1)
            losses[some] = -logp.gather(1, wanted[some, None])[:, 0]
            if not needed:
                continue
            error = logp.exp_()
            error.scatter_add_(1, wanted[some, None], error.new_full((len(error), 1), -1.0))
            slopes[some] = error @ weight
        return losses, slopes

    def curvature(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """W^T (diag p - p p^T) W v / n."""
        table = self._table()
        there = targets.to(outputs.device) != IGNORED
        states, _, rows = self._found(outputs, targets)
        moved = along.view(len(along), len(outputs), table.length, table.weight.shape[1])[:, there]
        weight, bias = self._weights(outputs)
        curved = torch.empty_like(moved)
        for some in self._chunks(len(states), 1 + len(along)):
            p = F.linear(states[some], weight, bias).softmax(-1)
            lifted = moved[:, some] @ weight.T
            curved[:, some] = (p * (lifted - (p * lifted).sum(-1, keepdim=True))) @ weight
        curved *= self._shares(rows, len(outputs), outputs)[:, None]
        return torch.stack([self._placed(outputs, targets, one) for one in curved])

    # -- what is told ----------------------------------------------------------------------------------------

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each text."""
        with torch.no_grad():
            return self.losses(outputs, targets).double()

    def predicted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The likeliest token where one counts, shape (N, L), else -100."""
        states, _, _ = self._found(outputs, targets)
        weight, bias = self._weights(states)
        likeliest = torch.empty(len(states), dtype=torch.long, device=states.device)
        for some in self._chunks(len(states)):
            likeliest[some] = F.linear(states[some], weight, bias).argmax(-1)
        found = torch.full_like(targets, IGNORED, device=states.device)
        found[targets.to(states.device) != IGNORED] = likeliest
        return found

    def summary(self, mean: float) -> float:
        """The perplexity."""
        return float(torch.tensor(mean, dtype=torch.float64).exp())

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are the lengths of the texts' prompts, in characters: 0 where the whole text counts."""
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.dtype != torch.long:
            return f"a text has the length of its prompt in characters, int64 of shape (N,), not {told(targets)}."
        if bool((targets < 0).any()):
            return f"row {int((targets < 0).nonzero()[0])}: a prompt of {int(targets.min())} characters."
        return None


@dataclass(frozen=True)
class Chat(NextToken):
    """Each next token of the assistant's answers in a conversation: the loss and the perplexity of `NextToken`.

    A row is a list of messages with a role and a content, and becomes a text by the chat template of the model's own
    tokenizer. The tokens of all answers of a conversation count, with those that end them, and no others.
    """

    word: ClassVar[str] = "chat"
    about: ClassVar[str] = "Conversations, of which the assistant's answers are learned."

    def rows(self, inputs: Sequence[Any], labels: Tensor, model: Reads | None) -> list[Any]:
        """The conversations as texts."""
        reads = self._read(model)
        return [reads.chat(messages_of(text, f"the row {text[:40]!r}")) for text in inputs]

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """A conversation has no prompt beside its messages."""
        return super().fault(targets, outputs) or _prompted(targets, self.word)


@dataclass(frozen=True)
class MaskedToken(NextToken):
    """Hidden tokens of a text from the others: l = mean over them of -log softmax(W h + b)_y, and pseudo-perplexity.

    About `share` of a text's tokens are hidden behind the model's mask token, at least one and never all. Which ones is
    decided by the seed, the text and the place of the token: the same ones in every split, epoch, batch and process.
    Special tokens are never hidden. States h are what the table of tokens reads, after the head's transform; the rest is
    as for next tokens. The metric is exp of the mean loss, the mean over texts: less is better, and it is no perplexity
    of the text, since hidden tokens see both sides.

    Args:
        share: 15 % by default, as for BERT, of which a part was not hidden but exchanged; here all are hidden.
        seed: of the choice.
    """

    share: float = 0.15
    seed: int = 0
    word: ClassVar[str] = "masked-token"
    metric: ClassVar[str] = "pseudo-perplexity"
    about: ClassVar[str] = "Texts of which some tokens are hidden."

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(
                f"share={self.share}: the share of hidden tokens is between 0 and 1, such as 0.15."
            )
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"seed={self.seed}: a whole number from 0 on decides which tokens are hidden.")

    def rows(self, inputs: Sequence[Any], labels: Tensor, model: Reads | None) -> list[Any]:
        """Texts with the share and the seed."""
        self._read(model)
        return [Cloze(text, self.share, self.seed) for text in inputs]

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """A text has no prompt."""
        return super().fault(targets, outputs) or _prompted(targets, self.word)


def _prompted(targets: Tensor, word: str) -> str | None:
    """What is wrong with prompts of an objective that has none."""
    found = targets.nonzero().flatten().tolist()
    if not found:
        return None
    return (
        f"row {found[0]} has a prompt of {int(targets[found[0]])} characters, and {word} tasks have no prompts beside "
        "their rows: give whole ones."
    )


class _Chunked(torch.autograd.Function):
    """The loss of each position; its gradient is computed with it, chunk by chunk, so that no logits are kept."""

    @staticmethod
    def forward(ctx: Any, objective: NextToken, states: Tensor, wanted: Tensor) -> Tensor:
        losses, slopes = objective._with_slopes(states.detach(), wanted, ctx.needs_input_grad[1])
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return None, slopes * gradients[0][:, None], None
