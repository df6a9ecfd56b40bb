"""Penalties on rows of other tasks: exact drift, and the norm of tau-Jp."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.drift.measure import measured_drift
from tauspan.drift.others import Others, described, require_apart, told_apart
from tauspan.tasks import Task
from tauspan.train.penalty import Penalty, Term, Training


@dataclass(frozen=True, eq=False)
class OnRows(Penalty):
    """What penalties on rows of other tasks share; `value` makes one number of the change of a batch's logits."""

    others: Sequence[Task]
    weight: float = 1.0
    rows: int = 16
    turn: bool = False
    kept: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"weight={self.weight}: it must be 0 or more.")
        if self.rows < 1 or self.kept < 0:
            raise UsageError(f"rows={self.rows}, kept={self.kept}: at least 1 row, and 0 or more batches.")

    @abstractmethod
    def value(self, change: Tensor) -> Tensor:
        """The penalty of the change of a batch's logits, shape (n, C), as a scalar."""

    def facts(self) -> Mapping[str, Any]:
        """The settings, and whose rows they are."""
        return {
            "kind": type(self).__name__, "weight": self.weight, "rows": self.rows, "turn": self.turn,
            "kept": self.kept, "others": described(self.others),
        }  # fmt: skip

    def begun(self, run: Training) -> Term:
        """The mean over the tasks of a step's batches, times the weight."""
        others = Others(run.encoder, self.others, run.settings)
        require_apart(run.tasks, told_apart(self.others), type(self).__name__)
        count, kept = len(self.others), self._kept(run, others)

        def term(step: int) -> Tensor:
            places = [step % count] if self.turn else range(count)
            parts = []
            for place in places:
                if kept:
                    change = kept[place][(step // count if self.turn else step) % self.kept]()
                else:
                    rows = others.drawn(place, self.rows, f"{run.settings.seed}/{step}")
                    change = run.trainee.change(others.batch(place, rows), others.heads[place])
                parts.append(self.value(change))
            return self.weight * torch.stack(parts).mean()

        return term

    def _kept(self, run: Training, others: Others) -> list[list[Callable[[], Tensor]]]:
        """The batches that are kept, for each task."""
        return [
            [
                run.trainee.kept_change(
                    others.batch(place, others.drawn(place, self.rows, f"{run.settings.seed}/kept{number}")),
                    others.heads[place],
                )
                for number in range(self.kept)
            ]
            for place in range(len(self.others))
            if self.kept
        ]

    def measured(self, run: Training) -> Mapping[str, Any]:
        """The exact drift of the finished vector on rows of each task."""
        return {"drift": measured_drift(run, Others(run.encoder, self.others, run.settings))}


@checked
@dataclass(frozen=True, eq=False)
class Exact(OnRows):
    """Exact drift: weight / 2 times the mean over other tasks s of E_x |change of the logits of s|^2.

    The change is J_s(x) tau in the tangent regime, and f_s(x; theta0 + tau) - f_s(x; theta0) in the standard one. The
    expectation is over fresh rows in each step. It is what every factor approximates, and what `superpose` minimises in
    closed form.

    Args:
        others: the tasks whose rows are not to move; labels are not read.
        weight: of the penalty beside the mean loss of the step.
        rows: of each task in a step.
        turn: one task a step, in turn, instead of all: 1/S of the cost.
        kept: so many batches of each task are kept and used in turn, instead of fresh ones; in the tangent regime their
            factors are cached, which makes a step about as cheap as two products per layer. 0 takes fresh ones.

    Cost:
        A tangent pass and its backward over the rows, beside the step's own.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.drift import Exact
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4)
        >>> parity, half = [
        ...     ts.Task.from_tensors(name, ["no", "yes"], train=(x, y), validation=(x, y), test=(x, y))
        ...     for name, y in [("parity", y % 2), ("half", y // 2)]
        ... ]
        >>> run = ts.finetune(ts.load(torch.nn.Linear(4, 3)), parity, penalty=Exact([half], weight=0.1, rows=4))
        >>> sorted(run.task_vector.info["penalty"]["drift"])
        ['half']
    """

    def value(self, change: Tensor) -> Tensor:
        """Half the mean squared norm over rows."""
        return change.square().sum(-1).mean() / 2


@checked
@dataclass(frozen=True, eq=False)
class TauJp(OnRows):
    """The penalty of tau-Jp: weight times the mean over other tasks of E_x |change of the logits| (norm, not squared).

    From Yoshida et al., ICLR 2025, where it is taken on features before they are normalised, with weight 0.1, and 16
    rows of each task; here on logits, as all drift. `turn=True` is the paper's efficient variant.

    Args:
        others: the tasks whose rows are not to move; labels are not read.
        weight: of the penalty.
        rows: of each task in a step.
        turn: one task a step, in turn.
        kept: as for `Exact`.

    Cost:
        As for `Exact`.
    """

    weight: float = 0.1

    def value(self, change: Tensor) -> Tensor:
        """The mean norm over rows, whose gradient at 0 is 0."""
        squares = change.square().sum(-1)
        moved = squares > 0
        return torch.where(moved, torch.where(moved, squares, 1.0).sqrt(), 0.0).mean()
