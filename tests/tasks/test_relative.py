"""Heads on relative features: against plain loops, on other encoders, and linearised."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from helpers.zoo import normal
from tauspan.core.errors import DataError, MismatchError, UsageError
from tauspan.tasks import relative_features, relative_head


def task(objective: str = "classification") -> ts.Task:
    x = {name: normal(12, 4, seed=seed) for seed, name in enumerate(("train", "validation", "test"))}
    if objective == "regression":
        rows = {name: (one, one[:, :2].sin()) for name, one in x.items()}
        return ts.Task.from_tensors("waves", ["a", "b"], **rows, objective="regression")
    return ts.Task.from_tensors(
        "side", ["no", "yes"], **{name: (one, (one[:, 0] > 0).long()) for name, one in x.items()}
    )


def encoder(seed: int = 0, width: int = 5) -> ts.Encoder:
    torch.manual_seed(seed)
    return ts.load(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width)).double())


def stack(rows: ts.tasks.Split) -> Tensor:
    return torch.stack(list(rows.inputs))


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_the_head_is_a_map_of_cosines(objective: str) -> None:
    one = task(objective)
    shared = relative_head(one, encoder(), anchors=5, seed=3)
    for model in (encoder(), encoder(1, width=7)):
        x, anchors = stack(one.split("test")), stack(shared.anchors)
        with torch.no_grad():
            z, a = model(x), model(anchors)
            found = shared.on(model)(z)
        r = torch.tensor([[float(u @ v / u.norm() / v.norm()) for v in a] for u in z], dtype=torch.float64)
        torch.testing.assert_close(found, r @ shared.weight.T + shared.bias, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(relative_features(z, a), r, rtol=1e-6, atol=1e-7)
    assert "2 outputs, 5 anchors, fitted on Sequential" in repr(shared)


def test_anchors_are_training_rows_by_the_seed() -> None:
    first, again, other = (
        relative_head(task(), encoder(), anchors=5, seed=seed).anchors for seed in (0, 0, 1)
    )
    assert torch.equal(stack(first), stack(again))
    assert not torch.equal(stack(first), stack(other))
    known = {tuple(row.tolist()) for row in task().split("train").inputs}
    assert {tuple(row.tolist()) for row in first.inputs} <= known
    assert len(relative_head(task(), encoder()).anchors) == 12  # at most 100


def test_an_encoder_that_is_turned_scaled_and_wider_is_served() -> None:
    first, wide = encoder(), encoder()
    turn = torch.linalg.qr(normal(8, 8, seed=5)).Q[:, :5]
    last = wide.backbone[2]  # type: ignore[index]
    with torch.no_grad():
        last.weight, last.bias = nn.Parameter(4 * turn @ last.weight), nn.Parameter(4 * turn @ last.bias)
    shared = relative_head(task(), first, anchors=6)
    x = stack(task().split("test"))
    with torch.no_grad():
        torch.testing.assert_close(shared.on(wide)(wide(x)), shared.on(first)(first(x)))
    heads = {model: dataclasses.replace(task(), head=shared.on(model)) for model in (first, wide)}
    assert ts.evaluate(first, [heads[first]]).accuracy == ts.evaluate(wide, [heads[wide]]).accuracy


def test_its_tangent_model_moves_rows_and_not_anchors() -> None:
    base, other = encoder(0), encoder(1)
    shared, x, step = relative_head(task(), base, anchors=6), stack(task().split("test")), 1e-5
    head, vector = shared.on(base), ts.TaskVector.from_checkpoints(base, other)
    with torch.no_grad():
        anchors = base(stack(shared.anchors))
        up, down = (ts.apply(base, sign * step * vector, regime="standard")(x) for sign in (1, -1))
        slope = (relative_features(up, anchors) - relative_features(down, anchors)) / (2 * step)
        _, moved = ts.linearize(ts.Classifier(base, head)).tangent(x, vectors=[vector])
    torch.testing.assert_close(moved[0], slope @ shared.weight.T, rtol=1e-5, atol=1e-6)


def test_what_has_no_head_and_too_few_anchors_are_refused() -> None:
    with pytest.raises(UsageError, match="anchors=1: at least 2"):
        relative_head(task(), encoder(), anchors=1)
    with pytest.raises(UsageError, match="1 anchors: at least 2"):
        relative_head(task(), encoder(), anchors=task().split("train").take([0]))
    with pytest.raises(MismatchError, match=r"features of shape \(2, 3\) and anchors of shape \(2, 4\)"):
        relative_features(torch.ones(2, 3), torch.ones(2, 4))
    texts = {name: (["a b", "b a"], None) for name in ("train", "validation", "test")}
    with pytest.raises(UsageError, match=r"task 'texts' is .*, which has no head"):
        relative_head(ts.Task.from_tensors("texts", [], **texts, objective="next-token"), encoder())


def test_what_has_no_minimum_is_refused() -> None:
    one = task()
    rows = {name: (stack(one.split(name)), one.split(name).labels) for name in ts.tasks.SPLITS}
    three = ts.Task.from_tensors("side", ["no", "yes", "maybe"], **rows)
    with pytest.raises(DataError, match="class 'maybe' of task 'side' has no training row"):
        relative_head(three, encoder(), anchors=5)
    with pytest.raises(UsageError, match="ridge=-1"):
        relative_head(one, encoder(), anchors=5, ridge=-1.0)
