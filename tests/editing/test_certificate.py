"""Certified error rates: each formula against another way to compute it, and that no bound is broken in resamplings."""

import math

import pytest
import torch
from scipy.stats import binom
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import UsageError
from tauspan.editing.search.certificate import (
    divergence_of,
    drawn_bound,
    drawn_error,
    fixed_bound,
    inverted,
    margins_of,
)
from tauspan.models import Encoder, Head

ROWS = 40


def editor(rows=ROWS, seed=0, classes=2, regime="linear", population=2000):
    """Two noisy tasks on a small net; the test split is the population."""
    torch.manual_seed(7)
    model = Encoder(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)))
    x = zoo.normal(population, 4, seed=seed)
    vectors = {}
    for place, name in enumerate(("first", "second")):
        noise = zoo.normal(population, classes, seed=10 + place + seed)
        y = (x @ zoo.normal(4, classes, seed=place) + noise).argmax(1)
        at = slice(100, 100 + rows)
        task = ts.Task.from_tensors(
            name, [str(one) for one in range(classes)], train=(x[:60], y[:60]), validation=(x[at], y[at]),
            test=(x[100:], y[100:]), head=Head(zoo.normal(classes, 4, seed=place + 5)),
        )  # fmt: skip
        settings = ts.Settings(regime, lr=0.05, epochs=5, batch_size=20)
        vectors[task] = ts.finetune(model, task, settings).task_vector
    return ts.Editor(model, vectors)


def test_the_error_of_drawn_coefficients_is_that_of_many_draws():
    own = editor(classes=2)
    task, at, width = next(iter(own.vectors)), {"first": 0.8, "second": 0.3}, 0.4
    found = own.certify(at, prior=0.5, spread=0.4)
    model = own._models.whole(list(own.vectors))
    margins, slopes = margins_of(model, task, at, "validation")
    exact = drawn_error(margins, slopes, width)
    draws = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * width
    labels, wrong = model.targets(task, "validation"), 0.0
    start = model.logits(task, "validation", {}).double()
    moved = [model.logits(task, "validation", {name: 1.0}).double() - start for name in at]
    for first, second in draws.tolist():
        logits = start + (at["first"] + first) * moved[0] + (at["second"] + second) * moved[1]
        wrong += float((logits.argmax(1) != labels).double().mean()) / len(draws)
    assert exact == pytest.approx(wrong, abs=0.005)
    assert found.tasks[0].error == pytest.approx(1 - own.evaluate(at, split="validation").accuracy["first"])
    assert drawn_error(margins, slopes, 1e-9) == pytest.approx(found.tasks[0].error)


def test_with_more_classes_it_is_an_upper_bound():
    own = editor(classes=4)
    model, task = own._models.whole(list(own.vectors)), next(iter(own.vectors))
    margins, slopes = margins_of(model, task, {"first": 1.0, "second": 1.0}, "validation")
    draws = torch.randn(2000, ROWS, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.zeros(ROWS, 3, 2, dtype=torch.float64)
    direction[..., 0] = (
        slopes  # any direction of that norm: only each margin's own spread counts in the bound
    )
    wrong = (margins + 0.5 * (draws[:, :, :1] * direction).sum(-1) < 0).any(-1).double().mean()
    assert drawn_error(margins, slopes, 0.5) >= float(wrong) - 0.01


@pytest.mark.parametrize("error", [0.0, 0.1, 0.5, 0.97])
def test_the_inverse_of_kl_gives_the_budget_back(error):
    for budget in (0.001, 0.05, 0.1):
        rate = inverted(error, budget)
        known = error * math.log(error / rate) if error else 0.0
        assert known + (1 - error) * math.log((1 - error) / (1 - rate)) == pytest.approx(budget, rel=1e-6)
        assert rate >= error


def test_the_binomial_bound_is_the_rate_at_which_so_few_errors_are_unlikely():
    for wrong, rows in ((0, 10), (3, 50), (49, 50)):
        rate = fixed_bound(wrong / rows, rows, 0.05)
        assert binom.cdf(wrong, rows, rate) == pytest.approx(0.05, rel=1e-6)
    assert fixed_bound(1.0, 10, 0.05) == 1.0


def test_the_divergence_is_that_of_torch():
    own, prior = torch.tensor([0.3, 1.2]).double(), torch.tensor([1.0, 1.0]).double()
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(own, 0.1), normal(prior, 0.4)).sum()
    away = float((own - prior).square().sum())
    assert divergence_of(2, away, 0.1, 0.4) == pytest.approx(float(wanted))
    assert drawn_bound(0.1, 2.0, 128, 0.05) == pytest.approx(
        inverted(0.1, (2.0 + math.log(2 * math.sqrt(128) / 0.05)) / 128)
    )


@pytest.mark.slow
def test_no_bound_is_broken_in_twenty_resamplings():
    """Each draws 40 rows of a population of 1,100, whose error is what is bounded."""
    broken, gaps = 0, []
    for seed in range(20):
        own = editor(seed=seed, population=1200)
        model = own._models.whole(list(own.vectors))
        for at in ({"first": 0.6, "second": 0.9}, {"first": 1.0, "second": 1.0}):
            found = own.certify(at, spread=0.3)
            for task, one in zip(own.vectors, found.tasks, strict=True):
                true = drawn_error(*margins_of(model, task, at, "test"), found.width or 1e-9)
                broken += true > one.bound
                gaps.append(one.bound - true)
    assert broken == 0
    assert 0 < sum(gaps) / len(gaps) < 0.4


def test_what_is_fixed_pays_nothing_and_what_is_chosen_pays():
    own = editor()
    fixed, chosen = own.certify(1.0), own.certify(1.01)
    assert fixed.width == 0
    assert fixed.divergence == 0
    assert chosen.width > 0
    for one, other in zip(fixed.tasks, chosen.tasks, strict=True):
        assert one.bound < other.bound
    assert "exact binomial" in fixed.report().tables[0].note
    assert "PAC-Bayes" in chosen.report().tables[0].note
    assert "probability 0.95" in fixed.verdict
    standard = editor(regime="standard")
    assert standard.certify(1.0).tasks[0].bound >= standard.certify(1.0).tasks[0].error


def test_what_cannot_be_certified_is_refused_with_a_repair():
    own = editor()
    for told, ask in [
        ("between 0 and 1", lambda: own.certify(level=1.0)),
        ("above 0", lambda: own.certify(spread=0.0)),
        ("no vector 'frist'", lambda: own.certify({"frist": 1.0})),
        ("prior equal to them", lambda: editor(regime="standard").certify(0.5)),
        ("fewer than 8 rows", lambda: editor(rows=4).certify(0.5)),
    ]:
        with pytest.raises(UsageError, match=told):
            ask()
    assert editor(regime="standard").certify(0.5, prior=0.5).width == 0
