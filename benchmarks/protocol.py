"""The paper's protocol as one table of constants, each with its source; recipes and code are tested against it.

Sources: `code` is the official code (github.com/gortizji/tangent_task_arithmetic, commit 0aa0e18), `derived` is
arithmetic on its values, `published` stands in a publication about the same runs.
"""

from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["code", "derived", "published"]


@dataclass(frozen=True)
class Constant:
    """One value of the protocol and where it comes from."""

    value: Any
    source: Source
    where: str


@dataclass(frozen=True)
class TaskSizes:
    """One of the eight tasks: rows that train, rows of validation, epochs, and the optimiser steps these make.

    `validation` None: the data set has a validation folder of its own, and all of its training folder trains.
    """

    train: int
    validation: int | None
    epochs: int
    steps: int
    templates: int


TASKS = {
    "cars": TaskSizes(7330, 814, 35, 2030, 8),
    "dtd": TaskSizes(3384, 376, 76, 2052, 8),
    "eurosat": TaskSizes(21600, None, 12, 2028, 3),
    "gtsrb": TaskSizes(23976, 2664, 11, 2068, 3),
    "mnist": TaskSizes(55000, 5000, 5, 2150, 1),
    "resisc45": TaskSizes(17010, 1890, 15, 1995, 18),
    "sun397": TaskSizes(17865, 1985, 14, 1960, 2),
    "svhn": TaskSizes(68257, 5000, 4, 2136, 1),
}
CONTROL = "imagenet"

PROTOCOL = {
    "optimiser": Constant("AdamW, default betas and eps", "code", "src/finetune.py"),
    "learning rate": Constant(1e-5, "code", "src/finetune.py, main block; the flag's 1e-3 is overwritten"),
    "weight decay": Constant(0.1, "code", "src/args.py; on all parameters, norms and biases too"),
    "decay toward": Constant("zero", "code", "src/finetune.py: AdamW on theta itself, in both regimes"),
    "batch size": Constant(128, "code", "src/finetune.py; global, over all processes"),
    "batch size, ViT-L/14": Constant((64, 2), "code", "src/finetune.py: 64 rows, 2 accumulations"),
    "warm-up": Constant(500, "code", "src/args.py; linear, in optimiser steps"),
    "schedule": Constant("cosine to 0", "code", "src/utils.py"),
    "clip": Constant(1.0, "code", "src/finetune.py; global gradient norm"),
    "label smoothing": Constant(0.0, "code", "src/args.py"),
    "augmentation": Constant("crop", "code", "src/finetune.py: open_clip's training transform, 0.9 to 1 of the area"),
    "precision": Constant("float32", "code", "no autocast in src/finetune.py"),
    "selection": Constant("last step", "code", "src/finetune.py; no early stopping"),
    "point": Constant("encoder", "code", "src/linearize.py; features are normalised after the product"),
    "validation share": Constant(0.1, "code", "src/datasets/common.py"),
    "validation at most": Constant(5000, "code", "src/datasets/common.py"),
    "grid": Constant(tuple(round(0.05 * k, 2) for k in range(21)), "code", "src/args.py, n_eval_points 21"),
    "control kept": Constant(0.95, "published", "the threshold of the tables; the official flag is undefined"),
    "control": Constant(CONTROL, "code", "eval_task_negation.py; validation: 5000 rows of its training split"),
    "addition": Constant(
        "alpha of the sum with the largest mean over tasks of accuracy / single-task accuracy on validation",
        "code", "eval_task_addition.py",
    ),
    "normalised accuracy": Constant(
        "mean over tasks of accuracy / accuracy of the single-task model of the same regime",
        "code", "eval_task_addition.py; post-hoc is divided by post-hoc",
    ),
    "negation": Constant(
        "alpha of -tau with the least target accuracy on validation among those that keep the control",
        "code", "eval_task_negation.py",
    ),
    "disentanglement error": Constant(
        "sum over both tasks of the share of rows whose class differs from that of the task's own vector alone",
        "published", "two public re-implementations agree on the form",
    ),
}  # fmt: skip


def validation_rows(rows: int) -> int:
    """How many of a training split's rows become validation: a tenth, at most 5000.

    Example:
        >>> validation_rows(8144), validation_rows(73257)
        (814, 5000)
    """
    share, most = PROTOCOL["validation share"].value, PROTOCOL["validation at most"].value
    return min(int(rows * share), int(most))
