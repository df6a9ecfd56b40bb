"""Protocols of tasks one after another: held to solving anew, to one another, and to worlds where the answer is known."""

import functools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tauspan as ts
from helpers import zoo
from tauspan.core.errors import DataError, UsageError
from tauspan.editing import evaluate
from tauspan.kernel import joint as joint_of
from tauspan.models import Encoder, Head
from tauspan.sequence import PROTOCOLS, ClassGaussians, Course, Options, Run, continual
from tauspan.sequence.course import bytes_of

quick = settings(max_examples=25, deadline=None)
CLOSED = ("sequential", "sum", "superposed", "joint")


def encoder(seed=0):
    torch.manual_seed(seed)
    return Encoder(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval())


def task(name, classes=2, rows=10, head=True):
    seed = 7 * sum(map(ord, name))
    x, y = zoo.normal(3 * rows, 4, seed=seed).double(), torch.arange(3 * rows) % classes
    parts = {"train": slice(rows), "validation": slice(rows, 2 * rows), "test": slice(2 * rows, None)}
    own = Head(zoo.normal(classes, 3, seed=seed + 1).double(), scale=2.0) if head else None
    splits = {key: (x[part], y[part]) for key, part in parts.items()}
    return ts.Task.from_tensors(name, [str(place) for place in range(classes)], head=own, **splits)


TASKS = [task("one"), task("two", 3), task("three")]


def course(tasks=TASKS, **options):
    return Course(
        encoder(),
        tasks,
        Options(**{"ridge": 0.3, **options}),
        ts.Settings("standard"),
        "all",
        ts.Reading(8),
        0,
    )


shared = functools.cache(course)  # whose kernel is computed once


@functools.cache
def stages(protocol, **options):
    own = course(**options) if options else shared()
    return PROTOCOLS[protocol].learn(own).stages


def far(first, second):
    return max(float((first.deltas[name] - delta).abs().max()) for name, delta in second.deltas.items())


# -- protocols against one another --------------------------------------------------------------------------------


def test_the_joint_protocol_is_the_joint_optimum_after_each_task():
    made, setting = stages("joint"), shared()
    for count in (2, 3):
        kernels = {one.name: setting.union.kernels[one.name] for one in TASKS[:count]}
        whole = joint_of(kernels, {name: setting.wanted(name) for name in kernels}, 0.3)
        pulled = [kernels[name].pullback(part) for name, part in whole.together.items()]
        for name, delta in made[count - 1].deltas.items():
            assert torch.allclose(sum(part[name] for part in pulled), delta.double(), atol=1e-9)


def test_increments_that_leave_all_earlier_rows_in_place_end_at_the_joint_optimum():
    for kept, anew in zip(stages("superposed", kept=10), stages("joint"), strict=True):
        assert far(kept, anew) < 1e-9
    assert far(stages("superposed", kept=2)[-1], stages("joint")[-1]) > 1e-3


def test_the_sum_adds_vectors_of_the_base_and_a_sequence_goes_on_from_the_last():
    alone = [ts.closed_form(encoder(), one, ridge=0.3).vector for one in TASKS]
    added, after = stages("sum"), stages("sequential")
    assert far(added[-1], sum(alone[1:], alone[0])) < 1e-9
    assert far(added[0], after[0]) == 0.0
    assert far(added[1], after[1]) > 1e-3
    kernel, setting = shared().union, shared()
    before = kernel.kernels["two"].push(after[0])
    own = setting.union.own("two").solve(setting.wanted("two") - before, 0.3)
    moved = kernel.kernels["two"].push(after[1])
    assert torch.allclose(moved, before + setting.union.own("two").matvec(own.alpha), atol=1e-9)


def test_tasks_that_share_no_row_of_the_kernel_are_never_forgotten():
    """Inputs on different coordinates of a linear encoder: every closed form gives the same, and nothing is lost."""
    base = Encoder(nn.Linear(4, 2, bias=False).double().eval())
    tasks = []
    for place, name in enumerate(("left", "right")):
        x = torch.zeros(20, 4, dtype=torch.float64)
        x[:, 2 * place : 2 * place + 2] = zoo.normal(20, 2, seed=place + 3).double()
        y = (x[:, 2 * place] > 0).long()
        rows = dict.fromkeys(("train", "validation", "test"), (x, y))
        tasks.append(ts.Task.from_tensors(name, ["a", "b"], head=Head(torch.eye(2).double()), **rows))
    found = continual(base, tasks, CLOSED, Options(ridge=1e-3), reading=ts.Reading(8))
    assert len({run.average for run in found.runs.values()}) == 1
    for run in found.runs.values():
        assert run.forgetting == run.backward == 0.0


