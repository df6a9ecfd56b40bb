"""Drift by hand, maps at matched drift against the edited models, and what must not change them."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from helpers.disentangling import (
    GRID,
    REGIMES,
    Q,
    Vectors,
    average,
    blocks,
    brute_force,
    cloud,
    logits,
    random_vector,
    world,
    xi,
)  # fmt: skip
from helpers.zoo import normal
from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing.maps.drift import Drift
from tauspan.experiments import figures
from tauspan.models import Encoder, Head, fingerprint_of
from tauspan.tasks import Task

AXES = ((-1.5, 0.0, 0.7, 1.0), (-0.5, 1.0))


def drift_by_hand(model: Encoder, task: Task, tau: ts.TaskVector, alpha: float, regime: str) -> float:
    """Row by row."""
    before, after = logits(model, task, 0.0 * tau, regime), logits(model, task, alpha * tau, regime)
    moved, size = [], []
    for one, other in zip(before.double().tolist(), after.double().tolist(), strict=True):
        first = [value - average(one) for value in one]
        second = [value - average(other) for value in other]
        moved.append(math.dist(first, second))
        size.append(math.hypot(*first))
    return average(moved) / average(size)


# -- drift ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_the_drift_at_alpha_1_is_what_evaluating_the_edited_model_gives(regime: Any) -> None:
    model, vectors = world(regime)
    found = ts.disentanglement(model, vectors, regime, grid=(0.0, 1.0), drift=True, **Q).report()
    for task, tau in vectors.items():
        expected = drift_by_hand(model, task, tau, 1.0, regime)
        assert found.result["drift"]["at alpha 1"][task.name] == pytest.approx(expected, rel=1e-9)
    assert found.result["drift"]["unit"] == found.result["drift"]["at alpha 1"]
    rows = found.tables[1].rows
    assert [row["task"] for row in rows] == ["one", "two"]
    assert [row["alpha at the unit"] for row in rows] == pytest.approx([1.0, 1.0], rel=1e-3)


@pytest.mark.parametrize(
    ("regime", "point", "normalize"),
    [(one, None, False) for one in REGIMES] + [("linear", "encoder", True)],
)
def test_the_coefficients_of_the_map_have_the_drift_that_was_asked_for(
    regime: Any, point: Any, normalize: bool
) -> None:
    model, vectors = world(regime, normalize=normalize)
    unit = {"one": 0.3, "two": 0.2}
    found = ts.disentanglement(
        model, vectors, regime, grid=AXES, drift=unit, reading=Reading(point=point), **Q
    ).report()
    series = found.series[1]
    assert series["axes"] == "drift"
    assert series["unit"] == [0.3, 0.2]
    for axis, alphas, (task, tau) in zip(AXES, series["alphas"], vectors.items(), strict=True):
        for u, alpha in zip(axis, alphas, strict=True):
            assert math.copysign(1, u) == math.copysign(1, alpha) or u == 0 == alpha
            if point is None:
                by_hand = drift_by_hand(model, task, tau, alpha, regime)
                assert by_hand == pytest.approx(
                    abs(u) * unit[task.name], rel=1e-3 if regime == "standard" else 1e-9
                )


def test_a_normalising_head_bends_the_drift_and_the_search_follows() -> None:
    model, vectors = world("linear", normalize=True)
    options: dict[str, Any] = {
        "grid": (0.0, 0.5, 1.0),
        "reading": Reading(point="encoder"),
        "drift": 0.4,
        **Q,
    }
    alphas = ts.disentanglement(model, vectors, **options).report().series[1]["alphas"][0]
    assert alphas[1] != pytest.approx(alphas[2] / 2, rel=1e-3)
    affine = (
        ts.disentanglement(model, vectors, **{**options, "reading": Reading(point="logits")})
        .report()
        .series[1]["alphas"][0]
    )
    assert affine[1] == pytest.approx(affine[2] / 2, rel=1e-12)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", REGIMES)
def test_the_map_at_matched_drift_is_the_map_at_those_coefficients(regime: Any) -> None:
    model, vectors = world(regime)
    found = ts.disentanglement(
        model, vectors, regime, grid=AXES, drift=0.5, distance="probabilities", **Q
    ).report()
    alphas, values = found.series[1]["alphas"], xi(found, 1)
    for (i, a), (j, b) in itertools.product(enumerate(alphas[0]), enumerate(alphas[1])):
        one, two = brute_force(model, vectors, regime, (a, b), "probabilities")
        assert float(values[i, j]) == pytest.approx(average(one) + average(two), rel=1e-9, abs=1e-12)
    inner = values[1:][:, 1:]  # the box is [0, 1] of the units of drift, not of the coefficients
    assert found.result["drift"]["pairs"][0]["box"] == pytest.approx(float(inner.mean()))
    assert found.result["drift"]["pairs"][0]["at (1, 1)"] == pytest.approx(float(values[3, 1]))


# -- what must not change it ---------------------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("factor", [0.2, 1.7])
def test_at_matched_drift_the_length_of_a_vector_changes_nothing(regime: Any, factor: float) -> None:
    model, vectors = world(regime)
    scaled = {task: (factor if k else 1.0) * tau for k, (task, tau) in enumerate(vectors.items())}
    options: dict[str, Any] = {"grid": GRID, "drift": 0.4, "distance": "probabilities", **Q}
    plain = ts.disentanglement(model, vectors, regime, **options).report()
    moved = ts.disentanglement(model, scaled, regime, **options).report()
    torch.testing.assert_close(
        xi(plain, 1), xi(moved, 1), rtol=0, atol=1e-3 if regime == "standard" else 1e-12
    )
    assert float((xi(plain) - xi(moved)).abs().max()) > 0.01  # at equal alpha it does


class Affine(nn.Module):
    """Affine in its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def test_on_a_model_that_is_affine_in_its_parameters_all_regimes_agree() -> None:
    model = Encoder(Affine().eval())
    tasks = [cloud("one", 1), cloud("two", 30)]
    found = {}
    for regime in REGIMES:
        fits = "linear" if regime == "linear" else "standard"
        vectors = {task: random_vector(model, 70 + k, fits) for k, task in enumerate(tasks)}
        found[regime] = ts.disentanglement(
            model,
            vectors,
            regime,
            grid=GRID,
            drift=0.3,
            distance="probabilities",
            **Q,  # type: ignore[arg-type]
        ).report()
    for regime in REGIMES[1:]:
        for place in (0, 1):
            torch.testing.assert_close(
                xi(found["standard"], place), xi(found[regime], place), rtol=0, atol=1e-9
            )
        for one, other in zip(*(found[r].series[1]["alphas"] for r in ("standard", regime)), strict=True):
            assert one == pytest.approx(other, rel=1e-6)
    for axis in found["standard"].series[1]["alphas"]:
        assert [alpha / axis[-1] for alpha in axis] == pytest.approx(
            GRID, abs=1e-6
        )  # |alpha| times a constant


