"""Pairs of inputs for embedding models: retrieval among the pairs of a group, and cosines that are given."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.objectives.objective import Apart, Objective, Reads, numbers_fault, told


def _require_features(word: str, model: Reads | None) -> None:
    if model is not None:
        raise UsageError(
            f"{word} compares embeddings, and this model was loaded for its states: `ts.load(source)`, without "
            "`language`."
        )


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """The mean over a row's inputs of 1 - cos = |u - v|^2 / 2, from unit embeddings (N, K, d), 0 where there is none."""
    there = first.square().sum(-1) > 0
    return (first - second).square().sum((1, 2)) / 2 / there.sum(1)


@dataclass(frozen=True)
class Contrastive(Objective):
    """A group of pairs (a_i, b_i), i = 1 ... K: each a_i has to find its own b_i among those of the group.

    l = -(1/K) sum_i log softmax_j(cos(a_i, b_j) / temperature)_i, InfoNCE with in-group negatives (van den Oord et al.
    2018, arXiv:1807.03748, equation 4). It is the usual loss with in-batch negatives, for batches that are fixed in
    advance: a row is a whole group, so that a row's loss is its own. With `symmetric` it is the mean of this and the same
    with a and b exchanged (CLIP, arXiv:2103.00020).

    The outputs of a row are its embeddings a_1, b_1, a_2, b_2, ..., shape (N, 2 size d), and its target is K, how many of
    the pairs count, shape (N,), int64; those after are padding. The metric is the share of a_i whose own b_i is the
    nearest, each group's mean; among K a chance is 1/K. A cosine is not convex in embeddings, nor is the loss.

    Args:
        size: the most pairs of a group, at least 2.
        temperature: above 0.
        symmetric: whether each b_i has to find its a_i too.

    Example:
        >>> one, alike = Contrastive(size=2), torch.eye(2).repeat_interleave(2, 0).view(1, -1)  # a_i = b_i, a_1 off a_2
        >>> one.value(alike, torch.tensor([2]))
        1.0
    """

    size: int = 8
    temperature: float = 0.05
    symmetric: bool = False
    word: ClassVar[str] = "contrastive"
    metric: ClassVar[str] = "retrieval accuracy"
    convex: ClassVar[bool] = False  # type: ignore[misc]  # a field of losses of the user's
    headless: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    about: ClassVar[str] = "Groups of pairs that belong together."
    columns: ClassVar[tuple[str, ...]] = ("anchor", "positive", "group")
    distances: ClassVar[dict[str, Apart]] = {"cosine": _cosine_distance}

    def __post_init__(self) -> None:
        if self.size < 2:
            raise UsageError(f"size={self.size}: a group has at least 2 pairs, or nothing is told apart.")
        if not 0 < self.temperature < math.inf:
            raise UsageError(
                f"temperature={self.temperature:g}: it must be a finite number above 0, such as 0.05."
            )

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Both of each pair."""
        return 2 * self.size

    def bound(self, model: Reads | None) -> "Contrastive":
        """Itself.

        Raises:
            UsageError: the model was loaded as a language model, whose features are states.
        """
        _require_features(self.word, model)
        return self

    def _cosines(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """cos(a_i, b_j) of each group, shape (N, size, size), -inf where b_j does not count; and which pairs count."""
        pairs = F.normalize(outputs.view(len(outputs), self.size, 2, -1), dim=-1)
        there = torch.arange(self.size, device=outputs.device) < targets.to(outputs.device)[:, None]
        found = pairs[:, :, 0] @ pairs[:, :, 1].transpose(1, 2)
        return found.masked_fill(~(there[:, :, None] & there[:, None]), -math.inf), there

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the pairs of a group, in nats."""
        cosines, there = self._cosines(outputs, targets)
        ways = [cosines, cosines.transpose(1, 2)] if self.symmetric else [cosines]
        found = [self._one_way(one / self.temperature, there) for one in ways]
        return torch.stack(found).mean(0)

    def _one_way(self, logits: Tensor, there: Tensor) -> Tensor:
        safe = logits.masked_fill(~there[:, :, None], 0.0)  # padding would give the gradient NaN
        own = safe.log_softmax(-1).diagonal(dim1=1, dim2=2).masked_fill(~there, 0.0)
        return -own.sum(1) / there.sum(1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The share of a group's pairs whose own b is the nearest to a; of equal ones the first."""
        cosines, there = self._cosines(outputs, targets)
        right = cosines.argmax(-1) == torch.arange(self.size, device=outputs.device)
        return (right & there).double().sum(1) / there.sum(1)

    def predicted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The embeddings at length 1, shape (N, 2 size, d), float64; 0 for padding."""
        units = F.normalize(outputs.double().view(len(outputs), 2 * self.size, -1), dim=-1)
        there = torch.arange(2 * self.size, device=outputs.device) < 2 * targets.to(outputs.device)[:, None]
        return units * there[..., None]

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are the numbers of pairs of the groups."""
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.dtype != torch.long:
            return f"a group has the number of its pairs, int64 of shape (N,), not {told(targets)}."
        outside = ((targets < 2) | (targets > self.size)).nonzero().flatten().tolist()
        if outside:
            return (
                f"row {outside[0]}: a group of {int(targets[outside[0]])} pairs, and one has 2 to {self.size}: "
                f'objective="contrastive(size=K)" says K.'
            )
        return None


@dataclass(frozen=True)
class Similarity(Objective):
    """Of two inputs the similarity is given: l = 1/2 (cos(a, b) - y / most)^2, and the RMSE of the cosine.

    The outputs of a row are both embeddings, shape (N, 2 d), and its target is y, shape (N, 1). The RMSE is in cosines:
    divided by `most`. Correlations (Pearson's, Spearman's), by which such data sets are often measured, are of all rows
    at once and no mean over rows, so they are no metric here. A cosine is not convex in embeddings, nor is the loss.

    Args:
        most: the similarity that means a cosine of 1, such as 5 where people judged from 0 to 5.

    Example:
        >>> one = Similarity(most=5)
        >>> one.losses(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), torch.tensor([[5.0]])).tolist()
        [0.5]
    """

    most: float = 1.0
    word: ClassVar[str] = "similarity"
    metric: ClassVar[str] = "RMSE of cosines"
    higher: ClassVar[bool] = False
    convex: ClassVar[bool] = False  # type: ignore[misc]  # a field of losses of the user's
    headless: ClassVar[bool] = True
    embeds: ClassVar[bool] = True
    about: ClassVar[str] = "Pairs with their similarity."
    columns: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2", "score")
    inputs: ClassVar[int] = 2  # type: ignore[misc]
    distances: ClassVar[dict[str, Apart]] = {"cosine": _cosine_distance}

    def __post_init__(self) -> None:
        if not 0 < self.most < math.inf:
            raise UsageError(f"most={self.most:g}: it must be a finite number above 0, such as 5.")

    def bound(self, model: Reads | None) -> "Similarity":
        """Itself.

        Raises:
            UsageError: the model was loaded as a language model, whose features are states.
        """
        _require_features(self.word, model)
        return self

    def _off(self, outputs: Tensor, targets: Tensor) -> Tensor:
        first, second = outputs.view(len(outputs), 2, -1).unbind(1)
        return F.cosine_similarity(first, second, dim=-1) - targets[:, 0].to(outputs) / self.most

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Half the squared distance."""
        return 0.5 * self._off(outputs, targets).square()

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared distance."""
        return self._off(outputs.double(), targets).square()

    def predicted(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The embeddings at length 1, shape (N, 2, d), float64."""
        return F.normalize(outputs.double().view(len(outputs), 2, -1), dim=-1)

    def summary(self, mean: float) -> float:
        """The root of the mean squared distance."""
        return math.sqrt(mean)

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are finite numbers of which none says more than a cosine can."""
        fault = numbers_fault(targets, 1)
        if fault is not None:
            return fault
        outside = (targets.abs() > self.most).any(-1).nonzero().flatten().tolist()
        if outside:
            return (
                f"row {outside[0]} has the similarity {float(targets[outside[0]]):g}, and the most is {self.most:g}. "
                f'Write objective="similarity(most={float(targets.abs().max()):g})".'
            )
        return None
