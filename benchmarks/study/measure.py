"""What is measured of one variant's vectors: addition, negation, xi in both readings, geometry. Plain values."""

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from benchmarks.study.plan import Plan, Variant

from tauspan.editing import add, disentanglement, evaluate, negate
from tauspan.kernel.diagnose.lazy import linearity, posthoc_gap
from tauspan.models import Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector, cosine_matrix

Vectors = Mapping[Task, TaskVector]


def addition(encoder: Encoder, vectors: Vectors, variant: Variant, plan: Plan) -> dict[str, Any]:
    """Zero-shot, single-task and added accuracy on test: at alpha chosen on validation, at 1 and at 1/T."""
    reading = plan.reading(variant)
    found = add(encoder, vectors, variant.regime, grid=plan.grid, reading=reading)
    total = sum(list(vectors.values())[1:], next(iter(vectors.values())))
    mean = evaluate(encoder, list(vectors), total, 1 / len(vectors), variant.regime, reading=reading)
    made = json.loads(found.report().to_json())
    tasks = [row.cells() for row in (*found.tasks, found.mean)]
    rows = {"mean": mean.mean.accuracy if mean.mean else None, "tasks": tasks}
    return {**made["result"], **rows, "series": made["series"]}


def negation(encoder: Encoder, vectors: Vectors, variant: Variant, plan: Plan) -> dict[str, Any]:
    """The target's accuracy on test at the alpha that forgets most on validation and keeps the controls."""
    tasks = list(vectors)
    target = next((task for task in tasks if task.name == plan.target), tasks[-1])
    controls = [task for task in tasks if task is not target]
    found = negate(
        encoder, target, vectors[target], controls, plan.floor, variant.regime, grid=plan.grid,
        reading=plan.reading(variant),
    )  # fmt: skip
    made = json.loads(found.report().to_json())
    rows = list(found.cells().values())
    return {**made["result"], "task": target.name, "rows": rows, "series": made["series"]}


def interference(
    encoder: Encoder, vectors: Vectors, variant: Variant, plan: Plan, units: Mapping[str, float] | None
) -> dict[str, Any]:
    """Xi over the box at equal coefficients and at matched drift; `units` None takes this variant's own drift."""
    few = {task.subset(test=plan.map_rows): vector for task, vector in vectors.items()}
    pairs = list(plan.pairs or list(combinations([task.name for task in vectors], 2))[:2])
    found = disentanglement(
        encoder, few, variant.regime, pairs=pairs, grid=plan.axis, drift=dict(units) if units else True,
        reading=plan.reading(variant),
    )  # fmt: skip
    result = found.report().result
    drift = result["drift"]
    return {
        "pairs": result["pairs"],
        "at alpha 1": drift["at alpha 1"],
        "matched": drift["pairs"],
        "unit": drift["unit"],
    }


def geometry(encoder: Encoder, vectors: Vectors, variant: Variant, plan: Plan) -> dict[str, Any]:
    """Norms of the vectors and the cosines between them."""
    taus = list(vectors.values())
    cosines = cosine_matrix(taus)
    return {
        "norms": [tau.norm() for tau in taus],
        "cosines": [float(cosines[i, j]) for i, j in combinations(range(len(taus)), 2)],
    }


def curvature(encoder: Encoder, vectors: Vectors, variant: Variant, plan: Plan) -> dict[str, Any]:
    """The ordinary vectors read in the tangent model: |f - f_lin| / |f - f(theta0)| on own rows, and agreement."""
    found = {}
    for task, vector in vectors.items():
        rows = task.subset(test=plan.map_rows).split("test")
        head = build_head(task, encoder, max_tokens=plan.max_tokens)
        prepared = batches(encoder, rows, task.tokens(plan.max_tokens), 64)
        own = vector.fitted(encoder, tangent=True)
        tangent = linearize(Classifier(encoder, head), list(own.deltas), variant.point)
        path = linearity(tangent, own, [batch for _, batch in prepared], (1.0,))
        labels = rows.labels[[place for places, _ in prepared for place in places]]
        gap = posthoc_gap(path.start, path.tangent, path.moved[0], labels)
        found[task.name] = {"relative": gap.relative.value, "agreement": gap.agreement}
    return {"tasks": found}
