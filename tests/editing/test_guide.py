"""The coefficient of an ordinary sum from its tangent model: against formulas written out with autograd, in float64."""

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers import stacks, zoo
from tauspan.core.errors import UsageError
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.search.guide import RowGuide, TangentGuide
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
    guide = TangentGuide(tangent, edited_model(asked.encoder, directions, "standard"))
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


# -- fewer rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("grid", ["paper", [0.0, 0.3, 1.0], [0.5]])
def test_the_row_guide_chooses_as_the_grid(grid, ahead):
    asked = editor(lr=0.3, ahead=ahead)
    guided, plain = asked.add(grid=grid, guided="rows"), asked.add(grid=grid)
    assert guided.alpha == plain.alpha
    assert guided.curve == plain.curve
    assert guided.tasks == plain.tasks


def row_guide(asked, grid="paper"):
    model = asked._models.of(
        Directions.whole({one.name: v for one, v in asked.vectors.items()}), list(asked.vectors)
    )
    return RowGuide(model, {one.name: 1.0 for one in asked.vectors}, grid), model


def test_rows_that_change_are_read_and_no_others(monkeypatch):
    asked, read = editor(lr=0.3), []
    guide, model = row_guide(asked)
    whole = type(model)._logits
    monkeypatch.setattr(
        type(model),
        "_logits",
        lambda self, task, *rest: read.append(len(task.split("validation"))) or whole(self, task, *rest),
    )
    some = type(model).classes_of
    monkeypatch.setattr(
        type(model),
        "classes_of",
        lambda self, task, split, at, rows: read.append(int(rows.sum())) or some(self, task, split, at, rows),
    )
    guide.read({task: [] for task in asked.vectors}, "validation")
    assert sum(read) == guide.read_rows
    size = sum(len(task.split("validation")) for task in asked.vectors)
    assert guide.all_rows == 21 * size
    changes = 0
    for task in asked.vectors:
        table = guide._classes[task, "validation"]
        for low in range(0, 20, 4):
            changes += int((table[low] != table[low + 4]).sum())
    assert changes
    assert 6 * size < guide.read_rows <= 6 * size + 3 * changes
    again = len(read)
    for alpha in guide.points:  # everything is known now
        guide.metric(next(iter(asked.vectors)), "validation", dict.fromkeys(guide.whole, alpha))
    assert len(read) == again


def test_a_row_that_changes_twice_between_two_points_is_what_it_says_it_may_miss():
    """Written down so that the limit is seen: the class is the same at both ends, and another one between them."""
    asked = editor(lr=0.3)
    guide, model = row_guide(asked, [0.0, 0.5, 1.0, 1.5, 2.0])
    task = next(iter(asked.vectors))
    true = {0.0: 0, 0.5: 1, 1.0: 1, 1.5: 0, 2.0: 0}

    def classes(_, __, at):
        return torch.full((len(task.split("validation")),), true[next(iter(at.values()))], dtype=torch.int)

    model.classes = classes
    guide.read({task: []}, "validation")
    assert guide._classes[task, "validation"][:, 0].tolist() == [0, 0, 0, 0, 0]


def test_blocks_below_the_first_edited_one_do_not_run_for_some_rows_either():
    asked = stacks.editor()
    guide, model = row_guide(asked)
    task = next(iter(asked.vectors))
    rows = torch.zeros(len(task.split("validation")), dtype=torch.bool)
    rows[[0, 2]] = True
    at = dict.fromkeys(guide.whole, 0.7)
    whole = model.classes(task, "validation", dict.fromkeys(guide.whole, 0.3))
    assert len(whole) == len(rows)
    first = model.classes_of(task, "validation", at, rows)  # compared with a whole run
    stacks.RUNS.clear()
    assert torch.equal(model.classes_of(task, "validation", at, rows), first)
    assert stacks.RUNS[0] == stacks.RUNS[1] == 0
    assert stacks.RUNS[2] > 0
    assert torch.equal(first, model.classes(task, "validation", at)[rows])


def test_a_model_that_reads_other_outputs_runs_whole_for_some_rows_too():
    for reads in ("all outputs", "an output behind a gate", "what a block keeps"):
        asked = stacks.editor(reads)
        guide, model = row_guide(asked)
        task = next(iter(asked.vectors))
        rows = torch.arange(len(task.split("validation"))) % 2 == 0
        for alpha in (0.0, 0.5, 1.0):
            at = dict.fromkeys(guide.whole, alpha)
            model.classes(task, "validation", at)
        at = dict.fromkeys(guide.whole, 0.7)
        assert torch.equal(
            model.classes_of(task, "validation", at, rows), model.classes(task, "validation", at)[rows]
        )


def test_tasks_without_classes_are_evaluated_at_each_point():
    torch.manual_seed(0)
    model = Encoder(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double())
    both = (zoo.normal(9, 3, seed=1).double(), zoo.normal(9, 2, seed=2).double())
    task_of = ts.Task.from_tensors(
        "n", ["u", "v"], objective="regression", train=both, validation=both, test=both
    )
    vector = ts.finetune(model, task_of, ts.Settings("standard", lr=0.05, epochs=3)).task_vector
    asked = ts.Editor(model, {task_of: vector})
    assert asked.add(grid=GRID, guided="rows").curve == asked.add(grid=GRID).curve
