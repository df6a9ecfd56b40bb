"""Methods that settle conflicts between models entry by entry: TIES and its variants, MagMax, masks and PCB."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tauspan.core.errors import UsageError
from tauspan.merge.methods.method import Block, Method, Option, Reach, Scope, Spec, added
from tauspan.merge.methods.sums import SCALE, WEIGHT

DENSITY = Option("density", 0.2, "share of the entries kept", per_model=True, low=0.0, high=1.0)


def column(numbers: Tensor, values: Tensor) -> Tensor:
    """One number per model, as a factor of `values`: shape (T, 1, ...)."""
    return numbers.to(values).view(-1, *[1] * (values.dim() - 1))


def plus_or_minus(total: Tensor, zero: float = 1.0) -> Tensor:
    """The sign of each entry; `zero` where it is 0."""
    sign = total.sign()
    return sign.add_(1 - sign.abs(), alpha=zero)


def agreeing(values: Tensor, sign: Tensor) -> Tensor:
    """The magnitudes of the values that have the elected sign, 0 elsewhere: shape of `values`."""
    return (values * sign).clamp_(min=0)


def agreement(values: Tensor, sign: Tensor, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Of the models that are not 0 and have the elected sign: the sum of magnitudes and that of weights, entry by entry.

    Model by model: temporary tensors of all models would be too large for a processor's caches.
    """
    total, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for value, weight in zip(values, weights, strict=True):
        kept = agreeing(value, sign)
        total += kept
        share.add_(kept.sign_(), alpha=weight)
    return total, share


def disjoint_mean(values: Tensor, sign: Tensor) -> Tensor:
    """The mean over the models that are not 0 and have the elected sign, entry by entry."""
    total, count = agreement(values, sign, [1.0] * len(values))
    return total.mul_(sign).div_(count.clamp_(min=1))


def trimmed(values: Tensor, smallest: Tensor) -> Tensor:
    """The values whose magnitude reaches `smallest`, shape (T,); 0 elsewhere. Equal magnitudes are treated alike."""
    below = torch.nextafter(smallest, torch.zeros_like(smallest)).tolist()  # hardshrink keeps |x| > bound
    kept = torch.empty_like(values)
    for row, bound, result in zip(values, below, kept, strict=True):
        torch.hardshrink(row, bound, out=result)
    return kept


def reaching(block: Block, reach: Reach) -> Tensor:
    """The values of this block that the selection `reach` includes, 0 elsewhere: shape of `values`."""
    values = block.values.flatten(1)
    above = reach.magnitudes.tolist()
    below = torch.nextafter(reach.magnitudes, torch.zeros_like(reach.magnitudes)).tolist()
    kept = torch.empty_like(values)
    for row, result, place, high, low in zip(values, kept, reach.places, above, below, strict=True):
        # entries of equal magnitude are included before the place; hardshrink keeps |x| > bound
        cut = min(max(place - block.start, 0), len(row))
        if cut:
            torch.hardshrink(row[:cut], low, out=result[:cut])
        if cut < len(row):
            torch.hardshrink(row[cut:], high, out=result[cut:])
    return kept.view(block.values.shape)


def counted(block: Block, counts: tuple[int, ...], first: str | None = None) -> tuple[int, ...]:
    """The counts of a whole tensor or model at its first block, 0 at all others: so the blocks' counts add up."""
    here = block.start == 0 and first in (None, block.name)
    return counts if here else (0,) * len(counts)


def kept_ranks(densities: tuple[float, ...], entries: int, fewest: int = 1) -> list[int]:
    """The rank of the smallest kept magnitude: density times entries, rounded down, and `fewest` at least.

    For a density of 0 the rank is 0. For a density of 1 it is above the number of entries, so that nothing has to be
    read.
    """

    def rank(density: float) -> int:
        return entries + 1 if density >= 1 else max(int(density * entries), fewest) if density else 0

    return [rank(density) for density in densities]


class Elected(NamedTuple):
    """What TIES measures on the whole model: the entries it keeps, the majority's sign, the first tensor's name."""

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
        kept = replace(block, values=reaching(block, reach))
        return added(kept.weighted()).sign_().sum(dtype=torch.float64)

    return Elected(reach, 1.0 if scope.total(votes) > 0 else -1.0, scope.first.name)


