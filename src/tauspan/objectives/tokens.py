"""Next-token prediction: the objective of causal language models, without ever holding all logits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.objectives.objective import Apart, Objective, Reads, told

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


@dataclass(frozen=True)
class NextToken(Objective):
    """Each next token of a text: l = mean over the text's target tokens of -log softmax(W h + b)_y, and perplexity.

    The outputs of a row are the model's last states h before its table of tokens, shape (N, L d); the table is frozen,
    and logits are affine in h. So the loss is convex in the outputs, and with states that are affine in tau or in
    coefficients, in these too. Its targets are token ids, shape (N, L), of which the first of a text, its padding and
    its prompt are -100. The metric is the perplexity of a text, exp of the mean loss: the geometric mean over texts.
    Every text weighs the same.

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
    distances: ClassVar[dict[str, Apart]] = {}

    def bound(self, model: Reads | None) -> "NextToken":
        """With the table of a language model.

        Raises:
            UsageError: it is none.
        """
        if model is None:
            raise UsageError(
                "a task of texts needs a language model, and this one was loaded for features: `ts.load(source, "
                "language=L)`, L the most tokens of a text."
            )
        return replace(self, table=model.table)

    def targets(
        self, inputs: Sequence[Any], labels: Tensor, model: Reads | None, max_tokens: int | None
    ) -> Tensor:
        """The ids of the tokens that count, shape (N, L)."""
        assert model is not None  # noqa: S101 - `bound` was asked first
        return model.targets(list(inputs), labels, max_tokens)

    # -- positions -------------------------------------------------------------------------------------------

    def _found(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The states (M, d) that predict a target, the targets (M,), and the row of each (M,)."""
        table = self._table()
        states = outputs.view(len(outputs), table.length, -1)[:, :-1]
        wanted = targets[:, 1:].to(outputs.device)
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
        found = torch.zeros_like(outputs).view(len(outputs), table.length, -1)
        found[:, :-1][targets[:, 1:].to(outputs.device) != IGNORED] = values
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
        there = targets[:, 1:].to(outputs.device) != IGNORED
        states, _, rows = self._found(outputs, targets)
        moved = along.view(len(along), len(outputs), table.length, -1)[:, :, :-1][:, there]
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
