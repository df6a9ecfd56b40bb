"""Questions 4 and 5 of `benchmarks.kernel_suite`: one tangent model for all tasks, and rows that are forgotten."""

import argparse
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

import tauspan as ts
from tauspan.core.measure import measured
from tauspan.core.reading import Reading
from tauspan.core.report import Cell, Table
from tauspan.editing.evaluation import evaluate
from tauspan.kernel import DenseKernel, RidgeFit, closed_form, joint, logits_at_base, task_vector
from tauspan.models import Encoder
from tauspan.tasks import Task
from tauspan.train import Settings, finetune

Row = dict[str, Cell]
TOKENS = 32


def of_solutions(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Table]:
    """Question 4: one model for all tasks, test accuracy: vectors added, the block solve, joint training."""
    fewer = [task.subset(train=options.joint_rows) for task in tasks]
    fitted = {
        task: closed_form(encoder, task, params=options.params, reading=Reading(max_tokens=TOKENS))
        for task in fewer
    }
    ridge = float(np.exp(np.mean([np.log(one.choice.ridge) for one in fitted.values() if one.choice])))
    kernels = {task.name: one.kernel for task, one in fitted.items()}
    wanted = {task.name: residual(kernels[task.name], task) for task in fewer}
    with measured() as cost:
        solved = joint(kernels, wanted, ridge)
    parts = {kind: [task_vector(kernels[name], alphas[name], name, {}) for name in kernels]
             for kind, alphas in (("alone", solved.alone), ("together", solved.together))}  # fmt: skip
    alone = dict(zip(fewer, parts["alone"], strict=True))
    best = ts.add(
        encoder,
        alone,
        reading=Reading(max_tokens=TOKENS),
        grid="auto",
    ).report()
    settings = Settings(
        "linear", options.seed, params=options.params, epochs=options.epochs, max_tokens=TOKENS
    )
    trained = finetune(
        encoder,
        fewer,
        settings,
    )
    own = [mean(encoder, [task], vector) for task, vector in alone.items()]
    rows: list[Row] = [
        {"model": "a vector for each task (one model a task)", "accuracy": float(np.mean(own))}
    ]
    added, together = (sum(several[1:], several[0]) for several in parts.values())
    for label, vector, scale in (
        ("vectors added, alpha 1", added, 1.0),
        ("vectors added, alpha on validation", added, best.result["alpha"]),
        ("block solve", together, 1.0),
        (f"joint AdamW, {options.epochs} epochs", trained.task_vector, 1.0),
    ):
        rows.append({"model": label, "alpha": scale, "accuracy": mean(encoder, tasks, vector * scale)})
    note = f"{options.joint_rows} training rows a task, ridge {ridge:.3g}; the block solve took {cost.seconds:.0f} s"
    note += f"; {options.test} test rows, {options.params}, seed {options.seed}"
    return [Table("5. All tasks in one tangent model, mean test accuracy", rows, note)]


def residual(kernel: ts.TangentKernel, task: Task) -> Tensor:
    """What the squared loss of `closed_form` asks of the logits: gap (onehot - 1/C) less the centred start."""
    start = logits_at_base(kernel)
    classes = start.shape[1]
    gap = kernel.tangent.base.head.scale
    targets = gap * (F.one_hot(task.split("train").labels, classes) - 1 / classes)
    return targets - (start - start.mean(1, keepdim=True))


def mean(encoder: Encoder, tasks: Sequence[Task], vector: ts.TaskVector | None) -> float:
    """Mean test accuracy."""
    found = evaluate(
        encoder,
        tasks,
        vector,
        reading=Reading(max_tokens=TOKENS),
    ).report()
    return float(np.mean([found.result["accuracy"][task.name] for task in tasks]))


def of_forgetting(encoder: Encoder, tasks: Sequence[Task], options: argparse.Namespace) -> list[Table]:
    """Question 5: a tenth of each task's rows forgotten by a downdate, against solving anew without them."""
    rows: list[Row] = []
    for task in tasks:
        fitted = closed_form(encoder, task, params=options.params, reading=Reading(max_tokens=TOKENS))
        kernel, wanted = fitted.kernel, residual(fitted.kernel, task)
        assert fitted.choice is not None  # noqa: S101 - the squared loss chooses its ridge
        gone = list(range(kernel.samples // 10))
        whole = RidgeFit.of(kernel, wanted, fitted.choice.ridge)
        with measured() as down:
            left = whole.without(gone)
        kept = [place for place in range(kernel.samples) if place not in gone]
        matrix = kernel.block(kept, kept)
        with measured() as anew:
            fresh = RidgeFit.of(DenseKernel(matrix, kernel.outputs), wanted[kept], fitted.choice.ridge)
        apart = (
            left.alpha.view(-1)[-fresh.alpha.numel() :] - fresh.alpha.view(-1)
        ).norm() / fresh.alpha.norm()
        rows.append({"task": task.name, "forgotten": len(gone), "of": kernel.samples, "downdate [s]": down.seconds,
                     "solved anew [s]": anew.seconds, "distance": float(apart)})  # fmt: skip
    return [
        Table("6. Rows forgotten exactly", rows, "ridge of the whole; the kernel's own time is in neither")
    ]