@pytest.mark.parametrize("growth", ["random", "gradient", "momentum"])
def test_masked_vectors_share_no_entry_and_the_sum_is_their_parts(growth):
    spread = "uniform" if growth == "gradient" else "erdos-renyi-kernel"
    with ts.computing(check="off"):
        learned = PROTOCOLS["masked"].learn(course(TASKS[:2], growth=growth, spread=spread, density=0.2))
    first, last = learned.stages
    second = last.filled_like(first) - first.filled_like(last)
    for name in set(first.deltas) & set(second.deltas):
        assert not bool(((first.deltas[name] != 0) & (second.deltas[name] != 0)).any())
        assert torch.equal(first.deltas[name] + second.deltas[name], last.deltas[name])
    entries = sum(int((delta != 0).sum()) for delta in last.deltas.values())
    assert learned.memory["places"] // 8 >= entries > 0.5 * learned.memory["places"] // 8


def test_the_gradient_is_a_better_guide_than_chance():
    """The loss on training rows after the first task, with a tenth of the entries."""
    setting = shared()
    kernel, full, left = setting.union.kernels["one"], stages("sum")[0], {}
    for growth in ("gradient", "random"):
        options = {"growth": growth, "density": 0.1, "ridge": 0.01, "rounds": 0}
        with ts.computing(check="off"):
            vector = PROTOCOLS["masked"].learn(course(TASKS[:2], **options)).stages[0]
        left[growth] = float((setting.wanted("one") - kernel.push(vector.filled_like(full))).norm())
    assert left["gradient"] < left["random"]


# -- rows that are not kept ---------------------------------------------------------------------------------------


def test_a_map_of_features_is_the_ridge_fit_of_all_rows_where_all_are_stored():
    setting = course(drawn=100)
    matrix = PROTOCOLS["stored"].learn(setting).stages[-1].matrix.requires_grad_()
    loss = 0.5 * 0.3 * matrix.square().sum()
    for one in TASKS:
        split = one.split("train")
        z, (weight, _) = setting.features(one, split), setting.readout(one)
        loss = loss + 0.5 * (z @ matrix.T @ weight.T - setting.asked(one, z, split.labels)).square().sum()
    assert float(torch.autograd.grad(loss, matrix)[0].abs().max()) < 1e-9  # the minimum of the joint loss


def test_a_map_of_features_gives_the_logits_of_the_model_where_it_is_zero():
    setting = course()
    found = evaluate(encoder(), TASKS, reading=ts.Reading(8))
    for one in TASKS:
        z, (weight, bias) = setting.features(one, one.split("test")), setting.readout(one)
        share = ((z @ weight.T + bias).argmax(1) == one.split("test").labels).double().mean()
        assert float(share) == pytest.approx(found.accuracy[one.name])


@quick
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from(["diagonal", "full"]))
def test_gaussians_have_the_moments_of_the_rows_and_so_have_draws(seed, classes, kind):
    z = zoo.normal(classes * 6, 3, seed=seed).double()
    labels = torch.arange(len(z)) % classes
    found = ClassGaussians.of(z, labels, classes, kind)
    for label in range(classes):
        rows = z[labels == label]
        assert torch.allclose(found.means[label], rows.mean(0))
        covariance = torch.cov(rows.T)
        spread = found.spreads[label]
        assert torch.allclose(spread, covariance.diagonal() if kind == "diagonal" else covariance)
    drawn, of = found.draw(4000, seed)
    assert of.tolist() == torch.arange(classes).repeat_interleave(4000).tolist()
    for label in range(classes):
        mine = drawn[of == label]
        size = found.spreads[label].abs().max().sqrt()
        assert float((mine.mean(0) - found.means[label]).abs().max()) < 0.1 * float(size)
        if kind == "full":
            assert float((torch.cov(mine.T) - found.spreads[label]).abs().max()) < 0.15 * float(size) ** 2
    assert torch.equal(found.draw(5, seed)[0], found.draw(5, seed)[0])
    assert found.bytes == 8 * classes * (3 + (3 if kind == "diagonal" else 9) + 1)


def test_nothing_is_drawn_of_a_class_without_rows():
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = ClassGaussians.of(z, torch.tensor([0, 2] * 3), 3)
    assert found.counts == (3, 0, 3)
    drawn, labels = found.draw(2, seed=1)
    assert labels.tolist() == [0, 0, 2, 2]
    assert drawn.shape == (4, 3)
    with pytest.raises(DataError, match="labels of 2 classes for 6 rows"):
        ClassGaussians.of(z, torch.tensor([0, 2] * 3), 2)
    with pytest.raises(DataError, match="0 labels"):
        ClassGaussians.of(z[:0], torch.zeros(0, dtype=torch.long), 2)
    with pytest.raises(UsageError, match="rows=0 of each class"):
        ClassGaussians.of(torch.ones(2, 3), torch.zeros(2, dtype=torch.long), 1).draw(0)


# -- the result ---------------------------------------------------------------------------------------------------