@pytest.mark.parametrize("regime", ["posthoc", "linear"])
def test_in_units_of_its_own_drift_a_tangent_map_is_the_plain_one(regime: Any) -> None:
    model, vectors = world(regime, tasks=3)
    found = ts.disentanglement(
        model, vectors, regime, grid=GRID, drift=True, distance="probabilities", **Q
    ).report()
    assert [entry["group"] for entry in found.series[:2]] == ["xi-one-two", "xi-drift-one-two"]
    for place in (0, 2, 4):
        torch.testing.assert_close(xi(found, place), xi(found, place + 1), rtol=0, atol=1e-12)
    assert [row["axes"] for row in found.tables[0].rows] == ["equal alpha", "matched drift"] * 3


def test_without_drift_nothing_of_it_is_said() -> None:
    model, vectors = world("linear")
    found = ts.disentanglement(model, vectors, grid=GRID, **Q).report()
    assert "drift" not in found.result
    assert len(found.tables) == len(found.series) == 1
    assert "axes" not in found.tables[0].columns


def test_vectors_that_do_not_interfere_do_not_at_any_drift() -> None:
    model, vectors = blocks("standard")
    found = ts.disentanglement(model, vectors, grid=GRID, drift=0.2, **Q).report()
    assert torch.equal(xi(found, 1), torch.zeros(5, 5, dtype=torch.float64))


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drift", "words"),
    [
        ({"one": 1.0}, "lacks the task 'two'"),
        ({"one": 1.0, "twoo": 1.0}, "Did you mean 'twoo'"),
        ({"one": 1.0, "two": 0.0}, "drift of 'two' is 0.0"),
        (-0.5, "finite number above 0"),
        (math.nan, "finite number above 0"),
        (math.inf, "finite number above 0"),
        ("own", "`drift` is the text 'own'"),
        ({"one": True, "two": 1.0}, r"`drift\['one'\]` is True, and a number is wanted"),
    ],
)
def test_a_unit_of_drift_that_does_not_fit_is_refused(drift: Any, words: str) -> None:
    model, vectors = world("standard")
    with pytest.raises(UsageError, match=words):
        ts.disentanglement(model, vectors, drift=drift, **Q).report()


