"""The coefficient of an ordinary sum from its tangent model: against formulas written out with autograd, in float64."""

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import UsageError
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.edited import edited_model
from tauspan.editing.search.guide import Guide
from tauspan.models import Encoder, Head

GRID = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def task(name, rows=9, classes=2):
    seed = ord(name)
    x = zoo.normal(rows, 3, seed=seed).double()
    head = Head(zoo.normal(classes, 4, seed=seed + 1).double())
    both = (x, torch.arange(rows) % classes)
    return ts.Task.from_tensors(
        name, list("uvw"[:classes]), train=both, validation=both, test=both, head=head
    )


def editor(regime="standard", lr=0.05, **options):
    torch.manual_seed(0)
    model = Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double())
    settings = ts.Settings(regime, lr=lr, epochs=8, batch_size=4)
    tasks = [task("a"), task("b", 7, 3), task("c", 5)]
    vectors = {one: ts.finetune(model, one, settings).task_vector for one in tasks}
    return ts.Editor(model, vectors, **options)


def test_the_tangent_guide_chooses_as_the_tangent_model_and_its_test_numbers_are_ordinary():
    asked = editor()
    guided, plain = asked.add(grid=GRID, guided=True), asked.add(grid=GRID)
    tangent = ts.Editor(asked.encoder, asked.vectors, "posthoc").add(grid=GRID)
    assert guided.alpha == tangent.alpha
    assert guided.curve == tangent.curve
    assert guided.curve == asked.add(grid=GRID, guided="tangent").curve
    assert (guided.regime, plain.regime) == ("standard", "standard")
    at = ts.Editor(asked.encoder, asked.vectors).evaluate(guided.alpha)
    assert [one.added for one in guided.tasks] == [one.value for one in at.tasks]
    assert "stands for the ordinary one" in str(guided)
    alone = editor(ahead=False).add(grid=GRID, guided=True)
    assert alone.alpha == guided.alpha


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.5])
def test_the_curved_guide_is_the_formula(alpha):
    asked = editor()
    directions = Directions.whole({one.name: vector for one, vector in asked.vectors.items()})
    tangent = edited_model(asked.encoder, directions, "posthoc")
    guide = Guide(tangent, edited_model(asked.encoder, directions, "standard"))
    names = [name for name, _ in asked.encoder.backbone.named_parameters()]
    base = {name: value.detach() for name, value in asked.encoder.backbone.named_parameters()}
    total = sum(list(asked.vectors.values())[1:], next(iter(asked.vectors.values())))
    way = {name: total.deltas[name].double() for name in names}

    for one in asked.vectors:
        x = torch.stack(list(one.split("validation").inputs))
        labels = one.split("validation").labels

        def logits(params, inputs=x, head=one.head):
            return head(torch.func.functional_call(asked.encoder.backbone, params, (inputs,)))

        flat, slope = torch.func.jvp(logits, (base,), (way,))
        bend = logits({name: base[name] + way[name] for name in names}) - flat - slope
        right = (flat + alpha * slope + alpha**2 * bend).argmax(-1) == labels
        coefficients = {other.name: alpha for other in asked.vectors}
        assert guide.metric(one, "validation", coefficients) == float(right.double().mean())


def test_the_curved_guide_is_exact_at_both_ends_where_the_tangent_is_not():
    asked = editor(lr=0.6)
    ordinary, curved, tangent = (asked.add(grid=GRID, guided=by).curve for by in (False, "curved", "tangent"))
    for alpha in (0.0, 1.0):
        assert curved[alpha] == ordinary[alpha]
    assert tangent[1.0] != ordinary[1.0]


@pytest.mark.parametrize("lr", [0.02, 0.05, 0.2])
def test_a_checked_choice_is_the_best_of_the_points_around_it(lr):
    asked = editor(lr=lr)
    checked, plain = asked.add(grid=GRID, guided="checked"), asked.add(grid=GRID)
    assert checked.curve.items() <= plain.curve.items()
    at = GRID.index(checked.alpha)
    around = [plain.curve[alpha]["mean normalised"] for alpha in GRID[max(at - 1, 0) : at + 2]]
    assert plain.curve[checked.alpha]["mean normalised"] == max(around)
    assert "which the tangent model proposed" in checked.remark


def test_what_cannot_be_guided_is_refused():
    with pytest.raises(UsageError, match="one pass already"):
        editor("linear").add(guided=True)
    with pytest.raises(UsageError, match="curved"):
        editor().add(guided="curvy")
