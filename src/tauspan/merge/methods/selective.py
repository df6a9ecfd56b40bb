"""Methods that decide entry by entry which models count: SCE, RAM, NearSwap and Arcee Fusion.

Example:
    >>> from tauspan import TaskVector
    >>> from tauspan.merge.engine.memory import merge
    >>> a = TaskVector({"w": torch.tensor([3.0, 0.0, 1.0])}, "b", "standard", "a")
    >>> b = TaskVector({"w": torch.tensor([1.0, 2.0, -1.0])}, "b", "standard", "b")
    >>> merge([a, b], "ram").deltas["w"]
    tensor([2., 2., 0.])
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.election import counted
from tauspan.merge.methods.method import Block, Method, Option, Reach, Scope, added
from tauspan.merge.methods.sums import SCALE


def nearswap(block: Block, _: Any) -> Tensor:
    """Each entry goes towards the model by at most t: sign(tau) min(|tau|, t).

    The published form interpolates with the weight min(1, t / |tau|), which is the same.
    """
    t: float = block.options["t"]
    return block.values[0].clamp(-t, t)


def importance(block: Block) -> Tensor:
    """|tau| times the divergence of its row: KL(softmax(theta) || softmax(theta0)), shape (n,).

    A row runs along the last axis, and 1e-8 is added to both distributions, as in the authors' code. In float64 inside:
    the divergence of two close rows is a sum that cancels.
    """
    if block.base is None:
        raise UsageError(
            f"the method 'arcee_fusion' compares {block.name!r} with the base, and none was given. Pass the base model."
        )
    row = block.shape[-1] if block.shape else 1
    base = block.base.double().reshape(-1, row)
    delta = block.values[0].double().reshape(-1, row)
    fine, pre = torch.softmax(base + delta, -1) + 1e-8, torch.softmax(base, -1) + 1e-8
    divergence = (fine * (fine / pre).log()).sum(-1, keepdim=True).clamp(min=0)
    return (delta.abs() * divergence).to(block.values).flatten()


def _fusion_threshold(scope: Scope) -> Tensor:
    """Median + 1.5 (Q3 - Q1) of the importances; the quartile q is the entry floor(q (n - 1)) in ascending order."""
    last = scope.entries - 1
    ranks = [scope.entries - math.floor(quartile * last) for quartile in (0.25, 0.5, 0.75)]
    first, median, third = scope.kth_largest(lambda block: importance(block).expand(3, -1), ranks)
    threshold: Tensor = median + 1.5 * (third - first)
    return threshold


def arcee_fusion(block: Block, threshold: Tensor) -> Tensor:
    """Entries whose importance reaches the threshold take the model's value, the others keep the base's."""
    kept = importance(block) >= threshold
    return torch.where(kept.view(block.values.shape[1:]), block.values[0], 0.0)


def variance(block: Block) -> Tensor:
    """The population variance over the models, entry by entry, shape (n,)."""
    first, count = block.values[0], len(block.values)
    # from the first model: 0 where models are equal, though (v + v + v) / 3 need not be v
    mean = added(value - first for value in block.values) / count
    return added((value - first - mean).square() for value in block.values) / count


class Selected(NamedTuple):
    """What SCE measures on one tensor: how far the selection by variance reaches, None for all, and the weights."""

    reach: Reach | None
    weights: Tensor


def _chosen(block: Block, reach: Reach | None) -> Tensor | None:
    """Where entries are selected, shape (n,); None for everywhere."""
    if reach is None:
        return None
    varied, least = variance(block), float(reach.magnitudes[0])
    chosen = varied > least
    equal = min(max(reach.places[0] - block.start, 0), len(varied))
    chosen[:equal] |= varied[:equal] == least
    return chosen


def _sce_ready(scope: Scope) -> Selected:
    """The selection, and |tau_t|^2 / sum_s |tau_s|^2 over the selected entries."""
    options = scope.first.options
    reach = None
    if options["select_topk"] < 1:
        varied = int(scope.total(lambda block: variance(block).count_nonzero()))
        # rounded first: 0.29 * 100 is 28.999999999999996
        rank = math.floor(round(options["select_topk"] * varied, 6))
        reach = scope.largest(lambda block: variance(block)[None], [rank])

    def squares(block: Block) -> Tensor:
        chosen = _chosen(block, reach)
        wide = ((value if chosen is None else value * chosen).double() for value in block.values)
        return torch.stack([torch.dot(value, value) for value in wide])

    energies = scope.total(squares)
    total = energies.sum()
    if total <= options["equal_below"] * scope.entries:
        return Selected(reach, torch.full_like(energies, 1 / len(energies)))
    return Selected(reach, energies / total)


def sce(block: Block, ready: Selected) -> Tensor:
    """Select, calculate, erase.

    Select the `select_topk` share with the highest variance among the entries where models differ at all (of equal
    variances the lower place comes first; equal models have none, and with a share below 1 merge to the base).
    Calculate w_t = |tau_t|^2 / sum_s |tau_s|^2 over the selected entries of the tensor. Erase the models whose sign is
    not that of sum_t tau_t (positive where it is 0), and divide by the weights that are left; 0 where none are.
    """
    sign = torch.where(added(block.values) >= 0, 1.0, -1.0)
    pairs = list(zip(ready.weights.to(block.values), block.values, strict=True))
    total = added(weight * (value.sign() == sign) for weight, value in pairs)
    merged = added(weight * torch.where(value.sign() == sign, value, 0.0) for weight, value in pairs)
    scale: float = block.options["scale"]
    merged = scale * merged / torch.where(total > 0, total, 1.0)
    chosen = _chosen(block, ready.reach)
    return merged if chosen is None else torch.where(chosen, merged, 0.0)


def _sce_count(block: Block, ready: Selected) -> tuple[int, ...]:
    """The number of selected entries, which is the same for all models."""
    if ready.reach is None:
        return (block.values[0].numel(),) * len(block.values)
    return counted(block, ready.reach.counts * len(block.values))


def _changed(value: Tensor, block: Block) -> Tensor:
    epsilon: float = block.options["epsilon"]
    return value.abs() > epsilon


def _changes(block: Block) -> Tensor:
    """How many models changed an entry, shape (n,)."""
    return added(_changed(value, block).to(value) for value in block.values)


def ram(block: Block, factors: Tensor | None) -> Tensor:
    """The mean of the displacements over those models that changed the entry.

    A model changed it where |tau| > epsilon. With factors, entries that one model changed alone are multiplied by its
    own factor.
    """
    count = _changes(block)
    merged = added(value * _changed(value, block) for value in block.values) / count.clamp(min=1)
    if factors is not None:
        own = zip(factors.to(merged), block.values, strict=True)
        scaled = added(factor * value * _changed(value, block) for factor, value in own)
        merged = torch.where(count == 1, scaled, merged)
    scale: float = block.options["scale"]
    return scale * merged


def _ram_factors(scope: Scope) -> Tensor:
    """1 + r min(rho_t, alpha), rho_t = entries that t and others changed / entries that t changed alone."""

    def counts(block: Block) -> Tensor:
        changes = _changes(block)
        shared, alone = changes > 1, changes == 1
        own = (_changed(value, block) for value in block.values)
        return torch.stack([torch.stack([(one & shared).sum(), (one & alone).sum()]) for one in own])

    shared, alone = scope.total(counts).unbind(1)
    options = scope.first.options
    r, alpha = float(options["r"]), float(options["alpha"])
    # no entry of its own, no use of the factor: any divisor will do
    return 1 + r * (shared / alone.clamp(min=1)).clamp(max=alpha)


NEARSWAP = Method(
    "nearswap",
    "NearSwap",
    "alchemonaut 2024, QuartetAnemoi-70B-t0.0001",
    "sign(tau) min(|tau|, t)",
    nearswap,
    options=(Option("t", 1e-4, "the farthest an entry moves from the base", low=0.0),),
    fewest=1,
    most=1,
    temporaries=1,
)

ARCEE_FUSION = Method(
    "arcee_fusion",
    "Arcee Fusion",
    "Arcee AI 2025, mergekit, arXiv:2403.13257",
    "tau where |tau| KL_row >= median + 1.5 (Q3 - Q1), else 0",
    arcee_fusion,
    _fusion_threshold,
    count=lambda block, threshold: (int((importance(block) >= threshold).sum()),),
    grain="row",
    needs=("base",),
    fewest=1,
    most=1,
    temporaries=14,
)

SCE = Method(
    "sce",
    "Select, calculate, erase",
    "Wan et al. 2024, FuseChat, arXiv:2408.07990",
    "lambda sum_t m_t w_t tau_t / sum_t m_t w_t, w_t = |tau_t|^2 / sum_s |tau_s|^2, m_t = [sign agrees]",
    sce,
    _sce_ready,
    count=_sce_count,
    options=(
        Option(
            "select_topk", 1.0, "share of the entries where models differ that is kept", low=0.0, high=1.0
        ),
        Option("equal_below", 0.0, "mean square up to which all models weigh the same", low=0.0),
        SCALE,
    ),
    temporaries=6,
)

_EPSILON = Option("epsilon", 1e-5, "a displacement up to this size is no change", low=0.0)

RAM = Method(
    "ram",
    "Reinforced agent merging",
    "Yuan et al. 2026, arXiv:2601.13572",
    "lambda sum_t [|tau_t| > eps] tau_t / #{t: |tau_t| > eps}",
    ram,
    options=(_EPSILON, SCALE),
    temporaries=6,
)

RAM_PLUS = replace(
    RAM,
    name="ram_plus",
    title="Reinforced agent merging, rescaled over the model",
    formula="ram, entries that t alone changed times 1 + r min(shared_t / alone_t, alpha)",
    prepare=_ram_factors,
    over="model",
    options=(
        Option("r", 0.1, "how much of the ratio is added to 1", low=0.0),
        Option("alpha", 0.2, "largest ratio that counts", low=0.0),
        *RAM.options,
    ),
)

RAMPLUS_TL = replace(
    RAM_PLUS, name="ramplus_tl", title="Reinforced agent merging, rescaled by tensor", over="tensor"
)
