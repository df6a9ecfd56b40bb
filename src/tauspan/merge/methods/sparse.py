"""Sparse task arithmetic: entries are dropped at random or by magnitude, the rest is rescaled and summed or elected.

Each method here is a `Sparsify` (what is kept), perhaps a rescaling, and one of two sums: over all models, or over the
models that agree with the sign of the weighted sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.election import agreement, column, counted, kept_ranks, plus_or_minus, reaching
from tauspan.merge.methods.method import (
    Block,
    Count,
    Method,
    Option,
    Prepare,
    Reach,
    Scope,
    Select,
    Spec,
    added,
)
from tauspan.merge.methods.sums import NORMALIZE, SCALE, WEIGHT, task_arithmetic

_NONE = 1e-7  # a sum of magnitudes below this is not rescaled


class Kept(NamedTuple):
    """What a sparse method measures on one tensor.

    `reach` says which entries are kept by magnitude, in R T rows: with R = 2, those that are in the selection of the
    first T rows and not in that of the last T. It is None if entries are drawn at random. `factors`, shape (T,), give
    the sparse displacements the l1 norms of the whole ones.
    """

    reach: Reach | None = None
    factors: Tensor | None = None


Sparsify = Callable[[Block, Reach | None], Tensor]


def elected(block: Block, _: Any) -> Tensor:
    """Lambda sum of the w_t v_t that have the sign of sum_t w_t v_t, a sum of 0 being plus.

    Divided by the sum of their weights where `normalize` is set.
    """
    values = block.weighted()
    sign = plus_or_minus(added(values))
    total, share = agreement(values, sign, block.options["weight"])
    total.mul_(sign).mul_(block.options["scale"])
    return total.div_(share.masked_fill_(share == 0, 1.0)) if block.options["normalize"] else total


def bernoulli(block: Block, _: Reach | None) -> Tensor:
    """DARE: each entry is kept with probability `density`."""
    return _drawn(block, block.weights("density"))


def by_rank(block: Block, _: Reach | None) -> Tensor:
    """DELLA: kept with a probability that grows from density - epsilon to density + epsilon with the rank in its row."""
    density, epsilon = block.weights("density"), block.weights("epsilon")
    values = block.values
    order = values.abs().argsort(dim=-1, stable=True)
    columns = values.shape[-1]
    place = torch.linspace(-1, 1, columns).to(values) if columns > 1 else values.new_zeros(columns)
    share = torch.empty_like(values).scatter_(-1, order, place.expand_as(values))
    certain = (density <= 0) | (density >= 1)
    return _drawn(block, torch.where(certain, density, density + epsilon * share))


def _require_probabilities(spec: Spec, models: tuple[str, ...]) -> None:
    for model, middle, reach in zip(models, spec.options["density"], spec.options["epsilon"], strict=True):
        if 0 < middle < 1 and not (middle > reach and middle + reach < 1):
            raise UsageError(
                f"density {middle:g} and epsilon {reach:g} of {model!r} give probabilities from {middle - reach:g} to "
                f"{middle + reach:g} in {spec.name!r}; they must lie between 0 and 1. Choose a smaller epsilon."
            )


def _drawn(block: Block, probability: Tensor) -> Tensor:
    drawn = block.uniform()
    kept = block.values * torch.lt(drawn, probability, out=drawn)  # 0 or 1: products with booleans are slow
    if block.options["rescale"] == "probability":
        return kept / torch.where(probability > 0, probability, 1.0)
    return kept


def largest(block: Block, reach: Reach | None) -> Tensor:
    """The share `density` of largest magnitude."""
    return reaching(block, _known(reach))


def middle(block: Block, reach: Reach | None) -> Tensor:
    """Breadcrumbs: without the share `gamma` of largest magnitude, the share `density` below it."""
    down, to = _known(reach).split(2)
    return reaching(block, down) - reaching(block, to)


def _known(reach: Reach | None) -> Reach:
    if reach is None:
        raise TypeError("a selection by magnitude needs its reach")
    return reach


def _nothing(scope: Scope) -> None:
    """Measure nothing: entries are drawn at random."""


def _largest_reach(scope: Scope) -> Reach:
    ranks = kept_ranks(scope.option("density"), scope.entries)
    return scope.largest(lambda block: block.values.flatten(1), ranks)


def _middle_reach(scope: Scope) -> Reach:
    """The reach of `middle`; the share `gamma` is made smaller if less than `density` would remain."""
    entries = scope.entries
    wanted = [int(density * entries) for density in scope.option("density")]
    shares = zip(scope.option("gamma"), wanted, strict=True)
    skipped = [min(int(gamma * entries), entries - count) for gamma, count in shares]
    ranks = [skip + count for skip, count in zip(skipped, wanted, strict=True)] + skipped
    return scope.largest(lambda block: block.values.flatten(1).repeat(2, 1), ranks)


def _restoring(scope: Scope, sparsify: Sparsify, reach: Reach | None) -> Kept:
    """The reach, with factors if the method's option `rescale` asks for them."""
    if scope.option("rescale") != "l1":
        return Kept(reach)

    def norms(block: Block) -> Tensor:
        both = torch.stack([block.values, sparsify(block, reach)]).flatten(2)
        return both.abs().sum(2, dtype=torch.float64)

    before, after = scope.total(norms)
    return Kept(reach, torch.where((before < _NONE) | (after < _NONE), 1.0, before / after))


class _Functions(TypedDict):
    """The functions of a row besides its sum."""

    prepare: Prepare
    select: Select
    count: Count


