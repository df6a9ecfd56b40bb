"""Merging into an adapter: exact where method and inputs are linear and low-rank, else by SVD with its error."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tauspan.core.errors import UsageError, listed
from tauspan.core.report import Cell, Report, Table, provenance
from tauspan.merge.checks.checks import check
from tauspan.merge.engine.engine import BLOCK, Engine, ordered_pool
from tauspan.merge.engine.memory import require_count
from tauspan.merge.engine.settings import depths
from tauspan.merge.lora.adapters import AdapterSource
from tauspan.merge.lora.lora_files import LoraFile
from tauspan.merge.lora.lowrank import Layout, LowRank, from_dense
from tauspan.merge.methods import sums
from tauspan.merge.methods.method import Block, Spec
from tauspan.merge.methods.scope import specs_of
from tauspan.merge.sources.problems import require_none
from tauspan.merge.stream.blocks import Reader
from tauspan.merge.stream.job import Job
from tauspan.merge.stream.plan import processors, require_start

PRODUCTS = (AdapterSource, LoraFile)  # sources whose displacement is kept as factors
# Their result is sum_t c_t tau_t with one c_t a tensor, so that factors can be kept.
LINEAR = (sums.LINEAR, sums.TASK_ARITHMETIC, sums.LINES, sums.PASSTHROUGH)


@dataclass(frozen=True)
class AdapterPlan:
    """A merge into an adapter, before any displacement is computed.

    Args:
        job: inputs, method and options.
        specs: the tensors that are merged.
        together: the sum of all adapters among the inputs, for ranks and layouts.
        rank: the most that the result may have; None keeps the sum of the adapters' ranks.
        block: entries that are merged at once.
        workers: threads.
    """

    job: Job
    specs: tuple[Spec, ...]
    together: LowRank
    rank: int | None
    block: int = BLOCK
    workers: int = 1

    @property
    def kept(self) -> bool:
        """Whether the factors of the inputs are kept, side by side; else displacements are formed and cut by SVD."""
        only = all(isinstance(model, PRODUCTS) for model in self.job.models)
        return only and self.job.method in LINEAR

    def ranks(self) -> dict[str, int]:
        """By the matrices' names, the highest rank that the result can have."""
        most = {}
        for spec in self.specs:
            if len(spec.shape) > 1:
                full = min(spec.shape[0], spec.shape[1:].numel())
                own = self.together.rank(spec.name) if self.kept else full
                most[spec.name] = own if self.rank is None else min(own, self.rank)
        return most

    def report(self) -> Report:
        """The plan as tables."""
        ranks, method = self.ranks(), self.job.method
        shapes = {spec.name: spec.shape for spec in self.specs}
        entries = sum(rank * (shapes[name][0] + shapes[name][1:].numel()) for name, rank in ranks.items())
        facts: dict[str, Cell] = {
            "method": f"{method.title}: {method.formula}",
            "models": listed(model.label for model in self.job.models),
            "base": "" if self.job.base is None else str(self.job.base.path),
            "tensors merged": len(self.specs),
            "how": "factors side by side, exactly" if self.kept and self.rank is None
            else "factors side by side, cut by SVD" if self.kept else "displacements, cut by SVD",
            "rank at most": max(ranks.values(), default=0),
            "entries to write at most": entries,
            "workers": self.workers,
        }  # fmt: skip
        table = Table("plan", [{"what": what, "value": value} for what, value in facts.items()])
        return Report("merge plan", [table], provenance(**self.job.facts), result=facts)

    def merged(self) -> LowRank:
        """The merged displacement; `LowRank.lost` says, tensor by tensor, what was cut off.

        Raises:
            UsageError: a tensor that moves and is no matrix.
            NonFiniteError: NaN or infinity.
        """
        with ordered_pool(
            self.workers
        ) as run:  # one thread an operation: an SVD's bits depend on their number
            if self.kept:
                low = self._kept()
                return low if self.rank is None else low.truncated(self.rank)
            assert self.rank is not None  # noqa: S101 - `plan_adapter` asks for it
            layouts: Mapping[str, Layout] = {
                name: terms[0].layout for name, terms in self.together.terms.items()
            }
            engine = Engine(self.job.method, self.specs, Reader(self.job), self.block, run)
            return from_dense(self._dense(engine), self.rank, like=layouts, label=self.job.method.name)[0]

    def _kept(self) -> LowRank:
        """Sum_t c_t tau_t by factors, with the numbers c_t that the method itself gives unit displacements."""
        lows = [model.low for model in self.job.models if isinstance(model, PRODUCTS)]
        total, labels = LowRank({}), tuple(model.label for model in self.job.models)
        for spec in self.specs:
            units = torch.eye(len(lows), dtype=torch.float64)
            block = Block(units, None, spec.name, 0, units.shape[1:], spec.options, labels, depth=spec.depth)
            factors: list[float] = self.job.method.combine(block, None).tolist()
            for low, factor in zip(lows, factors, strict=True):
                if spec.name in low.terms:
                    total = total + factor * LowRank({spec.name: low.terms[spec.name]})
        return LowRank(total.terms, self.job.method.name)

    def _dense(self, engine: Engine) -> Iterator[tuple[str, Tensor]]:
        """The merged displacements, one whole tensor at a time."""
        engine.measure()
        for spec in self.specs:
            merged = torch.empty(spec.shape.numel(), dtype=self.job.arithmetic)
            for start, stop, block, result in engine.combined(spec, engine.ready(spec)):
                start_point = block.base if self.job.method.space == "point" else None
                merged[start:stop] = result if start_point is None else result - start_point.reshape(-1)
            yield spec.name, merged.view(spec.shape)


