"""Addition and negation on linear encoders whose accuracy is a step function of alpha that the test chooses."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import tauspan as ts
from helpers.searches import REGIMES, Q, eye, steps, turn, world
from tauspan.core.errors import BaseMismatchError, MismatchError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing import PAPER_GRID, add, negate
from tauspan.editing.search.addition import AddedTask
from tauspan.editing.search.bootstrap import metric_intervals
from tauspan.models import fingerprint_of
from tauspan.tasks import Task
from tauspan.vector import TaskVector

GRID = (0.0, 0.3, 0.7, 1.0, 1.6)


def curve(report: ts.Report) -> dict[float, dict[str, float]]:
    return {point["alpha"]: point for point in report.series[0]["points"]}


# -- addition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["encoder", "logits"])
@pytest.mark.parametrize("regime", REGIMES)
def test_every_grid_point_is_what_evaluating_the_edited_model_gives(regime: Any, point: Any) -> None:
    model, vectors = world(regime)
    found = add(model, vectors, regime, grid=GRID, reading=Reading(point=point), **Q).report()
    total: Any = sum(vectors.values())
    assert set(curve(found)) == set(GRID)
    for alpha, row in curve(found).items():
        alone = ts.evaluate(
            model, list(vectors), total, alpha, regime, "validation", reading=Reading(point=point), **Q
        ).report()
        assert alone.result["accuracy"] == {task.name: row[task.name] for task in vectors}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", REGIMES)
def test_alpha_is_the_best_mean_normalised_accuracy_on_validation_and_the_smallest_of_ties(
    regime: Any,
) -> None:
    model, vectors = world(regime)
    found = add(model, vectors, regime, **Q).report()
    total: Any = sum(vectors.values())
    one = {
        task: ts.evaluate(model, [task], tau, 1.0, regime, "validation", **Q)
        .report()
        .result["accuracy"][task.name]
        for task, tau in vectors.items()
    }

    def mean(alpha: float) -> float:
        got = (
            ts.evaluate(model, list(vectors), total, alpha, regime, "validation", **Q)
            .report()
            .result["accuracy"]
        )
        return sum(got[task.name] / one[task] for task in vectors) / 2

    means = {alpha: mean(alpha) for alpha in PAPER_GRID}
    assert found.result["alpha"] == min(a for a, value in means.items() if value == max(means.values()))
    assert {a: row["mean normalised"] for a, row in curve(found).items()} == means


@pytest.mark.parametrize("regime", REGIMES)
def test_the_rows_of_addition_are_test_accuracies(regime: Any) -> None:
    model, vectors = world(regime)
    found = add(model, vectors, regime, grid=GRID, **Q).report()
    total: Any = sum(vectors.values())
    alpha = found.result["alpha"]
    *rows, mean = found.tables[0].rows
    for (task, tau), row in zip(vectors.items(), rows, strict=True):

        def at(vector: TaskVector, scale: float, task: Task = task) -> float:
            return float(
                ts.evaluate(model, [task], vector, scale, regime, **Q).report().result["accuracy"][task.name]
            )

        single, added, plain = at(tau, 1.0), at(total, alpha), at(total, 1.0)
        assert row == {
            "task": task.name, "zero shot": at(total, 0.0), "single": single, "added": added,
            "added 95 %": row["added 95 %"], "less single": row["less single"],
            "added norm.": added / single, "alpha 1": plain, "alpha 1 norm.": plain / single,
        }  # fmt: skip
    assert mean["task"] == "mean"
    assert mean["added"] == sum(row["added"] for row in rows) / 2  # type: ignore[misc]
    assert found.result["added"] == mean["added"]
    assert found.result["regime"] == regime
    assert found.provenance["fingerprint"] == fingerprint_of(model)


def test_ties_go_to_the_shortest_edit() -> None:
    model = eye()
    assert add(model, {steps("s", [0.42, 0.42]): turn(model)}, **Q).report().result["alpha"] == 0.45


def test_an_auto_grid_grows_until_the_best_point_lies_inside() -> None:
    model = eye()
    task = steps("s", [0.1, 0.97, 1.47, 2.2, 2.99], right_below=[3.2, 3.25])
    found = add(model, {task: turn(model)}, grid="auto", **Q).report()
    assert found.result["alpha"] == pytest.approx(3.0375)
    assert max(curve(found)) > 3.2
    assert "widened until the best point was interior" in found.tables[0].note
    short = add(model, {task: turn(model)}, **Q).report()
    assert short.result["alpha"] == 1.0
    assert "grid='auto'" in short.tables[0].note


@pytest.mark.parametrize("regime", ["standard", "posthoc"])
def test_a_vector_a_third_as_long_gets_three_times_the_coefficient(regime: Any) -> None:
    model = eye()
    task = steps("s", [0.32, 0.49, 0.73, 0.97], right_below=[1.2])
    tau = turn(model)
    whole = add(model, {task: tau}, regime, grid=(0.0, 0.5, 1.0, 1.5), **Q).report()
    third = add(model, {task: tau / 3}, regime, grid="auto", **Q).report()
    assert whole.result["alpha"] == 1.0
    assert third.result["alpha"] / 3 == pytest.approx(1.0, abs=0.05)


def test_an_auto_grid_ends_at_eight() -> None:
    model = eye()
    task = steps("s", [0.1, 0.97, 1.47, 2.2, 3.3, 5.0, 7.5, 7.99, 9.0])
    found = add(model, {task: turn(model)}, grid="auto", **Q).report()
    assert found.result["alpha"] == max(curve(found)) == 8.0
    assert "interior" not in found.tables[0].note
    assert "try grid" not in found.tables[0].note


def test_an_auto_grid_stays_short_when_the_best_point_is_inside() -> None:
    model = eye()
    found = add(model, {steps("s", [0.42], [0.6]): turn(model)}, grid="auto", **Q).report()
    assert tuple(curve(found)) == PAPER_GRID


@pytest.mark.parametrize("grid", ["papr", [], [float("nan")], [0.0, float("inf")], ["a"]])
@pytest.mark.parametrize("verb", ["add", "negate"])
def test_a_grid_that_is_none_is_refused(grid: Any, verb: str) -> None:
    model = eye()
    task, tau = steps("s", [0.42]), turn(model)
    control = [steps("c", [0.5])]
    search = {"add": lambda: add(model, {task: tau}, grid=grid, **Q).report(),
              "negate": lambda: negate(model, task, tau, control, grid=grid, **Q).report()}  # fmt: skip
    with pytest.raises(UsageError, match="grid"):
        search[verb]()


@pytest.mark.parametrize("regime", REGIMES)
def test_the_test_split_is_read_only_after_the_choice(regime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vectors = world(regime)
    (first, tau), (second, _) = vectors.items()
    seen: list[str] = []
    read = Task.split

    def spy(self: Task, name: str) -> Any:
        seen.append(name)
        return read(self, name)

    monkeypatch.setattr(Task, "split", spy)
    for work in (
        lambda: add(model, vectors, regime, grid=GRID, **Q).report(),
        lambda: negate(model, first, tau, [second], regime=regime, grid=GRID, **Q).report(),
    ):
        seen.clear()
        work()
        begin = seen.index("test")
        assert set(seen[:begin]) == {"validation"}
        assert set(seen[begin:]) == {"test"}


@pytest.mark.parametrize("regime", REGIMES)
def test_intervals_of_addition_are_exact_ones_and_differences_in_pairs_of_rows(regime: Any) -> None:
    model, vectors = world(regime)
    found = add(model, vectors, regime, grid=GRID, **Q)
    for row, task in zip(found.tasks, vectors, strict=True):
        count = len(task.split("test"))
        right = round(row.added * count)
        exact = binomtest(right, count).proportion_ci(method="exact")
        assert row.interval == pytest.approx((exact.low, exact.high))
        assert row.right.count("1") == right
        assert len(row.right) == count
        low, high = row.difference or (9.0, 9.0)
        assert low <= row.added - row.single <= high
    assert found.mean.interval is not None
    assert found.mean.right == ""


def test_two_edits_are_compared_row_by_row() -> None:
    model, vectors = world("standard")
    editor = ts.Editor(model, vectors)
    found = editor.compare(1.0, {next(iter(vectors)).name: 1.0})
    gains, losses, differences = 0, 0, []
    for task, row in zip(vectors, found.tasks, strict=True):
        whole = editor._models.whole([task])
        first, second = (
            whole.scores(task, "test", at)
            for at in ({t.name: 1.0 for t in vectors}, {next(iter(vectors)).name: 1.0})
        )
        assert row.difference == pytest.approx(float((first - second).mean()))
        gains, losses = gains + int((first > second).sum()), losses + int((first < second).sum())
        differences.append(row.difference)
    assert found.mean is not None
    assert found.mean.difference == pytest.approx(sum(differences) / len(differences))
    assert found.mean.p == (binomtest(gains, gains + losses).pvalue if gains + losses else 1.0)
    assert "tell the two apart" in found.verdict
    same = editor.compare(1.0, 1.0)
    assert same.mean is not None
    assert (same.mean.interval, same.mean.p) == ((0.0, 0.0), 1.0)
    assert "cannot tell" in same.verdict


def test_intervals_of_means_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    rows = (torch.zeros(60, 1), torch.arange(60) % 2)
    tasks = [ts.Task.from_tensors(name, ["0", "1"], train=rows, validation=rows, test=rows) for name in "ab"]
    covered = []
    for trial in range(300):
        both = [{task: torch.from_numpy((random.random(60) < p) * 1.0) for task in tasks} for p in (0.8, 0.6)]
        _, whole = metric_intervals(both[0], 300, trial, less=both[1])
        assert whole is not None
        covered.append(whole[0] <= 0.2 <= whole[1])
    assert 0.9 < np.mean(covered) < 0.99


# -- negation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_negation_takes_the_least_target_accuracy_that_keeps_the_controls(regime: Any) -> None:
    model = eye()
    tau = turn(model, -1.0, "linear" if regime == "linear" else "standard")  # negated, it adds
    target = steps("t", [], [0.12, 0.42, 0.72])
    control = steps("c", [], [0.62, 2.0, 2.0, 2.0])
    strict = negate(model, target, tau, [control], 0.95, regime, **Q).report()
    assert strict.result["alpha"] == 0.45
    assert strict.result["target"] == pytest.approx(1 / 3)
    assert strict.result["control"] == 1.0
    assert strict.result["before"] == {"target": 1.0, "control": 1.0}
    loose = negate(model, target, tau, [control], 0.75, regime, **Q).report()
    assert loose.result["alpha"] == 0.75
    assert loose.result["control"] == 0.75
    rows = strict.tables[0].rows
    assert [row["row"] for row in rows] == ["pre-trained", "negated", "alpha = 1"]
    assert [row["alpha"] for row in rows] == [0.0, 0.45, 1.0]
    assert rows[2] == {
        "row": "alpha = 1", "alpha": 1.0, "target": 0.0, "target 95 %": "[0.000, 0.708]", "control": 0.75,
        "control 95 %": "[0.194, 0.994]", "control kept": 0.75,
    }  # fmt: skip


def test_negation_leaves_the_model_when_nothing_keeps_the_controls() -> None:
    model = eye()
    target, control = steps("t", [], [0.5]), steps("c", [], [0.01])
    found = negate(model, target, turn(model, -1.0), [control], grid=[0.5, 1.0], **Q).report()
    assert found.result["alpha"] == 0.0


def test_the_floor_is_a_share_of_what_the_pre_trained_model_reaches() -> None:
    model = eye()
    control = steps("c", [5.0, 5.0], [0.62, 2.0])  # half right to begin with
    target = steps("t", [], [0.12, 0.72])
    keep = negate(model, target, turn(model, -1.0), [control], 0.6, **Q).report()
    assert keep.result["before"]["control"] == 0.5
    assert keep.result["alpha"] == 0.15
    assert negate(model, target, turn(model, -1.0), [control], 0.5, **Q).report().result["alpha"] == 0.75


def test_negation_on_an_auto_grid_grows_too() -> None:
    model = eye()
    found = negate(
        model, steps("t", [], [0.97, 1.2]), turn(model, -1.0), [steps("c", [], [9.0])], grid="auto", **Q
    ).report()
    assert found.result["alpha"] == pytest.approx(1.25)
    assert found.result["target"] == 0.0


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_outside_zero_and_one_is_refused(floor: float) -> None:
    model = eye()
    with pytest.raises(UsageError, match="floor"):
        negate(model, steps("t", [1.0]), turn(model), [steps("c", [1.0])], floor, **Q).report()


def test_negation_needs_controls_other_than_the_target() -> None:
    model, task = eye(), steps("t", [1.0])
    for controls in ([], [task], [steps("c", [1.0]), task], [steps("t", [2.0])]):
        with pytest.raises(UsageError, match="control"):
            negate(model, task, turn(model), controls, **Q).report()


def test_addition_needs_vectors_of_one_base_and_one_regime() -> None:
    model, task = eye(), steps("t", [1.0])
    with pytest.raises(UsageError, match="at least one"):
        add(model, {}, **Q).report()
    with pytest.raises(UsageError, match="is a standard vector"):
        add(model, {task: turn(model)}, "linear", **Q).report()
    with pytest.raises(UsageError, match="is a linear vector"):
        add(model, {task: turn(model, regime="linear")}, "posthoc", **Q).report()
    with pytest.raises(UsageError, match="Did you mean 'linear'"):
        add(model, {task: turn(model)}, "liner", **Q).report()  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="edit different functions"):
        add(model, {task: turn(model), steps("u", [1.0]): turn(model, regime="linear")}, **Q).report()
    with pytest.raises(BaseMismatchError, match="starts from base"):
        add(model, {task: turn(model).rebased("0" * 64)}, **Q).report()
    with pytest.raises(BaseMismatchError, match="starts from base"):
        negate(model, task, turn(model).rebased("0" * 64), [steps("c", [1.0])], **Q).report()


def test_the_verdict_names_the_tasks_that_are_worse_than_before_any_training():
    def row(task, zero, added):
        return AddedTask(task, zero, 0.9, added, 0.5, added / 0.9, None)

    model, vectors = world("linear")
    some = add(model, vectors, **Q)
    found = dataclasses.replace(
        some, alpha=0.4, tasks=[row("a", 0.5, 0.8), row("b", 0.85, 0.7)], mean=row("mean", 0.675, 0.75)
    )
    assert found.report().verdict == found.verdict
    assert found.verdict.startswith(
        "At alpha = 0.4 the sum keeps 83.3% of single-task accuracy on test rows; below"
    )
    assert "below the pre-trained model: b (0.700 against 0.850). " in found.verdict
    better = dataclasses.replace(found, tasks=found.tasks[:1])
    assert better.verdict.endswith("and no task is below the pre-trained model.")
    unknown = dataclasses.replace(better, mean=dataclasses.replace(found.mean, normalised=None))
    assert "the sum has mean accuracy 0.750 on test rows" in unknown.verdict
