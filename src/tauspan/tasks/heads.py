"""The frozen head of a task: the user's own, label prompts, or class prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.errors import DataError
from tauspan.models import Encoder, Head, eval_mode
from tauspan.tasks.task import Task


def build_head(task: Task, encoder: Encoder, *, shots: int = 10, max_tokens: int | None = None) -> Head:
    """The task's frozen head, built from the pre-trained encoder.

    The user's own head if the task has one; else label prompts where the encoder has a text tower (CLIP's
    zero-shot head: unit-norm prompt features as weights, `logit_scale` as factor, features normalised); else
    class prototypes, the normalised mean of unit-norm features of the first `shots` training rows per class,
    cut at `max_tokens` (None takes the task's own value) as the rows that the head will see.
    """
    if task.head is not None:
        if len(task.head.weight) != len(task.label_names):
            raise DataError(
                f"the head of task {task.name!r} has {len(task.head.weight)} outputs, the task "
                f"{len(task.label_names)} classes."
            )
        return task.head
    with eval_mode(encoder), torch.no_grad():
        if task.label_prompts and encoder.label_features is not None:
            weight = encoder.embed_labels(task.label_prompts)
        else:
            weight = _prototypes(task, encoder, shots, task.tokens(max_tokens))
    return Head(weight, scale=encoder.logit_scale, normalize=True)


def _prototypes(task: Task, encoder: Encoder, shots: int, max_tokens: int | None) -> Tensor:
    rows = task.splits["train"]
    weights = []
    for index, name in enumerate(task.label_names):
        places = (rows.labels == index).nonzero().flatten()[:shots].tolist()
        if not places:
            raise DataError(
                f"class {name!r} of task {task.name!r} has no training row to make a prototype from."
            )
        features = encoder(encoder.encode(rows.take(places).inputs, max_tokens))
        weights.append(F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1))
    return torch.stack(weights)
