"""What a model knows of answers, as plain functions: probability, truth ratio, ROUGE-L, membership, distance, intervals.

Losses are in nats, means over the tokens of an answer, so that exp(-loss) is the answer's probability normalised by its
length: P(a | q)^(1/|a|).
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from tauspan.models import Encoder
from tauspan.objectives import NextToken
from tauspan.objectives.tokens import Table
from tauspan.tasks import Split
from tauspan.tasks.batches import batches

Floats = NDArray[np.float64]


def losses(model: nn.Module, encoder: Encoder, rows: Split, batch_size: int = 32) -> Tensor:
    """The loss of each text's continuation, shape (N,), float64.

    Args:
        model: an encoder or a tangent model that gives last states.
        encoder: the pre-trained one, which knows tokens and their table.
        rows: texts, and how many characters of each are a prompt.
        batch_size: texts in one pass.
    """
    objective = NextToken().bound(encoder.language)
    found = torch.empty(len(rows), dtype=torch.float64)
    for places, batch in batches(encoder, rows, None, batch_size, objective):
        some = rows.take(places)
        targets = objective.targets(some.inputs, some.labels, encoder.language, None)
        with torch.no_grad():
            found[places] = objective.losses(model(batch).double(), targets)
    return found


def logits(table: Table, states: Tensor) -> Tensor:
    """W h + b, float64."""
    bias = None if table.bias is None else table.bias.to(states)
    return F.linear(states, table.weight.to(states), bias).double()


def truth_ratio(right: Tensor, wrong: Tensor) -> Tensor:
    """TOFU's R = mean_w P(w | q)^(1/|w|) / P(a | q)^(1/|a|) (Maini et al. 2024, section 2.2.1), shape (N,).

    Args:
        right: losses of the right answers in other words, shape (N,).
        wrong: losses of the wrong ones in the same words, shape (N, W).
    """
    return (-wrong).exp().mean(1) / (-right).exp()


def told_apart(ratio: Tensor) -> Tensor:
    """max(0, 1 - R): 0 where wrong answers are as likely as the right one, 1 where they are impossible."""
    return (1 - ratio).clamp(min=0)


def rouge_recall(text: str, reference: str) -> float:
    """ROUGE-L recall (Lin 2004): the longest common subsequence of words over the words of the reference.

    Words are letters and digits in lower case; nothing is stemmed.

    Example:
        >>> rouge_recall("It was Cairo", "It is Cairo.")
        0.6666666666666666
    """
    first, second = (re.findall(r"\w+", one.lower()) for one in (text, reference))
    best = [0] * (len(second) + 1)
    for word in first:
        before = best
        best = [0]
        for place, other in enumerate(second):
            best.append(before[place] + 1 if word == other else max(before[place + 1], best[place]))
    return best[-1] / len(second)


def membership(trained: Tensor, unseen: Tensor) -> Tensor:
    """For each row that was trained on, the share of unseen rows with a higher loss, equal ones by half, shape (N,).

    Its mean is the area under the ROC curve of the attack that calls rows of low loss members (Yeom et al. 2018):
    0.5 where nothing gives the rows away.
    """
    apart = unseen[None] - trained[:, None]
    return ((apart > 0).double() + (apart == 0).double() / 2).mean(1)


def quality(ratios: Tensor, gold: Tensor) -> float:
    """TOFU's forget quality: the p-value of a Kolmogorov-Smirnov test of truth ratios against the retrained model's."""
    return float(stats.ks_2samp(ratios.numpy(), gold.numpy()).pvalue)


def distance(
    model: nn.Module, gold: nn.Module, encoder: Encoder, rows: Split, batch_size: int = 16
) -> Tensor:
    """Total variation 1/2 |p - p'|_1 of next tokens in two models, the mean over a text's targets, shape (N,)."""
    objective = NextToken().bound(encoder.language)
    table = objective.table
    assert table is not None  # noqa: S101 - bound
    found = torch.empty(len(rows), dtype=torch.float64)
    for places, batch in batches(encoder, rows, None, batch_size, objective):
        some = rows.take(places)
        there = objective.targets(some.inputs, some.labels, encoder.language, None) >= 0
        with torch.no_grad():
            chances = []
            for one in (model, gold):
                states = one(batch).view(len(places), table.length, -1)[there]
                chances.append(logits(table, states).softmax(-1))
        apart = (chances[0] - chances[1]).abs().sum(-1) / 2
        rows_of = there.nonzero()[:, 0]
        sums = torch.zeros(len(places), dtype=torch.float64).index_add(0, rows_of, apart)
        found[places] = sums / there.sum(1)
    return found


def interval(
    groups: Sequence[Sequence[float]], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean and a 95 % interval of it by the bootstrap: seeds are drawn with replacement, then people of each.

    Args:
        groups: for each seed a number for each person.
        draws: how often.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    rows = [np.asarray(one, dtype=np.float64) for one in groups]
    means: Floats = np.stack([row[random.integers(len(row), size=(draws, len(row)))].mean(1) for row in rows])
    chosen = random.integers(len(rows), size=(draws, len(rows)))
    drawn = np.take_along_axis(means.T, chosen, axis=1).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.mean([row.mean() for row in rows])), float(low), float(high)