def plan_adapter(
    job: Job, rank: int | None, *, block: int = BLOCK, workers: int | None = None
) -> AdapterPlan:
    """Check a merge into an adapter of at most that rank.

    Adapters merged by a linear method keep their factors, side by side, and are cut only if their ranks add up to more
    than `rank`. Anything else is merged densely, tensor by tensor, and cut by SVD: O(m n min(m, n)) an m x n matrix.
    Files do not say which matrix belongs to an embedding or to a layer that stores its weight transposed: the adapters
    among the inputs say it, and every other matrix is taken for a linear layer's.

    Args:
        job: inputs, method and options; displacements need no base.
        rank: of the result; None keeps the ranks' sum, for adapters and linear methods.
        block: entries that are merged at once.
        workers: threads that measure, where a method asks for something of the whole model.

    Raises:
        UsageError: no rank where one is needed, or models without a base.
        MismatchError: the inputs do not fit together.
    """
    require_count(job.method, len(job.models))
    require_start(job)
    lows = [model.low for model in job.models if isinstance(model, PRODUCTS)]
    if len(lows) < len(job.models) or job.base is not None:
        require_none(check(job.base, job.models, allow=job.allow))
    together = sum(lows[1:], lows[0]) if lows else LowRank({})  # adapters that do not fit together fail here
    made = AdapterPlan(job, tuple(_specs(job)), together, rank, block, workers or processors())
    if rank is None and not made.kept:
        raise UsageError(
            f"the method {job.method.name!r} does not keep these inputs' ranks, so the adapter's must be stated: `rank`."
        )
    return made


def _specs(job: Job) -> list[Spec]:
    """What is merged: all that the displacements hold, or the base's tensors that a model holds."""
    if job.base is None:
        every = (item for model in job.models for item in model.tensors.items())
    else:
        every = (item for item in job.base.tensors.items() if job.holding(item[0]))
    shapes = {name: stored.shape for name, stored in every if stored.dtype.is_floating_point}
    places = depths(shapes if job.base is None else job.base.tensors)
    return specs_of(job.method, shapes, job.settings.at, places, tuple(model.label for model in job.models))
