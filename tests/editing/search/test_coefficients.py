"""`coefficients`, `front` and `combine` in every regime, and their verbs."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tauspan as ts
from helpers.program import World, contents, make
from helpers.searches import REGIMES, Q, cloud, eye, random_vector, steps, turn, world
from helpers.threads import one_thread  # noqa: F401 - a fixture for every test here
from helpers.zoo import bert_model
from tauspan.cli.main import main
from tauspan.core.errors import DataError, UsageError
from tauspan.core.reading import Reading
from tauspan.editing import PAPER_GRID, combine, front
from tauspan.editing.model.directions import Directions, chosen_groups, layer_groups
from tauspan.editing.search.blackbox import Memory, descend
from tauspan.editing.search.box import Box
from tauspan.models import fingerprint_of, state_of
from tauspan.tasks import Task
from tauspan.vector import TaskVector

FEW: dict[str, Any] = {"bootstrap": 8, "max_evaluations": 25, **Q}


def loss(
    model: Any, tasks: Any, vector: TaskVector, regime: Any, split: Any = "validation", point: Any = None
) -> float:
    found = ts.evaluate(
        model, list(tasks), vector, 1.0, regime, split, reading=Reading(point=point), **Q
    ).report()
    return float(found.result["mean"]["loss"])


# -- coefficients --------------------------------------------------------------------------------------------


@pytest.mark.thinned(12)
@pytest.mark.parametrize("per", ["shared", "task", "layer"])
@pytest.mark.parametrize("regime", REGIMES)
def test_the_combined_vector_has_the_reported_loss_and_beats_the_grid(regime: Any, per: Any) -> None:
    model, vectors = world(regime)
    found = ts.coefficients(model, vectors, regime, per=per, **FEW).report()
    edited = combine(vectors, found.result["coefficients"], found.result["groups"])
    assert loss(model, vectors, edited, regime) == pytest.approx(found.result["loss"], abs=1e-10)
    for alpha in PAPER_GRID:
        total = combine(vectors, {task.name: alpha for task in vectors})
        assert found.result["loss"] <= loss(model, vectors, total, regime) + 1e-10
    optimum = found.tables[2]
    assert optimum.rows[0]["best grid loss"] == pytest.approx(found.result["grid"]["loss"])
    if regime == "standard":
        assert found.result["certificate"] is None
        assert "not convex" in optimum.note
    else:
        assert found.result["certificate"] <= 1e-8
        assert optimum.rows[0]["certified"] is True


@pytest.mark.thinned(3)
@pytest.mark.parametrize("regime", REGIMES)
def test_the_accuracies_are_those_of_the_edited_models_on_test(regime: Any) -> None:
    model, vectors = world(regime)
    found = ts.coefficients(model, vectors, regime, **FEW).report()
    edited = combine(vectors, found.result["coefficients"])
    shared = ts.add(model, vectors, regime, **Q).report()
    assert found.result["grid"]["alpha by accuracy"] == shared.result["alpha"]
    *rows, mean = found.tables[1].rows
    for row, plain, (task, tau) in zip(rows, shared.tables[0].rows, vectors.items(), strict=False):

        def at(vector: TaskVector, task: Task = task) -> float:
            return float(
                ts.evaluate(model, [task], vector, 1.0, regime, **Q).report().result["accuracy"][task.name]
            )

        assert row["zero shot"] == plain["zero shot"]
        assert row["single"] == plain["single"] == at(tau)
        assert row["shared grid"] == plain["added"]
        assert row["solved"] == at(edited)
        assert row["solved norm."] == at(edited) / at(tau)
        assert row["solved low"] <= row["solved"] <= row["solved high"]  # type: ignore[operator]
    assert mean["solved"] == sum(row["solved"] for row in rows) / 2  # type: ignore[misc]
    assert found.result["solved"] == mean["solved"]


def test_one_shared_coefficient_is_the_minimum_along_the_sum() -> None:
    model, vectors = world("linear")
    found = ts.coefficients(model, vectors, "linear", per="shared", **FEW).report()
    (alpha,) = set(found.result["coefficients"].values())
    fine = {a: loss(model, vectors, combine(vectors, {t.name: a for t in vectors}), "linear")
            for a in (alpha - 0.01, alpha, alpha + 0.01)}  # fmt: skip
    assert min(fine, key=fine.__getitem__) == alpha
    assert [row["task"] for row in found.tables[0].rows] == ["all"]


def test_coefficients_and_intervals_depend_on_the_seed_alone() -> None:
    model, vectors = world("linear")
    first, again, other = (
        ts.coefficients(model, vectors, "linear", bounds=(-2, 4), ridge=0.05, seed=seed, **FEW).report()
        for seed in (3, 3, 4)
    )
    assert first.tables[0].rows == again.tables[0].rows
    assert first.tables[0].rows != other.tables[0].rows
    assert first.result["coefficients"] == other.result["coefficients"]
    for row in first.tables[0].rows:
        assert row["low"] < row["high"]  # type: ignore[operator]
    plain = ts.coefficients(model, vectors, "linear", **{**FEW, "bootstrap": 0}).report()
    assert {row["low"] for row in plain.tables[0].rows} == {None}


def test_a_normalising_head_at_the_encoder_is_said_not_to_be_convex() -> None:
    model, vectors = world("linear")
    plain = dict(vectors)
    heads = {Task.from_tensors(t.name, t.label_names, **{s: (list(r.inputs), r.labels) for s, r in t.splits.items()}): v
             for t, v in plain.items()}  # fmt: skip
    found = ts.coefficients(model, heads, "linear", reading=Reading(point="encoder"), **FEW).report()
    assert found.tables[2].rows[0]["convex"] is False
    assert "stationary point" in found.tables[2].note
    assert found.result["loss"] <= found.result["grid"]["loss"]
    edited = combine(heads, found.result["coefficients"])
    assert loss(model, heads, edited, "linear", point="encoder") == pytest.approx(
        found.result["loss"], abs=1e-9
    )


def test_separable_rows_without_bounds_are_refused_and_held_by_a_ridge() -> None:
    model = eye()
    vectors = {steps("s", [0.3, 0.6]): turn(model)}
    with pytest.raises(UsageError, match="Give bounds"):
        ts.coefficients(model, vectors, "posthoc", bounds=None, **FEW).report()
    held = ts.coefficients(model, vectors, "posthoc", bounds=None, ridge=1e-2, **FEW).report()
    assert held.result["coefficients"]["s"] > 1.0
    bounded = ts.coefficients(model, vectors, "posthoc", **FEW).report()
    assert bounded.result["coefficients"] == {"s": 1.0}
    assert bounded.tables[0].rows[0]["on bound"] == "high"


def test_the_test_split_is_read_only_after_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, vectors = world("linear")
    (first, tau), (second, _) = vectors.items()
    seen: list[str] = []
    read = Task.split

    def spy(self: Task, name: str) -> Any:
        seen.append(name)
        return read(self, name)

    monkeypatch.setattr(Task, "split", spy)
    for work in (
        lambda: ts.coefficients(model, vectors, "linear", **FEW).report(),
        lambda: front(model, first, tau, [second], regime="linear", prices=3, **FEW).report(),
    ):
        seen.clear()
        work()
        begin = seen.index("test")
        assert set(seen[:begin]) == {"validation"}
        assert set(seen[begin:]) == {"test"}


def test_arguments_that_do_not_fit_are_refused() -> None:
    model, vectors = world("linear")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"per": "layers"}, "Did you mean 'layer'"), ({"groups": {"a": "*"}}, "belong to per='layer'"),
        ({"split": "test"}, "never on test rows"), ({"bounds": (1.0, 0.0)}, "bounds"), ({"l1": -1.0}, "l1"),
        ({"bootstrap": -1}, "bootstrap=-1"), ({"per": "layer", "groups": {"a": "zzz"}}, "no tensor matches 'zzz'"),
        ({"per": "layer", "groups": {"a": "0.*", "b": "*"}}, "is in the groups 'a' and 'b'"),
    ]  # fmt: skip
    for rules, words in refused:
        with pytest.raises(UsageError, match=words):
            ts.coefficients(model, vectors, "linear", **{**FEW, **rules}).report()
    with pytest.raises(UsageError, match="max_evaluations=0"):
        ts.coefficients(model, world("standard")[1], "standard", **{**FEW, "max_evaluations": 0}).report()
    with pytest.raises(UsageError, match="at least one task"):
        ts.coefficients(model, {}, **FEW).report()
    (one, tau), _ = vectors.items()
    with pytest.raises(DataError, match="one name"):
        ts.coefficients(model, {one: tau, cloud(one.name, 3): tau}, **FEW).report()


# -- directions ----------------------------------------------------------------------------------------------


def test_layer_groups_are_the_blocks_and_what_lies_beside_them() -> None:
    model = bert_model()
    names = [name for name, _ in model.named_parameters()]
    groups = layer_groups(model, names)
    assert list(groups) == ["embeddings", "encoder.layer.0", "encoder.layer.1"]
    assert sorted(itertools.chain(*groups.values())) == sorted(names)
    assert all(name.startswith(f"{group}.") for group, members in groups.items() for name in members)
    assert layer_groups(nn.Linear(2, 2), ["weight", "bias"]) == {"weight": ("weight",), "bias": ("bias",)}


def test_groups_by_pattern_leave_a_rest() -> None:
    names = ["a.w", "a.b", "c.w", "d.w"]
    assert chosen_groups({"x": "a.*", "y": ["c.w"]}, names) == {
        "x": ("a.w", "a.b"),
        "y": ("c.w",),
        "rest": ("d.w",),
    }
    assert chosen_groups({"x": "*"}, names) == {"x": tuple(names)}


def test_partial_directions_add_up_to_the_combination() -> None:
    model = world("linear")[0]
    vectors = {"u": random_vector(model, 1, "linear"), "v": random_vector(model, 9, "linear")}
    directions = Directions(vectors, layer_groups(model, list(state_of(model))))
    values = {name: 0.3 * place - 0.5 for place, name in enumerate(directions.names)}
    total = directions.combined(values)
    for key, delta in total.deltas.items():
        wanted = sum(values[name] * directions.partial(name).deltas[key] for name in directions.names)
        torch.testing.assert_close(delta, wanted, rtol=0, atol=1e-12)
    assert not any(delta.any() for delta in directions.combined({}).deltas.values())


def test_combined_vectors_are_saved_with_their_coefficients(tmp_path: Path) -> None:
    model, vectors = world("linear")
    names = [task.name for task in vectors]
    edited = combine(vectors, dict.fromkeys(names, 0.5))
    again = TaskVector.from_pretrained(edited.save_pretrained(tmp_path))
    assert again.info["coefficients"] == dict.fromkeys(names, 0.5)
    assert again.base == fingerprint_of(model)
    with pytest.raises(UsageError, match="each task needs one"):
        combine(vectors, {names[0]: 1.0})
    with pytest.raises(UsageError, match="Pass `groups="):
        combine(vectors, {name: {"0": 1.0, "2": 0.5} for name in names})


def test_the_derivative_free_search_remembers_and_is_no_worse_than_its_starts() -> None:
    asked: list[tuple[float, ...]] = []

    def bowl(a: Any) -> tuple[float, ...]:
        asked.append(tuple(a))
        return ((a[0] - 0.3) ** 2 + (a[1] - 2.0) ** 2,)

    memory = Memory(bowl)
    best = descend(memory, lambda _, v: v[0], Box.of(2, (0.0, 1.0)), [(0.0, 0.0), (5.0, 5.0)], 60)
    assert best == pytest.approx((0.3, 1.0), abs=1e-2)
    assert len(asked) == len(set(asked)) <= 62
    flat = Memory(lambda a: (1.0,))
    assert descend(flat, lambda _, v: v[0], Box.of(2, (0.0, 1.0)), [(1.0, 1.0), (0.2, 0.0)], 5) == (0.2, 0.0)


# -- the front -----------------------------------------------------------------------------------------------


def forgotten(model: Any, task: Task, kept: Any, edited: TaskVector, regime: Any) -> tuple[float, float]:
    """Forgetting loss and control loss, from the edited model's own logits."""
    control = loss(model, kept, edited, regime)
    theta = ts.linearize(ts.Classifier(model, task.head))  # type: ignore[arg-type]
    theta.load_task_vector(edited)
    rows = task.split("validation")
    logits = theta(torch.stack(list(rows.inputs))).detach()
    wrong = torch.ones_like(logits).scatter(1, rows.labels[:, None], 0.0)
    return float((logits.logsumexp(-1) - (logits * wrong).sum(-1) / wrong.sum(-1)).mean()), control


