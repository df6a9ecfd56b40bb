"""NaN and infinity in features or logits are an error with the row, never a class."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from tauspan.core.errors import ModelError, NonFiniteError
from tauspan.editing.evaluation import evaluate
from tauspan.models import Encoder, Head
from tauspan.objectives import Classification
from tauspan.tasks import Task, build_head

BROKEN = [math.nan, math.inf, -math.inf]


class Logarithm(nn.Module):
    """Not finite on some rows: log of a negative number, or of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).log()


def rows(*values: float) -> tuple[Tensor, Tensor]:
    inputs = torch.tensor([[value, 1.0] for value in values])
    return inputs, torch.tensor([place % 2 for place in range(len(values))])


def task(bad: float, **options: Any) -> Task:
    """The fourth test row is the one."""
    good = rows(1.0, 2.0, 3.0, 4.0)
    return Task.from_tensors(
        "t", ["a", "b"], train=good, validation=good, test=rows(1.0, 2.0, 3.0, bad), **options
    )


@pytest.mark.parametrize("bad", [-1.0, 0.0, math.nan])
def test_a_row_without_finite_logits_has_no_accuracy(bad: float) -> None:
    with pytest.raises(NonFiniteError, match=r"logits .*: (NaN|infinity) in 1 of 4 rows \(3, from 0 on\)"):
        evaluate(Encoder(Logarithm().eval()), [task(bad, head=Head(torch.eye(2)))]).report()


@pytest.mark.parametrize("regime", ["standard", "linear"])
def test_an_edit_that_gives_such_rows_is_an_error_too(regime: Any) -> None:
    encoder = Encoder(Logarithm().eval())
    vector = ts.TaskVector(
        {"scale": torch.tensor([-2.0, 0.0])}, ts.models.fingerprint_of(encoder), regime, "tau"
    )
    made = task(5.0 if regime == "standard" else 0.0, head=Head(torch.eye(2)))
    with pytest.raises(NonFiniteError, match=r"(logits .* of \d rows|in row 3 of the batch)"):
        evaluate(encoder, [made], vector).report()


@pytest.mark.parametrize("head_from", ["prototypes", "probe"])
def test_a_head_is_not_made_of_such_rows(head_from: Any) -> None:
    made = task(1.0)
    bad = Task.from_tensors(
        "t", ["a", "b"], train=rows(1.0, -1.0, 2.0, 3.0), validation=rows(1.0), test=rows(1.0)
    )
    assert build_head(dataclasses.replace(made, head_from=head_from), Encoder(Logarithm().eval())) is not None
    with pytest.raises(NonFiniteError, match=r"features .* in 1 of \d rows"):
        build_head(dataclasses.replace(bad, head_from=head_from), Encoder(Logarithm().eval()))


@pytest.mark.parametrize("value", BROKEN)
def test_no_place_of_such_a_number_is_overlooked(value: float) -> None:
    for row in range(3):
        for column in range(2):
            logits = torch.zeros(3, 2)
            logits[row, column] = value
            with pytest.raises(NonFiniteError, match=rf"1 of 3 rows \({row}, from 0 on\)"):
                Classification().value(logits, torch.zeros(3, dtype=torch.long))
    assert Classification().value(torch.tensor([[1.0, 2.0]]), torch.tensor([1])) == 1.0


def test_features_that_are_no_vectors_are_told() -> None:
    encoder = Encoder(nn.Identity(), lambda module, x: x.unsqueeze(1))
    with pytest.raises(
        ModelError, match=r"features of shape \(2, 1, 2\) for 2 rows, and a head reads \(N, d\)"
    ):
        build_head(task(1.0), encoder)
