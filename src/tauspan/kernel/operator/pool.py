"""The kernel of rows without labels, from which `design` chooses what to label."""

from collections.abc import Sequence
from typing import Any

from tauspan.core.arguments import checked
from tauspan.core.errors import DataError
from tauspan.core.reading import Reading
from tauspan.kernel.operator.superposing import Rows
from tauspan.kernel.operator.tangent import TangentKernel
from tauspan.kernel.rows.selector import Outputs
from tauspan.models import Encoder
from tauspan.tasks import Task


@checked
def pool_kernel(
    encoder: Encoder,
    pool: Task | Sequence[Any],
    *,
    params: str | Sequence[str] = "all",
    outputs: Outputs | None = None,
    reading: Reading = Reading(batch_size=32),
) -> TangentKernel:
    """The kernel of a pool with one output for each row; no label is read.

    The training rows of a task are read under its head, if that is the user's own or made of prompts, and then outputs
    are logits. Rows alone, and those of a task whose head is made of labelled rows, are read as features.

    Args:
        encoder: what `tauspan.load` returned.
        pool: a task, whose training rows are the pool; or rows: texts, images or tensors.
        params: which parameters move.
        outputs: what of the outputs counts; None takes `"trace"` of logits, and `"sum"` of features, of which there are
            hundreds.
        reading: batches, and where texts are cut.

    Raises:
        DataError: no rows.

    Cost:
        Nothing yet; the matrix is computed when it is first read.

    Example:
        >>> import torch, tauspan as ts
        >>> pool_kernel(ts.load(torch.nn.Linear(4, 3)), list(torch.eye(4))).shape
        (4, 4)
    """
    reading.require_no_point("pool_kernel")
    rows: Sequence[Any] = pool.split("train").inputs if isinstance(pool, Task) else pool
    if not len(rows):
        raise DataError("the pool holds no row: give rows to choose from.")
    if isinstance(pool, Task) and _without_labels(pool, encoder):
        kernel = Rows(encoder, None, params, reading, "auto").of_inputs(pool, rows)
        return kernel.of_outputs("trace" if outputs is None else outputs)
    size = reading.batch_size
    cut = pool.tokens(reading.max_tokens) if isinstance(pool, Task) else reading.max_tokens
    parts = [
        encoder.encode([rows[place] for place in range(begin, min(begin + size, len(rows)))], cut)
        for begin in range(0, len(rows), size)
    ]
    return TangentKernel(encoder, parts, params=params, outputs="sum" if outputs is None else outputs)


def _without_labels(task: Task, encoder: Encoder) -> bool:
    """Whether the task has a head that no labelled row is needed for."""
    if task.head is not None:
        return True
    prompted = bool(task.label_prompts or task.templates) and encoder.label_features is not None
    return prompted and task.head_from in ("auto", "prompts")
