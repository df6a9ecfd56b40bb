"""Methods that settle conflicts of sign entry by entry: TIES, its variants, and MagMax."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tauspan.merge.methods.addition import added
from tauspan.merge.methods.method import Block, Method, Option, Reach, Scope
from tauspan.merge.methods.sums import SCALE, WEIGHT

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


def reaching(block: Block, reach: Reach) -> Tensor:
    """The values that a selection from this block's tensor reaches, 0 elsewhere: shape of `values`."""
    values = block.values.flatten(1)
    above = reach.magnitudes.tolist()
    below = torch.nextafter(reach.magnitudes, torch.zeros_like(reach.magnitudes)).tolist()
    kept = torch.empty_like(values)
    for row, result, place, high, low in zip(values, kept, reach.places, above, below, strict=True):
        # entries of equal magnitude are in before the place; hardshrink keeps |x| > bound
        cut = min(max(place - block.start, 0), len(row))
        if cut:
            torch.hardshrink(row[:cut], low, out=result[:cut])
        if cut < len(row):
            torch.hardshrink(row[cut:], high, out=result[cut:])
    return kept.view(block.values.shape)


def counted(block: Block, counts: tuple[int, ...], first: str | None = None) -> tuple[int, ...]:
    """What is known of a whole tensor, or of the whole model, told at its first block only: so counts add up."""
    here = block.start == 0 and first in (None, block.name)
    return counts if here else (0,) * len(counts)


def kept_ranks(densities: tuple[float, ...], entries: int, fewest: int = 1) -> list[int]:
    """The rank of the smallest kept magnitude: density times entries, rounded down, and `fewest` at least.

    0 for a density of 0, and for a density of 1 a rank above the entries, which nothing has to be read for.
    """

    def rank(density: float) -> int:
        return entries + 1 if density >= 1 else max(int(density * entries), fewest) if density else 0

    return [rank(density) for density in densities]


class Elected(NamedTuple):
    """What TIES knows of the whole model: the entries it keeps, the majority's sign, and the first tensor's name."""

    reach: Reach
    majority: float
    first: str


def elect(scope: Scope) -> Elected:
    """The entries kept over the whole model, and the sign that most entries' sums have.

    As the authors' code does: a share d of n entries is int(d n) + 1 of them, and all whose magnitude equals the last
    one's, which in 16 bits can be many more.
    """
    entries, densities = scope.entries, scope.option("density")
    ranks = [min(int(density * entries), entries) + 1 if density else 0 for density in densities]
    reach = scope.largest(lambda block: block.values.flatten(1), ranks, alike=True)

    def votes(block: Block) -> Tensor:
        return added(reaching(block, reach) * block.weights()).sign().sum(dtype=torch.float64)

    return Elected(reach, 1.0 if scope.total(votes) > 0 else -1.0, scope.first.name)


def ties(block: Block, elected: Elected) -> Tensor:
    """Elect a sign among the trimmed displacements, average what agrees with it."""
    values = block.values * block.weights()
    scale: float = block.options["scale"]
    return scale * disjoint_mean(values, plus_or_minus(added(values), elected.majority))


def peft_reach(scope: Scope) -> Reach:
    """The entries kept of one tensor."""
    ranks = kept_ranks(scope.option("density"), scope.entries, fewest=0)
    return scope.largest(lambda block: block.values.flatten(1), ranks)


def ties_peft(block: Block, _: Any) -> Tensor:
    """TIES with weights after the election, and the mean over the kept count."""
    values = block.values
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
    "lambda mean of w_t trim(tau_t) over those with the sign of their sum; trimmed over the whole model with all "
    "that equal the last magnitude, a sum of 0 has the model's majority sign",
    ties,
    prepare=elect,
    select=lambda block, elected: reaching(block, elected.reach),
    count=lambda block, elected: counted(block, elected.reach.counts, elected.first),
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
    prepare=peft_reach,
    select=reaching,
    count=lambda block, reach: counted(block, reach.counts),
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