def _functions(sparsify: Sparsify, reach: Callable[[Scope], Reach | None] = _nothing) -> _Functions:
    """The functions of a row that follow from what is kept: measure, select, and count the kept entries."""

    def prepare(scope: Scope) -> Kept:
        return _restoring(scope, sparsify, reach(scope))

    def select(block: Block, kept: Kept) -> Tensor:
        values = sparsify(block, kept.reach)
        return values if kept.factors is None else values * column(kept.factors, values)

    def count(block: Block, kept: Kept) -> tuple[int, ...]:
        if kept.reach is None:
            return tuple(int(np.count_nonzero(row)) for row in block.values.numpy() != 0)
        models = len(block.values)
        first, *rest = (
            kept.reach.counts[at : at + models] for at in range(0, len(kept.reach.counts), models)
        )
        return counted(block, tuple(a - b for a, b in zip(first, rest[0], strict=True)) if rest else first)

    return _Functions(prepare=prepare, select=select, count=count)


_LARGEST = _functions(largest, _largest_reach)
_DRAWN = _functions(bernoulli)
_BY_RANK = _functions(by_rank)
_BETWEEN = _functions(middle, _middle_reach)


def _density(default: float, doc: str) -> Option:
    return Option("density", default, doc, per_model=True, low=0.0, high=1.0)


_AVERAGED = Option("normalize", True, "divide by the sum of the weights that an entry kept")
_ELECTED = Option("normalize", False, "divide by the sum of the weights that an entry kept")
_EXPECTED = Option(
    "rescale",
    "probability",
    "of what is kept: by 1 / its probability, to the l1 norm of the whole tensor, or not",
    choices=("probability", "l1", "none"),
)
_RESCALE = Option(
    "rescale", "none", "of what is kept: to the l1 norm of the whole tensor, or not", choices=("none", "l1")
)
_TIES = "Yadav et al. 2023, arXiv:2306.01708"
_DARE = "Yu et al. 2024, arXiv:2311.03099"
_DELLA = "Deep et al. 2024, arXiv:2406.11617"
_CRUMBS = "Davari and Belilovsky 2024, arXiv:2312.06795"
_DROPPED = (WEIGHT, SCALE, _density(0.9, "probability of keeping an entry, 1 - drop rate"), _EXPECTED)
_RANKED = (
    WEIGHT,
    SCALE,
    _density(0.7, "mean probability of keeping an entry, 1 - drop rate"),
    Option("epsilon", 0.07, "half the window of probabilities", per_model=True, low=0.0, high=0.5),
    _EXPECTED,
)
_MIDDLE = (
    WEIGHT,
    SCALE,
    _density(0.15, "share of the entries kept"),
    Option("gamma", 0.006, "share of largest magnitude removed", per_model=True, low=0.0, high=1.0),
    _RESCALE,
)
_SUM = "lambda sum_t w_t"
_AGREEING = "lambda sum of w_t {} over those with the sign of their sum, a sum of 0 being plus"

TIES_MERGEKIT = Method(
    "ties_mergekit",
    "TIES as in mergekit",
    _TIES,
    _AGREEING.format("trim(tau_t)") + ", / the sum of their w_t; trimmed tensor by tensor",
    elected,
    **_LARGEST,
    options=(WEIGHT, SCALE, _density(1.0, "share of the entries kept"), _AVERAGED, _RESCALE),
    temporaries=8,
)

DARE_LINEAR = Method(
    "dare_linear",
    "DARE: drop and rescale, then sum",
    _DARE,
    f"{_SUM} b_t tau_t / density, b_t 1 with probability density and else 0",
    task_arithmetic,
    **_DRAWN,
    options=(*_DROPPED, NORMALIZE),
    temporaries=6,
)

DARE_TIES = Method(
    "dare_ties",
    "DARE: drop and rescale, then elect signs",
    _DARE,
    _AGREEING.format("b_t tau_t / density") + ", / the sum of their w_t",
    elected,
    **_DRAWN,
    options=(*_DROPPED, _AVERAGED),
    temporaries=8,
)

DELLA = Method(
    "della",
    "DELLA: drop by rank of magnitude, then elect signs",
    _DELLA,
    _AGREEING.format("b_t tau_t / p_t")
    + ", / the sum of their w_t; p_t from density - epsilon to density + epsilon",
    elected,
    require=_require_probabilities,
    **_BY_RANK,
    grain="row",
    options=(*_RANKED, _AVERAGED),
    temporaries=10,
)

DELLA_LINEAR = Method(
    "della_linear",
    "DELLA: drop by rank of magnitude, then sum",
    _DELLA,
    f"{_SUM} b_t tau_t / p_t, p_t from density - epsilon to density + epsilon by the rank of |tau_t| in its row",
    task_arithmetic,
    require=_require_probabilities,
    **_BY_RANK,
    grain="row",
    options=(*_RANKED, NORMALIZE),
    temporaries=10,
)

BREADCRUMBS = Method(
    "breadcrumbs",
    "Model breadcrumbs: both tails of each tensor removed",
    _CRUMBS,
    f"{_SUM} middle(tau_t): without the share gamma of largest magnitude, the share density below it",
    task_arithmetic,
    **_BETWEEN,
    options=(*_MIDDLE, NORMALIZE),
    temporaries=8,
)

BREADCRUMBS_TIES = Method(
    "breadcrumbs_ties",
    "Model breadcrumbs, then elect signs",
    _CRUMBS,
    _AGREEING.format("middle(tau_t)"),
    elected,
    **_BETWEEN,
    options=(*_MIDDLE, _ELECTED),
    temporaries=8,
)
