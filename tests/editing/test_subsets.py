"""Subsets and Shapley values against all orders written out, and the choice against a search by hand."""

import itertools

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import UsageError
from tauspan.models import Encoder, Head


def task(name, rows=24, classes=2):
    seed = ord(name)
    x = zoo.normal(rows, 3, seed=seed).double()
    y = (x[:, seed % 3] > 0).long() % classes
    head = Head(zoo.normal(classes, 4, seed=seed + 1).double())
    return ts.Task.from_tensors(name, ["0", "1"], train=(x, y), validation=(x, y), test=(x, y), head=head)


def editor(regime="linear", names="abc"):
    torch.manual_seed(0)
    model = Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double())
    settings = ts.Settings(regime, lr=0.05, epochs=20, batch_size=8)
    return ts.Editor(model, {one: ts.finetune(model, one, settings).task_vector for one in map(task, names)})


def accuracies(asked, subset, split="validation"):
    found = asked.evaluate(dict.fromkeys(subset, 1.0), split=split).tasks
    return {one.task: one.value for one in found}


@pytest.mark.parametrize("regime", ["linear", "standard"])
def test_the_worth_is_the_mean_over_all_orders(regime):
    asked = editor(regime)
    found = asked.subsets(bootstrap=0)
    names = [one.name for one in asked.vectors]
    for worth in found.worths:
        gains = []
        for order in itertools.permutations(names):
            before = list(order[: order.index(worth.vector)])
            after = [*before, worth.vector]
            gains.append(accuracies(asked, after)[worth.task] - accuracies(asked, before)[worth.task])
        assert worth.value == pytest.approx(sum(gains) / len(gains), abs=1e-12)
    for name in names:
        total = sum(one.value for one in found.worths if one.task == name)
        assert total == pytest.approx(accuracies(asked, names)[name] - accuracies(asked, [])[name], abs=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.9, 1.0])
def test_the_choice_is_the_best_that_keeps_the_floor(floor):
    asked = editor(names="abcd")
    found = asked.subsets(floor=floor, bootstrap=0)
    names = [one.name for one in asked.vectors]
    own = {name: accuracies(asked, [name])[name] for name in names}
    best = None
    for size in range(len(names) + 1):  # nothing may be best
        for subset in itertools.combinations(names, size):
            got = accuracies(asked, subset)
            mean = sum(got.values()) / len(names)
            assert found.means[subset] == pytest.approx(mean)
            if all(got[name] >= floor * own[name] for name in subset) and (best is None or mean > best[0]):
                best = (mean, subset)
    assert best is not None
    assert found.chosen == best[1]
    assert found.coefficients == {name: float(name in best[1]) for name in names}
    for label, subset in (("none", ()), ("all", names), ("chosen", best[1])):
        got = accuracies(asked, subset, "test")
        assert found.test[label] == pytest.approx(sum(got.values()) / len(names))


def test_intervals_hold_their_value_and_the_report_says_it():
    found = editor().subsets(bootstrap=200)
    for one in found.worths:
        low, high = one.interval
        assert low - 1e-9 <= one.value <= high + 1e-9
    report = found.report()
    assert [table.title for table in report.tables] == ["Worth of each vector, linear", "Best subsets"]
    assert report.verdict.startswith("Add ")
    assert found.vector.norm() > 0
    if len(found.chosen) < 3:
        low, high = found.gain
        assert low <= found.test["chosen"] - found.test["all"] <= high


def test_a_floor_that_nothing_keeps_is_told():
    found = editor().subsets(floor=2.0, bootstrap=0)
    assert found.chosen == ()
    assert "No subset keeps 200%" in found.verdict
    asked = editor(names="ab")
    worse = ts.Editor(asked.encoder, {one: -20.0 * vector for one, vector in asked.vectors.items()})
    assert worse.subsets(floor=0.0, bootstrap=0).verdict.startswith("Add no vector")


def test_what_cannot_be_is_refused():
    x, y = zoo.normal(4, 3).double(), zoo.normal(4, 1).double()
    model = Encoder(nn.Linear(3, 4).double())
    tasks = [
        ts.Task.from_tensors(
            name, ["u"], objective="regression", train=(x, y), validation=(x, y), test=(x, y),
            head=Head(zoo.normal(1, 4).double()),
        )
        for name in ("first", "second")
    ]  # fmt: skip
    vectors = {one: ts.closed_form(model, one, ridge=1.0).vector for one in tasks}
    with pytest.raises(UsageError, match="compared by accuracy"):
        ts.Editor(model, vectors).subsets()
    with pytest.raises(UsageError, match="2 to 12"):
        editor(names="a").subsets()
    with pytest.raises(UsageError, match="floor"):
        editor().subsets(floor=-1.0)
