"""Methods that mark, entry by entry, which tasks use it: consensus of TALL masks, and EMR."""

from typing import Any

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.addition import added
from tauspan.merge.methods.election import agreeing
from tauspan.merge.methods.method import Block, Method, Option, Scope
from tauspan.merge.methods.scope import Spec
from tauspan.merge.methods.sums import SCALE, WEIGHT


def consensus(block: Block, _: Any) -> Tensor:
    """The sum, where enough tasks find their own displacement in it."""
    values = block.weights() * block.values
    total = added(values)
    others = (total - values).abs_().mul_(block.options["threshold"])
    uses = torch.gt(values.abs(), others, out=others).sum(0)  # 0 or 1 each: sums of booleans are slow
    scale: float = block.options["scale"]
    return scale * total * torch.ge(uses, block.options["least"], out=uses)


def _unified(values: Tensor) -> tuple[Tensor, Tensor]:
    """EMR's elected vector, and 1 where an entry of a model agrees with it, 0 elsewhere."""
    sign = torch.where(added(values) > 0, 1.0, -1.0).to(values)
    kept = agreeing(values, sign)
    return sign * kept.amax(0), kept.sign()


def rescalers(scope: Scope) -> Tensor | None:
    """Each model's mean magnitude over that of its masked unified vector, both summed over tensors; shape (T,)."""
    if scope.option("task") is None:
        return None

    def magnitudes(block: Block) -> Tensor:
        unified, mask = _unified(block.values)
        both = torch.stack([block.values.abs(), (unified * mask).abs()]).flatten(2)
        return both.sum(2, dtype=torch.float64) / block.shape.numel()

    own, masked = scope.total(magnitudes)
    return torch.where(masked > 0, own / masked, 1.0)


def emr(block: Block, factors: Tensor | None) -> Tensor:
    """The unified vector, or one task's part of it at that task's size."""
    unified, mask = _unified(block.values)
    scale: float = block.options["scale"]
    if factors is None:
        return scale * unified
    task = int(block.options["task"])
    return (scale * float(factors[task])) * (unified * mask[task])


def _require_a_task(spec: Spec, models: tuple[str, ...]) -> None:
    task = spec.options["task"]
    if task is not None and task >= len(models):
        raise UsageError(
            f"option 'task' of 'emr' is {task}, and there are {len(models)} models: choose one from 0 to "
            f"{len(models) - 1}."
        )


CONSENSUS = Method(
    "consensus",
    "Consensus of TALL masks",
    "Wang et al. 2024, arXiv:2405.07813",
    "lambda sum_t w_t tau_t where at least k tasks have |tau_t| > threshold |sum_s tau_s - tau_t|",
    consensus,
    options=(
        WEIGHT,
        SCALE,
        Option(
            "threshold",
            0.4,
            "the masks' lambda; the authors choose it from 0.2 to 0.6 on validation",
            low=0.0,
        ),
        Option("least", 2, "k, the tasks that must use an entry", low=0),
    ),
    fewest=2,
    temporaries=6,
)

EMR = Method(
    "emr",
    "EMR: elect, mask, rescale",
    "Huang et al. 2024, arXiv:2405.17461",
    "unified: sign of sum_t tau_t times the largest agreeing |tau_t|; for a task s: rescaler_s mask_s unified",
    emr,
    prepare=rescalers,
    require=_require_a_task,
    over="model",
    options=(
        SCALE,
        Option(
            "task", None, "number of the model, from 0, whose own vector is wanted; unset: unified", low=0
        ),
    ),
    temporaries=8,
)
