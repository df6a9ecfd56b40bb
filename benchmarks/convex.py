"""Convex fitting against AdamW on one task: time, the objective that both minimise, validation accuracy."""

from dataclasses import replace

import torch.nn.functional as F
from benchmarks.rows import Row, Setting
from benchmarks.timing import once

import tauspan as ts
from tauspan.core.reading import Reading
from tauspan.editing.model.outputs import outputs
from tauspan.models import Classifier, Encoder
from tauspan.tangent import linearize
from tauspan.tasks import Task, build_head
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector

TASK, PARAMS, RIDGE, TOLERANCE = "tweet_sentiment", "last:2", 1e-3, 1e-3
EPOCHS = (1, 5, 20)


def convex(setting: Setting) -> list[Row]:
    """The rows of AdamW after some numbers of epochs and of both solvers."""
    rows = 32 if setting.short else 256
    task = ts.suite([TASK])[0].subset(train=rows, validation=128, test=1)
    encoder = ts.load("minilm")
    assert isinstance(encoder, Encoder)  # noqa: S101 - no edited model
    encoder = encoder.to(setting.device)
    found: list[Row] = []
    settings = ts.Settings(params=PARAMS, max_tokens=32, cache="auto")
    for epochs in EPOCHS[:1] if setting.short else EPOCHS:
        name = f"AdamW, {epochs} epoch{'s' * (epochs > 1)}"
        found += _measured(
            name,
            encoder,
            task,
            setting,
            lambda n=epochs: ts.finetune(encoder, task, replace(settings, epochs=n)),
        )
    for solver in ("lbfgs", "newton-cg"):
        found += _measured(
            solver, encoder, task, setting,
            lambda s=solver: ts.fit(encoder, task, s, ridge=RIDGE, tolerance=TOLERANCE, params=PARAMS, cache="auto",
                             reading=Reading(batch_size=32, max_tokens=32)),
        )  # fmt: skip
    return found


def _measured(name: str, encoder: Encoder, task: Task, setting: Setting, run) -> list[Row]:
    """Seconds, the objective at the end, and validation accuracy."""
    done: list[ts.Finetuned] = []
    taken = once(lambda: done.append(run()), setting.device)
    vector, last = done[0].task_vector, done[0].history[-1]
    facts = vector.info.get("solver", {})
    note = f"{TASK}, {len(task.split('train'))} rows, {PARAMS}, ridge {RIDGE:g}, once"
    if facts:
        note += f"; gradient norm {facts['gradient_norm']:.1e} after {facts['steps']} steps (tolerance {TOLERANCE:g})"
    values = {
        "s": getattr(taken, setting.clock), "objective": objective(encoder, task, vector),
        "validation accuracy": last["accuracy"],
    }  # fmt: skip
    return [Row(f"fit, {name}", value, value, value, None, unit, note=note) for unit, value in values.items()]


def objective(encoder: Encoder, task: Task, vector: TaskVector) -> float:
    """Mean cross-entropy on the training rows plus ridge/2 |tau|^2."""
    tangent = linearize(Classifier(encoder, build_head(task, encoder, max_tokens=32)), list(vector.deltas))
    tangent.load_task_vector(vector)
    rows = task.split("train")
    logits = outputs(tangent, batches(encoder, rows, 32, 64))
    return float(F.cross_entropy(logits, rows.labels)) + RIDGE / 2 * vector.norm() ** 2
