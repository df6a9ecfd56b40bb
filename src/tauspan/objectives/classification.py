"""Objectives whose targets are classes: one class for each row, or any number of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.objectives.objective import Apart, Objective, Said, numbers_fault, told


def _classes_differ(first: Tensor, second: Tensor) -> Tensor:
    return (first.argmax(-1) != second.argmax(-1)).double()


def _total_variation(first: Tensor, second: Tensor) -> Tensor:
    return (first.double().softmax(-1) - second.double().softmax(-1)).abs().sum(-1) / 2


@dataclass(frozen=True)
class Classification(Objective):
    """One class for each row: cross-entropy of softmax, l = -sum_k q_k log softmax(f)_k, and accuracy.

    Targets are class indices, shape (N,), int64, or distributions q over the classes, shape (N, O), floating point.

    Args:
        smoothing: s in [0, 1): the target gets 1 - s, and all classes s / O more.

    Example:
        >>> loss = Classification().losses(torch.zeros(1, 2), torch.tensor([1]))
        >>> round(float(loss), 4)  # log 2
        0.6931
    """

    smoothing: float = 0.0
    word: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    distances: ClassVar[dict[str, Apart]] = {"argmax": _classes_differ, "probabilities": _total_variation}

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats."""
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=self.smoothing)

    def total(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum of the losses, without weights in one operation."""
        if weights is not None:
            return super().total(outputs, targets, weights)
        return F.cross_entropy(outputs, targets, reduction="sum", label_smoothing=self.smoothing)

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The residual, p - q."""
        return outputs.softmax(-1) - self._distributions(targets, outputs)

    def curvature(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """(diag p - p p^T) v."""
        p = outputs.softmax(-1)
        return p * (along - (p * along).sum(-1, keepdim=True))

    def _distributions(self, targets: Tensor, outputs: Tensor) -> Tensor:
        classes = outputs.shape[-1]
        hot = targets if targets.is_floating_point() else F.one_hot(targets, classes).to(outputs)
        return hot if not self.smoothing else hot * (1 - self.smoothing) + self.smoothing / classes

    def seen(self, outputs: Tensor) -> Tensor:
        """Logits less their mean: softmax does not see a shift of all of them."""
        return outputs - outputs.mean(-1, keepdim=True)

    def lifts(self, tangents: Tensor, targets: Tensor) -> Tensor:
        """By how much each direction lifts the target over each class."""
        hot = self._distributions(targets, tangents)
        return ((tangents * hot).sum(-1, keepdim=True) - tangents).flatten(1)

    @classmethod
    def said(cls, outputs: Tensor, names: Sequence[str]) -> Said:
        """The class of the largest logit, and the softmax."""
        return Said(
            names[int(outputs.argmax())], dict(zip(names, outputs.softmax(0).tolist(), strict=True)), {}
        )

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest logit is the target's."""
        of = targets.argmax(-1) if targets.is_floating_point() else targets
        return (outputs.argmax(-1) == of).double()

    def forgotten(self, targets: Tensor, outputs: int) -> Tensor:
        """The uniform distribution over the other classes, shape (N, O), float64.

        The loss is then logsumexp(f) minus the mean wrong logit.

        Raises:
            UsageError: one class.
        """
        if outputs < 2:
            raise UsageError("forgetting needs a wrong class to move to: the task has one class.")
        return (1.0 - F.one_hot(targets, outputs).double()) / (outputs - 1)

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are indices of classes."""
        if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.dtype != torch.long:
            return (
                f"labels are int64 of shape (N,), not {told(targets)}. `Task.from_tensors` makes them of lists and "
                "arrays; "
                "numbers to predict, or several labels for a row, are another objective (`objective=`)."
            )
        outside = ((targets < 0) | (targets >= outputs)).nonzero().flatten().tolist()
        if outside:
            return (
                f"row {outside[0]}: label {int(targets[outside[0]])} lies outside 0..{outputs - 1} ({outputs} classes). "
                "Give one class name for every label value."
            )
        return None


def _labels_differ(first: Tensor, second: Tensor) -> Tensor:
    return ((first > 0) != (second > 0)).double().mean(-1)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    return (first.double().sigmoid() - second.double().sigmoid()).abs().mean(-1)


@dataclass(frozen=True)
class MultiLabel(Objective):
    """Any number of labels for each row: l = mean_k BCE(sigmoid(f_k), y_k) in nats, and F1.

    Targets are shares in [0, 1] of shape (N, O), floating point, usually 0 and 1. A label is predicted where its logit is
    above 0. The F1 of a row is 2 |predicted and true| / (|predicted| + |true|), and 1 where both are empty; the metric is
    its mean over rows (scikit-learn's `average="samples"` with `zero_division=1`).

    Example:
        >>> one = MultiLabel()
        >>> one.value(torch.tensor([[3.0, -1.0], [2.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        0.8333333333333333
    """

    word: ClassVar[str] = "multi-label"
    metric: ClassVar[str] = "F1"
    distances: ClassVar[dict[str, Apart]] = {"labels": _labels_differ, "probabilities": _apart}

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy in nats, the mean over labels."""
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs), reduction="none").mean(-1)

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(p - y) / O."""
        return (outputs.sigmoid() - targets.to(outputs)) / outputs.shape[-1]

    def curvature(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """P (1 - p) v / O."""
        p = outputs.sigmoid()
        return p * (1 - p) * along / outputs.shape[-1]

    def lifts(self, tangents: Tensor, targets: Tensor) -> Tensor:
        """By how much each direction raises what is there and lowers what is not; a share between is both."""
        up, down = torch.where(targets > 0, tangents, 0), torch.where(targets < 1, -tangents, 0)
        return torch.cat([up.flatten(1), down.flatten(1)], 1)

    @classmethod
    def said(cls, outputs: Tensor, names: Sequence[str]) -> Said:
        """The labels whose logits are above 0, and the sigmoid of each."""
        there = [name for name, logit in zip(names, outputs.tolist(), strict=True) if logit > 0]
        return Said(", ".join(there), dict(zip(names, outputs.sigmoid().tolist(), strict=True)), {})

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """F1 of each row."""
        found, true = outputs > 0, targets > 0.5
        sizes = (found.sum(-1) + true.sum(-1)).double()
        return torch.where(sizes > 0, 2 * (found & true).sum(-1) / sizes.clamp(min=1), 1.0)

    def forgotten(self, targets: Tensor, outputs: int) -> Tensor:
        """Each label turned round."""
        return 1.0 - targets.double()

    def fault(self, targets: Tensor, outputs: int) -> str | None:
        """Targets are shares between 0 and 1."""
        fault = numbers_fault(targets, outputs)
        if fault is not None:
            return fault
        outside = ((targets < 0) | (targets > 1)).any(-1).nonzero().flatten().tolist()
        if outside:
            return (
                f"row {outside[0]} has the targets {targets[outside[0]].tolist()}, and a label's is between 0 (it is not "
                "there) and 1."
            )
        return None
