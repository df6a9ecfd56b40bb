"""PCB-merging: parameters compete within a task and between tasks, and the winners are averaged."""

from typing import NamedTuple

import torch
from torch import Tensor

from tauspan.merge.methods.addition import added
from tauspan.merge.methods.election import column
from tauspan.merge.methods.method import Block, Method, Option, Scope
from tauspan.merge.methods.sums import SCALE

_OUTLIERS = 1e-4  # share of the magnitudes clamped at each end


class Competition(NamedTuple):
    """What PCB knows of the whole model, shape (T,) each: clamps of magnitudes; the score that wins, the best score."""

    low: Tensor
    high: Tensor
    least: Tensor
    best: Tensor


def _magnitudes(block: Block, low: Tensor, high: Tensor) -> Tensor:
    values = block.values
    return values.abs().clamp(column(low, values), column(high, values))


def _part(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where values lie from low to high, in [0, 1]; 1 where both are equal."""
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
        """Scores above and below 0: the wanted one is on one side, and the other side then gives 0."""
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