def ties(block: Block, elected: Elected) -> Tensor:
    """Elect a sign among the trimmed displacements, average what agrees with it."""
    values = block.weighted()
    scale: float = block.options["scale"]
    return disjoint_mean(values, plus_or_minus(added(values), elected.majority)).mul_(scale)


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
    values = block.weighted()
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


def consensus(block: Block, _: Any) -> Tensor:
    """The sum of the displacements at entries that at least `least` tasks use, 0 elsewhere.

    Task t uses an entry if |w_t tau_t| > threshold |sum - w_t tau_t|.
    """
    values = block.weighted()
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
    "lambda sum_t w_t tau_t where at least k tasks have |w_t tau_t| > threshold |sum_s w_s tau_s - w_t tau_t|",
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


_OUTLIERS = 1e-4  # share of the magnitudes clamped at each end


class Competition(NamedTuple):
    """What PCB measures on the whole model, shape (T,) each: clamps of magnitudes, least winning and best score."""

    low: Tensor
    high: Tensor
    least: Tensor
    best: Tensor


def _magnitudes(block: Block, low: Tensor, high: Tensor) -> Tensor:
    values = block.values
    return values.abs().clamp(column(low, values), column(high, values))


def _part(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The position of values between low and high, from 0 to 1; 1 where low and high are equal."""
    low, high = column(low, values), column(high, values)
    wide = high - low
    return torch.where(wide > 0, (values.clamp(min=low) - low) / torch.where(wide > 0, wide, 1.0), 1.0)


def scores(block: Block, low: Tensor, high: Tensor) -> Tensor:
    """exp(T part^2) tanh(tau_t sum_s tau_s): the balance within a task times the one between tasks."""
    values = block.values
    own = _part(_magnitudes(block, low, high), low, high).square()
    return (len(values) * own).exp() * (values * added(values)).tanh()


def compete(scope: Scope) -> Competition:
    """Quantiles of the magnitudes and of the scores over the whole model."""
    entries, models = scope.entries, len(scope.first.models)
    ends = [int(entries * _OUTLIERS), max(int(entries * (1 - _OUTLIERS) - 1), 0)]  # places in ascending order
    ranks = [entries - end for end in ends for _ in range(models)]
    low, high = scope.kth_largest(lambda block: block.values.flatten(1).repeat(2, 1), ranks).chunk(2)
    rank = entries - min(int(entries * (1 - scope.option("ratio"))), entries - 1)

    def sides(block: Block) -> Tensor:
        """The scores above 0 and those below 0, as separate rows: the wanted score is in one, and the other gives 0."""
        score = scores(block, low, high).flatten(1)
        return torch.cat([score.clamp(min=0), score.clamp(max=0)])

    ranks = [rank] * models + [entries - rank + 1] * models
    above, below = scope.kth_largest(sides, ranks).chunk(2)
    best = scope.highest(lambda block: scores(block, low, high).flatten(1).amax(1))
    return Competition(low, high, above - below, best)


def pcb(block: Block, found: Competition) -> Tensor:
    """The mean of clamped displacements, weighted by how far a score is above the least that wins."""
    share = _part(scores(block, found.low, found.high), found.least, found.best)
    clamped = block.values.sign() * _magnitudes(block, found.low, found.high)
    scale: float = block.options["scale"]
    return scale * added(share * clamped) / added(share).clamp(min=1e-12)


PCB = Method(
    "pcb",
    "PCB-merging: parameter competition balancing",
    "Du et al. 2024, arXiv:2410.02396",
    "lambda sum_t s_t tau_t / sum_t s_t; s_t from exp(T |tau_t|^2) tanh(tau_t sum_s tau_s), magnitudes and s_t scaled to "
    "[0, 1], all but the best share 0",
    pcb,
    prepare=compete,
    over="model",
    options=(SCALE, Option("ratio", 0.1, "share of the entries that win", low=0.0, high=1.0)),
    temporaries=10,
)
