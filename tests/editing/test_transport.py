"""Vectors for another base: each method against what it must give where that is known, and the measure that decides."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import checkpoints, zoo
from helpers.program import task as write_task
from tauspan.cli.main import main
from tauspan.core.errors import BaseMismatchError, MismatchError, UsageError
from tauspan.editing import transport
from tauspan.models import Encoder, Head, fingerprint_of

WIDE, HIDDEN = 4, 5


def net(seed=0, hidden=HIDDEN):
    torch.manual_seed(seed)
    return Encoder(nn.Sequential(nn.Linear(WIDE, hidden), nn.Tanh(), nn.Linear(hidden, WIDE)).double())


def task(rows=40):
    x = zoo.normal(rows, WIDE, seed=3).double()
    y = (x @ zoo.normal(WIDE, 2, seed=4).double()).argmax(1)
    head = Head(zoo.normal(2, WIDE, seed=5).double())
    return ts.Task.from_tensors("t", ["0", "1"], train=(x, y), validation=(x, y), test=(x, y), head=head)


def vector(encoder):
    return ts.closed_form(encoder, task(), ridge=1.0).vector


def permuted(encoder):
    """The same function with hidden units in another order, and that order."""
    order = torch.tensor([3, 0, 4, 1, 2])
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        first, last = other.backbone[0], other.backbone[2]
        first.weight.copy_(first.weight[order].clone())
        first.bias.copy_(first.bias[order].clone())
        last.weight.copy_(last.weight[:, order].clone())
    return other, order


def test_procrustes_finds_the_order_of_hidden_units():
    old = net()
    new, order = permuted(old)
    tau = vector(old)
    found = transport(tau, old, new, task())
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.ratio == pytest.approx(1, abs=1e-6)
    first, second = found.vector.deltas["0.weight"], found.vector.deltas["2.weight"]
    torch.testing.assert_close(first, tau.deltas["0.weight"][order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second, tau.deltas["2.weight"][:, order], rtol=1e-4, atol=1e-5)
    assert found.vector.base == fingerprint_of(new)
    assert found.carries
    assert "carries over" in found.verdict
    same = transport(tau, old, new, task(), "same", strict=False)
    assert same.cosine < 0.9


def test_the_same_base_keeps_the_vector_by_every_method():
    old = net()
    tau = vector(old)
    for method in ("same", "shift", "procrustes", "rebasin"):
        found = transport(tau, old, old, task(), method)
        assert found.cosine == pytest.approx(1, abs=1e-6)
        for name, delta in tau.deltas.items():
            torch.testing.assert_close(found.vector.deltas[name], delta, rtol=1e-5, atol=1e-6)


def test_a_shift_is_orthogonal_to_the_way_between_the_bases():
    old, new = net(), net(1)
    tau = vector(old)
    found = transport(tau, old, new, task(), "shift", strict=False).vector
    first, second = (dict(one.backbone.named_parameters()) for one in (old, new))
    for name, delta in found.deltas.items():
        way = (second[name] - first[name]).detach()
        assert float((way * delta).sum()) == pytest.approx(0, abs=1e-6)
        # and nothing else is taken: what is missing is along the way
        missing = (tau.deltas[name] - delta).flatten()
        assert float(missing.norm() * way.norm()) == pytest.approx(
            abs(float(missing @ way.flatten())), rel=1e-5
        )
        assert float(delta.norm()) > 0.1 * float(tau.deltas[name].norm())


def test_signs_keep_what_lowers_the_loss():
    old, new = net(), net(1)
    tau, one = vector(old), task()
    found = transport(tau, old, new, one, "sign", strict=False).vector
    x, y = torch.stack(list(one.split("train").inputs)), one.split("train").labels
    loss = nn.functional.cross_entropy(one.head(new.backbone(x)), y, reduction="sum")
    known = dict(new.backbone.named_parameters())
    grads = dict(zip(known, torch.autograd.grad(loss, list(known.values())), strict=True))
    for name, delta in tau.deltas.items():
        wanted = torch.where(delta * grads[name] < 0, delta, torch.zeros_like(delta))
        torch.testing.assert_close(found.deltas[name], wanted)
    assert not any(parameter.grad is not None for parameter in new.backbone.parameters())


def test_the_measure_is_the_cosine_of_both_changes():
    old, new = net(), net(1)
    tau, one = vector(old), task()
    found = transport(tau, old, new, one, "same", strict=False)
    x = torch.stack(list(one.split("validation").inputs))
    changes = []
    for encoder in (old, new):
        theta = {name: value.detach() for name, value in encoder.backbone.named_parameters()}

        def logits(at, encoder=encoder):
            return one.head(torch.func.functional_call(encoder.backbone, at, (x,)))

        _, moved = torch.func.jvp(logits, (theta,), ({name: tau.deltas[name] for name in theta},))
        changes.append(moved - moved.mean(1, keepdim=True))
    first, second = changes
    assert found.cosine == pytest.approx(
        float((first * second).sum() / first.norm() / second.norm()), abs=1e-6
    )
    assert found.ratio == pytest.approx(float(second.norm() / first.norm()), rel=1e-6)
    assert found.report().tables[0].rows[0]["rows"] == len(x)


def test_what_does_not_carry_over_is_refused_with_a_way_out():
    old, new = net(), net(1)
    tau = vector(old)
    texts = ts.Task.from_tensors(
        "texts", [], objective="next-token", train=(["a"], None), validation=(["a"], None), test=(["a"], None)
    )
    for error, told, ask in [
        (
            UsageError,
            "does not carry over.*strict=False",
            lambda: transport(tau, old, new, task(), "same", least=0.999),
        ),
        (UsageError, "Did you mean 'procrustes'", lambda: transport(tau, old, new, task(), "procrustis")),
        (UsageError, "no logits", lambda: transport(tau, old, new, texts)),
        (MismatchError, "0.weight|0.bias", lambda: transport(tau, old, net(hidden=6), task())),
        (BaseMismatchError, "starts from base", lambda: transport(tau, new, old, task())),
    ]:
        with pytest.raises(error, match=told):
            ask()
    assert not transport(tau, old, new, task(), "same", least=0.999, strict=False).carries


def test_the_program_writes_it_or_says_that_it_does_not_carry_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = checkpoints.write(tmp_path / "old", "bert")
    other = ts.load(home)
    with torch.no_grad():
        for parameter in other.backbone.parameters():
            parameter.add_(0.02 * zoo.normal(*parameter.shape, seed=1).float())
    ts.save(other, tmp_path / "new")
    rows = write_task(tmp_path / "task")
    tau = ts.closed_form(ts.load(home), ts.Task.from_directory(rows), ridge=1.0).vector
    tau.save_pretrained(tmp_path / "tau.safetensors")
    line = [
        "vector",
        "transport",
        str(home),
        str(tmp_path / "new"),
        str(tmp_path / "tau.safetensors"),
        str(rows),
    ]
    assert main([*line, "-o", str(tmp_path / "moved"), "--method", "same", "--least", "-1"]) == 0
    assert "carries over" in capsys.readouterr().out
    moved = ts.TaskVector.from_pretrained(tmp_path / "moved")
    assert moved.base == fingerprint_of(ts.load(tmp_path / "new"))
    assert moved.info["transported"]["method"] == "same"
    assert main([*line, "-o", str(tmp_path / "other"), "--least", "1.01"]) != 0
    assert "does not carry over" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_vector_of_a_small_space_stays_in_it():
    old, new = (ts.restrict(net(seed), "lora:2") for seed in (0, 1))
    tau = ts.closed_form(old, task(), ridge=1.0).vector
    found = transport(tau, old, new, task(), "same", strict=False).vector
    assert ts.evaluate(ts.apply(new, found), [task()]).accuracy == ts.evaluate(new, [task()], found).accuracy
