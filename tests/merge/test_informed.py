"""RegMean++ against its steps written out; AdaMerging's entropy, gradient and descent against plain evaluation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tauspan as ts
from helpers import runs
from helpers.searches import REGIMES, cloud, random_vector, world
from helpers.threads import one_thread  # noqa: F401 - a fixture for every test here
from helpers.zoo import close, stirred
from tauspan.core.errors import BaseMismatchError, DataError, ModelError, NonFiniteError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing import adamerging
from tauspan.editing.model.directions import combine
from tauspan.editing.model.kinds import edited_model
from tauspan.editing.search.box import Box
from tauspan.editing.search.entropy import Backward, Contracted, descend, draws, entropy
from tauspan.editing.search.unknowns import unknowns
from tauspan.merge import merge
from tauspan.merge.data.gather import gram_matrices
from tauspan.merge.data.informed import regmean_plus_plus
from tauspan.merge.data.statistics_file import statistics_of
from tauspan.models import Classifier, Encoder, Head, load_model, state_of
from tauspan.tasks import Task
from tauspan.tasks.batches import batches
from tauspan.vector import TaskVector

Q: dict[str, Any] = {}


def pair(model: Encoder, regime: Any = "standard") -> dict[Task, TaskVector]:
    tasks = (cloud("one", 20), cloud("two", 30))
    return {task: random_vector(model, 10 * place, regime) for place, task in enumerate(tasks)}


def regmean(model: Encoder, vectors: dict[Task, TaskVector], **options: Any) -> TaskVector:
    taus = list(vectors.values())
    known = [gram_matrices(model, vector, task, **Q) for task, vector in vectors.items()]
    return merge(taus, "regmean", options, statistics=statistics_of(taus, known))


# -- RegMean++ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [True, False])
def test_regmean_plus_plus_of_one_layer_is_regmean(wrapped: bool) -> None:
    layer = nn.Linear(4, 5).double()
    model = load_model((nn.Sequential(layer) if wrapped else layer).eval())
    vectors = pair(model)
    found = regmean_plus_plus(model, vectors, alpha=0.8, weight=[1.0, 2.0], **Q)
    wanted = regmean(model, vectors, alpha=0.8, weight=[1.0, 2.0])
    for name, delta in wanted.deltas.items():
        assert close(found.deltas[name], delta, 1e-12)


def test_regmean_plus_plus_reads_what_the_merged_layers_before_make() -> None:
    model = runs.encoder()
    vectors = pair(model)
    found = regmean_plus_plus(model, vectors, reading=Reading(batch_size=3), **Q)
    theta0 = state_of(model)
    xs = [torch.stack(list(task.split("train").inputs)) for task in vectors]

    def solved(name: str, inputs: list[Tensor]) -> Tensor:
        shrink = 0.95 + 0.05 * torch.eye(inputs[0].shape[1], dtype=torch.float64)
        grams = [x.T @ x / len(x) * shrink for x in inputs]
        weights = [theta0[name] + v.deltas[name] for v in vectors.values()]
        return sum(w @ g for w, g in zip(weights, grams, strict=True)) @ torch.linalg.inv(sum(grams))  # type: ignore[arg-type]

    mean = {n: theta0[n] + sum(v.deltas[n] for v in vectors.values()) / 2 for n in ("0.bias", "2.bias")}
    first = solved("0.weight", xs)
    hidden = [torch.tanh(F.linear(x, first, mean["0.bias"])) for x in xs]
    wanted = {"0.weight": first, "2.weight": solved("2.weight", hidden), **mean}
    for name, tensor in wanted.items():
        assert close(theta0[name] + found.deltas[name], tensor, 1e-10), name
    plain = regmean(model, vectors, alpha=0.95)
    assert close(plain.deltas["0.weight"], found.deltas["0.weight"], 1e-10)
    assert not close(plain.deltas["2.weight"], found.deltas["2.weight"], 1e-2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Block(nn.Module):
    """Two linear layers: the second one's inputs depend on the first one's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return x + scale * self.down(torch.tanh(self.up(x)))  # type: ignore[no-any-return]


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5)
        return x