def test_the_measures_are_those_of_the_table_of_accuracies():
    run = Run("sum", [[0.8, 0.5, 0.3], [0.9, 0.7, 0.4], [0.6, 0.5, 0.9]], {"weights": 5, "rows": 7}, 1.0)
    assert run.average == pytest.approx(2.0 / 3)
    assert run.learnt == pytest.approx((0.8 + 0.7 + 0.9) / 3)
    assert run.backward == pytest.approx(((0.6 - 0.8) + (0.5 - 0.7)) / 2)
    assert run.forgetting == pytest.approx(((0.9 - 0.6) + (0.7 - 0.5)) / 2)
    assert run.bytes == 12
    alone = Run("sum", [[0.8]], {}, 1.0)
    assert alone.backward is None
    assert alone.forgetting is None


@pytest.fixture(scope="module")
def found():
    asked = ["finetuned", "sequential", "joint", "pseudo", "stored"]
    return continual(
        encoder(), TASKS, asked, Options(ridge=0.3, drawn=4), seed=3, settings=ts.Settings("standard", lr=0.01),
        reading=ts.Reading(8),
    )  # fmt: skip


def test_a_sequence_is_reported_with_its_verdict_first(found):
    text = found.report().to_markdown()
    assert repr(found).startswith("Continual(3 tasks; finetuned 0.")
    best = max(found.runs.values(), key=lambda run: run.average).protocol
    assert text.splitlines()[2].startswith(f"{best} ends best: average accuracy 0.")
    assert found.report().result["order"] == list(found.order)
    assert [row["protocol"] for row in found.rows()] == list(found.runs)
    assert {(len(run.accuracies), len(run.accuracies[0])) for run in found.runs.values()} == {(3, 3)}
    assert found.start == list(
        evaluate(encoder(), [named(n) for n in found.order], reading=ts.Reading(8)).accuracy.values()
    )


def named(name):
    return next(one for one in TASKS if one.name == name)


def test_the_memory_is_what_is_kept(found):
    weights = 8 * sum(p.numel() for p in encoder().parameters())
    rows = sum(10 * 4 * 8 + 10 * 8 for _ in TASKS)
    entries = 10 * 2 + 10 * 3 + 10 * 2
    assert found.runs["sequential"].memory == found.runs["finetuned"].memory == {"weights": weights}
    assert found.runs["joint"].memory == {
        "weights": weights,
        "rows": rows,
        "system": 8 * (entries**2 + entries),
    }
    assert found.runs["pseudo"].memory["rows"] == 8 * sum(
        c * 7 for c in (2, 3, 2)
    )  # 3 means, 3 variances, a count
    assert bytes_of(["aé", torch.zeros(3), [1.0, 2.0]]) == 3 + 12 + 16


@quick
@given(st.integers(0, 1000))
def test_the_order_is_that_of_the_seed_however_tasks_are_listed(seed):
    from tauspan.sequence.comparison import ordered_by

    shuffled = random.Random(seed + 1).sample(TASKS, 3)
    assert [one.name for one in ordered_by(TASKS, seed)] == [one.name for one in ordered_by(shuffled, seed)]
    assert ordered_by(shuffled, None) == shuffled


def test_what_cannot_be_learnt_in_sequence_is_refused():
    numbers = ts.Task.from_tensors(
        "numbers", ["y"], objective="regression", train=(torch.ones(4, 4), torch.ones(4, 1)),
        validation=(torch.ones(4, 4), torch.ones(4, 1)), test=(torch.ones(4, 4), torch.ones(4, 1)),
    )  # fmt: skip
    for words, (tasks, protocols, options) in {
        "1 task: one after another takes two or more": (TASKS[:1], ["sum"], {}),
        "several tasks are named one": ([TASKS[0], TASKS[0]], ["sum"], {}),
        "task 'numbers' is regression": ([TASKS[0], numbers], ["sum"], {}),
        "there is no protocol 'jont'. Did you mean 'joint'?": (TASKS, ["jont"], {}),
        "no protocol: name some of finetuned": (TASKS, [], {}),
        "settings of regime 'linear'": (TASKS, ["sum"], {"settings": ts.Settings("linear")}),
    }.items():
        with pytest.raises(UsageError) as refused:
            continual(encoder(), tasks, protocols, **options)
        assert words in str(refused.value)
    for words, options in {
        "kept=0: it must be at least 1": {"kept": 0},
        "ridge=0.0: it must be above 0": {"ridge": 0.0},
        "density=2.0: above 0, at most 1": {"density": 2.0},
        "growth='sideways'. Known: gradient, momentum, random": {"growth": "sideways"},
    }.items():
        with pytest.raises(UsageError) as refused:
            Options(**options)
        assert words in str(refused.value)


@pytest.mark.parametrize("protocol", ["sum", "superposed"])
def test_accuracies_of_stages_read_at_once_are_those_of_each_stage(protocol):
    found = continual(encoder(), TASKS, [protocol], Options(ridge=0.3), seed=None, reading=ts.Reading(8))
    for row, stage in zip(found.runs[protocol].accuracies, stages(protocol), strict=True):
        alone = evaluate(encoder(), TASKS, stage, reading=ts.Reading(8)).accuracy
        assert list(row) == [alone[task.name] for task in TASKS]
