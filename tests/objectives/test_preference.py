"""Preference pairs: loss, gradient and curvature are the formula's, written out in float64 with all logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import DataError, UsageError
from tauspan.objectives import NextToken, Objective, Preference, objective_of, spelled
from tauspan.objectives.tokens import IGNORED, Table

ROWS, LENGTH, WIDTH, WORDS = 3, 5, 3, 7


def bound(beta: float = 0.7, logits: int = 2**24) -> Preference:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(WORDS, WIDTH, generator=draw, dtype=torch.float64)
    bias = torch.randn(WORDS, generator=draw, dtype=torch.float64)
    return Preference(beta, NextToken(Table(weight, bias, LENGTH), logits))


def rows(seed: int = 1) -> tuple[Tensor, Tensor]:
    """States of both texts, and ids of several lengths, after a prompt in the second row; reference margins."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, 2 * LENGTH * WIDTH, generator=draw, dtype=torch.float64)
    ids = torch.randint(WORDS, (ROWS, 2, LENGTH), generator=draw)
    ids[:, :, -1] = IGNORED
    ids[0, 1, 2:] = IGNORED  # padding
    ids[1, :, :2] = IGNORED  # a prompt
    reference = torch.randn(ROWS, 1, generator=draw, dtype=torch.float64)
    return states, torch.cat([ids.flatten(1).double(), reference], 1)


def plain_margins(one: Preference, states: Tensor, targets: Tensor) -> Tensor:
    """The definition, token by token."""
    table = one.words.table
    assert table is not None
    found = []
    for row, wanted in zip(states, targets, strict=True):
        texts = []
        for text, ids in zip(row.view(2, LENGTH, WIDTH), wanted[:-1].view(2, LENGTH).long(), strict=True):
            logp = F.linear(text, table.weight, table.bias).log_softmax(-1)
            places = [n for n, word in enumerate(ids.tolist()) if word != IGNORED]
            texts.append(torch.stack([logp[n, ids[n]] for n in places]).sum())
        found.append(texts[0] - texts[1] - wanted[-1])
    return torch.stack(found)


def plain(one: Preference, states: Tensor, targets: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(one.beta * plain_margins(one, states, targets)))


@pytest.mark.parametrize("logits", [2**24, 20, 1])
def test_losses_and_derivatives_are_those_of_the_formula(logits: int) -> None:
    one, (states, targets) = bound(logits=logits), rows()
    along = torch.randn(2, *states.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tight = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(one.margins(states, targets), plain_margins(one, states, targets), **tight)
    free = states.clone().requires_grad_()
    wanted = plain(one, free, targets)
    (slope,) = torch.autograd.grad(wanted.sum(), free, create_graph=True)
    torch.testing.assert_close(one.losses(states, targets), wanted.detach(), **tight)
    torch.testing.assert_close(one.gradients(states, targets), slope.detach(), **tight)
    torch.testing.assert_close(one.with_gradients(states, targets)[0], wanted.detach(), **tight)
    for v, found in zip(along, one.curvature(states, targets, along), strict=True):
        (curved,) = torch.autograd.grad(slope, free, v, retain_graph=True)
        torch.testing.assert_close(found, curved, **tight)
    weights = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    mine = states.clone().requires_grad_()
    (one.losses(mine, targets) * weights).sum().backward()
    torch.testing.assert_close(mine.grad, slope.detach() * weights[:, None], **tight)


def test_padding_and_prompts_do_not_count() -> None:
    one, (states, targets) = bound(), rows()
    slopes = one.gradients(states, targets).view(ROWS, 2, LENGTH, WIDTH)
    assert bool((slopes[0, 1, 2:] == 0).all())
    assert bool((slopes[1, :, :2] == 0).all())
    assert bool((slopes[1, :, 2:4] != 0).any())


def test_it_is_not_convex() -> None:
    one, (states, targets) = bound(), rows()
    along = torch.randn(200, *states.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    bent = (one.curvature(states, targets, along) * along).sum(-1)
    assert bool((bent < -1e-3).any())
    assert bool((bent > 1e-3).any())
    assert not one.convex


def test_the_reference_makes_the_margin_of_the_pre_trained_model_0() -> None:
    one, (states, targets) = bound(), rows()
    ids = targets[:, :-1].long()
    own = torch.cat([ids.double(), one.reference(states, ids)], 1)
    assert one.losses(states, own).tolist() == pytest.approx([math.log(2)] * ROWS)
    assert one.scores(states.float().double(), own).tolist() == [0.5] * ROWS  # what float32 rounds is a tie
    assert one.value(states, own) == 0.5


def test_scores_say_which_text_is_preferred() -> None:
    one, (states, targets) = bound(), rows()
    margins = plain_margins(one, states, targets)
    assert one.scores(states, targets).tolist() == (margins > 0).double().tolist()
    turned = torch.where(torch.arange(targets.shape[1]) == targets.shape[1] - 1, targets + 100, targets)
    name, apart = one.distance()
    first, second = one.predicted(states, targets), one.predicted(states, turned)
    assert (name, apart(first, second).tolist()) == ("order", (margins > 0).double().tolist())


def test_options_are_spelled_and_read() -> None:
    assert objective_of("preference(beta=0.5)") == Preference(0.5)
    assert spelled(Preference(0.5)) == "preference(beta=0.5)"
    assert repr(bound()) == "Preference(beta=0.7)"
    for given, said in {
        "preference(beta)": "NAME=VALUE", "preference(gamma=1)": "no option 'gamma'", "preference(beta=0)": "above 0",
        "preference(words=1)": "no option 'words'", "preferences": "preference",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=said):
            objective_of(given)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(UsageError, match="language=L"):
        Preference().bound(None)
    with pytest.raises(DataError, match="length of its prompt"):
        Preference().require(torch.zeros(2, 2), 0, "train of task 't'")
    with pytest.raises(DataError, match="row 1: a prompt of -1"):
        Preference().require(torch.tensor([0, -1]), 0, "train of task 't'")
    with pytest.raises(UsageError, match="negate"):
        Preference().forgotten(torch.zeros(1, dtype=torch.long), 1)
    assert isinstance(bound(), Objective)