def test_inside_a_block_each_model_has_its_own_weights_and_the_merged_inputs() -> None:
    model = load_model(stirred(Stack().double().eval()))
    vectors = {
        replace(task, head=Head(torch.ones(2, 4).double())): vector for task, vector in pair(model).items()
    }
    found, theta0 = regmean_plus_plus(model, vectors, alpha=1, **Q), state_of(model)
    xs = [torch.stack(list(task.split("train").inputs)) for task in vectors]

    def weight(name: str, delta: Tensor) -> Tensor:
        return theta0[name] + delta

    for block in ("blocks.0", "blocks.1"):
        up, down = f"{block}.up.weight", f"{block}.down.weight"
        own = [torch.tanh(x @ weight(up, v.deltas[up]).T) for x, v in zip(xs, vectors.values(), strict=True)]
        for name, inputs in ((up, xs), (down, own)):
            targets = [x @ v.deltas[name].T for x, v in zip(inputs, vectors.values(), strict=True)]
            wanted = torch.linalg.lstsq(torch.cat(inputs), torch.cat(targets)).solution.T
            assert close(found.deltas[name], wanted, 1e-8), name
        merged = [weight(name, found.deltas[name]) for name in (up, down)]
        xs = [x + 0.5 * torch.tanh(x @ merged[0].T) @ merged[1].T for x in xs]


def test_regmean_plus_plus_of_a_transformer(tmp_path: Path) -> None:
    model, task = runs.bert(tmp_path), runs.texts(8)
    one, two = (random_vector(model, seed, "standard") * 0.1 for seed in (1, 2))
    again = replace(
        task.subset(train=3), name="again"
    )  # other rows: on the same ones block 0 has one Gram matrix
    same = regmean_plus_plus(model, {task: one, again: one.named("b")}, **Q)
    for name, delta in one.deltas.items():
        assert close(same.deltas[name], delta, 1e-4), name
    both = regmean_plus_plus(model, {task: one, again: two}, **Q)
    turned = regmean_plus_plus(model, {again: two, task: one}, **Q)
    for name in one.deltas:
        mean = (one.deltas[name] + two.deltas[name]) / 2
        inside = "layer." in name and name.endswith("weight") and "LayerNorm" not in name
        assert close(both.deltas[name], mean, 1e-4) != inside, name
        assert close(both.deltas[name], turned.deltas[name], 1e-4), name
    assert both.info["merge"]["method"] == "regmean++"


def test_in_the_linear_regime_regmean_plus_plus_is_regmean() -> None:
    model = runs.encoder()
    vectors = pair(model, "linear")
    found, wanted = regmean_plus_plus(model, vectors, **Q), regmean(model, vectors, alpha=0.95)
    assert found.regime == "linear"
    for name, delta in wanted.deltas.items():
        assert torch.equal(found.deltas[name], delta)


def test_regmean_plus_plus_refuses_what_does_not_fit() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 5)])

        def forward(self, batch: Tensor) -> Tensor:
            return self.stack[0](batch)  # type: ignore[no-any-return]

    model = runs.encoder()
    vectors = pair(model)
    with pytest.raises(UsageError, match="at least one task"):
        regmean_plus_plus(model, {}, **Q)
    with pytest.raises(BaseMismatchError):
        regmean_plus_plus(runs.encoder(1), vectors, **Q)
    with pytest.raises(UsageError, match="'alpha'"):
        regmean_plus_plus(model, vectors, alpha=2, **Q)
    skips = load_model(Skips().double().eval())
    with pytest.raises(ModelError, match=r"'stack\.1'"):
        regmean_plus_plus(skips, pair(skips), **Q)


# -- AdaMerging ----------------------------------------------------------------------------------------------


