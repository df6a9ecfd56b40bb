"""What the losses of a task's rows read: their targets, with what the pre-trained model gives of the same rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tauspan.core.params import require_finite_rows
from tauspan.models import Encoder, eval_mode, fingerprint_of
from tauspan.models.frozen import key_of, reading
from tauspan.models.intact import Intact
from tauspan.objectives import spelled
from tauspan.tasks.batches import encoded
from tauspan.tasks.split import Split
from tauspan.tasks.task import Task

_BATCH = 32


class TaskTargets:
    """The targets of one task's rows for one encoder.

    An objective that refers to the pre-trained model reads a few numbers of it for each row. They are computed once for
    each split, and kept in `Encoder.references` under a key of encoder and rows.

    Args:
        task: the task.
        encoder: the pre-trained encoder, or an edited one, whose pre-trained one is asked.
        max_tokens: where texts are cut; None takes the task's own value.

    Cost:
        Without a reference none; with one, a forward pass over each split that is asked for.
    """

    def __init__(self, task: Task, encoder: Encoder, max_tokens: int | None) -> None:
        self._task, self._encoder, self._tokens = task, encoder, task.tokens(max_tokens)
        self._references: dict[str, Tensor] = {}

    def __call__(self, split: str, places: Sequence[int] | None = None) -> Tensor:
        """The targets of some rows of a split, or of all."""
        rows = self._task.split(split)
        found = self._of(rows if places is None else rows.take(places), self._encoder)
        if not self._task.objective.refers:
            return found
        self.prepare(split)
        reference = self._references[split]
        chosen = reference if places is None else reference[torch.as_tensor(places, dtype=torch.long)]
        return torch.cat([found.double(), chosen], 1)

    def prepare(self, split: str) -> None:
        """Ask the pre-trained model now, if it is to be asked."""
        if not self._task.objective.refers or split in self._references:
            return
        rows, encoder = self._task.split(split), self._encoder
        if encoder.origin is None:
            base, read = fingerprint_of(encoder), reading(encoder)
        else:
            base, read = encoder.origin.fingerprint, encoder.origin.reading
        key = key_of(base, read, ["reference", spelled(self._task.objective), self._tokens, rows.digest])
        if key not in encoder.references:
            language = None if encoder.language is None else encoder.language.table.length
            asked = encoder if encoder.origin is None else encoder.origin.encoder(language)
            encoder.references[key] = self._asked(rows, asked)
        self._references[split] = encoder.references[key]

    def _of(self, rows: Split, encoder: Encoder) -> Tensor:
        return self._task.objective.targets(rows.inputs, rows.labels, encoder.language, self._tokens)

    @torch.no_grad()
    def _asked(self, rows: Split, encoder: Encoder) -> Tensor:
        """The reference of all rows, shape (N, R), float64."""
        objective, found = self._task.objective.bound(encoder.language), []
        with Intact(encoder.backbone)(), eval_mode(encoder):
            for begin in range(0, len(rows), _BATCH):
                part = rows.take(range(begin, min(begin + _BATCH, len(rows))))
                outputs = encoder(encoded(encoder, part, objective, self._tokens)).detach().cpu()
                require_finite_rows(outputs, f"the outputs of {encoder.source}, to which losses refer,")
                found.append(objective.reference(outputs, self._of(part, encoder)).double())
        return torch.cat(found)
