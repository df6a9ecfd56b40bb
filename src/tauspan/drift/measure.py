"""How far a vector moves rows of other tasks, measured on rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.reading import Reading
from tauspan.drift.others import Others, require_others
from tauspan.models import Batch, Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.train.convex import labelled
from tauspan.train.penalty import Training
from tauspan.vector import TaskVector

_ROWS = 64  # of each task, for the number in a vector's info
_BATCH = 32
_Change: TypeAlias = Callable[[Batch], Tensor]


@torch.no_grad()
def measured_drift(run: Training, others: Others) -> dict[str, float]:
    """By task, the mean over at most 64 training rows of |change of the logits|^2 by what is trained."""

    def change(place: int) -> _Change:
        return lambda batch: run.trainee.change(batch, others.heads[place])

    return _over_rows(others, change)


@torch.no_grad()
def tangent_drift(run: Training, others: Others) -> dict[str, float]:
    """By task, the mean over the same rows of |J tau|^2, J of the logits at theta0, whatever is trained."""
    tau = {name: delta.detach() for name, delta in run.tau().items()}
    settings = run.settings

    def change(place: int) -> _Change:
        classifier = Classifier(run.encoder, others.heads[place])
        tangent = linearize(classifier, list(tau), engine=settings.engine, check=settings.check)
        return lambda batch: tangent.tangent(batch, vectors=[tau])[1][0]

    return _over_rows(others, change)


def _over_rows(others: Others, change: Callable[[int], _Change]) -> dict[str, float]:
    """By task, the mean squared norm of a change of logits over at most 64 training rows."""
    found = {}
    for place, task in enumerate(others.tasks):
        rows, of = others.drawn(place, _ROWS, "measured"), change(place)
        parts = [others.batch(place, rows[begin : begin + _BATCH]) for begin in range(0, len(rows), _BATCH)]
        total = sum(float(of(batch).double().square().sum()) for batch in parts)
        found[task.name] = total / len(rows)
    return found


@checked
@torch.no_grad()
def exact_drift(
    encoder: Encoder,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    *,
    rows: int | None = None,
    seed: int = 0,
    reading: Reading = Reading(),
) -> dict[str, dict[str, float]]:
    """By task and vector, D(tau; s) = E_x |J_s(x) tau|^2 over training rows of s: shape of the result {task: {vector}}.

    Args:
        encoder: the pre-trained encoder.
        vectors: by name; of any regime, read in the tangent model.
        tasks: whose rows are read, without labels, under their heads.
        rows: so many of each; None takes all.
        seed: of their choice.
        reading: batches, and where texts are cut.

    Raises:
        UsageError: no task or no vector, a task without logits, two tasks of one name, or a reading with a point.
        MismatchError: vectors that move other tensors than one another.

    Cost:
        A pass with T tangents over the rows of each task.
    """
    require_others(tasks)
    reading.require_no_point("exact_drift")
    if not vectors:
        raise UsageError("no vector is given: name those whose drift is measured, as {name: vector}.")
    first = next(iter(vectors.values()))
    found = {}
    for task in tasks:
        some = task if rows is None else task.subset(train=rows, seed=seed)
        classifier = Classifier(encoder, build_head(task, encoder, max_tokens=reading.max_tokens))
        tangent = linearize(classifier, list(first.fitted(encoder, tangent=True).deltas))
        total = torch.zeros(len(vectors), dtype=torch.float64)
        cut = task.tokens(reading.max_tokens)
        for batch, _ in labelled(encoder, some.split("train"), cut, reading.batch_size, task.objective):
            _, moved = tangent.tangent(batch, vectors=list(vectors.values()))
            total += moved.double().square().sum((1, 2)).cpu()
        found[task.name] = dict(zip(vectors, (total / len(some.split("train"))).tolist(), strict=True))
    return found
