"""`adamerging`: coefficients that minimise the entropy of predictions on rows without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import DataError, NonFiniteError, UsageError
from tauspan.core.measure import progress
from tauspan.core.params import Params
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Report, Table, noted
from tauspan.editing.edit import EditRegime, edit_regime
from tauspan.editing.search.bootstrap import Intervals
from tauspan.editing.search.box import Bounds, Box
from tauspan.editing.search.edits import Edits
from tauspan.editing.search.numbers import require_at_least
from tauspan.editing.search.protocol import facts_of
from tauspan.editing.search.tables import Outcome, coefficient_table
from tauspan.editing.search.unknowns import GroupPatterns, Per, Unknowns, unknowns
from tauspan.models import Encoder
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Contributions
from tauspan.tasks import Task, permutation
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector

SplitName = Literal["train", "validation", "test"]
Rows = Mapping[Task, Sequence[int]]
Slope = Callable[[Tensor, Rows], tuple[float, Tensor]]


def entropy(logits: Tensor) -> Tensor:
    """The mean over rows of H(p) = -sum_k p_k log p_k in nats, p = softmax of logits of shape (N, K)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


@noted
@checked
def adamerging(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    regime: EditRegime | None = None,
    *,
    per: Per = "layer",
    groups: GroupPatterns | None = None,
    split: SplitName = "validation",
    steps: int = 500,
    lr: float = 1e-3,
    prior: float = 0.3,
    rows: int | None = 32,
    bounds: Bounds = (0.0, 1.0),
    seed: int = 0,
    reading: Reading = Reading(),
) -> Report:
    """AdaMerging (arXiv 2310.02575): theta0 + sum_t a_t tau_t with coefficients of least entropy, without labels.

    Adam minimises the mean over tasks of the mean entropy of the softmax, from all a = `prior`; a coefficient acts
    as clipped to `bounds`. In the tangent regimes logits are affine in a, so a step is a small contraction of what one
    pass over the rows gave; in the standard regime it is a forward and a backward, and
    dH/da_d = <dH/dtheta, direction_d>. Least entropy is not least loss: a model may be sure and wrong, and the
    objective is not convex, so there is no certificate. The test split's labels are read once, after the choice.

    Args:
        encoder: the pre-trained encoder.
        vectors: one vector per task.
        regime: `"standard"`, `"posthoc"` or `"linear"`; None takes the vectors' own.
        per: `"layer"`: a coefficient a layer group of each vector; `"task"`: one a vector; `"shared"`: one.
        groups: for `"layer"`, patterns of tensor names by group instead of the model's blocks. The authors give every
            tensor its own: `groups={name: name for name in vector.deltas}`.
        split: the rows whose entropy counts. The authors take the inputs of `"test"` itself.
        steps: of Adam.
        lr: its step size, with betas 0.9 and 0.999 and no weight decay.
        prior: where all coefficients start.
        rows: so many rows of each task a step, drawn anew by a permutation keyed by `seed` and the step; None takes all.
        bounds: of every coefficient.
        seed: of the draws.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report` with the coefficients, entropies before and after, and accuracies on test.
        `report.result["coefficients"]` and `["groups"]` go into `tauspan.editing.search.combine`, which makes the vector.

    Raises:
        UsageError: an argument that does not fit.
        NonFiniteError: the entropy became NaN: the model or a vector is broken.

    Cost:
        Tangent: one pass of as many tangents as there are directions, per task and split. Standard: `steps` times
        a forward and a backward of `rows` rows of every task.
    """
    named = {task.name: vector for task, vector in vectors.items()}
    if not named:
        raise UsageError("adamerging needs at least one task and its vector.")
    if len(named) < len(vectors):
        raise DataError("a task stands twice among the vectors; give each task one.")
    require_at_least(1, steps=steps, rows=1 if rows is None else rows)
    require_at_least(0, lr=lr)
    tasks = list(vectors)
    for task in tasks:
        task.split(split)  # says which there are
    chosen = edit_regime(next(iter(named.values())), regime)
    free = unknowns(encoder, named, per, groups)
    box = Box.of(len(free.names), bounds)
    edits = Edits(encoder, tasks, free.directions, chosen, reading)
    needs = dict.fromkeys(tasks, free.directions.names)
    edits.prepare(needs, split)
    slope = (
        Contracted.of(edits, free, tasks, split)
        if chosen != "standard"
        else Backward.of(edits, free, tasks, split)
    )
    start = torch.full((len(free.names),), prior, dtype=torch.float64)
    with progress("AdaMerging", steps) as advance:
        values = descend(
            slope, start, draws(tasks, split, rows, seed), box, steps, lr, lambda: advance(1, "")
        )
    if split != "test":
        edits.prepare(needs, "test")
    before, after = free.at(box.clipped(start.numpy())), free.at(values)
    table = [_row(edits, free, task, split, before, after) for task in tasks]
    means = {
        key: sum(float(row[key] or 0) for row in table) / len(table) for key in table[0] if key != "task"
    }
    outcome = Outcome(tuple(values), means["entropy"], {}, None, Intervals({}, 0, 0), steps)
    facts = facts_of(encoder, vectors.values(), split=split, bounds=list(bounds), steps=steps, lr=lr, prior=prior,
                     rows=rows, draw_seed=seed)  # fmt: skip
    note = f"prior: all coefficients {prior:g}. entropy in nats on {split}, accuracy on test."
    if split == "test":
        note += " The coefficients were chosen on the inputs of the test rows themselves (transductive)."
    whole: list[dict[str, Cell]] = [*table, {"task": "mean", **means}]
    tables = [coefficient_table(free, outcome, box, chosen), Table("Entropy and accuracy", whole, note)]
    result = {
        "regime": chosen, "per": per, "coefficients": free.directions.nested(after),
        "groups": {group: list(names) for group, names in free.directions.groups.items()}, **means,
    }  # fmt: skip
    return Report(f"AdaMerging per {per}, {chosen}", tables, facts, result=result)


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
    def of(edits: Edits, free: Unknowns, tasks: Sequence[Task], split: str) -> "Contracted":
        """From the passes that `edits` made, one direction an unknown."""
        passed = {task: edits.passed(task, split).summed(free.scales) for task in tasks}
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

    edits: Edits
    free: Unknowns
    functions: Mapping[Task, Linearized]
    split: str
    deltas: Mapping[str, Params]

    @staticmethod
    def of(edits: Edits, free: Unknowns, tasks: Sequence[Task], split: str) -> "Backward":
        """For the tasks and heads of `edits`."""
        base = models.fingerprint_of(edits.encoder)
        parts = {
            name: free.directions.partial(name).fitted(edits.encoder, tangent=True, base=base)
            for name in free.directions.names
        }
        names = list(next(iter(parts.values())).deltas)
        tangent = linearize(edits.encoder, names)
        made = {task: tangent.under(edits.heads[task], "logits") for task in tasks}
        moving = {
            name: {k: d for k, d in part.deltas.items() if bool(d.any())} for name, part in parts.items()
        }
        return Backward(edits, free, made, split, moving)

    def __call__(self, a: Tensor, rows: Rows) -> tuple[float, Tensor]:
        """The mean entropy at a over some rows of each task, and its gradient."""
        edits = self.edits
        moved = edits.fitted(edits.directions.combined(self.free.at(a.tolist())))
        theta0 = next(iter(self.functions.values())).theta0()
        theta = {name: moved.moved(name, base, 1.0).requires_grad_() for name, base in theta0.items()}
        total = 0.0
        with models.eval_mode(edits.encoder):
            for task, places in rows.items():
                some, tokens = task.split(self.split).take(places), task.tokens(edits.reading.max_tokens)
                for found, batch in batches(edits.encoder, some, tokens, edits.reading.batch_size):
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


def _row(
    edits: Edits,
    free: Unknowns,
    task: Task,
    split: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> dict[str, Cell]:
    """One task: entropy on the chosen rows at the start and at the end, and accuracy on test."""
    own = dict.fromkeys(free.directions.of(task.name), 1.0)
    single, merged = (edits.accuracy(task, "test", values) for values in (own, after))
    return {
        "task": task.name,
        "prior entropy": float(entropy(edits.logits(task, split, before))),
        "entropy": float(entropy(edits.logits(task, split, after))),
        "zero shot": edits.accuracy(task, "test", {}),
        "single": single,
        "prior": edits.accuracy(task, "test", before),
        "merged": merged,
        "merged norm.": merged / (single or 1.0),
    }