def test_points_of_a_drift_out_of_reach_stay_empty(tmp_path: Path) -> None:
    squashed = Encoder(nn.Sequential(nn.Linear(4, 5), nn.Tanh()).double().eval())
    tasks = [cloud("one", 1), cloud("two", 30)]
    vectors: Vectors = {task: random_vector(squashed, 70 + k) for k, task in enumerate(tasks)}
    found = ts.disentanglement(squashed, vectors, grid=(0.0, 0.01, 1.0), drift=1000.0, **Q).report()
    equal, matched = found.tables[0].rows
    assert equal["box"] is not None
    assert matched["box"] is matched["box s.e."] is matched["at (1, 1)"] is matched["grid"] is None
    assert "a vector never reaches" in found.tables[0].note
    last = found.series[1]
    assert last["alphas"][0][0] == 0.0
    assert last["alphas"][0][2] is None
    assert [[value is None for value in line] for line in last["xi"]] == [
        [None in (first, second) for second in last["alphas"][1]] for first in last["alphas"][0]
    ]
    assert found.tables[1].rows[0]["alpha at the unit"] is None
    assert ts.Report.from_json(found.to_json()).series[1] == last
    assert len(figures.draw(found, tmp_path, formats=("png",))) == 2


def test_a_model_that_overflows_before_it_drifts_so_far_counts_as_out_of_reach() -> None:
    def overflowing(alpha: float) -> Tensor:
        if alpha > 100:
            raise NonFiniteError("inf")
        return torch.tensor([[1.0, -1.0]]) * (1 + math.tanh(alpha))

    assert math.isnan(Drift("task", overflowing, affine=False).coefficient(50.0))


def test_vectors_that_move_nothing_are_refused() -> None:
    for regime in REGIMES:
        model, found = world(regime)
        (first, tau), (second, other) = found.items()
        with pytest.raises(UsageError, match="vector of 'two' moves nothing"):
            ts.disentanglement(
                model, {first: tau, second: 0.0 * other}, regime, grid=(0.0, 1.0), drift=0.5, **Q
            ).report()


def test_a_pre_trained_model_that_knows_nothing_has_no_drift() -> None:
    model = Encoder(nn.Linear(4, 5).double())
    rows: dict[str, Any] = dict.fromkeys(
        ["train", "validation", "test"], (normal(6, 4), torch.zeros(6).long())
    )
    head = Head(torch.zeros(3, 5, dtype=torch.float64))
    tasks = [Task.from_tensors(name, ["a", "b", "c"], head=head, **rows) for name in ("one", "two")]
    vectors = {task: random_vector(model, k) for k, task in enumerate(tasks)}
    assert all(vector.base == fingerprint_of(model) for vector in vectors.values())
    with pytest.raises(UsageError, match="gives all classes of 'one' the same logit"):
        ts.disentanglement(model, vectors, grid=(0.0, 1.0), drift=True, **Q).report()


def test_each_coefficient_is_evaluated_once() -> None:
    asked: list[float] = []

    def at(alpha: float) -> Tensor:
        asked.append(alpha)
        return torch.tensor([[1.0, -1.0]]) * (1 + alpha + alpha**3)

    drift = Drift("task", at, affine=False)
    for target in (0.5, 0.5, -0.5, 3.0, 0.0):
        assert abs(drift(drift.coefficient(target))) == pytest.approx(abs(target), rel=1e-3)
    assert len(asked) == len(set(asked))
    assert len(asked) < 40