@pytest.mark.thinned(2)
@pytest.mark.parametrize("per", ["shared", "layer"])
def test_every_price_is_solved_at_least_as_well_as_by_the_grid(per: Any) -> None:
    model, vectors = world("linear")
    (task, tau), (kept, _) = vectors.items()
    found = front(model, task, tau, [kept], regime="linear", per=per, prices=7, **FEW).report()
    (series,) = found.series
    assert series["kind"] == "front"
    grid = [(spot["forgetting"], spot["control loss"]) for spot in series["grid"]]
    wanted = [forgotten(model, task, [kept], -alpha * tau, "linear") for alpha in PAPER_GRID]
    torch.testing.assert_close(torch.tensor(grid), torch.tensor(wanted), rtol=0, atol=1e-6)
    for spot in series["points"]:
        assert spot["certificate"] <= 1e-8
        cost = spot["forgetting"] + spot["price"] * spot["control loss"]
        assert all(cost <= f + spot["price"] * c + 1e-9 for f, c in grid)
    prices = [spot["price"] for spot in series["points"]]
    assert prices == sorted(prices, reverse=True)
    for first, second in itertools.pairwise(
        series["points"]
    ):  # cheaper controls: more is forgotten, less kept
        assert second["forgetting"] <= first["forgetting"] + 1e-9
        assert second["control loss"] >= first["control loss"] - 1e-9


