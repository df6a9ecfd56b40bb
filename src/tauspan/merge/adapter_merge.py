"""Merging into an adapter: exact where method and inputs are linear and low-rank, else by SVD with its error."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tauspan.errors import UsageError
from tauspan.merge import sums
from tauspan.merge.adapters import AdapterSource
from tauspan.merge.checks import check
from tauspan.merge.engine import Engine
from tauspan.merge.lowrank import Layout, LowRank, from_dense
from tauspan.merge.memory import require_count
from tauspan.merge.method import Block
from tauspan.merge.plan import Job
from tauspan.merge.problems import require_none
from tauspan.merge.reading import Reader
from tauspan.merge.scope import Spec
from tauspan.merge.settings import depths

# Their result is sum_t c_t tau_t with one c_t a tensor, so that factors can be kept.
LINEAR = (sums.LINEAR, sums.TASK_ARITHMETIC, sums.LINES, sums.PASSTHROUGH)


def merge_into_adapter(job: Job, rank: int | None) -> LowRank:
    """The merged displacement as an adapter of at most that rank.

    Adapters merged by a linear method keep their factors, side by side, and are cut only if their ranks add up to more
    than `rank`. Anything else is merged densely, tensor by tensor, and cut by SVD. `LowRank.lost` says, tensor by
    tensor, what was cut off.

    Args:
        job: inputs, method and options; adapters need no base.
        rank: of the result; None keeps the ranks' sum, for adapters and linear methods.

    Raises:
        UsageError: no rank where one is needed, or a tensor that moves and is no matrix.
        MismatchError: the inputs do not fit together.
    """
    require_count(job.method, len(job.models))
    lows = [model.low for model in job.models if isinstance(model, AdapterSource)]
    if len(lows) < len(job.models) or job.base is not None:
        require_none(check(job.base, job.models, allow=job.allow))
    together = sum(lows[1:], lows[0]) if lows else LowRank({})  # adapters that do not fit together fail here
    specs = _specs(job, together)
    if len(lows) == len(job.models) and job.method in LINEAR:
        low = _kept(job, lows, specs)
        return low if rank is None else low.truncated(rank)
    if rank is None:
        raise UsageError(
            f"the method {job.method.name!r} does not keep these inputs' ranks, so the adapter's must be stated: `rank`."
        )
    layouts: Mapping[str, Layout] = {name: terms[0].layout for name, terms in together.terms.items()}
    return from_dense(_dense(job, specs), rank, like=layouts, label=job.method.name)[0]


def _specs(job: Job, together: LowRank) -> list[Spec]:
    """What is merged: all that adapters change, or the base's tensors that a model holds."""
    if together.terms and job.base is None:
        shapes = {name: together.shape(name) for name in together.terms}
    else:
        tensors = job.reference.tensors.items()
        shapes = {n: one.shape for n, one in tensors if one.dtype.is_floating_point and job.holding(n)}
    places = depths(shapes if job.base is None else job.base.tensors)
    return [Spec(n, shape, job.settings.at(n, places[n]), places[n]) for n, shape in shapes.items()]


def _kept(job: Job, lows: list[LowRank], specs: list[Spec]) -> LowRank:
    """Sum_t c_t tau_t by factors, with the numbers c_t that the method itself gives unit displacements."""
    total, labels = LowRank({}), tuple(model.label for model in job.models)
    for spec in specs:
        units = torch.eye(len(lows), dtype=torch.float64)
        block = Block(units, None, spec.name, 0, units.shape[1:], spec.options, labels, depth=spec.depth)
        factors: list[float] = job.method.combine(block, None).tolist()
        for low, factor in zip(lows, factors, strict=True):
            if spec.name in low.terms:
                total = total + factor * LowRank({spec.name: low.terms[spec.name]})
    return LowRank(total.terms, job.method.name)


def _dense(job: Job, specs: list[Spec]) -> Iterator[tuple[str, Tensor]]:
    """The merged displacements, one whole tensor at a time."""
    engine = Engine(job.method, specs, Reader(job))
    engine.measure()
    for spec in specs:
        merged = torch.empty(spec.shape.numel(), dtype=job.arithmetic)
        for start, stop, block, result in engine.combined(spec, engine.ready(spec)):
            start_point = block.base if job.method.space == "point" else None
            merged[start:stop] = result if start_point is None else result - start_point.reshape(-1)
        yield spec.name, merged.view(spec.shape)
