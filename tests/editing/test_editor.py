"""The edited model agrees with `apply`, `evaluate`, `save` and `load` everywhere; an editor reads the data once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers.searches import cloud, random_vector, world
from helpers.zoo import normal
from tauspan.core.errors import DataError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing.model import tangent as tangent_model
from tauspan.editing.model.directions import Directions
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.model.outputs import outputs
from tauspan.editing.search.exact import interval
from tauspan.models import Classifier, Encoder, Head
from tauspan.tangent import Linearized
from tauspan.tasks import Task
from tauspan.tasks.batches import batches

REGIMES = ("standard", "posthoc", "linear")


def headed(normalize: bool) -> Task:
    x = normal(14, 4, seed=3)
    rows: dict[str, Any] = dict.fromkeys(("train", "validation", "test"), (x, (x[:, 0] > 0).long()))
    head = Head(normal(2, 5, seed=4), normal(2, seed=5), scale=3.0, normalize=normalize)
    return Task.from_tensors("headed", ["a", "b"], head=head, **rows)


def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Encoder(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double())


def by_hand(model: nn.Module, task: Task) -> torch.Tensor:
    """The logits of an applied model, its head put on at the point that it carries."""
    head = task.head
    assert head is not None
    if isinstance(model, Linearized):
        under = model.under(head.double(), model.head_point)
        with torch.no_grad():
            return under(torch.stack(list(task.split("test").inputs)))
    with torch.no_grad():
        return Classifier(model, head.double())(torch.stack(list(task.split("test").inputs)))  # type: ignore[arg-type]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("point", ["logits", "encoder"])
@pytest.mark.parametrize("regime", REGIMES)
def test_all_ways_to_the_edited_model_agree(regime: Any, point: Any, normalize: bool, tmp_path: Path) -> None:
    model, task = encoder(), headed(normalize)
    tau = random_vector(model, 5, "linear" if regime == "linear" else "standard")
    if regime == "linear":
        tau = tau.at_point(point)
    reading = Reading(batch_size=4, point=point)
    wanted = edited_model(model, Directions.whole({"tau": tau}), regime, reading).logits(
        task, "test", {"tau": 0.7}
    )
    applied = ts.apply(model, tau, 0.7, regime=regime, point=point)
    assert torch.allclose(by_hand(applied, task), wanted, rtol=0, atol=1e-10)
    evaluated = ts.evaluate(model, [task], tau, 0.7, regime, reading=reading)
    assert evaluated.mean is not None
    assert ts.evaluate(applied, [task], reading=Reading(batch_size=4)).mean.loss == pytest.approx(  # type: ignore
        evaluated.mean.loss, abs=1e-10
    )
    ts.save(applied, tmp_path / "out")
    loaded = ts.load(tmp_path / "out", module=encoder())
    assert torch.allclose(by_hand(loaded, task), wanted, rtol=0, atol=1e-6)  # vectors are saved in float32
    chosen = ts.Editor(model, {task: tau}, regime, reading=reading).add(grid=[0.7])
    assert torch.allclose(by_hand(chosen.apply(), task), wanted, rtol=0, atol=1e-10)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Each pass over the rows of a task and split in the tangent regimes."""
    seen: list[tuple[str, str]] = []
    plain = tangent_model.contributions

    def counted(*args: Any, **options: Any) -> Any:
        seen.append((options["info"]["task"], options["info"]["split"]))
        return plain(*args, **options)

    monkeypatch.setattr(tangent_model, "contributions", counted)
    return iter([seen])


def test_every_accuracy_has_an_interval_and_the_table_shows_it() -> None:
    encoder, vectors = world("standard")
    found = ts.evaluate(encoder, list(vectors))
    for score in found.tasks:
        around = interval(round(score.value * score.rows), score.rows)
        assert score.interval == (around.low, around.high)
    assert found.mean is not None
    assert found.mean.interval is not None
    low, high = found.mean.interval
    assert low <= found.mean.value <= high
    assert high - low < max(b - a for a, b in (score.interval or (0.0, 0.0) for score in found.tasks))
    assert all(str(row["95 %"]).startswith("[0.") for row in found.report().tables[0].rows)


