"""Forecasts of pairs: guesses against autograd in float64, correction and intervals against numbers by hand."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import program, zoo
from tauspan.cli.main import main
from tauspan.core.errors import UsageError
from tauspan.editing.search.forecast import _corrected
from tauspan.models import Encoder, Head


def task(name, rows=24, classes=2):
    seed = ord(name)
    x = zoo.normal(rows, 3, seed=seed).double()
    both = (x, (x[:, seed % 3] > 0).long() % classes)
    head = Head(zoo.normal(classes, 4, seed=seed + 1).double())
    return ts.Task.from_tensors(name, ["0", "1"], train=both, validation=both, test=both, head=head)


def editor(regime="standard", names="abcde"):
    torch.manual_seed(0)
    model = Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double())
    settings = ts.Settings(regime, lr=0.1, epochs=20, batch_size=8)
    return ts.Editor(model, {one: ts.finetune(model, one, settings).task_vector for one in map(task, names)})


def accuracy(asked, names, one):
    (found,) = asked.evaluate(dict.fromkeys(names, 1.0), tasks=[one], split="validation").tasks
    return found.value


def test_guesses_are_ordinary_logits_and_a_tangent_on_top():
    asked = editor(names="abc")
    found = asked.forecast(measured=2)
    base = {name: value.detach() for name, value in asked.encoder.backbone.named_parameters()}
    named = {one.name: one for one in asked.vectors}
    for pair in found.pairs:
        one = named[pair.task]
        x, y = torch.stack(list(one.split("validation").inputs)), one.split("validation").labels

        def logits(params, x=x, one=one):
            return one.head(torch.func.functional_call(asked.encoder.backbone, params, (x,)))

        mine, other = asked.vectors[one].deltas, asked.vectors[named[pair.added]].deltas
        own = logits({name: base[name] + mine[name].double() for name in base})
        _, moved = torch.func.jvp(logits, (base,), ({name: other[name].double() for name in base},))
        before, after = ((out.argmax(-1) == y).double().mean() for out in (own, own + moved))
        assert pair.single == float(before)
        assert pair.tangent == pytest.approx(float(after - before), abs=1e-12)


def test_measured_pairs_are_those_of_the_ordinary_model():
    asked = editor()
    found = asked.forecast(measured=6, seed=3)
    named = {one.name: one for one in asked.vectors}
    measured = [one for one in found.pairs if one.measured is not None]
    assert len(found.pairs) == 20
    assert len(measured) == 12
    for pair in measured:
        one = named[pair.task]
        change = accuracy(asked, {pair.task, pair.added}, one) - accuracy(asked, {pair.task}, one)
        assert pair.measured == pytest.approx(change, abs=1e-12)
    assert found.error == pytest.approx(np.mean([abs(one.change - one.measured) for one in measured]))
    assert found.held == pytest.approx(np.mean([one.held for one in measured]))
    again = asked.forecast(measured=6, seed=3)
    assert again.pairs == found.pairs


def test_a_pair_is_forecast_from_the_others_alone():
    asked = editor(names="abcd")
    found = asked.forecast(measured=6)
    for pair in found.pairs:
        others = [one for one in found.pairs if {one.task, one.added} != {pair.task, pair.added}]
        guesses, changes = [one.tangent for one in others], [one.measured for one in others]
        slope = np.polyfit(guesses, changes, 1)[0]
        residuals = np.sort(np.array(changes) - slope * np.array(guesses))
        assert pair.change == pytest.approx(slope * pair.tangent + residuals.mean(), abs=1e-9)
        assert pair.interval == pytest.approx((slope * pair.tangent + residuals[[0, -1]]).tolist(), abs=1e-9)


def test_intervals_hold_as_often_as_they_say():
    draw = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        x = draw.normal(size=40)
        y = 0.5 * x + 0.1 + 0.2 * draw.normal(size=40)
        change, (low, high) = _corrected(x[-1], x[:-1].tolist(), y[:-1].tolist(), 0.8)
        assert low <= change <= high
        held.append(low <= y[-1] <= high)
    assert 0.77 < np.mean(held) < 0.86


def test_few_pairs_give_a_forecast_and_say_that_they_have_no_interval():
    found = editor(names="abc").forecast(measured=2)
    measured, free = (
        [p for p in found.pairs if (p.measured is None) == missing] for missing in (False, True)
    )
    assert all(one.interval is None for one in measured)
    assert all(one.interval is not None for one in free)
    assert found.held is None
    assert "interval" not in found.verdict


def test_the_verdict_and_the_table_begin_with_the_worst_pair():
    found = editor().forecast(measured=10)
    worst = min(found.pairs, key=lambda one: one.change)
    assert found.verdict.startswith(f"The worst pair: {worst.added} takes")
    assert found.rows()[0]["task"] == worst.task
    assert ("no better than the mean" in found.verdict) == (found.error >= found.error_of_mean)
    names = {(one.task, one.added) for one in found.pairs}
    assert names == set(itertools.permutations("abcde", 2))


def test_what_cannot_be_forecast_is_refused():
    for words, ask in [
        ("one pass gives every sum", lambda: editor("linear").forecast()),
        ("2 vectors have 1 pairs", lambda: editor(names="ab").forecast()),
        ("measured=1", lambda: editor(names="abc").forecast(measured=1)),
        ("level=1.5", lambda: editor(names="abc").forecast(level=1.5)),
    ]:
        with pytest.raises(UsageError, match=words):
            ask()


def test_the_verbs(tmp_path, capsys):
    here = program.make(tmp_path / "world")
    third = program.task(tmp_path / "three", program.ROWS[:6])
    pairs = [f"{name}={here['vector']}" for name in (here["one"], here["two"], str(third))]
    words = [here["model"], *pairs, "--max-tokens", "8", "--json"]
    assert main(["forecast", *words, "--measured", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tables"][0]["rows"]) == 6
    assert main(["edit", "subsets", *words, "--floor", "0", "--vector", str(tmp_path / "which")]) == 0
    assert "mean on validation" in capsys.readouterr().out
    assert ts.TaskVector.from_pretrained(tmp_path / "which").base
    assert main(["forecast", *words[:3]]) == 2
    assert "2 vectors have 1 pairs" in capsys.readouterr().err
