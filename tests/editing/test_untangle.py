"""Untangled vectors against the least-squares problem written out with ordinary autograd, in float64."""

import dataclasses

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import UsageError
from tauspan.models import Encoder, Head


def encoder():
    torch.manual_seed(0)
    return Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double())


def task(name, rows=9, classes=2, shuffled=False):
    seed = ord(name)
    x = zoo.normal(rows, 3, seed=seed).double()
    y = (torch.arange(rows) + shuffled) % classes
    head = Head(zoo.normal(classes, 4, seed=seed + 1).double())
    labels = [str(place) for place in range(classes)]
    return ts.Task.from_tensors(name, labels, train=(x, y), validation=(x, y), test=(x, y), head=head)


def editor(regime="linear", **options):
    model = encoder()
    tasks = [task("a", **options), task("b", 7, 3, **options), task("c", 5, **options)]
    settings = ts.Settings(regime, lr=0.05, epochs=8, batch_size=4)
    made = [task("a"), task("b", 7, 3), task("c", 5)]
    vectors = {
        mine: ts.finetune(model, one, settings).task_vector for mine, one in zip(tasks, made, strict=True)
    }
    return ts.Editor(model, vectors)


def flat(vector):
    return torch.cat([vector.deltas[name].flatten() for name in sorted(vector.deltas)])


def jacobian(model, one):
    """Rows of J of the centred logits, shape (N C, P), parameters in the order of `flat`."""
    named = dict(sorted(model.backbone.named_parameters()))
    rows = []
    for x in one.split("validation").inputs:
        logits = one.head(model(x[None]))[0]
        for value in logits - logits.mean():
            found = torch.autograd.grad(value, list(named.values()), retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def parts(vector, per):
    """A vector, or its parts by layer."""
    layers = [("0.weight", "0.bias"), ("2.weight", "2.bias")] if per == "layer" else [tuple(vector.deltas)]
    kept = [{name: delta * (name in layer) for name, delta in vector.deltas.items()} for layer in layers]
    return [flat(dataclasses.replace(vector, deltas=one)) for one in kept]


@pytest.mark.parametrize("per", ["task", "layer"])
@pytest.mark.parametrize("weight", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("regime", ["linear", "standard"])
def test_each_vector_is_the_least_squares_combination(regime, weight, per):
    asked = editor(regime)
    found = asked.untangle(per=per, weight=weight, ridge=0.0)
    assert found.regime == regime
    assert all(vector.regime == regime for vector in found.vectors.values())
    span = torch.stack([part for vector in asked.vectors.values() for part in parts(vector, per)], 1)
    for target, vector in found.vectors.items():
        left, right = [], []
        for one in asked.vectors:
            rows = len(one.split("validation"))
            scale = (1.0 if one is target else weight) ** 0.5 / rows**0.5
            moved = scale * jacobian(asked.encoder, one)
            left.append(moved @ span)
            right.append(moved @ flat(asked.vectors[target]) * (one is target))
        wanted = torch.linalg.lstsq(torch.cat(left), torch.cat(right)[:, None]).solution[:, 0]
        torch.testing.assert_close(flat(vector), span @ wanted, rtol=1e-7, atol=1e-9)


def test_the_others_move_less_and_no_label_is_read():
    found, other = editor().untangle(per="layer"), editor(shuffled=True).untangle(per="layer")
    for mine, theirs in zip(found.vectors.values(), other.vectors.values(), strict=True):
        torch.testing.assert_close(flat(mine), flat(theirs))
    for one in found.tasks:
        assert one.others_after < one.others_before
        assert one.kept < 1.0
    rows = found.rows()
    assert list(rows[0]) == ["task", "own change off by", "moved by others before", "after"]
    assert "No label was read" in str(found)


def test_the_table_is_what_the_vectors_do():
    asked = editor()
    found = asked.untangle()
    for one, row in zip(asked.vectors, found.tasks, strict=True):
        wide = jacobian(asked.encoder, one)
        before, after = (
            {t: wide @ flat(v) for t, v in some.items()} for some in (asked.vectors, found.vectors)
        )
        size = before[one].norm()
        assert row.kept == pytest.approx(float((after[one] - before[one]).norm() / size))
        for moved, value in ((before, row.others_before), (after, row.others_after)):
            assert value == pytest.approx(
                float(sum(v for t, v in moved.items() if t is not one).norm() / size)
            )


def test_the_vectors_are_ordinary_ones(tmp_path):
    found = editor().untangle()
    again = ts.Editor(encoder(), found.vectors)
    assert len(again.add(grid=[0.0, 1.0]).tasks) == 3
    vector = next(iter(found.vectors.values()))
    vector.save_pretrained(tmp_path / "v")
    how = ts.TaskVector.from_pretrained(tmp_path / "v").info["untangled"]
    assert how == {"per": "task", "weight": 1.0, "ridge": 1e-3, "split": "validation", "of": ["a", "b", "c"]}


def test_what_cannot_be_is_refused():
    asked = editor()
    one = ts.Editor(asked.encoder, dict(list(asked.vectors.items())[:1]))
    for words, ask in [
        ("two tasks or more", lambda: one.untangle()),
        ("by 'task' or 'layer'", lambda: asked.untangle(per="shared")),
        ("weight", lambda: asked.untangle(weight=-1.0)),
    ]:
        with pytest.raises(UsageError, match=words):
            ask()


def test_a_sum_of_untangled_vectors_says_so_and_whose_it_is():
    asked = editor()
    made = asked.untangle(per="layer").vectors
    assert [one.info["task"] for one in made.values()] == ["a", "b", "c"]
    added = ts.Editor(asked.encoder, made).add(grid=(0.0, 1.0))
    assert "of untangled vectors" in added.verdict
    assert "single: of a task's untangled vector" in (added.report().tables[0].note or "")
    assert added.vector.info["tasks"] == ["a", "b", "c"]
    assert "task" not in added.vector.info
    assert added.vector.info["untangled"]["per"] == "layer"
    assert "untangled" not in asked.add(grid=(0.0, 1.0)).report().to_markdown()
