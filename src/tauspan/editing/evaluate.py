"""Accuracy of an edited model: outputs over a split, and what is read off them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tauspan import models
from tauspan.core.arguments import checked
from tauspan.core.errors import UsageError
from tauspan.core.measure import progress
from tauspan.core.params import require_finite_rows
from tauspan.core.processes import world
from tauspan.core.reading import Reading
from tauspan.core.report import Report, Table, noted, provenance
from tauspan.editing.edit import EditRegime, apply, edit_regime, point_of
from tauspan.editing.saved import facts
from tauspan.models import Batch, Classifier, Encoder
from tauspan.models.intact import Intact
from tauspan.tangent import Linearized, linearize
from tauspan.tangent.contributions import Advance, by_batch, contributions, in_order, silent
from tauspan.tasks import Task, build_head
from tauspan.tasks.assembly import told
from tauspan.tasks.batches import Batches, batches
from tauspan.vector import TaskVector


@torch.no_grad()
def outputs(
    model: Callable[[Batch], Tensor], prepared: Batches, advance: Advance = silent, what: str = "the logits"
) -> Tensor:
    """A model's logits over prepared batches, shape (N, K), in the rows' order, on the CPU; processes share batches.

    Raises:
        NonFiniteError: a row has NaN or infinity among them; `what` says in words whose logits they are.
    """
    ordinary = isinstance(model, nn.Module) and not isinstance(
        model, Linearized
    )  # the others see to it themselves
    with Intact(cast(nn.Module, model))() if ordinary else nullcontext():
        found = in_order(by_batch(lambda batch: model(batch).detach().cpu(), prepared, advance), 0)
    require_finite_rows(found, what)
    return found


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows whose largest logit is the label's.

    Raises:
        NonFiniteError: a row's logits hold NaN or infinity: it has no class.
    """
    require_finite_rows(logits, "the logits")
    return float((logits.argmax(-1) == labels).double().mean())


@noted
@checked
def evaluate(
    encoder: Encoder | Linearized,
    tasks: Sequence[Task],
    vector: TaskVector | None = None,
    scale: float = 1.0,
    regime: EditRegime | None = None,
    split: Literal["train", "validation", "test"] = "test",
    *,
    reading: Reading = Reading(),
) -> Report:
    """Accuracy and cross-entropy on each task, under its frozen head from the pre-trained encoder.

    Args:
        encoder: the pre-trained encoder, or an edited one that `apply` or `load` returned, whose heads are those of the
            pre-trained one that it was made from.
        tasks: what to evaluate on.
        vector: the edit; None evaluates the encoder as it is (zero-shot).
        scale: the coefficient alpha of the edit.
        regime: `"standard"`, `"posthoc"` (a standard vector in the tangent model) or `"linear"`; None takes
            the vector's own.
        split: which rows.
        reading: batches, where texts are cut, and the point of the tangent model; see `tauspan.Reading`.

    Returns:
        A `Report` with one row a task and the mean; `report.result["accuracy"]` by task name, and `["mean"]`. Several
        processes share the batches, and each returns the whole report.

    Raises:
        UsageError: a vector for a tangent model, which has its own.
        MismatchError: several processes were started with different models, edits or data.
        NonFiniteError: a row's logits are NaN or infinite; it is never counted as a class.
    """
    if isinstance(encoder, Linearized):
        if vector is not None:
            raise UsageError(
                "`vector` (--vector) edits a pre-trained model, and this is an edited tangent model, which has its own: "
                "leave it out, or give the model that both start from."
            )
        reading = replace(reading, point=reading.point or encoder.head_point)
        vector = encoder.task_vector(encoder.label)
        encoder = base_encoder(encoder)
    chosen = None if vector is None else edit_regime(vector, regime)
    point = None if vector is None else point_of([vector], reading.point)
    base = models.fingerprint_of(encoder)
    own = None if vector is None else vector.fitted(encoder, tangent=chosen != "standard", base=base)
    edited = apply(encoder, vector, scale) if vector is not None and chosen == "standard" else encoder
    assert isinstance(edited, Encoder)  # noqa: S101 - `apply` keeps the class
    tangent = None if own is None or chosen == "standard" else linearize(encoder, list(own.deltas))

    def logits(task: Task, advance: Advance) -> Tensor:
        head = build_head(task, encoder, max_tokens=reading.max_tokens)
        part = task.split(split)
        prepared = batches(encoder, part, task.tokens(reading.max_tokens), reading.batch_size)
        if own is None or tangent is None:
            with models.eval_mode(edited):
                whose = f"the logits of {task.name!r} on {split}"
                return outputs(Classifier(edited, head), prepared, advance, whose)
        edit = tangent.under(head, point)
        about = {"task": task.name, "split": split}
        found = contributions(edit, {own.label: own}, prepared, part.labels, info=about, advance=advance)
        return found.logits([scale])

    rows: list[dict[str, str | int | float | bool | None]] = []
    total = sum(len(task.split(split)) for task in tasks)
    with world() as processes, progress("evaluate", total, processes.first) as advance:
        if processes.size > 1:
            sums = " ".join(task.checksum()[:12] for task in tasks)
            edit = "none" if vector is None else f"{vector.norm():.17g} x {scale!r}, {chosen}"
            compared = {"the base's fingerprint": base[:12], "the tasks' checksums": sums, "the edit": edit}
            processes.require_same({**compared, "the split": split})
        for task in tasks:
            found, labels = logits(task, advance), task.split(split).labels
            loss = float(F.cross_entropy(found, labels))
            rows.append(
                {"task": task.name, "accuracy": accuracy(found, labels), "loss": loss, "rows": len(labels)}
            )
    by_task = {str(row["task"]): row["accuracy"] for row in rows}
    means = (
        {key: sum(float(row[key] or 0) for row in rows) / len(rows) for key in ("accuracy", "loss")}
        if rows
        else {}
    )
    if len(rows) > 1:
        rows.append({"task": "mean", **means, "rows": sum(int(row["rows"] or 0) for row in rows)})
    plain = (
        "pre-trained"
        if encoder.origin is None
        else f"edited: {encoder.edit}, heads of {encoder.origin.source}"
    )
    label = plain if vector is None else f"{vector.label} x {scale:g}, {chosen}"
    about = provenance(base=encoder.source, fingerprint=base, split=split, scale=scale, **facts(encoder))
    return Report(
        f"Accuracy on {split}",
        [Table(label, rows, left_out(tasks))],
        about,
        result={"accuracy": by_task, "mean": means},
    )


def left_out(tasks: Sequence[Task]) -> str:
    """What the tasks' readers left out, as words."""
    found = {task.name: task.extra["left_out"] for task in tasks if "left_out" in task.extra}
    return " ".join(f"Left out of {name}: {told(counts)}." for name, counts in found.items())


def base_encoder(tangent: Linearized) -> Encoder:
    """The encoder that a tangent model stands on."""
    base = tangent.base.encoder if isinstance(tangent.base, Classifier) else tangent.base
    if not isinstance(base, Encoder):
        raise UsageError(
            f"a linearised {type(base).__name__} has no encoder to read a task with; use tauspan.load."
        )
    return base
