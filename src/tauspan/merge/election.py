"""Methods that settle conflicts of sign entry by entry: TIES, its variants, and MagMax."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tauspan.merge.addition import added
from tauspan.merge.method import Block, Method, Option, Scope
from tauspan.merge.sums import SCALE, WEIGHT

DENSITY = Option("density", 0.2, "share of the entries kept", per_model=True, low=0.0, high=1.0)


def column(numbers: Tensor, values: Tensor) -> Tensor:
    """One number a model, as a factor of `values`: shape (T, 1, ...)."""
    return numbers.to(values).view(-1, *[1] * (values.dim() - 1))


def plus_or_minus(total: Tensor, zero: float = 1.0) -> Tensor:
    """The sign of each entry; `zero` where it is 0."""
    sign = total.sign()
    return sign.add_(1 - sign.abs(), alpha=zero)


def agreeing(values: Tensor, sign: Tensor) -> Tensor:
    """The magnitudes of what has the elected sign, 0 elsewhere: shape of `values`."""
    return (values * sign).clamp_(min=0)


def disjoint_mean(values: Tensor, sign: Tensor) -> Tensor:
    """The mean over the models that are not 0 and have the elected sign, entry by entry."""
    kept = agreeing(values, sign)
    return sign * added(kept) / kept.sign().sum(0).clamp_(min=1)


def trimmed(values: Tensor, smallest: Tensor) -> Tensor:
    """The values whose magnitude reaches `smallest`, shape (T,); 0 elsewhere. All of equal magnitude share their fate."""
    below = torch.nextafter(smallest, torch.zeros_like(smallest)).tolist()  # hardshrink keeps |x| > bound
    kept = torch.empty_like(values)
    for row, bound, result in zip(values, below, kept, strict=True):
        torch.hardshrink(row, bound, out=result)
    return kept


def kept_ranks(densities: tuple[float, ...], entries: int, fewest: int = 1) -> list[int]:
    """The rank of the smallest kept magnitude: density times entries, rounded down, and `fewest` at least.

    0 for a density of 0, and for a density of 1 a rank above the entries, which nothing has to be read for.
    """

    def rank(density: float) -> int:
        return entries + 1 if density >= 1 else max(int(density * entries), fewest) if density else 0

    return [rank(density) for density in densities]


class Elected(NamedTuple):
    """What TIES knows of the whole model: the smallest kept magnitude, shape (T,), and the sign of the majority."""

    smallest: Tensor
    majority: float


def _sum(block: Block, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """The trimmed and weighted displacements, and their sum."""
    values = trimmed(block.values, smallest) * block.weights()
    return values, added(values)


def elect(scope: Scope) -> Elected:
    """Thresholds over the whole model, and the sign that most entries' sums have."""
    ranks = kept_ranks(scope.option("density"), scope.entries)
    smallest = scope.kth_largest(lambda block: block.values.flatten(1), ranks)
    majority = scope.total(lambda block: _sum(block, smallest)[1].sign().sum(dtype=torch.float64))
    return Elected(smallest, 1.0 if majority > 0 else -1.0)


def ties(block: Block, elected: Elected) -> Tensor:
    """Trim, elect a sign, average what agrees with it."""
    values, total = _sum(block, elected.smallest)
    scale: float = block.options["scale"]
    return scale * disjoint_mean(values, plus_or_minus(total, elected.majority))


def peft_thresholds(scope: Scope) -> Tensor:
    """The smallest kept magnitude in one tensor, shape (T,)."""
    ranks = kept_ranks(scope.option("density"), scope.entries, fewest=0)
    return scope.kth_largest(lambda block: block.values.flatten(1), ranks)


def ties_peft(block: Block, smallest: Tensor) -> Tensor:
    """TIES with weights after the election, and the mean over the kept count."""
    values = trimmed(block.values, smallest)
    votes = values if block.options["majority"] == "total" else values.sign()
    sign = plus_or_minus(added(votes))
    agree = agreeing(values, sign).sign()
    scale: float = block.options["scale"]
    return scale * added(agree * values * block.weights()) / agree.sum(0).clamp_(min=1)


def magmax(block: Block, _: Any) -> Tensor:
    """The entry of largest magnitude; of two with both signs the positive one, so that order does not matter."""
    values = block.weights() * block.values
    high, low = values.amax(0), values.amin(0)
    scale: float = block.options["scale"]
    return scale * torch.where(high >= -low, high, low)


TIES = Method(
    "ties",
    "TIES: trim, elect sign, merge (the authors')",
    "Yadav et al. 2023, arXiv:2306.01708",
    "lambda mean of w_t trim(tau_t) over those with the sign of their sum; trimmed over the whole model, a sum of 0 has "
    "the model's majority sign",
    ties,
    prepare=elect,
    over="model",
    options=(DENSITY, WEIGHT, SCALE),
    temporaries=8,
)

TIES_PEFT = Method(
    "ties_peft",
    "TIES as in PEFT",
    "Yadav et al. 2023, arXiv:2306.01708",
    "lambda sum of w_t trim(tau_t) over those with the elected sign / their count; trimmed tensor by tensor, elected "
    "without weights, a sum of 0 is plus",
    ties_peft,
    prepare=peft_thresholds,
    options=(
        DENSITY,
        WEIGHT,
        SCALE,
        Option("majority", "total", "votes: values or signs", choices=("total", "frequency")),
    ),
    temporaries=8,
)

MAGMAX = Method(
    "magmax",
    "MagMax: the largest magnitude",
    "Marczak et al. 2024, arXiv:2407.06322",
    "lambda w_t tau_t of the t with the largest |w_t tau_t|, entry by entry",
    magmax,
    options=(WEIGHT, SCALE),
)
