"""Accuracy of an edited model: outputs over a split, and the affine outputs of the tangent model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan import models
from tauspan.edit import EditRegime, apply, edit_regime
from tauspan.errors import UsageError
from tauspan.linear import Linearized, linearize
from tauspan.measure import progress
from tauspan.models import Batch, Classifier, Encoder
from tauspan.report import Report, Table, provenance
from tauspan.tasks import Split, Task, build_head
from tauspan.vector import TaskVector

Advance = Callable[[int, str], None]


def _silent(steps: int, note: str) -> None:
    """The progress of a caller who does not ask for one."""


def batches(encoder: Encoder, rows: Split, max_tokens: int | None, batch_size: int) -> "Batches":
    """The rows in batches of similar length (less padding), with the places they had."""
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: it must be at least 1.")
    prepared = []
    lengths = [len(item) if isinstance(item, str) else 0 for item in rows.inputs]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        prepared.append((places, encoder.encode([rows.inputs[place] for place in places], max_tokens)))
    return prepared


def _in_order(parts: Sequence[tuple[list[int], Tensor]], axis: int) -> Tensor:
    """Batches put back into the rows' order along the axis of the rows."""
    places = [place for block, _ in parts for place in block]
    return torch.cat([values for _, values in parts], axis).index_select(axis, torch.tensor(places).argsort())


Batches = Sequence[tuple[list[int], Batch]]


@torch.no_grad()
def outputs(model: Callable[[Batch], Tensor], prepared: Batches, advance: Advance = _silent) -> Tensor:
    """A model's logits over prepared batches, shape (N, K), in the rows' order, on the CPU."""
    parts = []
    for places, batch in prepared:
        parts.append((places, model(batch).detach().cpu()))
        advance(len(places), "")
    return _in_order(parts, 0)


@dataclass(frozen=True)
class Affine:
    """The tangent model's outputs over a split as an affine function of the coefficients.

    f(x; theta0) + sum_t a_t J(x) tau_t, then what follows the linearisation point. One pass over the data
    gives every choice of coefficients.

    Args:
        value: f(x; theta0), shape (N, C).
        tangents: J(x) tau_t, shape (T, N, C).
        finish: the frozen head where the point lies before it.
    """

    value: Tensor
    tangents: Tensor
    finish: Callable[[Tensor], Tensor]

    def logits(self, coefficients: Sequence[float]) -> Tensor:
        """Logits of shape (N, K) at a_1 ... a_T."""
        weights = torch.tensor(coefficients, dtype=self.value.dtype)
        return self.finish(self.value + torch.einsum("t,tnc->nc", weights, self.tangents))


def affine(
    tangent: Linearized, vectors: Sequence[TaskVector], prepared: Batches, advance: Advance = _silent
) -> Affine:
    """One pass of the tangent model over prepared batches in all directions at once."""
    values, tangents = [], []
    for places, batch in prepared:
        value, directions = tangent.tangent(batch, vectors=vectors)
        values.append((places, value.detach().cpu()))
        tangents.append((places, directions.detach().cpu()))
        advance(len(places), "")
    return Affine(_in_order(values, 0), _in_order(tangents, 1), tangent.finish)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's."""
    return float((logits.argmax(-1) == labels).double().mean())


def evaluate(
    encoder: Encoder | Linearized,
    tasks: Sequence[Task],
    vector: TaskVector | None = None,
    scale: float = 1.0,
    regime: EditRegime | None = None,
    split: Literal["train", "validation", "test"] = "test",
    *,
    point: Literal["encoder", "logits"] | None = None,
    batch_size: int = 64,
    max_tokens: int | None = None,
    show_progress: bool = True,
) -> Report:
    """Accuracy and cross-entropy on each task, under its frozen head from the pre-trained encoder.

    Args:
        encoder: the pre-trained encoder, or an edited tangent model that `load` returned.
        tasks: what to evaluate on.
        vector: the edit; None evaluates the encoder as it is (zero-shot).
        scale: the coefficient alpha of the edit.
        regime: `"standard"`, `"posthoc"` (a standard vector in the tangent model) or `"linear"`; None takes
            the vector's own.
        split: which rows.
        point: where the tangent model is linearised; None takes `"logits"`.
        batch_size: rows per forward pass.
        max_tokens: where texts are cut; None takes each task's own value.
        show_progress: a bar on a terminal.

    Returns:
        A `Report` with one row a task and the mean; `report.result["accuracy"]` by task name, and `["mean"]`.
    """
    if isinstance(encoder, Linearized):
        vector = encoder.task_vector() if vector is None else vector
        encoder = base_encoder(encoder)
    chosen = None if vector is None else edit_regime(vector, regime)
    edited = apply(encoder, vector, scale) if vector is not None and chosen == "standard" else encoder
    rows: list[dict[str, str | int | float | bool | None]] = []
    with progress("evaluate", sum(len(task.split(split)) for task in tasks), show_progress) as advance:
        for task in tasks:
            head = build_head(task, encoder)
            part = task.split(split)
            tokens = task.max_tokens if max_tokens is None else max_tokens
            prepared = batches(encoder, part, tokens, batch_size)
            if vector is not None and chosen != "standard":
                tangent = linearize(Classifier(encoder, head), list(vector.deltas), point)
                vector.require_base(models.fingerprint_of(encoder))
                logits = affine(tangent, [vector], prepared, advance).logits([scale])
            else:
                assert isinstance(edited, Encoder)  # noqa: S101 - `apply` keeps the class
                with models.eval_mode(edited):
                    logits = outputs(Classifier(edited, head), prepared, advance)
            loss = float(F.cross_entropy(logits, part.labels))
            rows.append(
                {
                    "task": task.name,
                    "accuracy": accuracy(logits, part.labels),
                    "loss": loss,
                    "rows": len(part),
                }
            )
    by_task = {str(row["task"]): row["accuracy"] for row in rows}
    means = (
        {key: sum(float(row[key] or 0) for row in rows) / len(rows) for key in ("accuracy", "loss")}
        if rows
        else {}
    )
    if len(rows) > 1:
        rows.append({"task": "mean", **means, "rows": sum(int(row["rows"] or 0) for row in rows)})
    label = "pre-trained" if vector is None else f"{vector.label} x {scale:g}, {chosen}"
    facts = provenance(
        base=encoder.source, fingerprint=models.fingerprint_of(encoder), split=split, scale=scale
    )
    return Report(
        f"Accuracy on {split}", [Table(label, rows)], facts, result={"accuracy": by_task, "mean": means}
    )


def base_encoder(tangent: Linearized) -> Encoder:
    """The encoder that a tangent model stands on."""
    base = tangent.base.encoder if isinstance(tangent.base, Classifier) else tangent.base
    if not isinstance(base, Encoder):
        raise UsageError(
            f"a linearised {type(base).__name__} has no encoder to read a task with; use tauspan.load."
        )
    return base