def normalising(task: Task) -> Task:
    """The task under a head that normalises features, so that logits are not affine at `point="encoder"`."""
    assert isinstance(task.head, Head)
    return replace(task, head=Head(task.head.weight, scale=3.0, normalize=True))


def by_evaluation(
    model: Encoder, vectors: dict[Task, TaskVector], found: Any, groups: Any, regime: Any, split: str
) -> float:
    """The mean over tasks of the mean entropy, from the edited model alone."""
    vector, total = combine(vectors, found, groups), 0.0
    for task in vectors:
        rows = task.split(split)
        assert isinstance(task.head, Head)
        edited = ts.apply(Classifier(model, task.head), vector, regime=regime)
        ((_, batch),) = batches(model, rows, None, len(rows))
        logits = edited(batch).detach()
        total += float(-(logits.softmax(-1) * logits.softmax(-1).log()).sum(-1).mean()) / len(vectors)
    return total


@pytest.mark.thinned(3)
@pytest.mark.parametrize("per", ["shared", "task", "layer"])
@pytest.mark.parametrize("regime", REGIMES)
def test_adamerging_lowers_the_entropy_that_the_combined_vector_has(regime: Any, per: Any) -> None:
    model, vectors = world(regime)
    found = adamerging(model, vectors, regime, per=per, steps=12, lr=0.02, rows=None, **Q).report()
    result = found.result
    assert result["entropy"] < result["prior entropy"] - 1e-3
    groups = result["groups"]
    value = by_evaluation(model, vectors, result["coefficients"], groups, regime, "validation")
    assert result["entropy"] == pytest.approx(value, abs=1e-10)
    start = {task.name: 0.3 for task in vectors}
    assert result["prior entropy"] == pytest.approx(
        by_evaluation(model, vectors, start, None, regime, "validation"), abs=1e-10
    )
    edited = combine(vectors, result["coefficients"], groups)
    accuracy = ts.evaluate(model, list(vectors), edited, 1.0, regime, **Q).report().result["mean"]["accuracy"]
    assert result["merged"] == pytest.approx(accuracy)
    assert [row["task"] for row in found.tables[1].rows] == ["one", "two", "mean"]


@pytest.mark.parametrize("point", ["logits", "encoder"])
@pytest.mark.parametrize("per", ["shared", "task", "layer"])
@pytest.mark.parametrize("regime", REGIMES)
def test_the_gradient_of_the_entropy_is_that_of_finite_differences(regime: Any, per: Any, point: Any) -> None:
    model, given = world(regime)
    vectors = {normalising(task): vector for task, vector in given.items()}
    tasks, named = list(vectors), {task.name: vector for task, vector in vectors.items()}
    free = unknowns(model, named, per, None)
    edits = edited_model(model, free.directions, regime, Reading(3, point=point))
    edits.read(dict.fromkeys(tasks, free.directions.names), "train")
    kind = Backward if regime == "standard" else Contracted
    slope = kind.of(edits, free, tasks, "train")
    a = torch.linspace(0.1, 0.6, len(free.names), dtype=torch.float64)
    rows = draws(tasks, "train", 5, 0)(0)
    value, gradient = slope(a, rows)

    def at(point: Tensor) -> float:
        chosen = {task: edits.logits(task, "train", free.at(point.tolist()))[rows[task]] for task in tasks}
        return sum(float(entropy(logits)) for logits in chosen.values()) / len(tasks)

    assert value == pytest.approx(at(a), abs=1e-12)
    for place, step in enumerate(torch.eye(len(a), dtype=torch.float64) * 1e-5):
        assert float(gradient[place]) == pytest.approx((at(a + step) - at(a - step)) / 2e-5, abs=1e-7)


