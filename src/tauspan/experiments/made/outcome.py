"""What the vectors of a way do: alone, added, merged by rules, and subtracted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tauspan.core.choices import Regime
from tauspan.core.reading import Reading
from tauspan.editing.maps.maps import Maps, drawn, wanted
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import Coefs, EditedModel
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.search.addition import scaled, search_shared
from tauspan.editing.search.negation import negation
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.vector import TaskVector

SUM = "sum"
_SINGLE = "single"


def validated(
    encoder: Encoder, vectors: Mapping[Task, TaskVector], regime: Regime, reading: Reading
) -> dict[str, float]:
    """The mean accuracy on validation rows of single vectors, and of their sum at 1."""
    model, whole, own = _model(encoder, vectors, {}, regime, reading)
    model.read({task: list(model.directions.names) for task in vectors}, "validation")
    found = {_SINGLE: 0.0, SUM: 0.0}
    for task in vectors:
        for name, at in ((_SINGLE, own[task]), (SUM, whole[SUM])):
            found[name] += model.metric(task, "validation", at) / len(vectors)
    return found


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Args:
        grid: coefficients to choose from.
        axis: coefficients of the maps of xi.
        rows: at most so many test rows of each task are read for the maps of ordinary models.
        floor: the share of the controls' accuracy that negation keeps on validation.
    """

    grid: Sequence[float]
    axis: Sequence[float]
    rows: int
    floor: float


def outcome(
    encoder: Encoder, vectors: Mapping[Task, TaskVector], merged: Mapping[str, TaskVector], regime: Regime,
    reading: Reading, asked: Asked,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is measured of the vectors of one way and seed, in values that JSON has.

    Args:
        encoder: the pre-trained encoder.
        vectors: one for each task, or the same one for all.
        merged: by rule, one vector for all tasks, beside the sum.
        regime: of the edits.
        reading: of rows.
        asked: what is measured.
    """
    together = len({id(vector) for vector in vectors.values()}) == 1
    model, whole, own = _model(encoder, vectors, merged, regime, reading)
    tasks, every = list(vectors), list(model.directions.names)
    for split in ("validation", "test"):
        model.read(dict.fromkeys(tasks, every), split)
    found: dict[str, Any] = {
        "zero shot": [model.metric(task, "test", {}) for task in tasks],
        "bits": {
            "zero shot": _bits(model, {task: {} for task in tasks}),
            _SINGLE: _bits(model, own),
            **{name: _bits(model, dict.fromkeys(tasks, at)) for name, at in whole.items()},
        },
        "rules": {name: _searched(model, tasks, at, own, asked.grid) for name, at in whole.items()},
    }
    if together:
        return found
    found |= _disturbed(model, tasks, whole[SUM], own)
    found["xi"] = _mean([one.means["box"] for one in _maps(model, vectors, asked).pairs])
    found["negated"] = [_negated(model, task, vectors[task], tasks, asked) for task in tasks]
    return found


def _model(
    encoder: Encoder,
    vectors: Mapping[Task, TaskVector],
    merged: Mapping[str, TaskVector],
    regime: Regime,
    reading: Reading,
) -> tuple[EditedModel, dict[str, Coefs], dict[Task, Coefs]]:
    """The model; by rule, the coefficients that make one model for all tasks; by task, those of its own vector."""
    if len({id(vector) for vector in vectors.values()}) == 1:
        named = {"joint": next(iter(vectors.values()))}
        own: dict[Task, Coefs] = {task: {"joint": 1.0} for task in vectors}
    else:
        named = {task.name: vector for task, vector in vectors.items()}
        own = {task: {task.name: 1.0} for task in vectors}
    whole: dict[str, Coefs] = {SUM: dict.fromkeys(named, 1.0)}
    whole |= {rule: {f"rule {rule}": 1.0} for rule in merged}
    directions = Directions.whole({**named, **{f"rule {rule}": vector for rule, vector in merged.items()}})
    model = edited_model(encoder, directions, regime, reading, ahead=True)
    model.make_heads(list(vectors))
    return model, whole, own


def _bits(model: EditedModel, at: Mapping[Task, Coefs]) -> list[str]:
    """For each task, which test rows are right, as a text of 0 and 1."""
    return [
        "".join("1" if score else "0" for score in model.scores(task, "test", where))
        for task, where in at.items()
    ]


def _searched(
    model: EditedModel, tasks: Sequence[Task], at: Coefs, own: Mapping[Task, Coefs], grid: Sequence[float]
) -> dict[str, Any]:
    """The coefficient that validation chooses, and the accuracy of each task on test rows there."""
    alpha, _ = search_shared(model, tasks, at, own, grid, "alpha")
    return {"alpha": alpha, "tuned": [model.metric(task, "test", scaled(at, alpha)) for task in tasks]}


def _maps(model: EditedModel, vectors: Mapping[Task, TaskVector], asked: Asked) -> Maps:
    """The maps of xi of all pairs; of ordinary models, which run anew at each point, on fewer rows."""
    read = dict(vectors)
    if not model.tangent:
        read = {task.subset(test=asked.rows): vector for task, vector in vectors.items()}
    return drawn(model, read, wanted(read, None, tuple(asked.axis), (0.0, 1.0), False, None, "test"))


def _disturbed(
    model: EditedModel, tasks: Sequence[Task], whole: Coefs, own: Mapping[Task, Coefs]
) -> dict[str, Any]:
    """How far the other vectors move a task's test rows: over its own vector's, and the share of changed classes."""
    drifts, changed = [], []
    for task in tasks:
        start, alone, added = (model.logits(task, "test", at).double() for at in ({}, own[task], whole))
        drifts.append(_size(added - alone) / max(_size(alone - start), 1e-30))
        changed.append(float((added.argmax(-1) != alone.argmax(-1)).double().mean()))
    return {"drift": _mean(drifts), "changed": _mean(changed)}


def _negated(
    model: EditedModel, task: Task, vector: TaskVector, tasks: Sequence[Task], asked: Asked
) -> dict[str, Any]:
    """Target and control when the vector is subtracted: once, and so often that the controls keep their share."""
    controls = [other for other in tasks if other is not task]
    found = negation(model, task, vector, {task.name: -1.0}, controls, asked.floor, asked.grid)
    classes = max(len(task.label_names), 1)
    return {
        "target": found.at_one.target, "kept": found.at_one.control_kept, "alpha": found.alpha,
        "target at floor": found.negated.target, "kept at floor": found.negated.control_kept, "chance": 1 / classes,
    }  # fmt: skip


def _size(moved: Tensor) -> float:
    return math.sqrt(float(moved.square().sum(-1).mean()))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(torch.tensor(known, dtype=torch.float64).mean()) if len(known) == len(values) > 0 else None
