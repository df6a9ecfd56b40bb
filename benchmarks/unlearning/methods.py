"""How a model is made to forget: negated vectors, gradient ascent, NPO; all choose by one rule, on validation rows."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from benchmarks.unlearning.measures import losses
from benchmarks.unlearning.plan import Plan
from torch import Tensor, nn

import tauspan as ts
from tauspan.core.measure import progress
from tauspan.editing.search.metrics import keeps, least_kept
from tauspan.models import Encoder, named_unique, select, working_copy
from tauspan.objectives import NextToken
from tauspan.tasks import Split, Task
from tauspan.tasks.batches import encoded
from tauspan.vector import TaskVector


@dataclass(frozen=True)
class Edited:
    """A model that gives last states, and in words what was chosen."""

    model: nn.Module
    chosen: str = ""


def negated(encoder: Encoder, vector: TaskVector, forget: Task, keep: Task, plan: Plan) -> Edited:
    """Negation, theta - alpha tau: the alpha that forgets most while the kept people's perplexity is within the floor."""
    found = ts.Editor(encoder, {forget: vector}).negate(forget, [keep], plan.floor, grid=plan.grid)
    return Edited(found.apply(), f"alpha {found.alpha:g}")


def random_vector(vector: TaskVector, seed: int) -> TaskVector:
    """Gaussian numbers of the same norm in each tensor."""
    draw = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, delta in vector.deltas.items():
        drawn = torch.randn(delta.shape, generator=draw, dtype=torch.float64)
        deltas[name] = (drawn * (delta.double().norm() / drawn.norm())).to(delta.dtype)
    return dataclasses.replace(vector, deltas=deltas, label="random")


# -- descents ------------------------------------------------------------------------------------------------

Loss = Callable[[Tensor, Sequence[int]], Tensor]  # of the losses of some rows, and which rows these are


def kept_on(found: Tensor, rows: Sequence[int]) -> Tensor:
    """Ordinary training."""
    return found.mean()


def ascent(found: Tensor, rows: Sequence[int]) -> Tensor:
    """Gradient ascent on the loss."""
    return -found.mean()


def preference(reference: Tensor, counts: Tensor, beta: float) -> Loss:
    """NPO: 2/beta mean log(1 + (pi / pi_ref)^beta), pi the probability of a whole answer (Zhang et al. 2024, eq. 3).

    Args:
        reference: mean loss of each row's tokens in the model before, shape (N,).
        counts: how many tokens that is.
        beta: at 0 the gradient is that of ascent.
    """

    def loss(found: Tensor, rows: Sequence[int]) -> Tensor:
        log_ratio = (reference[list(rows)] - found) * counts[list(rows)]
        return 2 / beta * F.softplus(beta * log_ratio).mean()

    return loss


def descended(
    encoder: Encoder, loss: Loss, rows: Split, forget: Task, keep: Task, plan: Plan, seed: int, title: str
) -> Edited:
    """The step of a descent that forgets most while the kept people's perplexity is within the floor; at worst step 0.

    AdamW at a constant rate. The descent ends early where the kept people's perplexity is twice what is allowed.
    """
    copy = working_copy(encoder).eval()
    copy.requires_grad_(False)
    known, names = named_unique(copy.backbone), select(encoder, plan.params)
    weights = [known[name].requires_grad_() for name in names]
    objective = NextToken().bound(encoder.language)
    optimiser = torch.optim.AdamW(weights, lr=plan.forget_rate, weight_decay=0.0)

    def perplexity(task: Task) -> float:
        return float(losses(copy, encoder, task.split("validation")).mean().exp())  # infinite, not an error

    least = least_kept(objective, perplexity(keep), plan.floor)
    best, at, snapshot = perplexity(forget), 0, [one.detach().clone() for one in weights]
    order = _order(len(rows), plan.batch_size, seed)
    with progress(title, plan.steps) as advance:
        for step in range(1, plan.steps + 1):
            places = next(order)
            some = rows.take(places)
            targets = objective.targets(some.inputs, some.labels, encoder.language, None)
            value = loss(objective.losses(copy(encoded(encoder, some, objective, None)), targets), places)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            advance(1, "")
            if step % plan.every and step < plan.steps:
                continue
            kept, gone = perplexity(keep), perplexity(forget)
            if keeps(objective, kept, least) and gone > best:
                best, at, snapshot = gone, step, [one.detach().clone() for one in weights]
            if not kept <= 2 * least:
                break
    with torch.no_grad():
        for weight, value in zip(weights, snapshot, strict=True):
            weight.copy_(value)
    copy.requires_grad_(False)
    return Edited(copy, f"step {at}")


def _order(rows: int, batch_size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Batches of rows without end, each epoch in an order of its own."""
    draw = random.Random(f"descent/{seed}")
    while True:
        order = draw.sample(range(rows), rows)
        yield from (tuple(order[begin : begin + batch_size]) for begin in range(0, rows, batch_size))
