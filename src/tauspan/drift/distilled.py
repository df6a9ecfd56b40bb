"""DELTA: an ordinary model that behaves as the tangent one all along the vector, from a teacher that is fitted first."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, listed
from tauspan.core.notices import tell
from tauspan.core.params import fingerprint
from tauspan.tangent import linearize
from tauspan.train.convex import labelled
from tauspan.train.penalty import Penalty, Term, Training
from tauspan.train.rows import Part
from tauspan.vector import TaskVector

_BATCH = 32
_MEASURED = 64  # rows, for the numbers in a vector's info
_REACHES = (0.5, 1.0, 2.0)


@checked
@dataclass(frozen=True, eq=False)
class Distilled(Penalty):
    r"""Fine-tune an ordinary model towards a tangent one, at all coefficients (DELTA, arXiv 2605.18993).

    The loss of a row is l(f(x; theta0 + a tau), y) + weight |z(x; theta0 + a tau) - (z0(x) + a J(x) tau_L)|^2, with z the
    encoder's features, tau_L the teacher's vector, and one a for each step. z0 and J tau_L depend on the row alone, so
    they are computed once, before the first step; the paper trains the teacher beside the student. Over the run a is
    drawn from wider and wider ranges: in step k of K from 1 - (1 - low) p to 1 + (high - 1) p, with p = (k / K)^growth.

    What comes out is an ordinary vector; `apply` makes a model of it that any library loads.

    Args:
        teacher: a vector of the tangent model for the same task: from `finetune` in the linear regime, `closed_form` or
            `superpose`. One of other tasks gets a warning.
        weight: of the distance beside the loss.
        reach: the widest range of a.
        growth: how fast the range grows; the paper's "temperature".
        penalty: a term of its own on the student's vector, such as `Factored`.

    Errors:
        A teacher of the ordinary regime is refused. `finetune` refuses the linear regime, checkpointing, random
        crops, and tasks without a frozen head.

    Cost:
        A tangent pass over the training rows before the first step, and 2 d numbers for each row; then a step costs as an
        ordinary one.

    Example:
        >>> import torch, tauspan as ts
        >>> from tauspan.drift import Distilled
        >>> x, y = torch.eye(4).repeat(4, 1), torch.arange(4).repeat(4) % 2
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> encoder = ts.load(torch.nn.Linear(4, 3))
        >>> teacher = ts.closed_form(encoder, task, ridge=1.0).vector
        >>> settings = ts.Settings("standard", lr=0.01, epochs=20)
        >>> run = ts.finetune(encoder, task, settings, penalty=Distilled(teacher))
        >>> run.task_vector.regime, sorted(run.task_vector.info["penalty"]["apart"])
        ('standard', ['0.5', '1', '2'])
    """

    teacher: TaskVector
    weight: float = 1.0
    reach: tuple[float, float] = (0.5, 2.0)
    growth: float = 0.5
    penalty: Penalty | None = None

    def __post_init__(self) -> None:
        if self.teacher.regime != "linear":
            raise UsageError(
                f"the teacher {self.teacher.label!r} is a vector of the regime {self.teacher.regime!r}: it was trained "
                "to be right at theta0 + tau, and a teacher says theta0's outputs + J tau. Fine-tune one with "
                "regime='linear', or say that this is meant: `teacher.as_regime('linear')`."
            )
        if not 0 <= self.weight < float("inf"):
            raise UsageError(f"weight={self.weight}: it must be 0 or more.")
        low, high = self.reach
        if not (0 <= low <= 1 <= high < float("inf")):
            raise UsageError(f"reach=({low}, {high}): a range that has 1 in it, from 0.")
        if not 0 < self.growth < float("inf"):
            raise UsageError(f"growth={self.growth}: it must be above 0.")
        if self.penalty is not None and type(self.penalty).guide is not Penalty.guide:
            raise UsageError(
                f"Distilled with penalty={type(self.penalty).__name__}(...): both take part in the loss of the rows, "
                "and a run has one teacher. Take a term on the vector alone, such as `Factored`."
            )

    def facts(self) -> Mapping[str, Any]:
        """The settings, and what the teacher is."""
        own = {} if self.penalty is None else {"penalty": dict(self.penalty.facts())}
        return {
            "kind": type(self).__name__, "weight": self.weight, "reach": list(self.reach), "growth": self.growth,
            "teacher": fingerprint(self.teacher.deltas)[:16], **own,
        }  # fmt: skip

    def begun(self, run: Training) -> Term:
        """The term of the penalty on the vector, if there is one."""
        if self.penalty is not None:
            return self.penalty.begun(run)
        zero = torch.zeros((), device=next(iter(run.trainee.parameters.values())).device, requires_grad=True)
        return lambda step: zero

    def guide(self, run: Training) -> "Followed":
        """The distance to the teacher on the rows of a step.

        Raises:
            UsageError: the run trains no ordinary model of rows that stay the same.
        """
        settings = run.settings
        if settings.regime != "standard":
            raise UsageError(
                f"Distilled in the regime {settings.regime!r}: it makes an ordinary vector. Set regime='standard'."
            )
        if settings.checkpointing:
            raise UsageError("Distilled with checkpointing=True: a student along its vector keeps its activations. Leave "
                             "one of the two out.")  # fmt: skip
        if settings.augment != "none":
            raise UsageError(
                f"Distilled with augment={settings.augment!r}: the teacher's outputs are kept for each row, and crops "
                "change. Leave one of the two out."
            )
        without = [task.name for task in run.tasks if task.objective.headless]
        if without:
            raise UsageError(
                f"Distilled: {listed(without)} has no frozen head, and the features under one are compared. Take tasks "
                "with classes or numbers."
            )
        self._warn_of_another_task([task.name for task in run.tasks])
        return Followed(self, run, [_outputs(run, self.teacher, place) for place in range(len(run.tasks))])

    def _warn_of_another_task(self, trained: Sequence[str]) -> None:
        """Say if the teacher knows for which tasks it was made, and some that are trained are not among them."""
        info = self.teacher.info
        made = info.get("tasks") or ([info["task"]] if "task" in info else [])
        foreign = [name for name in trained if name not in made]
        if made and foreign:
            tell(
                f"Distilled: the teacher {self.teacher.label!r} was made for {listed(made)}, and {listed(foreign)} is "
                "trained: it has not learnt what it says of those rows. Take a teacher of the same tasks."
            )

    def measured(self, run: Training) -> Mapping[str, Any]:
        """What the penalty on the vector measures."""
        return {} if self.penalty is None else self.penalty.measured(run)


@dataclass(frozen=True, eq=False)
class Followed:
    """The teacher's features z0 and J tau_L of each training row, and where the student is compared with them."""

    settings: Distilled
    run: Training
    outputs: list[tuple[Tensor, Tensor]] = field(repr=False)

    def reach(self, step: int) -> float:
        """The coefficient of a step, by the run's seed and the step's number."""
        share = (step / self.run.steps) ** self.settings.growth
        low, high = self.settings.reach
        draw = random.Random(f"{self.run.settings.seed}/{step}/reach")
        return draw.uniform(1 - (1 - low) * share, 1 + (high - 1) * share)

    def loss(self, reach: float, part: Part, features: Tensor) -> Tensor:
        """The weighted squared distance, summed over the rows."""
        place, rows = part
        base, moved = self.outputs[place]
        wanted = base[list(rows)] + reach * moved[list(rows)]
        return self.settings.weight * (features[: len(rows)] - wanted).square().sum()

    @torch.no_grad()
    def measured(self) -> Mapping[str, Any]:
        """How far student and teacher are apart: |z - z_L|^2 / |z_L - z0|^2 over at most 64 rows, by coefficient."""
        base, moved = (part[:_MEASURED] for part in self.outputs[0])
        found = {}
        for reach in _REACHES:
            features = torch.cat([
                self.run.trainee.reached(batch, 0, reach)[0] for batch in _batches(self.run, 0, range(len(base)))
            ])  # fmt: skip
            apart = (features - base - reach * moved).square().sum() / (reach * moved).square().sum()
            found[f"{reach:g}"] = float(apart)
        return {"apart": found}


def _batches(run: Training, place: int, rows: range) -> list[Any]:
    task = run.tasks[place]
    cut, split = task.tokens(run.settings.max_tokens), task.split("train")
    return [batch for batch, _ in labelled(run.base, split.take(list(rows)), cut, _BATCH, task.objective)]


@torch.no_grad()
def _outputs(run: Training, teacher: TaskVector, place: int) -> tuple[Tensor, Tensor]:
    """z0 and J tau_L of the training rows of a task, shape (N, d) each."""
    fitted = teacher.fitted(run.base, tangent=True).deltas
    tangent = linearize(run.base, list(fitted))
    rows = range(len(run.tasks[place].split("train")))
    pairs = [tangent.tangent(batch, vectors=[fitted]) for batch in _batches(run, place, rows)]
    return torch.cat([value for value, _ in pairs]), torch.cat([moved[0] for _, moved in pairs])