@pytest.mark.parametrize("regime", REGIMES)
def test_the_choice_forgets_at_least_what_the_grid_does_above_the_floor(regime: Any) -> None:
    model, vectors = world(regime)
    (task, tau), (kept, _) = vectors.items()
    found = front(model, task, tau, [kept], 0.9, regime, prices=4, **{**FEW, "max_evaluations": 6}).report()
    plain = ts.negate(model, task, tau, [kept], 0.9, regime, **Q).report()
    (series,) = found.series
    curve = {point["alpha"]: point for point in plain.series[0]["points"]}
    assert series["best"]["target"] <= curve[plain.result["alpha"]]["target"]
    assert series["best"]["control"] >= series["floor"] == 0.9 * curve[0.0]["control"]
    rows = {row["row"]: row for row in found.tables[0].rows}
    assert rows["shared grid"]["target"] == plain.result["target"]
    assert rows["pre-trained"]["control"] == plain.result["before"]["control"]
    edited = combine({task: tau}, found.result["coefficients"], found.result["groups"])
    accuracy = ts.evaluate(model, [task, kept], edited, 1.0, regime, **Q).report().result["accuracy"]
    assert rows["front"]["target"] == found.result["target"] == accuracy[task.name]
    assert rows["front"]["control"] == found.result["control"] == accuracy[kept.name]


