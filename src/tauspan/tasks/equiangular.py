"""Heads whose classes are at equal angles, each task's in a subspace of its own."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError, listed
from tauspan.models import Encoder, Head
from tauspan.tasks.heads import build_head
from tauspan.tasks.task import Task


@checked
def with_orthogonal_heads(tasks: Sequence[Task], encoder: Encoder, *, seed: int = 0) -> list[Task]:
    """The tasks with heads that do not overlap: classes of a task at equal angles, classes of two tasks at right angles.

    The head of a task with C classes is a simplex: C unit vectors with cosines -1 / (C - 1), the closed form of
    equiangular basis vectors (Shen, Sun and Wei, 2023) for so few classes, in C - 1 dimensions that no other task uses.
    The subspaces are drawn at random. Such a head says nothing before training: zero-shot accuracy is chance, and so is
    what negation falls back to.

    Args:
        tasks: tasks of classes.
        encoder: whose features the heads read; it gives the number of features, and the factor on the logits.
        seed: of the subspaces.

    Raises:
        UsageError: a task without classes, or more classes than features: sum_t (C_t - 1) must be at most d.

    Cost:
        The tasks' own heads, from which d is read, and d (sum_t C_t)^2.

    Example:
        >>> import tauspan as ts
        >>> x, y = torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)
        >>> task = ts.Task.from_tensors("four", list("abcd"), train=(x, y), validation=(x, y), test=(x, y))
        >>> (found,) = with_orthogonal_heads([task], ts.load(torch.nn.Linear(4, 3)))
        >>> weight = found.head.weight
        >>> bool(torch.allclose(weight @ weight.T, (4 * torch.eye(4) - 1) / 3, atol=1e-6))
        True
    """
    others = [task.name for task in tasks if not task.classes or len(task.label_names) < 2]
    if others:
        raise UsageError(f"{listed(others)}: equal angles are between two classes or more.")
    if not tasks:
        return []
    like = build_head(tasks[0], encoder).weight
    width, needed = like.shape[1], sum(len(task.label_names) - 1 for task in tasks)
    if needed > width:
        raise UsageError(
            f"the tasks need {needed} dimensions (their classes less one each), and {encoder.source} gives {width} "
            "features: take fewer tasks, or heads from prompts."
        )
    draw = torch.randn(width, needed, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spans = torch.linalg.qr(draw).Q.split([len(task.label_names) - 1 for task in tasks], 1)
    return [
        replace(task, head=Head(_simplex(span).to(like), scale=encoder.logit_scale, normalize=True))
        for task, span in zip(tasks, spans, strict=True)
    ]


def _simplex(span: Tensor) -> Tensor:
    """C unit vectors with equal angles in the span of C - 1 orthonormal columns, shape (C, d)."""
    count = span.shape[1] + 1
    # an orthonormal basis of the vectors whose entries sum to 0; a class is its row, at the length that makes it a unit
    ones = torch.ones(count, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(count, dtype=torch.float64)[:, 1:]], 1)).Q[:, 1:]
    simplex: Tensor = (count / (count - 1)) ** 0.5 * basis @ span.T
    return simplex
