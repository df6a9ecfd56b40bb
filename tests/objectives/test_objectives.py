"""Losses, gradients, curvature and metrics of each objective against formulas written out in float64."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tauspan.core.errors import DataError, NonFiniteError, UsageError
from tauspan.objectives import (
    OBJECTIVES,
    Classification,
    MultiLabel,
    Objective,
    OwnLoss,
    Regression,
    objective_of,
)

ROWS, OUTPUTS = 5, 3
WORDS = [word for word, one in OBJECTIVES.items() if not one.headless]  # that of texts has a file of its own


def softmax(row: list[float]) -> list[float]:
    largest = max(row)
    exponents = [math.exp(x - largest) for x in row]
    return [x / sum(exponents) for x in exponents]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(word: str, f: list[float], y: Any) -> tuple[float, list[float], list[list[float]], float]:
    """Loss, gradient, Hessian and score of one row."""
    size = len(f)
    if word == "classification":
        p = softmax(f)
        hessian = [[p[i] * (i == j) - p[i] * p[j] for j in range(size)] for i in range(size)]
        right = float(f.index(max(f)) == y)
        return -math.log(p[y]), [p[i] - (i == y) for i in range(size)], hessian, right
    if word == "multi-label":
        p = [sigmoid(x) for x in f]
        loss = sum(-(t * math.log(q) + (1 - t) * math.log(1 - q)) for q, t in zip(p, y, strict=True)) / size
        hessian = [[p[i] * (1 - p[i]) / size * (i == j) for j in range(size)] for i in range(size)]
        found, true = {i for i in range(size) if f[i] > 0}, {i for i in range(size) if y[i] > 0.5}
        both = len(found) + len(true)
        f1 = 2 * len(found & true) / both if both else 1.0
        return loss, [(q - t) / size for q, t in zip(p, y, strict=True)], hessian, f1
    off = [x - t for x, t in zip(f, y, strict=True)]
    hessian = [[float(i == j) for j in range(size)] for i in range(size)]
    return sum(x * x for x in off) / 2, off, hessian, sum(x * x for x in off) / size


def targets_of(word: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if word == "classification":
        return torch.randint(OUTPUTS, (ROWS,), generator=generator)
    if word == "multi-label":
        return torch.randint(2, (ROWS, OUTPUTS), generator=generator).double()
    return torch.randn(ROWS, OUTPUTS, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("word", WORDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_each_objective_is_its_formula(word: str, seed: int) -> None:
    one, y = objective_of(word), targets_of(word, seed)
    f = 3 * torch.randn(ROWS, OUTPUTS, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    along = torch.randn(
        2, ROWS, OUTPUTS, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64
    )
    expected = [by_hand(word, row, target) for row, target in zip(f.tolist(), y.tolist(), strict=True)]
    losses, slopes, hessians, scores = (
        torch.tensor(part, dtype=torch.float64) for part in zip(*expected, strict=True)
    )
    torch.testing.assert_close(one.losses(f, y), losses)
    torch.testing.assert_close(one.total(f, y), losses.sum())
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)
    free = f.clone().requires_grad_()
    torch.testing.assert_close(one.total(free, y, weights), (weights * losses).sum())
    (weighted,) = torch.autograd.grad(one.total(free, y, weights), free)
    torch.testing.assert_close(weighted, weights[:, None] * slopes)
    torch.testing.assert_close(one.gradients(f, y), slopes)
    torch.testing.assert_close(one.curvature(f, y, along), torch.einsum("nij,tnj->tni", hessians, along))
    torch.testing.assert_close(one.scores(f, y), scores)
    assert one.value(f, y) == pytest.approx(one.summary(float(scores.mean())))


@pytest.mark.parametrize("word", WORDS)
def test_closed_forms_of_derivatives_are_those_of_autograd(word: str) -> None:
    one, y = objective_of(word), targets_of(word, 3)
    f, along = torch.randn(ROWS, OUTPUTS).double(), torch.randn(2, ROWS, OUTPUTS).double()
    torch.testing.assert_close(one.gradients(f, y), Objective.gradients(one, f, y))
    torch.testing.assert_close(one.curvature(f, y, along), Objective.curvature(one, f, y, along))


def test_smoothing_and_distributions_are_targets_of_classification() -> None:
    f, y = torch.randn(4, 3).double(), torch.tensor([0, 2, 1, 1])
    smooth = Classification(0.2)
    q = torch.nn.functional.one_hot(y, 3).double() * 0.8 + 0.2 / 3
    torch.testing.assert_close(smooth.losses(f, y), Classification().losses(f, q))
    torch.testing.assert_close(smooth.gradients(f, y), Classification().gradients(f, q))
    torch.testing.assert_close(smooth.gradients(f, y), Objective.gradients(smooth, f, y))


@pytest.mark.parametrize("word", WORDS)
def test_losses_that_fall_for_ever_are_known(word: str) -> None:
    """A direction along which no loss rises, however far, has lifts of at least 0; others have not."""
    one, y = objective_of(word), targets_of(word, 5)
    hot = torch.nn.functional.one_hot(y, OUTPUTS).double() if word == "classification" else 2 * y - 1
    good = hot[None]
    lifts = one.lifts(good, y)
    assert lifts is not None
    if word == "regression":
        assert not lifts.numel()
        return
    assert bool((lifts >= 0).all())
    assert bool((lifts > 0).any())
    worse = one.lifts(-good, y)
    assert worse is not None
    assert bool((worse < 0).any())
    far = one.losses(1e3 * good[0], y)
    assert bool((far <= one.losses(torch.zeros(ROWS, OUTPUTS).double(), y)).all())


def test_forgotten_targets() -> None:
    assert Classification().forgotten(torch.tensor([1]), 3).tolist() == [[0.5, 0.0, 0.5]]
    assert MultiLabel().forgotten(torch.tensor([[1.0, 0.0]]), 2).tolist() == [[0.0, 1.0]]
    with pytest.raises(UsageError, match="negate"):
        Regression().forgotten(torch.zeros(1, 1), 1)


@pytest.mark.parametrize(
    ("word", "targets", "said"),
    [
        ("classification", torch.tensor([0.0, 1.0]), "labels are int64"),
        ("classification", torch.tensor([0, 3]), "row 1: label 3 lies outside 0..2"),
        ("multi-label", torch.tensor([[0.0, 1.0, 2.0]]), "row 0 has the targets"),
        ("multi-label", torch.tensor([0, 1]), "floating-point numbers of shape"),
        ("regression", torch.tensor([[0.0, 1.0]]), "2 targets, and the task 3 names"),
        (
            "regression",
            torch.tensor([[0.0, 1.0, 1.0], [math.nan, 0.0, 0.0]]),
            "row 1 has a target that is NaN",
        ),
    ],
)
def test_wrong_targets_are_named(word: str, targets: Tensor, said: str) -> None:
    with pytest.raises(DataError, match=said):
        objective_of(word).require(targets, OUTPUTS, "train of task 't'")


def test_less_is_better_of_an_error() -> None:
    one = Regression()
    assert one.compared(0.5, 1.0) == 2.0
    assert one.compared(0.0, 1.0) is None
    assert one.rank(0.5) > one.rank(1.0)
    assert Classification().compared(0.4, 0.8) == 0.5


def test_an_unknown_word_is_told() -> None:
    with pytest.raises(UsageError, match="regression"):
        objective_of("regresion")
    with pytest.raises(UsageError, match="difference"):
        Regression().distance("argmax")


# -- a loss of the user's ------------------------------------------------------------------------------------


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    off = (outputs - targets).abs()
    return torch.where(off < 1, off**2 / 2, off - 0.5).sum(-1)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(6, 2)


def test_an_own_loss_has_derivatives_and_a_metric() -> None:
    one, (f, y) = OwnLoss(huber, convex=True), batch()
    torch.testing.assert_close(one.losses(f, y), huber(f, y))
    torch.testing.assert_close(one.gradients(f, y), (f - y).clamp(-1, 1))
    along = torch.ones(1, 6, 2)
    torch.testing.assert_close(one.curvature(f, y, along)[0], ((f - y).abs() < 1).float())
    assert one.value(f, y) == pytest.approx(float(huber(f, y).mean()))
    assert one.word == "huber"
    assert repr(one) == repr(OwnLoss(huber, convex=True))


def meaned(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - outputs.mean(0)).square().sum(-1)


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.detach() - targets).square().sum(-1)


def half_detached(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs * outputs.detach()).sum(-1)


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum(-1) / 0


def bent(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sin().sum(-1)


def shaped(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - torch.zeros(7, 5)).sum(-1)


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (meaned, UsageError, "without a mean"),
        (coupled, UsageError, "a row's loss is its own"),
        (detached, UsageError, "has no gradient"),
        (half_detached, UsageError, "central difference"),
        (broken, NonFiniteError, "NaN or infinity"),
        (bent, UsageError, "not convex"),
        (shaped, UsageError, "raised RuntimeError"),
    ],
)
def test_what_is_no_loss_is_refused_when_first_used(function: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        OwnLoss(function, convex=True).losses(*batch())
