"""xi maps: each grid point against the edited model itself, the cases where xi must be zero, and the picture."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tauspan as ts
from helpers import program, runs, zoo
from helpers.disentangling import (
    GRID,
    REGIMES,
    Q,
    apart,
    average,
    blocks,
    brute_force,
    cloud,
    logits,
    world,
    xi,
)
from tauspan.cli.main import main
from tauspan.core.errors import (
    BaseMismatchError,
    DataError,
    MismatchError,
    ModelError,
    NonFiniteError,
    UsageError,
)
from tauspan.core.reading import Reading
from tauspan.experiments import figures
from tauspan.models import Encoder, fingerprint_of, state_of
from tauspan.vector import TaskVector


def error_of(*samples: list[float]) -> float:
    """The standard error of a sum of means of independent samples."""
    total = 0.0
    for rows in samples:
        mean = average(rows)
        total += sum((x - mean) ** 2 for x in rows) / (len(rows) - 1) / len(rows)
    return math.sqrt(total)


# -- against the edited models -------------------------------------------------------------------------------


@pytest.mark.thinned(9)
@pytest.mark.parametrize("distance", ["argmax", "probabilities"])
@pytest.mark.parametrize(
    ("regime", "point", "normalize"),
    [
        ("standard", None, False),
        ("posthoc", "logits", False),
        ("linear", "logits", False),
        ("linear", "encoder", True),
    ],
)
def test_the_map_is_what_evaluating_the_edited_model_at_every_point_gives(
    regime: Any, point: Any, normalize: bool, distance: Any
) -> None:
    model, vectors = world(regime, normalize=normalize)
    axes = (GRID, (-1.0, 0.0, 0.5, 1.7))
    found = ts.disentanglement(
        model, vectors, regime, grid=axes, distance=distance, reading=Reading(point=point), **Q
    ).report()
    values, stderr = xi(found), found.series[0]["stderr"]
    assert values.shape == (5, 4)
    for (i, a), (j, b) in itertools.product(enumerate(axes[0]), enumerate(axes[1])):
        one, two = brute_force(model, vectors, regime, (a, b), distance, point)
        expected = average(one) + average(two)
        if distance == "argmax":
            assert float(values[i, j]) == pytest.approx(expected, abs=1e-15)
        else:
            assert float(values[i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert stderr[i][j] == pytest.approx(error_of(one, two), rel=1e-7, abs=1e-12)
    assert len(set(values.flatten().tolist())) > 5  # the map is not flat


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", REGIMES)
def test_the_numbers_are_means_over_the_box_and_the_grid_with_their_standard_errors(regime: Any) -> None:
    model, vectors = world(regime)
    found = ts.disentanglement(model, vectors, regime, grid=GRID, box=(0.0, 0.8), **Q).report()
    every = {at: brute_force(model, vectors, regime, at, "argmax") for at in itertools.product(GRID, GRID)}
    row = found.tables[0].rows[0]
    parts = {
        "box": [at for at in every if min(at) >= 0 and max(at) <= 0.8],
        "grid": list(every),
        "at (1, 1)": [(1.0, 1.0)],
    }
    assert len(parts["box"]) == 4
    for name, points in parts.items():
        averaged = [
            [average(list(row)) for row in zip(*(every[at][t] for at in points), strict=True)] for t in (0, 1)
        ]
        assert row[name] == pytest.approx(sum(map(average, averaged)))
        assert row[f"{name} s.e."] == pytest.approx(error_of(*averaged))
    assert row["regime"] == regime
    assert row["pair"] == "one + two"
    assert found.result["pairs"] == [
        {"tasks": ["one", "two"], **{k: v for k, v in row.items() if k in found.result["pairs"][0]}}
    ]
    assert ts.Report.from_json(found.to_json()).series == json.loads(json.dumps(found.series))


def test_a_grid_without_one_has_no_value_there() -> None:
    model, vectors = world("standard")
    found = ts.disentanglement(model, vectors, grid=(0.0, 0.5), **Q).report()
    assert found.result["pairs"][0]["at (1, 1)"] is None
    assert found.result["pairs"][0]["at (1, 1) s.e."] is None


def test_a_box_ends_where_a_computed_grid_point_means_to() -> None:
    model, vectors = world("linear")
    computed = [k * 0.1 for k in range(8)]  # holds 0.30000000000000004
    found = ts.disentanglement(model, vectors, grid=computed, box=(0.0, 0.3), **Q).report().result["pairs"][0]
    assert found["box"] == pytest.approx(
        float(xi(ts.disentanglement(model, vectors, grid=computed, **Q).report())[:4, :4].mean())
    )


@pytest.mark.slow
def test_all_pairs_are_the_pairs_one_by_one() -> None:
    for regime in ("standard", "linear"):
        model, vectors = world(regime, tasks=3)
        found = ts.disentanglement(model, vectors, grid=GRID, **Q).report()
        names = [task.name for task in vectors]
        assert [entry["tasks"] for entry in found.series] == [
            list(p) for p in itertools.combinations(names, 2)
        ]
        for place, (first, second) in enumerate(itertools.combinations(names, 2)):
            alone = ts.disentanglement(model, vectors, grid=GRID, pairs=[(first, second)], **Q).report()
            two = {task: tau for task, tau in vectors.items() if task.name in (first, second)}
            assert torch.equal(xi(alone), xi(found, place))
            assert torch.equal(xi(ts.disentanglement(model, two, grid=GRID, **Q).report()), xi(alone))


@pytest.mark.parametrize("regime", REGIMES)
def test_swapping_the_pair_transposes_the_map(regime: Any) -> None:
    model, vectors = world(regime)
    other = (-1.0, 0.2, 1.0)
    there = ts.disentanglement(
        model, vectors, regime, pairs=[("one", "two")], grid=(GRID, other), **Q
    ).report()
    back = ts.disentanglement(
        model, vectors, regime, pairs=[("two", "one")], grid=(other, GRID), **Q
    ).report()
    assert torch.allclose(xi(there), xi(back).T, rtol=0, atol=1e-15)
    assert back.series[0]["tasks"] == ["two", "one"]


@pytest.mark.slow
@given(power=st.integers(-3, 3), regime=st.sampled_from(["posthoc", "linear"]), sign=st.sampled_from([-1, 1]))
@settings(max_examples=12)
def test_a_longer_vector_is_a_wider_grid(power: int, regime: Any, sign: int) -> None:
    """Powers of two are exact, so the maps must be the same to the last bit."""
    model, vectors = world(regime)
    (first, tau), (second, other) = vectors.items()
    factor = sign * 2.0**power
    scaled = {first: factor * tau, second: other}
    plain = ts.disentanglement(
        model,
        vectors,
        regime,
        grid=(sorted(factor * a for a in GRID), GRID),
        box=(-9, 9),
        distance="probabilities",
        **Q,
    ).report()
    moved = ts.disentanglement(
        model, scaled, regime, grid=GRID, box=(-9, 9), distance="probabilities", **Q
    ).report()
    assert torch.equal(xi(plain) if sign > 0 else xi(plain).flip(0), xi(moved))
    assert float(xi(moved).min()) >= 0
    assert float(xi(moved).max()) <= 2


# -- where xi must be zero -----------------------------------------------------------------------------------


@pytest.mark.thinned(3)
@pytest.mark.parametrize("distance", ["argmax", "probabilities"])
@pytest.mark.parametrize("regime", REGIMES)
def test_on_an_axis_only_the_other_tasks_rows_can_be_disturbed(regime: Any, distance: Any) -> None:
    """At (a, 0) task 1 sees its own model, and task 2 compares theta0 with theta0 + a tau1; the origin is zero."""
    model, vectors = world(regime)
    (first, tau1), (second, tau2) = vectors.items()
    values = xi(ts.disentanglement(model, vectors, regime, grid=GRID, distance=distance, **Q).report())
    zero = GRID.index(0.0)
    assert values[zero, zero] == 0
    for k, a in enumerate(GRID):
        two = apart(
            logits(model, second, 0 * tau1, regime), logits(model, second, a * tau1, regime), distance
        )
        one = apart(logits(model, first, 0 * tau2, regime), logits(model, first, a * tau2, regime), distance)
        assert float(values[k, zero]) == pytest.approx(average(two), abs=1e-12)
        assert float(values[zero, k]) == pytest.approx(average(one), abs=1e-12)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("distance", ["argmax", "probabilities"])
@pytest.mark.parametrize("regime", REGIMES)
def test_disjoint_blocks_on_disjoint_inputs_do_not_interfere(regime: Any, distance: Any) -> None:
    model, vectors = blocks(regime)
    found = ts.disentanglement(model, vectors, regime, grid=GRID, distance=distance, **Q).report()
    assert torch.equal(xi(found), torch.zeros(5, 5, dtype=torch.float64))
    assert found.result["pairs"][0]["grid"] == found.result["pairs"][0]["grid s.e."] == 0
    model, vectors = blocks(regime, leak=0.5)
    leaking = ts.disentanglement(model, vectors, regime, grid=GRID, distance=distance, **Q).report()
    assert leaking.result["pairs"][0]["grid"] > 0.02


def test_every_row_counts_whatever_the_batches() -> None:
    for regime in ("standard", "linear"):
        model, vectors = world(regime)
        maps = [
            xi(ts.disentanglement(model, vectors, grid=GRID, reading=Reading(batch_size=size), **Q).report())
            for size in (3, 16, 64)
        ]
        assert torch.equal(maps[0], maps[1])
        assert torch.equal(maps[0], maps[2])


def test_the_model_and_the_vectors_are_not_changed() -> None:
    model, vectors = world("standard")
    before = fingerprint_of(model)
    sums = [float(tau.norm()) for tau in vectors.values()]
    ts.disentanglement(model, vectors, grid=(0.0, 1.0), **Q).report()
    assert fingerprint_of(model) == before
    assert [float(tau.norm()) for tau in vectors.values()] == sums


def test_the_tangent_model_runs_once_per_task_and_the_ordinary_one_at_every_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    forward = Encoder.forward

    def counted(self: Encoder, batch: Any) -> Tensor:
        calls.append(1)
        return forward(self, batch)

    monkeypatch.setattr(Encoder, "forward", counted)
    for regime, most in (("linear", 2 * 3), ("standard", 2 * 5 + 2 * 25)):
        model, vectors = world(regime)
        calls.clear()
        with ts.computing(check="off"):  # which runs the model a few times more
            ts.disentanglement(model, vectors, grid=GRID, **Q).report()
        assert len(calls) <= most
    assert len(calls) == 2 * 5 + 2 * 5 * 4  # on its axis a task sees its own model, which ran before


# -- refusals ------------------------------------------------------------------------------------------------


def test_interference_needs_two_tasks_of_different_names() -> None:
    model, vectors = world("standard")
    (first, tau), (second, other) = vectors.items()
    for some in ({}, {first: tau}):
        with pytest.raises(UsageError, match="at least two"):
            ts.disentanglement(model, some, **Q).report()
    with pytest.raises(UsageError, match="same name"):
        ts.disentanglement(model, {first: tau, cloud("one", 3): tau, second: other}, **Q).report()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": []}, "rising order"),
        ({"grid": [1.0, 0.0]}, "rising order"),
        ({"grid": [0.0, 0.0, 1.0]}, "rising order"),
        ({"grid": [0.0, float("nan")]}, "rising order"),
        ({"grid": [float("nan")]}, "finite"),
        ({"grid": [0.0, float("inf")]}, "finite"),
        ({"grid": ["a"]}, "grid="),
        ({"grid": 0.5}, "`grid` is the number 0.5"),
        ({"grid": ([0.0, 1.0], [])}, "grid="),
        ({"grid": [2.0, 3.0]}, "no point of the grid lies in it"),
        ({"box": (1.0, 0.0)}, "two finite numbers"),
        ({"box": (0.0, float("nan"))}, "two finite numbers"),
        ({"box": (0.03, 0.04)}, "no point of the grid lies in it"),
        ({"distance": "argmin"}, "Did you mean 'argmax'"),
        ({"pairs": []}, "at least one pair"),
        ({"pairs": [("one", "too")]}, "Did you mean 'two'"),
        ({"pairs": [("one", "one")]}, "two different tasks"),
        ({"pairs": [("one",)]}, "two different tasks"),
        ({"pairs": ["ab"]}, r"`pairs\[0\]` is the text 'ab'"),
        ({"pairs": [("one", "two"), ("two", "one")]}, "none twice"),
        ({"regime": "liner"}, "Did you mean 'linear'"),
        ({"regime": "linear"}, "is a standard vector"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    model, vectors = world("standard")
    with pytest.raises(UsageError, match=words):
        ts.disentanglement(model, vectors, **options, **Q).report()


def test_vectors_of_another_base_or_regime_and_tasks_of_one_row_are_refused() -> None:
    model, vectors = world("standard")
    (first, tau), (second, other) = vectors.items()
    with pytest.raises(BaseMismatchError, match="starts from base"):
        ts.disentanglement(model, {first: tau, second: other.rebased("0" * 64)}, **Q).report()
    with pytest.raises(MismatchError, match="edit different functions"):
        ts.disentanglement(model, {first: tau, second: other.as_regime("linear")}, **Q).report()
    with pytest.raises(DataError, match="'two' has one row"):
        ts.disentanglement(model, {first: tau, second.subset(test=1): other}, **Q).report()
    fewer = TaskVector(dict(list(other.deltas.items())[1:]), other.base, "standard", "fewer")
    with pytest.raises(MismatchError):
        ts.disentanglement(model, {first: tau, second: fewer}, "posthoc", **Q).report()


@pytest.mark.parametrize("regime", REGIMES)
def test_a_grid_on_which_the_model_overflows_is_refused(regime: Any) -> None:
    model, vectors = world(regime)
    far = 6e307  # the weights are still finite, their products are not
    with pytest.raises(
        NonFiniteError, match=r"logits of 'one' on test at 6e\+307 x 'one'.*(NaN|infinity) in"
    ):
        ts.disentanglement(model, vectors, regime, grid=(0.0, far), **Q).report()


# -- the picture ---------------------------------------------------------------------------------------------


def test_the_regimes_of_a_pair_stand_side_by_side_on_the_one_colour_scale_of_the_report(
    tmp_path: Path,
) -> None:
    uneven = (-2.0, -0.5, 0.0, 1.0)
    series = []
    for regime in ("standard", "linear"):
        model, vectors = world(regime, tasks=3)
        series += list(ts.disentanglement(model, vectors, grid=(uneven, GRID), **Q).report().series)
    report = ts.Report("maps", [], series=series)
    paths = figures.draw(report, tmp_path, formats=("png",))
    assert [path.name for path in paths] == ["xi-one-two.png", "xi-one-three.png", "xi-two-three.png"]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    left, right, bar = report.plot()["xi-one-two"].axes
    assert [panel.get_title().split("\n")[0] for panel in (left, right)] == ["standard", "linear"]
    top = max(float(xi(ts.Report("", [], series=[one])).max()) for one in series)
    for panel, one in ((left, series[0]), (right, series[3])):
        mesh: Any = panel.collections[0]
        assert mesh.get_clim() == (0, top)
        assert torch.equal(torch.tensor(mesh.get_array()), xi(ts.Report("", [], series=[one])).T)
        assert mesh.get_coordinates()[0, :, 0].tolist() == [-2.75, -1.25, -0.25, 0.5, 1.5]
        boxes: Any = panel.patches
        assert {box.get_bbox().bounds for box in boxes} == {(0.0, 0.0, 1.0, 1.0)}
        assert "one" in panel.get_xlabel()
    assert "two" in left.get_ylabel()
    assert "xi" in bar.get_ylabel()


def test_a_map_of_zeros_on_one_point_is_drawn(tmp_path: Path) -> None:
    model, vectors = blocks("standard")
    found = ts.disentanglement(model, vectors, grid=[0.5], **Q).report()
    (path,) = figures.draw(found, tmp_path, formats=("png",))
    assert path.stat().st_size > 5000


# -- the verb ------------------------------------------------------------------------------------------------


def test_the_verb_writes_the_map_and_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = program.make(tmp_path / "world")
    words = [
        "disentangle",
        here["model"],
        f"{here['one']}={here['vector']}",
        f"{here['two']}={here['vector']}",
    ]
    more = [
        "--grid=-1,0,0.5",
        "--box",
        "0",
        "0.5",
        "--rows",
        "4",
        "--max-tokens",
        "8",
        "--out",
        str(tmp_path / "xi"),
    ]
    assert main([*words, *more, "--regime", "posthoc", "--distance", "probabilities", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["series"][0]["grid"] == [[-1, 0, 0.5]] * 2
    assert found["result"]["box"] == [0, 0.5]
    assert (found["result"]["regime"], found["result"]["distance"]) == ("posthoc", "probabilities")
    assert json.loads((tmp_path / "xi" / "report.json").read_text()) == found
    assert (tmp_path / "xi" / "xi-one-two.png").read_bytes()[:4] == b"\x89PNG"
    for extra, told in (
        (["--grid", "1,0"], "rising order"),
        (["--grid", "a"], "list of numbers"),
        (["--box", "4", "5"], "box"),
    ):
        assert main([*words, *extra]) == 2
        assert told in capsys.readouterr().err
    assert main(words[:3]) == 2
    assert "at least two" in capsys.readouterr().err


# -- random initialisation -----------------------------------------------------------------------------------


def test_a_transformers_model_is_drawn_anew_from_its_configuration(tmp_path: Path) -> None:
    trained = runs.bert(tmp_path / "bert")
    before, random = fingerprint_of(trained), torch.get_rng_state()
    fresh = ts.reinitialised(trained, seed=3)
    assert torch.equal(torch.get_rng_state(), random)
    assert fingerprint_of(trained) == before
    assert fingerprint_of(fresh) == fingerprint_of(ts.reinitialised(trained, seed=3))
    assert len({before, fingerprint_of(fresh), fingerprint_of(ts.reinitialised(trained, seed=4))}) == 3
    weights, spread = state_of(fresh), trained.backbone.config.initializer_range  # type: ignore[union-attr]
    drawn = [name for name, tensor in weights.items() if tensor.ndim == 2]
    assert 0.9 < torch.cat([weights[name].flatten() for name in drawn]).std() / spread < 1.1  # type: ignore[operator]
    for name, tensor in weights.items():
        if tensor.ndim < 2:
            assert torch.equal(tensor, torch.full_like(tensor, float("LayerNorm.weight" in name)))
    assert fresh.source.endswith("re-initialised with seed 3")
    assert not any(layer.training for layer in fresh.modules())
    text = fresh.encode(["a b c"])
    assert not torch.equal(fresh(text), trained(text))


@pytest.mark.parametrize("name", ["mlp", "conv", "torch_transformer"])
def test_a_plain_module_is_drawn_anew_by_its_layers(name: str) -> None:
    model = Encoder(zoo.ZOO[name].make().model)
    fresh = ts.reinitialised(model, seed=1)
    assert {tensor.dtype for tensor in state_of(fresh).values()} == {torch.float64}
    for key, tensor in state_of(fresh).items():
        assert not torch.equal(tensor, state_of(model)[key]), key
    assert fingerprint_of(fresh) == fingerprint_of(ts.reinitialised(model, seed=1))


def test_ties_stay_ties() -> None:
    fresh: Any = ts.reinitialised(Encoder(zoo.tied().model)).backbone
    assert fresh.out.weight is fresh.embed.weight


def test_a_parameter_that_nothing_initialises_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.factor = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.factor  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match=r"'1\.factor' is initialised: Scaled has no `reset_parameters`"):
        ts.reinitialised(Encoder(nn.Sequential(nn.Linear(2, 2), Scaled())))


def test_vectors_from_a_random_start_are_mapped_on_it_and_nowhere_else() -> None:
    model, vectors = world("standard")
    fresh = ts.reinitialised(model, seed=2)
    moved = {task: tau.rebased(fresh) for task, tau in vectors.items()}
    found = ts.disentanglement(fresh, moved, grid=(0.0, 1.0), **Q).report()
    assert found.provenance["base"].endswith("re-initialised with seed 2")
    with pytest.raises(BaseMismatchError):
        ts.disentanglement(model, moved, grid=(0.0, 1.0), **Q).report()