def test_the_contracted_steps_are_those_of_the_tangent_model_itself() -> None:
    model, vectors = world("linear")
    found = adamerging(
        model, vectors, per="task", steps=5, lr=0.05, rows=3, split="train", seed=4, **Q
    ).report()
    a = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([a], lr=0.05)
    drawn = draws(list(vectors), "train", 3, 4)
    for step in range(5):
        loss = torch.zeros((), dtype=torch.float64)
        for task, places in drawn(step).items():
            tangent = ts.linearize(Classifier(model, task.head))  # type: ignore[arg-type]
            batch = torch.stack([task.split("train").inputs[place] for place in places])
            value, along = tangent.tangent(batch, vectors=list(vectors.values()))
            p = (value + a[0] * along[0] + a[1] * along[1]).softmax(-1)
            loss = loss - (p * p.log()).sum(-1).mean() / len(vectors)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert list(found.result["coefficients"].values()) == pytest.approx(a.tolist(), abs=1e-9)


def test_a_coefficient_that_left_its_bounds_stays_there() -> None:
    seen: list[Tensor] = []

    def slope(a: Tensor, _: Any) -> tuple[float, Tensor]:
        seen.append(a)
        turned = 1.0 if len(seen) < 40 else -1.0  # too late: outside, where it acts as clipped, nothing pulls
        return 0.0, torch.tensor([turned, -turned, 0.0], dtype=torch.float64)

    start = torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64)
    found = descend(slope, start, lambda _: {}, Box.of(3, (0.0, 1.0)), 80, 0.02)
    assert found == [0.0, 1.0, pytest.approx(0.3)]
    assert all(float(a.min()) >= 0 and float(a.max()) <= 1 for a in seen)


def test_rows_are_drawn_anew_each_step_by_the_seed() -> None:
    tasks = [cloud("one", 20), cloud("two", 30)]
    first, again, other = (draws(tasks, "train", 3, seed) for seed in (0, 0, 1))
    assert first(0) == again(0)
    assert first(0) != first(1)
    assert first(0) != other(0)
    assert all(len(places) == 3 for places in first(0).values())
    assert all(sorted(places) == list(range(8)) for places in draws(tasks, "train", None, 0)(0).values())


def test_the_order_of_tasks_does_not_matter_and_choosing_on_test_is_said() -> None:
    model, vectors = world("linear")
    turned = dict(reversed(vectors.items()))
    options: dict[str, Any] = {"per": "task", "steps": 4, "split": "test", "rows": 4, **Q}
    one, two = (adamerging(model, given, **options).report() for given in (vectors, turned))
    assert one.result["coefficients"] == pytest.approx(two.result["coefficients"], abs=1e-12)
    assert "transductive" in one.tables[1].note
    assert one.provenance["split"] == "test"


def test_adamerging_refuses_what_does_not_fit() -> None:
    model, vectors = world("linear")
    (task, vector), *_ = vectors.items()
    for options, error, message in (
        ({"steps": 0}, UsageError, "steps"), ({"rows": 0}, UsageError, "rows"), ({"lr": -1}, UsageError, "lr"),
        ({"per": "tensor"}, UsageError, "per"), ({"split": "tests"}, UsageError, "split='tests'. Did you mean 'test'"),
        ({"bounds": (1, 0)}, UsageError, "bounds"), ({"regime": "standard"}, UsageError, "linear vector"),
    ):  # fmt: skip
        given: dict[str, Any] = {"steps": 1, **options, **Q}
        with pytest.raises(error, match=message):
            adamerging(model, vectors, **given).report()
    with pytest.raises(UsageError, match="at least one task"):
        adamerging(model, {}, **Q).report()
    with pytest.raises(DataError, match="one name"):
        adamerging(model, {task: vector, replace(task): vector}, **Q).report()
    with pytest.raises(BaseMismatchError):
        adamerging(runs.encoder(1), vectors, **Q).report()

    def broken(a: Tensor, _: Any) -> tuple[float, Tensor]:
        return float("nan"), torch.full_like(a, float("nan"))

    with pytest.raises(NonFiniteError, match="step 0"):
        descend(broken, torch.zeros(1, dtype=torch.float64), lambda _: {}, Box.of(1, None), 1, 0.1)