@pytest.mark.parametrize("regime", ["posthoc", "linear"])
def test_six_questions_cost_one_pass_for_each_task_and_split(regime: Any, passes: Any) -> None:
    seen = next(passes)
    model, vectors = world(regime)
    names = [task.name for task in vectors]
    editor = ts.Editor(model, vectors, regime)
    editor.add()
    editor.negate(names[0])
    editor.coefficients(bootstrap=0)
    editor.front(names[0], per="shared", bootstrap=0, prices=3)
    editor.maps(grid=[0.0, 1.0])
    editor.interference()
    editor.evaluate({names[0]: 0.5})
    assert sorted(seen) == sorted((name, split) for name in names for split in ("test", "validation"))


@pytest.mark.parametrize("regime", REGIMES)
def test_an_editor_answers_as_the_functions_do(regime: Any) -> None:
    model, vectors = world(regime)
    first, *others = vectors
    editor = ts.Editor(model, vectors, regime)
    alone = ts.add(model, vectors, regime)
    assert editor.add().alpha == alone.alpha
    assert editor.add().mean.added == pytest.approx(alone.mean.added)
    one, other = editor.negate(first), ts.negate(model, first, vectors[first], others, regime=regime)
    assert (one.alpha, one.negated) == (other.alpha, other.negated)
    assert one.coefficients == {first.name: -one.alpha}
    named = editor.negate(first.name, [other.name for other in others])
    assert (named.alpha, named.negated) == (one.alpha, one.negated)
    maps = ts.disentanglement(model, vectors, regime, grid=[0.0, 1.0])
    assert editor.maps(grid=[0.0, 1.0]).pairs[0].means == pytest.approx(maps.pairs[0].means)


def test_what_a_vector_does_on_its_own_task_is_its_drift() -> None:
    model, vectors = world("linear")
    editor = ts.Editor(model, vectors)
    drifts = {one.task: one.at_one for one in editor.maps(grid=[0.0, 1.0], drift=True).drifts}
    found = editor.interference()
    assert {name: found.drift[name][name] for name in drifts} == pytest.approx(drifts)
    rows, of, value = found.worst
    assert rows != of
    assert value == max(v for row, line in found.drift.items() for name, v in line.items() if name != row)


def test_an_editor_refuses_what_it_cannot_answer() -> None:
    model, vectors = world("linear")
    first = next(iter(vectors))
    with pytest.raises(UsageError, match="at least one task"):
        ts.Editor(model, {})
    with pytest.raises(DataError, match="one name"):
        ts.Editor(model, {first: vectors[first], cloud(first.name, 9): vectors[first]})
    editor = ts.Editor(model, vectors)
    with pytest.raises(UsageError, match="no vector of the task 'nothing'"):
        editor.negate("nothing")
    with pytest.raises(UsageError, match="controls name no task 'nothing'"):
        editor.negate(first, ["nothing"])
    with pytest.raises(UsageError, match="other than itself"):
        editor.negate(first.name, [first.name])
    with pytest.raises(UsageError, match="no vector 'nothing'"):
        editor.evaluate({"nothing": 1.0})


def test_a_result_is_shown_as_its_table_and_made_a_frame() -> None:
    model, vectors = world("linear")
    added = ts.add(model, vectors, "linear")
    assert "| task | zero shot |" in str(added)
    assert added._repr_markdown_() == str(added)
    pandas = pytest.importorskip("pandas")
    frame = added.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["task"]) == [*(task.name for task in vectors), "mean"]


def test_ordinary_outputs_are_those_of_the_module() -> None:
    model, task = encoder(), headed(False)
    reading = Reading(batch_size=3)
    found = edited_model(model, Directions.whole({}), "standard", reading).logits(task, "test", {})
    head = task.head
    assert head is not None
    rows = batches(model, task.split("test"), None, 5)
    assert torch.allclose(found, outputs(Classifier(model, head), rows), rtol=0, atol=1e-12)