def test_the_floor_decides_and_the_front_is_refined_where_it_is_crossed() -> None:
    model = eye()
    (name,) = state_of(model)
    wide = TaskVector(
        {name: torch.tensor([[0.0, 0.0], [-1.0, 0.0]])}, fingerprint_of(model), "standard", "wide"
    )
    target, control = steps("t", [], [0.12, 0.42, 0.72]), steps("c", [], [0.62, 2.0, 2.0, 2.0])
    coarse = front(model, target, wide, [control], 0.95, "posthoc", per="shared", prices=3, **FEW).report()
    (series,) = coarse.series
    assert len(series["points"]) == 3 + 6  # six more where the control falls below the floor
    assert series["best"]["target"] == pytest.approx(1 / 3)
    assert series["best"]["control"] == 1.0


def test_the_front_refuses_what_it_cannot_do() -> None:
    model, vectors = world("linear")
    (task, tau), (kept, _) = vectors.items()
    for rules, words in (
        ({"prices": 1}, "prices=1"),
        ({"per": "task"}, "'shared' or 'layer'"),
        ({"floor": 2.0}, "floor=2"),
    ):
        with pytest.raises(UsageError, match=words):
            front(model, task, tau, [kept], **{**FEW, **rules}).report()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="other than itself"):
        front(model, task, tau, [task], **FEW).report()


# -- the program ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"))


def call(here: World, line: str) -> int:
    try:
        return main([word.format(**here) for word in line.split()])
    except SystemExit as stop:
        return int(stop.code or 0)


SOLVE = "edit solve {model} {one}={linear} {two}={linear} --bootstrap 4 -q"
FRONT = "edit front {model} {one}={linear} {two} --bootstrap 4 --prices 3 -q"


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "line",
    [
        SOLVE + " --bounds -1 1.5 --l1 0.001",
        SOLVE + " --per layer",
        SOLVE + " --unbounded --ridge 0.1",
        FRONT,
    ],
)
def test_a_verb_reports_and_writes_the_vector_that_it_chose(
    line: str, folder: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = {**folder, "out": str(tmp_path / "out"), "file": str(tmp_path / "tau.safetensors")}
    assert call(here, line + " --out {out} --vector {file} --json") == 0, capsys.readouterr().err
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text())
    vector = TaskVector.from_pretrained(tmp_path / "tau.safetensors")
    assert vector.info["coefficients"] == printed["result"]["coefficients"]
    before = contents(tmp_path)
    assert call(here, line + " --vector {file}") == 5
    assert "already there" in capsys.readouterr().err
    assert contents(tmp_path) == before


REFUSED = {
    "a pair without its vector": ("edit solve {model} {one}", 2, "must be TASK=VECTOR"),
    "one task twice": ("edit solve {model} {one}={linear} {one}={linear}", 6, "stands twice"),
    "bounds the wrong way": (SOLVE + " --bounds 1 0", 2, "bounds=(1.0, 0.0)"),
    "an unknown cut": (SOLVE + " --per blocks", 2, "invalid choice"),
    "a negative ridge": (SOLVE + " --ridge=-1", 2, "ridge=-1.0"),
    "fewer than no resamples": ("edit solve {model} {one}={linear} --bootstrap=-1", 2, "bootstrap=-1"),
    "another base": ("edit solve {other} {one}={linear}", 4, "starts from base"),
    "the target as its control": ("edit front {model} {one}={linear} {one}", 2, "its own control"),
    "one price": (FRONT + " --prices 1", 2, "prices=1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_has_its_code_and_words(
    case: str, folder: World, capsys: pytest.CaptureFixture[str]
) -> None:
    line, code, words = REFUSED[case]
    assert call(folder, line) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
