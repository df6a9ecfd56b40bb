"""Penalties on rows of other tasks: exact drift, and the norm of tau-Jp."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.drift.measure import measured_drift
from tauspan.drift.others import Others, described, require_apart, told_apart, unlabelled
from tauspan.kernel import Ghosts, TangentKernel
from tauspan.kernel.operator.ghosts import Choose
from tauspan.models import Classifier
from tauspan.tasks import Task
from tauspan.train.penalty import Penalty, Term, Training

_BATCH = 32


@dataclass(frozen=True, eq=False)
class OnRows(Penalty):
    """What penalties on rows of other tasks share; `value` makes one number of the change of a batch's logits."""

    others: Sequence[Task]
    weight: float | Mapping[str, float] = 1.0
    rows: int = 16
    turn: bool = False
    kept: int = 0
    choose: Choose = "random"
    inputs: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        Ghosts(self.weight, None, self.choose, self.inputs)  # the same words are refused
        if self.rows < 1 or self.kept < 0:
            raise UsageError(f"rows={self.rows}, kept={self.kept}: at least 1 row, and 0 or more batches.")

    @abstractmethod
    def value(self, change: Tensor) -> Tensor:
        """The penalty of the change of a batch's logits, shape (n, C), as a scalar."""

    def facts(self) -> Mapping[str, Any]:
        """The settings, and whose rows they are."""
        more: dict[str, Any] = {} if self.choose == "random" else {"choose": self.choose}
        if self.inputs is not None:
            more["inputs"] = unlabelled(self.inputs).digest[:16]
        weight = dict(self.weight) if isinstance(self.weight, Mapping) else self.weight
        return {
            "kind": type(self).__name__, "weight": weight, "rows": self.rows, "turn": self.turn,
            "kept": self.kept, "others": described(self.others), **more,
        }  # fmt: skip

    def begun(self, run: Training) -> Term:
        """The mean over the tasks of a step's batches, times the weight."""
        others = Others(run.encoder, self.others, run.settings, self.inputs)
        require_apart(run.tasks, told_apart(self.others), type(self).__name__)
        ghosts = Ghosts(self.weight)
        ghosts.require_known([task.name for task in self.others])
        own, scale = [1.0] * len(self.others), 1.0
        if isinstance(self.weight, Mapping):
            own = [ghosts.weight_of(task.name) for task in self.others]
        else:
            scale = self.weight
        count = len(self.others)
        again = [self._again(run, others, place) for place in range(count)]

        def term(step: int) -> Tensor:
            parts = []
            for place in [step % count] if self.turn else range(count):
                batches = again[place]
                if batches:
                    change = batches[(step // count if self.turn else step) % len(batches)]()
                else:
                    rows = others.drawn(place, self.rows, f"{run.settings.seed}/{step}")
                    change = run.trainee.change(others.batch(place, rows), others.heads[place])
                parts.append(own[place] * self.value(change))
            return scale * torch.stack(parts).mean()

        return term

    def _again(self, run: Training, others: Others, place: int) -> list[Callable[[], Tensor]]:
        """The batches of a task that are used in turn, as functions; none where each step reads fresh ones."""
        if self.choose == "pivoted":
            chosen = self._pivots(run, others, place)
            count = math.ceil(len(chosen) / self.rows)
            several = [chosen[number::count] for number in range(count)]
        else:
            several = [
                others.drawn(place, self.rows, f"{run.settings.seed}/kept{number}")
                for number in range(self.kept)
            ]
        head = others.heads[place]
        if self.kept:
            return [run.trainee.kept_change(others.batch(place, rows), head) for rows in several]
        return [partial(run.trainee.change, others.batch(place, rows), head) for rows in several]

    def _pivots(self, run: Training, others: Others, place: int) -> list[int]:
        """The rows that leave least of the kernel unexplained, as `Ghosts` chooses them."""
        size = others.count(place)
        batches = [
            others.batch(place, range(begin, min(begin + _BATCH, size))) for begin in range(0, size, _BATCH)
        ]
        kernel = TangentKernel(Classifier(run.encoder, others.heads[place]), batches, params=list(run.tau()))
        ghosts = Ghosts(rows=self.rows * max(self.kept, 1), choose="pivoted", seed=run.settings.seed)
        return ghosts.chosen(kernel, range(size))

    def measured(self, run: Training) -> Mapping[str, Any]:
        """The exact drift of the finished vector on rows of each task."""
        return {"drift": measured_drift(run, Others(run.encoder, self.others, run.settings))}


@checked
@dataclass(frozen=True, eq=False)
class Exact(OnRows):
    """Exact drift: 1/2 times the mean over other tasks s of weight_s E_x |change of the logits of s|^2.

    The change is J_s(x) tau in the tangent regime, and f_s(x; theta0 + tau) - f_s(x; theta0) in the standard one. The
    expectation is over fresh rows in each step. It is what every factor approximates, and what `superpose` minimises in
    closed form. `weight`, `rows`, `choose` and `inputs` are what they are for its `Ghosts`.

    Args:
        others: the tasks whose rows are not to move; labels are not read.
        weight: of the penalty beside the mean loss of the step: one number, or a number for each task by its name; a task
            that is not named counts 1.
        rows: of each task in a step.
        turn: one task a step, in turn, instead of all: 1/S of the cost.
        kept: so many batches of each task are kept and used in turn, instead of fresh ones; in the tangent regime their
            factors are cached, which makes a step about as cheap as two products per layer. 0 takes fresh ones.
        choose: `"random"`, or `"pivoted"`: instead of fresh rows those of each task that leave least of the kernel
            unexplained, `rows` (times `kept`, if that is more than 1) of them, by the run's seed.
        inputs: rows of another kind, without labels, as the model reads them; they are read under each task's head
            instead of the task's own rows, also for pivots.

    What the finished vector's `info["penalty"]["drift"]` says is of the tasks' own rows, whatever was read.

    Errors:
        `UsageError` for a weight below 0 or of a task that is not among the others, no row, no inputs, or a task that is
        trained on.

    Cost:
        A tangent pass and its backward over the rows, beside the step's own. Pivots need so many rows of the kernel of
        each task's rows before the first step.

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
    """The penalty of tau-Jp: the mean over other tasks s of weight_s E_x |change of the logits| (norm, not squared).

    From Yoshida et al., ICLR 2025, where it is taken on features before they are normalised, with weight 0.1, and 16
    rows of each task; here on logits, as all drift. `turn=True` is the paper's efficient variant.

    Args:
        others: the tasks whose rows are not to move; labels are not read.
        weight: of the penalty, or of each task by its name.
        rows: of each task in a step.
        turn: one task a step, in turn.
        kept: as for `Exact`, and so are `choose` and `inputs`.

    Cost:
        As for `Exact`.
    """

    weight: float | Mapping[str, float] = 0.1

    def value(self, change: Tensor) -> Tensor:
        """The mean norm over rows, whose gradient at 0 is 0."""
        squares = change.square().sum(-1)
        moved = squares > 0
        return torch.where(moved, torch.where(moved, squares, 1.0).sqrt(), 0.0).mean()
