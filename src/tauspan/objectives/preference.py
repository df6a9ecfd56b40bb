"""Preference pairs of causal language models: direct preference optimisation (DPO)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.objectives.objective import Apart, Objective, Reads, told
from tauspan.objectives.passages import Group, Passage
from tauspan.objectives.tokens import IGNORED, NextToken

_ROUNDING = 1e-6  # of a margin, relative to the log-probabilities that it is a difference of


def _order_differs(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).abs()


@dataclass(frozen=True)
class Preference(Objective):
    """Of two texts one is preferred: l = -log sigmoid(beta m), and the share of pairs with m > 0.

    m = [log p(chosen) - log p_ref(chosen)] - [log p(rejected) - log p_ref(rejected)] is the pair's margin, log p the sum
    over the tokens after the prompt, and p_ref the pre-trained model (Rafailov et al., NeurIPS 2023, arXiv:2305.18290,
    equation 7). m is 0 at theta0, where every pair counts half; so does a margin that is 0 within float32's rounding.

    The outputs of a row are the last states of both texts, shape (N, 2 L d); targets are the tokens that these states are
    to predict (`NextToken`), chosen then rejected, and in the last column log p_ref(chosen) - log p_ref(rejected), shape
    (N, 2 L + 1), float64. log p(chosen) is concave in the states and -log p(rejected) convex, so the loss is neither.

    Args:
        beta: above 0; how strongly the loss holds on to the reference. The larger, the sooner a margin is enough.
        words: what computes log-probabilities from states; it holds the model's table once the objective is bound.

    Example:
        >>> one = Preference()
        >>> one.beta, one.convex
        (0.1, False)
    """

    beta: float = 0.1
    words: NextToken = field(default_factory=NextToken, repr=False, compare=False)
    word: ClassVar[str] = "preference"
    metric: ClassVar[str] = "preference accuracy"
    convex: ClassVar[bool] = False  # type: ignore[misc]  # a field of losses of the user's
    headless: ClassVar[bool] = True
    about: ClassVar[str] = "Pairs of texts, of which one is preferred."
    refers: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    inputs: ClassVar[int] = 2  # type: ignore[misc]
    distances: ClassVar[dict[str, Apart]] = {"order": _order_differs}

    def __post_init__(self) -> None:
        if not 0 < self.beta < float("inf"):
            raise UsageError(f"beta={self.beta:g}: it must be a finite number above 0, such as 0.1.")

    def bound(self, model: Reads | None) -> "Preference":
        """With the table of a language model.

        Raises:
            UsageError: it is none.
        """
        if model is not None:
            model.require_kind(self.word)
        return replace(self, words=self.words.bound(model))

    def rows(self, inputs: Sequence[Any], labels: Tensor, model: Reads | None) -> list[Any]:
        """Both texts with the places where their prompts end."""
        self.bound(model)  # raises for a model that has no tokens to predict
        pairs = zip(inputs, labels.tolist(), strict=True)
        return [Group(Passage.after(text, prompt) for text in pair) for pair, prompt in pairs]

    def targets(
        self, inputs: Sequence[Any], labels: Tensor, model: Reads | None, max_tokens: int | None
    ) -> Tensor:
        """The token that each state is to predict, of the chosen then the rejected, shape (N, 2 L)."""
        assert model is not None  # noqa: S101 - `bound` was asked first
        texts = [text for pair in self.rows(inputs, labels, model) for text in pair]
        ids = model.targets(texts, max_tokens)
        return ids.view(len(ids) // 2, -1)

    def reference(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Log p(chosen) - log p(rejected) of the pre-trained model's outputs, shape (N, 1), float64."""
        with torch.no_grad():
            chosen, rejected = self._log_probabilities(outputs.double(), targets)
        return (chosen - rejected)[:, None]

    # -- margins ---------------------------------------------------------------------------------------------

    def _apart(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (2 N, L d) and ids (2 N, L) of the texts, and how many tokens of each count, with the sign of its part.

        A margin is a sum over these with the signs + of the chosen and - of the rejected.
        """
        states = outputs.reshape(2 * len(outputs), -1)
        places = targets.shape[1] - targets.shape[1] % 2
        ids = targets[:, :places].long().reshape(len(states), -1)
        counts = (ids != IGNORED).sum(1).to(states)
        return states, ids, counts * torch.tensor([1.0, -1.0]).to(states).repeat(len(outputs))

    def _log_probabilities(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        states, ids, signed = self._apart(outputs, targets)
        chosen, rejected = (-self.words.losses(states, ids) * signed.abs()).view(-1, 2).unbind(1)
        return chosen, rejected

    def margins(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The margin m of each row, shape (N,), in nats."""
        chosen, rejected = self._log_probabilities(outputs, targets)
        return chosen - rejected - targets[:, -1].to(outputs)

    # -- values and derivatives ------------------------------------------------------------------------------

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log sigmoid(beta m)."""
        return F.softplus(-self.beta * self.margins(outputs, targets))

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-beta sigmoid(-beta m) dm."""
        return self.with_gradients(outputs, targets)[1]

    def with_gradients(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Both from the same logits."""
        margins, slopes = self._with_slopes(outputs, targets)
        error = -self.beta * (-self.beta * margins).sigmoid()
        return F.softplus(-self.beta * margins), slopes * error[:, None]

    def _with_slopes(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The margins (N,) and their gradients (N, 2 L d)."""
        states, ids, signed = self._apart(outputs, targets)
        each, slopes = self.words.with_gradients(states, ids)
        margins = (-each * signed).view(-1, 2).sum(1) - targets[:, -1].to(outputs)
        return margins, (-slopes * signed[:, None]).view_as(outputs)

    def curvature(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """beta^2 s (1 - s) dm <dm, v> - beta (1 - s) d2m v, s = sigmoid(beta m)."""
        margins, slopes = self._with_slopes(outputs, targets)
        states, ids, signed = self._apart(outputs, targets)
        curved = self.words.curvature(states, ids, along.reshape(len(along), *states.shape))
        bent = (-curved * signed[:, None]).view_as(along)
        right = (self.beta * margins).sigmoid()
        steep = (slopes * along).sum(-1) * (self.beta**2 * right * (1 - right))
        return slopes * steep[..., None] - bent * (self.beta * (1 - right))[:, None]

    # -- what is told ----------------------------------------------------------------------------------------

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1 where the margin is positive, 0 where it is negative, 1/2 where it is 0 to rounding."""
        with torch.no_grad():
            chosen, rejected = self._log_probabilities(outputs, targets)
        margins = (chosen - rejected).double() - targets[:, -1].to(outputs.device)
        least = _ROUNDING * (chosen.abs() + rejected.abs())
        return torch.where(margins.abs() <= least, 0.5, (margins > 0).double())

    def predicted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Which text of each pair is preferred, as in `scores`."""
        return self.scores(outputs, targets)

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are the lengths of the pairs' prompts, in characters: 0 where whole texts count."""
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.dtype != torch.long:
            return f"a pair has the length of its prompt in characters, int64 of shape (N,), not {told(targets)}."
        if bool((targets < 0).any()):
            return f"row {int((targets < 0).nonzero()[0])}: a prompt of {int(targets.min())} characters."
        return None
