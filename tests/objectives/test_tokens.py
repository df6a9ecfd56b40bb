"""Next-token losses in chunks of positions against the whole logits, written out in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tauspan.core.errors import DataError, UsageError
from tauspan.objectives.tokens import IGNORED, NextToken, Table

ROWS, LENGTH, WIDTH, WORDS = 4, 6, 3, 7


def bound(logits: int = 2**24, bias: bool = True) -> NextToken:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(WORDS, WIDTH, generator=draw, dtype=torch.float64)
    return NextToken(
        Table(weight, torch.randn(WORDS, generator=draw).double() if bias else None, LENGTH), logits
    )


def texts() -> tuple[Tensor, Tensor]:
    """States, and targets of texts of several lengths, with prompts."""
    draw = torch.Generator().manual_seed(1)
    states = torch.randn(ROWS, LENGTH * WIDTH, generator=draw, dtype=torch.float64)
    targets = torch.randint(WORDS, (ROWS, LENGTH), generator=draw)
    targets[:, -1] = IGNORED
    targets[1, 3:] = IGNORED  # padding
    targets[2, :3] = IGNORED  # a prompt
    return states, targets


def plain(one: NextToken, states: Tensor, targets: Tensor) -> Tensor:
    """The definition: all logits, row by row."""
    assert one.table is not None
    found = []
    for row, wanted in zip(states.view(ROWS, LENGTH, WIDTH), targets, strict=True):
        logits = F.linear(row, one.table.weight, one.table.bias)
        losses = [
            -logits[place].log_softmax(-1)[word]
            for place, word in enumerate(wanted.tolist())
            if word != IGNORED
        ]
        found.append(torch.stack(losses).mean())
    return torch.stack(found)


@pytest.mark.parametrize("logits", [2**24, 20, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_and_derivatives_are_those_of_whole_logits(logits: int, bias: bool) -> None:
    one, (states, targets) = bound(logits, bias), texts()
    along = torch.randn(2, ROWS, LENGTH * WIDTH, dtype=torch.float64)
    torch.testing.assert_close(one.losses(states, targets), plain(one, states, targets))
    free = states.clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain(one, free, targets).sum(), free, create_graph=True)
    torch.testing.assert_close(one.gradients(states, targets), slope.detach())
    for v, found in zip(along, one.curvature(states, targets, along), strict=True):
        (curved,) = torch.autograd.grad(slope, free, v, retain_graph=True)
        torch.testing.assert_close(found, curved)
    mine = states.clone().requires_grad_()
    weights = torch.tensor([1.0, 0.0, 2.0, -1.0], dtype=torch.float64)
    (one.losses(mine, targets) * weights).sum().backward()
    expected = (slope.detach().view(ROWS, -1) * weights[:, None]).view_as(states)
    torch.testing.assert_close(mine.grad, expected)


def test_perplexity_is_the_exponential_of_the_mean_loss_of_texts() -> None:
    one, (states, targets) = bound(), texts()
    assert one.value(states, targets) == pytest.approx(float(plain(one, states, targets).mean().exp()))


@pytest.mark.parametrize("logits", [2**24, 1])
def test_maps_compare_predicted_tokens(logits: int) -> None:
    """The distance of two models is the share of a text's target positions whose likeliest token differs."""
    one, (states, targets) = bound(logits), texts()
    other = states.roll(1, 0)
    assert one.table is not None
    wanted = []
    for n in range(ROWS):
        likeliest = [
            F.linear(at[n].view(LENGTH, WIDTH), one.table.weight, one.table.bias).argmax(-1)
            for at in (states, other)
        ]
        there = targets[n] != IGNORED
        wanted.append(float((likeliest[0] != likeliest[1])[there].double().mean()))
    name, apart = one.distance()
    assert name == "tokens"
    assert apart(one.predicted(states, targets), one.predicted(other, targets)).tolist() == wanted
    assert 0 < sum(wanted) < ROWS


def test_it_needs_the_table_of_a_model() -> None:
    states, targets = texts()
    with pytest.raises(UsageError, match="language=L"):
        NextToken().losses(states, targets)
    with pytest.raises(DataError, match="length of its prompt"):
        NextToken().require(torch.zeros(2, 2), 0, "train of task 't'")
    assert replace(bound(), logits=5) != NextToken()
    assert bound() == NextToken()


def test_a_pass_without_rows_has_a_loss_and_a_gradient_of_nothing() -> None:
    """What a process does in shards when the others have rows and it has none."""
    objective, states = bound(), torch.zeros(0, LENGTH * WIDTH, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(0, LENGTH, dtype=torch.long)
    objective.total(states, targets).backward()
    assert states.grad is not None
    assert states.grad.shape == states.shape
    assert objective.gradients(states.detach(), targets).shape == states.shape
    assert objective.curvature(states.detach(), targets, states.detach()[None]).shape == (1, *states.shape)
