"""Merging into an adapter: exact where method and inputs are linear and low-rank, else by SVD with its error."""

import hashlib
from collections.abc import Iterator, Sequence
from math import hypot
from pathlib import Path

import torch
from torch import Tensor, nn

from tauspan.core.errors import MissingExtraError, ModelError
from tauspan.core.report import provenance
from tauspan.merge.engine.engine import Engine, ordered_pool
from tauspan.merge.lora.adapters import AdapterSource, Products, save_adapter
from tauspan.merge.lora.lora_files import LoraFile, save_lora
from tauspan.merge.lora.lowrank import FactorLayout, LowRank, from_dense
from tauspan.merge.methods.method import Block
from tauspan.merge.sources.respelt import spelt_in_memory
from tauspan.merge.sources.source import Source, model_folder
from tauspan.merge.stream import card
from tauspan.merge.stream.blocks import Reader
from tauspan.merge.stream.plan import Plan
from tauspan.merge.stream.result import CutTensor, MergeResult
from tauspan.models.skeleton import has_config, skeleton
from tauspan.models.thin import is_turned


def merged(plan: Plan) -> LowRank:
    """The merged displacement of a plan of an adapter; `LowRank.lost` says, tensor by tensor, what was cut off.

    Raises:
        UsageError: a tensor that moves and is no matrix.
        NonFiniteError: NaN or infinity.
    """
    opened, rank = plan.opened, plan.recipe.rank
    with ordered_pool(
        plan.workers
    ) as run:  # one thread for each operation: an SVD's bits depend on the number of threads
        if plan.factored:
            low = _side_by_side(plan)
            return low if rank is None else low.truncated(rank)
        assert rank is not None  # noqa: S101 - the plan asks for it
        layouts = _layouts([spec.name for spec in plan.specs], opened.base)
        layouts |= {name: terms[0].layout for name, terms in plan.together.terms.items()}
        engine = Engine(opened.method, plan.specs, Reader(opened), plan.block, run)
        return from_dense(_dense(plan, engine), rank, like=layouts, label=opened.method.name)[0]


def _layouts(names: Sequence[str], base: Source | None) -> dict[str, FactorLayout]:
    """How PEFT stores the factors of the base's embeddings and of its layers with transposed weights.

    The base's class says which they are; nothing is known of a bare file, or of a class that transformers lacks.
    """
    folder = None if base is None else model_folder(base.path)
    if folder is None or not has_config(folder):
        return {}
    try:
        modules = dict(skeleton(folder).named_modules())
    except (ModelError, MissingExtraError):
        return {}
    found: dict[str, FactorLayout] = {}
    for name, inside in {**dict(zip(names, names, strict=True)), **spelt_in_memory(names, (), base)}.items():
        module = modules.get(inside.removesuffix(".weight"))
        if isinstance(module, nn.Embedding):
            found[name] = "embedding"
        elif module is not None and is_turned(module):
            found[name] = "transposed"
    return found


def _side_by_side(plan: Plan) -> LowRank:
    """Sum_t c_t tau_t with the factors side by side; the c_t are what the method gives for unit displacements."""
    opened = plan.opened
    lows = [model.low for model in opened.models if isinstance(model, Products)]
    total = LowRank({})
    for spec in plan.specs:
        units = torch.eye(len(lows), dtype=torch.float64)
        block = Block(
            units, None, spec.name, 0, units.shape[1:], spec.options, opened.labels, depth=spec.depth
        )
        factors: list[float] = opened.method.combine(block, None).tolist()
        for low, factor in zip(lows, factors, strict=True):
            if spec.name in low.terms:
                total = total + factor * LowRank({spec.name: low.terms[spec.name]})
    return LowRank(total.terms, opened.method.name)


def _dense(plan: Plan, engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """The merged displacements, one whole tensor at a time."""
    engine.measure()
    for spec in plan.specs:
        whole = torch.empty(spec.shape.numel(), dtype=plan.opened.arithmetic)
        for start, stop, block, result in engine.combined(spec, engine.ready(spec)):
            start_point = block.base if plan.method.space == "point" else None
            whole[start:stop] = result if start_point is None else result - start_point.reshape(-1)
        yield spec.name, whole.view(spec.shape)


def write_adapter(plan: Plan, out: Path, overwrite: bool) -> MergeResult:
    """Merge into an adapter and write it with its card; the result says what was cut."""
    opened, low = plan.opened, merged(plan)
    lost = hypot(*low.lost.values())
    norm = hypot(low.norm(), lost)  # what an SVD cuts off is orthogonal to what it keeps
    made: list[MergeResult] = []

    def result(weights: Path) -> MergeResult:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return MergeResult(
            out=out, method=plan.method.name, digest=digest, norm=norm, loss=lost / norm if norm else 0.0,
            cuts=[CutTensor(name, low.rank(name), low.lost.get(name, 0.0)) for name in low.terms],
            provenance=provenance(block=plan.block, workers=plan.workers, **plan.facts), warnings=plan.warnings,
        )  # fmt: skip

    def finish(folder: Path) -> None:
        made.append(result(next(iter(folder.glob("*.safetensors")))))
        card.write(folder, opened, made[0], plan.block)

    files = [model for model in opened.models if isinstance(model, LoraFile)]
    if files and len(files) == len(opened.models):
        spelt = {name: own for model in files for name, own in model.spelt.items()}
        save_lora(low, out, files[0], spelt, overwrite=overwrite, finish=finish)
    else:
        like = next((model for model in opened.models if isinstance(model, AdapterSource)), None)
        spelt = spelt_in_memory(low.terms, opened.models, opened.base)
        save_adapter(low, out, like=like, spelt=spelt, overwrite=overwrite, finish=finish)
    return made[0] if made else result(out)  # a single file has no card
