"""Rounds of discovery: the rounds written out, and a world of two features in which the second round finds the second."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

import tauspan as ts
from helpers import zoo
from helpers.runs import REGIMES, encoder, network, points
from helpers.tiny import same_bits
from tauspan.core.errors import UsageError
from tauspan.models import Encoder, Head
from tauspan.sequence import WorstGroup, discover

SETTINGS = ts.Settings("standard", seed=1, epochs=10, batch_size=8, lr=0.02)


def features(vector, x):
    """Of the ordinary model at theta0 + tau, or of the tangent one."""
    net = network()
    theta0, tau = dict(net.named_parameters()), dict(vector.deltas)
    if vector.regime == "standard":
        return functional_call(net, {name: theta0[name] + delta for name, delta in tau.items()}, (x,))
    value, slope = torch.func.jvp(lambda theta: functional_call(net, theta, (x,)), (theta0,), (tau,))
    return value + slope


@pytest.mark.parametrize("regime", REGIMES)
def test_rounds_are_runs_on_groups_of_all_rounds_before(regime):
    settings, task = dataclasses.replace(SETTINGS, regime=regime), points()
    found = discover(encoder(), task, settings, rounds=3, rate=0.3)
    early, groups = dataclasses.replace(settings, max_steps=3), {}  # a tenth of 30 steps
    for number in range(3):
        weights = WorstGroup(list(groups.values()), 0.3) if number else None
        run = ts.finetune(encoder(), task, settings if number else early, weights=weights)
        vector = found.vectors[f"round {number}"]
        assert same_bits(vector.deltas, run.task_vector.deltas)
        assert vector.label == f"round {number}"
        rows = task.split("train")
        logits = task.head(features(vector, torch.stack(list(rows.inputs))))
        right = logits.argmax(1) == rows.labels
        for word, places in (("right", right), ("wrong", ~right)):
            if bool(places.any()):
                groups[f"round {number} {word}"] = places.nonzero().flatten().tolist()
        evaluated = ts.evaluate(encoder(), [task], vector, split="validation").accuracy["points"]
        assert found.accuracy[f"round {number}"] == evaluated
    assert found.groups == groups
    (table, cosines) = found.report().tables
    assert table.rows[0]["round 0 wrong"] == 0.0
    assert cosines.rows[1]["round 1"] == pytest.approx(1.0)


def two_features(rows=400):
    """The label is the sign of x_1 with 5 % of noise, and that of x_2 with 25 %; both are linear."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 2
    flips = [torch.rand(rows, generator=draw) < share for share in (0.05, 0.25)]
    x = torch.stack([torch.where(flip, -1.0, 1.0) * (2 * y - 1) for flip in flips], 1)
    x[:, 0] *= 3  # the first is the easier one
    parts = dict.fromkeys(("train", "validation", "test"), (x, y))
    return ts.Task.from_tensors("two", ["a", "b"], head=Head(torch.tensor([[-1.0], [1.0]])), **parts), flips


def test_the_second_round_uses_the_feature_that_the_first_left():
    task, flips = two_features()
    base = Encoder(nn.Linear(2, 1, bias=False).eval())
    with torch.no_grad():
        base.backbone.weight.zero_()
    settings = ts.Settings("standard", lr=0.05, epochs=25, batch_size=100)
    found = discover(base, task, settings)
    assert torch.equal(found.right["round 0"], ~flips[0])
    assert torch.equal(found.right["round 1"], ~flips[1])
    assert "Round 1 has right 0." in found.verdict
    merged = ts.merge(list(found.vectors.values()), "task_arithmetic")
    assert merged.regime == "standard"


def test_rounds_end_where_no_row_is_wrong():
    x, y = zoo.normal(40, 4, seed=2).double(), torch.arange(40) % 2
    x[:, 0] = 2.0 * y - 1
    head = Head(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]).double())
    base = Encoder(nn.Linear(4, 4, bias=False).double().eval())
    with torch.no_grad():
        base.backbone.weight.copy_(torch.eye(4))
    task = ts.Task.from_tensors("easy", ["a", "b"], train=(x, y), validation=(x, y), test=(x, y), head=head)
    found = discover(base, task, SETTINGS, rounds=3)
    assert list(found.vectors) == ["round 0"]
    assert list(found.groups) == ["round 0 right"]
    assert found.warnings == ("round 0 has no row of easy wrong: rounds after it would find nothing to do.",)
    assert "one round" in found.verdict


def test_what_has_no_rounds_is_refused():
    with pytest.raises(UsageError, match="rounds=1: round 0 is plain training"):
        discover(encoder(), points(), SETTINGS, 1)
    with pytest.raises(UsageError, match="first is of the regime 'linear'"):
        discover(encoder(), points(), SETTINGS, first=ts.Settings("linear"))
    x, y = torch.ones(4, 4).double(), torch.ones(4, 1).double()
    numbers = ts.Task.from_tensors(
        "n", ["y"], objective="regression", train=(x, y), validation=(x, y), test=(x, y)
    )
    with pytest.raises(UsageError, match="where they have classes"):
        discover(encoder(), numbers, SETTINGS)


@pytest.mark.slow
def test_the_example_runs(capsys):
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "discovery.py"))["main"]
    rows = {row["method"]: row for row in main(short=True)}
    assert float(rows["round 1"]["flip 0.9"]) > float(rows["plain training"]["flip 0.9"]) + 0.2
    assert "2 seeds, 50 steps" in capsys.readouterr().out
