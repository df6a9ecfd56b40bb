"""Sparse task arithmetic: entries are dropped at random or by magnitude, the rest is rescaled and summed or elected.

Each method here is a `Sparsify` (what is kept), perhaps a rescaling, and one of two sums: over all models, or over the
models that agree with the sign of the weighted sum.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tauspan.errors import UsageError
from tauspan.merge.addition import added
from tauspan.merge.election import agreeing, column, kept_ranks, plus_or_minus, trimmed
from tauspan.merge.method import Block, Combine, Method, Option, Prepare, Scope
from tauspan.merge.scope import Spec
from tauspan.merge.sums import NORMALIZE, SCALE, WEIGHT, summed

_NONE = 1e-7  # a sum of magnitudes below this is not rescaled


class Kept(NamedTuple):
    """What is known of one tensor.

    `bounds`, shape (B, T): the magnitudes from which entries are kept, and with B = 2 those from which they are not.
    `factors`, shape (T,), give the sparse displacements the l1 norms of the whole ones.
    """

    bounds: Tensor
    factors: Tensor | None = None


Sparsify = Callable[[Block, Tensor], Tensor]


def elected(block: Block, values: Tensor) -> Tensor:
    """Lambda sum of the w_t v_t that have the sign of sum_t w_t v_t, a sum of 0 being plus.

    Divided by the sum of their weights where `normalize` is set.
    """
    weights = block.weights()
    values = values * weights
    sign = plus_or_minus(added(values))
    kept = agreeing(values, sign)
    scale: float = block.options["scale"]
    total = (scale * sign) * added(kept)
    if not block.options["normalize"]:
        return total
    share = added(kept.sign() * weights)
    return total / torch.where(share == 0, 1.0, share)


def bernoulli(block: Block, _: Tensor) -> Tensor:
    """DARE: each entry is kept with probability `density`."""
    return _drawn(block, block.weights("density"))


def by_rank(block: Block, _: Tensor) -> Tensor:
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


def largest(block: Block, bounds: Tensor) -> Tensor:
    """The share `density` of largest magnitude."""
    return trimmed(block.values, bounds[0])


def middle(block: Block, bounds: Tensor) -> Tensor:
    """Breadcrumbs: without the share `gamma` of largest magnitude, the share `density` below it."""
    low, high = bounds
    return trimmed(block.values, low) - trimmed(block.values, high)


def _no_bounds(scope: Scope) -> Tensor:
    return torch.zeros(0, len(scope.first.models))


def _largest_bounds(scope: Scope) -> Tensor:
    ranks = kept_ranks(scope.option("density"), scope.entries)
    return scope.kth_largest(lambda block: block.values.flatten(1), ranks).view(1, -1)


def _middle_bounds(scope: Scope) -> Tensor:
    """The share `gamma` is made smaller where less than `density` would remain."""
    entries = scope.entries
    wanted = [int(density * entries) for density in scope.option("density")]
    shares = zip(scope.option("gamma"), wanted, strict=True)
    skipped = [min(int(gamma * entries), entries - count) for gamma, count in shares]
    ranks = [skip + count for skip, count in zip(skipped, wanted, strict=True)] + skipped
    return scope.kth_largest(lambda block: block.values.flatten(1).repeat(2, 1), ranks).view(2, -1)


def _restoring(scope: Scope, sparsify: Sparsify, bounds: Tensor) -> Kept:
    """With factors if the method's `rescale` asks for them."""
    if scope.option("rescale") != "l1":
        return Kept(bounds)

    def norms(block: Block) -> Tensor:
        both = torch.stack([block.values, sparsify(block, bounds)]).flatten(2)
        return both.abs().sum(2, dtype=torch.float64)

    before, after = scope.total(norms)
    return Kept(bounds, torch.where((before < _NONE) | (after < _NONE), 1.0, before / after))


def _functions(
    sparsify: Sparsify, elects: bool, bounds: Callable[[Scope], Tensor] = _no_bounds
) -> tuple[Combine, Prepare]:
    """The two functions of a row: a sparsification under one of the two sums."""

    def prepare(scope: Scope) -> Kept:
        return _restoring(scope, sparsify, bounds(scope))

    def combine(block: Block, kept: Kept) -> Tensor:
        values = sparsify(block, kept.bounds)
        if kept.factors is not None:
            values = values * column(kept.factors, values)
        return elected(block, values) if elects else summed(block, values)

    return combine, prepare


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
    *_functions(largest, True, _largest_bounds),
    options=(WEIGHT, SCALE, _density(1.0, "share of the entries kept"), _AVERAGED, _RESCALE),
    temporaries=8,
)

DARE_LINEAR = Method(
    "dare_linear",
    "DARE: drop and rescale, then sum",
    _DARE,
    f"{_SUM} b_t tau_t / density, b_t 1 with probability density and else 0",
    *_functions(bernoulli, False),
    options=(*_DROPPED, NORMALIZE),
    temporaries=6,
)

DARE_TIES = Method(
    "dare_ties",
    "DARE: drop and rescale, then elect signs",
    _DARE,
    _AGREEING.format("b_t tau_t / density") + ", / the sum of their w_t",
    *_functions(bernoulli, True),
    options=(*_DROPPED, _AVERAGED),
    temporaries=8,
)

DELLA = Method(
    "della",
    "DELLA: drop by rank of magnitude, then elect signs",
    _DELLA,
    _AGREEING.format("b_t tau_t / p_t")
    + ", / the sum of their w_t; p_t from density - epsilon to density + epsilon",
    *_functions(by_rank, True),
    _require_probabilities,
    grain="row",
    options=(*_RANKED, _AVERAGED),
    temporaries=10,
)

DELLA_LINEAR = Method(
    "della_linear",
    "DELLA: drop by rank of magnitude, then sum",
    _DELLA,
    f"{_SUM} b_t tau_t / p_t, p_t from density - epsilon to density + epsilon by the rank of |tau_t| in its row",
    *_functions(by_rank, False),
    _require_probabilities,
    grain="row",
    options=(*_RANKED, NORMALIZE),
    temporaries=10,
)

BREADCRUMBS = Method(
    "breadcrumbs",
    "Model breadcrumbs: both tails of each tensor removed",
    _CRUMBS,
    f"{_SUM} middle(tau_t): without the share gamma of largest magnitude, the share density below it",
    *_functions(middle, False, _middle_bounds),
    options=(*_MIDDLE, NORMALIZE),
    temporaries=8,
)

BREADCRUMBS_TIES = Method(
    "breadcrumbs_ties",
    "Model breadcrumbs, then elect signs",
    _CRUMBS,
    _AGREEING.format("middle(tau_t)"),
    *_functions(middle, True, _middle_bounds),
    options=(*_MIDDLE, _ELECTED),
    temporaries=8,
)
