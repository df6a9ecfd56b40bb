"""`outlook`: before any training, how far the tangent model will hold along the vector that a fine-tuning would make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, listed
from tauspan.core.measure import measured, progress
from tauspan.core.params import Params
from tauspan.core.report import Cell, Report, Table, noted, provenance
from tauspan.core.results import Result
from tauspan.kernel.diagnose.lazy import Linearity, linearity
from tauspan.kernel.diagnose.sections import linearity_series
from tauspan.kernel.diagnose.verdict import CARRIES, reach_of
from tauspan.models import Classifier, Encoder, fingerprint_of
from tauspan.objectives import Objective
from tauspan.tangent import Linearized, linearize
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled
from tauspan.train.loop import trained
from tauspan.train.settings import Settings
from tauspan.train.trainee import in_space

BENDS = 0.5  # the error at a sum beyond which ordinary vectors were seen to lose by adding
_SMALL = 1e-12  # an entry whose gradients are all below it does not move


@dataclass(frozen=True, eq=False)
class TaskOutlook:
    """How far the tangent model is expected to hold along one task's fine-tuning.

    Args:
        task: its name.
        steps: optimiser steps of the training that is planned.
        travel: the sum of the learning rates of all steps, which is the farthest that Adam moves an entry.
        agreement: the mean over entries of |mean gradient| over its root mean square over batches: 1 if every batch
            pulls each entry the same way, near 1/sqrt(batches) if they pull at random.
        path: the model and its linearisation along the expected vector, at several shares of it.
    """

    task: str
    steps: int
    travel: float
    agreement: float
    path: Linearity

    def __repr__(self) -> str:
        return f"TaskOutlook({self.task}, {self.steps} steps, {self.path!r})"

    @property
    def expected(self) -> float:
        """|f(theta0 + tau) - f_lin(tau)| / |J tau| at the whole expected vector tau."""
        error = self.path.relative[-1]
        if error is None:
            raise UsageError(
                f"the expected vector of {self.task!r} moves no logits to first order: its gradient is 0 on these rows."
            )
        return error

    @property
    def holds_until(self) -> float | None:
        """The largest tested share of the vector up to which the error stays within 10 %; None if there is none."""
        return reach_of(self.path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlook(Result):
    """How far the tangent model is expected to hold, for each task, under settings of training.

    Args:
        tasks: one entry for each task.
        added: |f(theta0 + tau) - f_lin(tau)| / |J tau| at the sum of all expected vectors, the mean over the tasks' rows;
            None for one task.
    """

    tasks: Sequence[TaskOutlook]
    added: float | None = None

    @property
    def verdict(self) -> str:
        """What is expected, in a sentence; docs/verdicts.md has the rules, and how often they were right."""
        known = {one.task: one.expected for one in self.tasks}
        bent = sorted(
            (name for name, error in known.items() if error > CARRIES), key=lambda name: -known[name]
        )
        worst = max(known, key=lambda name: known[name])
        if not bent:
            said = (
                f"The tangent model is expected to hold through the whole training: its error at the end is about "
                f"{known[worst]:.2g} of |J tau| or less ({worst} has the largest)."
            )
        else:
            said = (
                f"Ordinary fine-tuning is expected to leave the tangent model for {listed(bent)}: its error at the end "
                f"is about {known[worst]:.2g} of |J tau| for {worst}. A smaller learning rate, fewer steps or fewer "
                "parameters keep it nearer."
            )
        if self.added is None:
            return said
        safer = (
            " Vectors that are added without a search are safer in the linear regime, or of the last blocks alone."
            if self.added > BENDS
            else ""
        )
        return f"{said} At the sum of all vectors it is about {self.added:.2g}.{safer}"

    def report(self) -> Report:
        """The verdict, a row for each task, and the errors along the expected vectors as a figure."""
        rows: list[dict[str, Cell]] = [
            {
                "task": one.task, "steps": one.steps, "travel": one.travel, "agreement": one.agreement,
                "expected error": one.expected, "holds up to": one.holds_until,
            }
            for one in self.tasks
        ]  # fmt: skip
        series: list[dict[str, Any]] = [linearity_series(one.task, one.path) for one in self.tasks]
        note = (
            "Travel: the sum of all learning rates. Agreement: of the gradients of the batches, 1 if all pull each entry "
            "the same way. Expected error: |f(theta0 + tau) - f_lin| / |J tau| for tau = -travel x the step that Adam "
            f"would take at theta0. Holds up to: the largest tested share of tau with an error within {CARRIES:.0%}."
        )
        return Report(
            "Outlook", [Table("How far the tangent model is expected to hold", rows, note)],
            dict(self.provenance), series, {"tasks": rows, "added": self.added}, self.warnings, self.verdict,
        )  # fmt: skip


@noted
@checked
def outlook(
    encoder: Encoder,
    tasks: Sequence[Task],
    settings: Settings = Settings(),
    *,
    rows: int = 64,
) -> Outlook:
    """Before any training: how far the tangent model will hold along each task's fine-tuning.

    The expected vector is tau = -S d, where S is the sum of the settings' learning rates over all steps, and d is the
    step of Adam at theta0 once its averages have settled: d = E[g] / sqrt(E[g^2]), entry by entry, over the gradients g
    of batches at theta0. Along s tau the model is then compared with its linearisation. A training bends on its way, so
    that the numbers rank trainings and say when one is far from its tangent model; they are no bound.

    Args:
        encoder: the pre-trained encoder; each task is seen under its frozen head.
        tasks: one or more.
        settings: of the training that is planned: learning rate, schedule, steps, batch size, parameters. The regime
            does not matter: the question is what ordinary training would do.
        rows: at most so many training rows of each task, drawn by a permutation keyed by the settings' seed.

    Returns:
        An `Outlook`.

    Raises:
        UsageError: no task, or one twice; fewer than 2 rows; a task on whose rows no gradient reaches the parameters.
        NonFiniteError: a loss, a gradient or an output is NaN or infinite.

    Cost:
        For each task a forward and a backward pass over the rows, two tangent passes, and six forward passes; memory for
        three sets of the parameters.

    Example:
        >>> import torch, tauspan as ts
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> task = ts.Task.from_tensors("parity", ["even", "odd"], train=(x, y), validation=(x, y), test=(x, y))
        >>> seen = outlook(ts.load(torch.nn.Linear(4, 3)), [task], ts.Settings(lr=0.01, max_steps=10))
        >>> seen.tasks[0].steps, 0 < seen.tasks[0].expected < 1  # a cosine head bends, the layer does not
        (1, True)
    """
    encoder, settings = in_space(encoder, settings)
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"tasks {listed(names) or 'none'}: give at least one, and none twice.")
    if rows < 2:
        raise UsageError(f"rows={rows}: a mean over gradients takes 2 rows or more.")
    with measured() as cost, progress("outlook", len(tasks)) as advance:
        asked: list[Expectation] = []
        for task in tasks:
            asked.append(Expectation.of(encoder, task, settings, rows, asked[0] if asked else None))
        found: list[TaskOutlook] = []
        total: dict[str, Tensor] = {}
        for one in asked:
            tau = one.expected_vector(settings)
            found.append(one.looked(settings, tau))
            total = tau if not total else {name: total[name] + entry for name, entry in tau.items()}
            advance(1, one.task.name)
        added = [one.error_at(total) for one in asked] if tasks[1:] else []
    where = provenance(
        base=encoder.source,
        fingerprint=fingerprint_of(encoder),
        rows=rows,
        settings=settings.as_dict(),
        **vars(cost),
    )
    return Outlook(tasks=found, added=sum(added) / len(added) if added else None, provenance=where)


@dataclass(frozen=True, eq=False)
class Expectation:
    """One task's rows under its head, from which the vector of a training is expected.

    Args:
        task: the task.
        tangent: the linearised model under its head.
        parts: batches of its rows, with their targets.
        objective: what it is trained by.
        params: which parameters train.
    """

    task: Task
    tangent: Linearized
    parts: Sequence[tuple[Any, Tensor]]
    objective: Objective
    params: str | Sequence[str]

    @staticmethod
    def of(
        encoder: Encoder, task: Task, settings: Settings, rows: int, like: "Expectation | None" = None
    ) -> "Expectation":
        """Of some rows of a task; what was checked of the model of another task is not checked again."""
        drawn = task.subset(seed=settings.seed, train=rows).split("train")
        head = build_head(task, encoder, max_tokens=settings.max_tokens)
        tangent = (
            like.tangent.under(head) if like else linearize(Classifier(encoder, head), params=settings.params)
        )
        objective = trained(task, settings.label_smoothing).bound(encoder.language)
        parts = labelled(encoder, drawn, task.tokens(settings.max_tokens), settings.batch_size, objective)
        return Expectation(task, tangent, parts, objective, settings.params)

    def steps(self, settings: Settings) -> int:
        """Of the whole training."""
        return settings.steps(len(self.task.split("train")))

    def travel(self, settings: Settings) -> float:
        """The sum of all learning rates."""
        total = self.steps(settings)
        return sum(settings.lr_at(at, total) for at in range(total))

    def expected_vector(self, settings: Settings) -> dict[str, Tensor]:
        """-S E[g] / sqrt(E[g^2])."""
        mean, square = _moments(self.tangent, self.parts, self.objective, settings.accumulation)
        travel = self.travel(settings)
        found = {
            name: torch.where(
                square[name] > _SMALL**2,
                -travel * settings.multiplier(name) * mean[name] / square[name].sqrt(),
                0.0,
            )
            for name in mean
        }
        if not any(bool(entry.any()) for entry in found.values()):
            raise UsageError(
                f"no gradient of {self.task.name!r} reaches the parameters {self.params!r} on these rows: choose other "
                "parameters or rows."
            )
        return found

    def looked(self, settings: Settings, tau: Params) -> TaskOutlook:
        """The model and its linearisation along the expected vector."""
        travel = self.travel(settings)
        moved = [entry[entry != 0].abs() / settings.multiplier(name) for name, entry in tau.items()]
        agreement = float(torch.cat(moved).double().mean()) / travel
        path = linearity(self.tangent, tau, [batch for batch, _ in self.parts])
        return TaskOutlook(self.task.name, self.steps(settings), travel, agreement, path)

    def error_at(self, tau: Params) -> float:
        """|f(theta0 + tau) - f_lin(tau)| / |J tau| on the task's rows; 0 where J tau is 0."""
        return linearity(self.tangent, tau, [batch for batch, _ in self.parts], (1.0,)).relative[0] or 0.0


def _moments(
    tangent: Linearized, parts: Sequence[tuple[Any, Tensor]], objective: Objective, together: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and mean square over steps of the gradient of a step's mean loss at theta0, each of so many batches."""
    theta0 = {name: theta.clone().requires_grad_() for name, theta in tangent.theta0().items()}
    mean = {name: torch.zeros_like(theta) for name, theta in theta0.items()}
    square = {name: torch.zeros_like(theta) for name, theta in theta0.items()}
    steps = [parts[start : start + together] for start in range(0, len(parts), together)]
    for step in steps:
        rows, total = sum(len(labels) for _, labels in step), dict[str, Tensor]()
        for batch, labels in step:
            logits = tangent.function(batch)(theta0)
            loss = objective.total(logits[: len(labels)], labels.to(logits.device)) / rows
            found = torch.autograd.grad(loss, list(theta0.values()), allow_unused=True)
            for name, gradient in zip(theta0, found, strict=True):
                if gradient is not None:
                    total[name] = total[name] + gradient if name in total else gradient
        for name, gradient in total.items():
            mean[name] += gradient / len(steps)
            square[name] += gradient.square() / len(steps)
    return mean, square
