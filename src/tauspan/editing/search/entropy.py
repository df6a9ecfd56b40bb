"""Coefficients of least prediction entropy, for data without labels: AdaMerging."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tauspan import models
from tauspan.core.choices import SplitName
from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.core.measure import progress
from tauspan.core.params import Params
from tauspan.core.recording import recording
from tauspan.core.report import Cell, Report, Table
from tauspan.core.results import mean_row, ratio
from tauspan.editing.model.chosen import ChosenEdit, facts_of
from tauspan.editing.model.edited import EditedModel
from tauspan.editing.model.tangent import TangentModel
from tauspan.editing.search.bootstrap import Intervals
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.tables import Outcome, coefficient_table
from tauspan.editing.search.unknowns import Per, Unknowns
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Contributions
from tauspan.tasks import Task, permutation
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector

Rows = Mapping[Task, Sequence[int]]
Slope = Callable[[Tensor, Rows], tuple[float, Tensor]]


def entropy(logits: Tensor) -> Tensor:
    """The mean over rows of H(p) = -sum_k p_k log p_k in nats, p = softmax of logits of shape (N, K)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


@dataclass(frozen=True)
class MergedTask:
    """One task: entropies in nats on the rows of the choice, accuracies on test as fractions.

    Args:
        task: its name, or `mean` for the mean over tasks.
        prior_entropy: where the search began.
        entropy: at the chosen coefficients.
        zero_shot: the pre-trained model.
        single: the task's own vector alone, at coefficient 1.
        prior: all vectors where the search began.
        merged: all vectors at the chosen coefficients.
    """

    task: str
    prior_entropy: float
    entropy: float
    zero_shot: float
    single: float
    prior: float
    merged: float
    normalised: float | None

    def cells(self) -> dict[str, Cell]:
        """The row of the table."""
        return {
            "task": self.task, "prior entropy": self.prior_entropy, "entropy": self.entropy,
            "zero shot": self.zero_shot, "single": self.single, "prior": self.prior, "merged": self.merged,
            "merged norm.": self.normalised,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AdaMerged(ChosenEdit):
    """What `adamerging` chose.

    Args:
        per: what has a coefficient of its own.
        prior: where all coefficients began.
        split: the rows whose entropy counted.
        tasks: numbers of each task.
        mean: their mean.
        outcome: the values of the coefficients.
        unknowns: which directions each coefficient scales.
        box: the bounds.
    """

    per: Per
    prior: float
    split: SplitName
    tasks: Sequence[MergedTask] = field(repr=False)
    mean: MergedTask
    outcome: Outcome = field(repr=False)
    unknowns: Unknowns = field(repr=False)
    box: Box = field(repr=False)

    def report(self) -> Report:
        """Coefficients; entropy and accuracy."""
        note = f"prior: all coefficients {self.prior:g}. entropy in nats on {self.split}, accuracy on test."
        if self.split == "test":
            note += " The coefficients were chosen on the inputs of the test rows themselves (transductive)."
        rows = [row.cells() for row in (*self.tasks, self.mean)]
        tables = [
            coefficient_table(self.unknowns, self.outcome, self.box, self.regime),
            Table("Entropy and accuracy", rows, note),
        ]
        result = {
            "regime": self.regime, "per": self.per, "coefficients": dict(self.coefficients),
            "groups": {group: list(names) for group, names in self.groups.items()},
            **{name: cell for name, cell in self.mean.cells().items() if name != "task"},
        }  # fmt: skip
        title = f"AdaMerging per {self.per}, {self.regime}"
        return Report(title, tables, dict(self.provenance), result=result, warnings=self.warnings)


def require_classes(tasks: Iterable[Task]) -> None:
    """Raise unless every task has classes, whose probabilities have an entropy."""
    for task in tasks:
        if not task.classes:
            raise UsageError(
                f"AdaMerging lowers the entropy of predicted classes, and {task.name!r} is {task.objective.word}: take "
                "`coefficients`, which uses its targets."
            )


def least_entropy(
    model: EditedModel, free: Unknowns, vectors: Mapping[Task, TaskVector], *, per: Per, split: SplitName, steps: int,
    lr: float, prior: float, rows: int | None, bounds: Bounds, seed: int,
) -> AdaMerged:  # fmt: skip
    """See `tauspan.editing.adamerging`."""
    tasks = list(vectors)
    require_classes(tasks)
    box = Box.of(len(free.names), bounds)
    needs = dict.fromkeys(tasks, free.directions.names)
    model.read(needs, split)
    slope: Slope
    if isinstance(model, TangentModel):
        slope = Contracted.of(model, free, tasks, split)
    else:
        slope = Backward.of(model, free, tasks, split)
    start = torch.full((len(free.names),), prior, dtype=torch.float64)
    with progress("AdaMerging", steps) as advance:
        values = descend(
            slope, start, draws(tasks, split, rows, seed), box, steps, lr, lambda: advance(1, "")
        )
    if split != "test":
        model.read(needs, "test")
    before, after = free.at(box.clipped(start.numpy())), free.at(values)
    table = [_merged(model, free, task, split, before, after) for task in tasks]
    average = mean_row(table)
    outcome = Outcome(tuple(values), average.entropy, {}, None, Intervals({}, 0, 0), steps)
    facts = facts_of(model, vectors.values(), split=split, bounds=list(bounds), steps=steps, lr=lr, prior=prior,
                     rows=rows, draw_seed=seed)  # fmt: skip
    return AdaMerged(
        encoder=model.encoder, vectors=free.directions.vectors, regime=model.regime, point=model.point,
        coefficients=free.directions.nested(after), groups=free.directions.groups, per=per, prior=prior, split=split,
        tasks=table, mean=average, outcome=outcome, unknowns=free, box=box, provenance=facts,
    )  # fmt: skip


def draws(tasks: Sequence[Task], split: str, rows: int | None, seed: int) -> Callable[[int], Rows]:
    """The rows of each task that a step reads."""

    def drawn(step: int) -> Rows:
        sizes = {task: len(task.split(split)) for task in tasks}
        return {task: permutation(size, f"{seed}/{step}/{task.name}")[:rows] for task, size in sizes.items()}

    return drawn


def descend(
    slope: Slope,
    start: Tensor,
    drawn: Callable[[int], Rows],
    box: Box,
    steps: int,
    lr: float,
    advance: Callable[[], None] = lambda: None,
) -> list[float]:
    """Adam on coefficients that act as clipped to the box; one that left it has no gradient, as the authors clip."""
    a = start.clone()
    low, high = torch.as_tensor(box.lo), torch.as_tensor(box.hi)
    optimiser = torch.optim.Adam([a], lr=lr)
    for step in range(steps):
        value, gradient = slope(a.clamp(low, high), drawn(step))
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(
                f"the entropy at step {step} is {value} and its gradient is not finite: the model or a vector is broken; "
                "check them with `tauspan vector verify`."
            )
        a.grad = gradient.to(a) * ((a >= low) & (a <= high))
        optimiser.step()
        advance()
    found: list[float] = a.clamp(low, high).tolist()
    return found


@dataclass(frozen=True)
class Contracted:
    """The tangent regimes: the entropy over cached contributions, and its gradient."""

    parts: Mapping[Task, Contributions]

    @staticmethod
    def of(model: TangentModel, free: Unknowns, tasks: Sequence[Task], split: str) -> "Contracted":
        """From what the model has read, one direction for each unknown."""
        passed = {task: free.of(model.passed(task, split)) for task in tasks}
        return Contracted({task: part.double().folded() for task, part in passed.items()})

    def __call__(self, a: Tensor, rows: Rows) -> tuple[float, Tensor]:
        """The mean entropy at a over some rows of each task, and its gradient."""
        a = a.detach().requires_grad_()
        losses = [
            entropy(self.parts[task].rows(torch.tensor(places)).logits(a)) for task, places in rows.items()
        ]
        loss = torch.stack(losses).mean()
        (gradient,) = torch.autograd.grad(loss, a)
        return float(loss.detach()), gradient


@dataclass(frozen=True)
class Backward:
    """The standard regime: a forward and a backward of the ordinary model, then inner products with the directions."""

    model: EditedModel
    free: Unknowns
    functions: Mapping[Task, Linearized]
    split: str
    deltas: Mapping[str, Params]

    @staticmethod
    def of(model: EditedModel, free: Unknowns, tasks: Sequence[Task], split: str) -> "Backward":
        """For the tasks and heads of a model."""
        parts = {
            name: free.directions.partial(name).fitted(model.encoder, tangent=True, base=model.fingerprint)
            for name in free.directions.names
        }
        names = list(next(iter(parts.values())).deltas)
        tangent = linearize(model.encoder, names)
        made = {task: tangent.under(model.head(task), "logits") for task in tasks}
        moving = {
            name: {k: d for k, d in part.deltas.items() if bool(d.any())} for name, part in parts.items()
        }
        return Backward(model, free, made, split, moving)

    def __call__(self, a: Tensor, rows: Rows) -> tuple[float, Tensor]:
        """The mean entropy at a over some rows of each task, and its gradient."""
        model = self.model
        moved = model.fitted(model.directions.combined(self.free.at(a.tolist())))
        theta0 = next(iter(self.functions.values())).theta0()
        theta = {name: moved.moved(name, base, 1.0).requires_grad_() for name, base in theta0.items()}
        total = 0.0
        with recording(), models.eval_mode(model.encoder):
            for task, places in rows.items():
                some, tokens = task.split(self.split).take(places), task.tokens(model.reading.max_tokens)
                for found, batch in batches(model.encoder, some, tokens, model.reading.batch_size):
                    share = len(found) / len(places) / len(rows)
                    loss = entropy(self.functions[task].function(batch)(theta)) * share
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
        return total, self._along({name: leaf.grad for name, leaf in theta.items()})

    def _along(self, gradient: Mapping[str, Tensor | None]) -> Tensor:
        """<gradient, direction> summed over the directions of each unknown."""
        found = {}
        for name, deltas in self.deltas.items():
            pairs = [(gradient[key], delta) for key, delta in deltas.items()]
            found[name] = sum(
                float((g.double() * delta.to(g.device)).sum()) for g, delta in pairs if g is not None
            )
        sums = [sum(found[name] for name in scaled) for scaled in self.free.scales.values()]
        return torch.tensor(sums, dtype=torch.float64)


def _merged(
    model: EditedModel, free: Unknowns, task: Task, split: str, before: Mapping[str, float], after: Mapping[str, float]
) -> MergedTask:  # fmt: skip
    """Entropy on the chosen rows at the start and at the end, and accuracy on test."""
    own = dict.fromkeys(free.directions.of(task.name), 1.0)
    single, merged = (model.metric(task, "test", values) for values in (own, after))
    return MergedTask(
        task=task.name,
        prior_entropy=float(entropy(model.logits(task, split, before))),
        entropy=float(entropy(model.logits(task, split, after))),
        zero_shot=model.metric(task, "test", {}),
        single=single,
        prior=model.metric(task, "test", before),
        merged=merged,
        normalised=ratio(merged, single),
    )
