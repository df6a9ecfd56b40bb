"""The study: numbers are those of the functions it calls, work is done once, rates are chosen as it says."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import when
from benchmarks.study import Plan, study
from benchmarks.study import cells as home
from benchmarks.study.plan import Cell, Variant

import tauspan as ts
from helpers import program, runs
from helpers.disentangling import logits
from helpers.zoo import normal
from tauspan.core.errors import StoreError, UsageError
from tauspan.experiments.run.spread import spread
from tauspan.tasks import Task
from tauspan.train import Finetuned
from tauspan.vector import FILE, TaskVector, cosine_matrix

Q: dict[str, Any] = {}
PLAN = Plan(
    lengths=(2, 4, 8), rates={"standard": (0.01, 0.05), "linear": (0.02, 0.1)}, tune_to=4, rows=(16,), validation=10,
    test=10, params="all", batch_size=8, max_tokens=None, grid=(0.5, 1.0, 2.0), axis=(0.0, 1.0), map_rows=8,
)  # fmt: skip
ONE = dataclasses.replace(PLAN, lengths=(2,), tune_to=2, rates={"standard": (0.05,), "linear": (0.1,)})


def points(name: str, column: int) -> Task:
    """Points in three classes, of which each task asks for another coordinate."""
    x = normal(44, 4, seed=3)
    y = (x[:, column] > 0).long() + (x[:, column] > 1).long()
    parts = {"validation": slice(10), "test": slice(10, 24), "train": slice(24, None)}
    splits: dict[str, Any] = {key: (x[part], y[part]) for key, part in parts.items()}
    head = ts.models.Head(normal(3, 5, seed=column + 5), normal(3, seed=6))
    return Task.from_tensors(name, ["a", "b", "c"], head=head, **splits)


TASKS = [points("one", 0), points("two", 1), points("three", 2)]


def studied(out: Path, plan: Plan = ONE, **options: Any) -> ts.Report:
    return study(runs.encoder(), TASKS, out, plan, **{**Q, **options})


@pytest.fixture(autouse=True)
def _without_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "picture" not in request.node.name:
        monkeypatch.setattr(home, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ts.Report]:
    """The folder and report of one short study."""
    out = tmp_path_factory.mktemp("study")
    return out, studied(out)


@pytest.fixture
def out(finished: tuple[Path, ts.Report], tmp_path: Path) -> Path:
    """A copy of that folder, to go on from."""
    return shutil.copytree(finished[0], tmp_path / "out")


def vectors_of(out: Path, name: str) -> dict[Task, TaskVector]:
    found = {}
    for task in TASKS:
        (folder,) = (out / "vectors").glob(name.replace("TASK", task.name))
        found[task.subset(train=16, validation=10, test=10)] = TaskVector.from_pretrained(folder / FILE)
    return found


def table(report: ts.Report, title: str) -> list[dict[str, Any]]:
    (found,) = [one for one in report.tables if one.title == title]
    return list(found.rows)


# -- the numbers ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("place", "regime", "name"),
    [
        (0, "standard", "standard-TASK-*"),
        (1, "linear", "linear-logits-TASK-*"),
        (2, "posthoc", "standard-TASK-*"),
    ],
)
def test_every_number_is_what_the_library_says(
    finished: tuple[Path, ts.Report], place: int, regime: Any, name: str
) -> None:
    out, report = finished
    cell = report.result["cells"][place]
    assert (cell["regime"], cell["steps"], cell["rows"], cell["seed"]) == (regime, 2, 16, 0)
    model, vectors = runs.encoder(), vectors_of(out, name)
    added = ts.add(model, vectors, regime, grid=ONE.grid, **Q).report()
    assert {key: cell["addition"][key] for key in added.result} == added.result
    total = sum(vectors.values(), 0.0 * next(iter(vectors.values())))
    mean = ts.evaluate(model, list(vectors), total, 1 / 3, regime, **Q).report().result["mean"]["accuracy"]
    assert cell["addition"]["mean"] == mean
    *controls, target = vectors
    forgotten = ts.negate(model, target, vectors[target], controls, 0.95, regime, grid=ONE.grid, **Q).report()
    assert cell["negation"]["target"] == forgotten.result["target"]
    assert cell["negation"]["task"] == "three"
    few = {task.subset(test=8): vector for task, vector in vectors.items()}
    unit = report.result["cells"][0]["interference"]["at alpha 1"]
    maps = ts.disentanglement(model, few, regime, grid=(0.0, 1.0), drift=unit, **Q).report().result
    assert cell["interference"]["pairs"] == maps["pairs"][:2]
    assert cell["interference"]["matched"] == maps["drift"]["pairs"][:2]
    assert cell["interference"]["unit"] == unit
    taus = list(vectors.values())
    assert cell["geometry"]["norms"] == [tau.norm() for tau in taus]
    assert cell["geometry"]["cosines"] == cosine_matrix(taus)[torch.triu_indices(3, 3, 1).unbind()].tolist()
    if regime == "posthoc":
        for task, tau in few.items():
            start, moved, straight = (
                logits(model, task, scale * tau, kind).double()
                for scale, kind in ((0.0, "standard"), (1.0, "standard"), (1.0, "posthoc"))
            )
            found = cell["curvature"]["tasks"][task.name]
            assert found["relative"] == pytest.approx(
                float((moved - straight).norm() / (moved - start).norm())
            )
            assert found["agreement"] == float((moved.argmax(-1) == straight.argmax(-1)).double().mean())
    else:
        assert "curvature" not in cell


@pytest.mark.slow
def test_tables_answer_a_question_each_and_the_picture_is_drawn(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        ONE, seeds=(0, 1), points=("logits", "encoder"), pairs=(("one", "three"),), target="one"
    )
    report = studied(tmp_path, plan)
    assert [one.title for one in report.tables] == [
        "Learning rates", "Single tasks and addition", "Negation", "Disentanglement error", "How far, and how straight",
        "Against ordinary fine-tuning", "Cost",
    ]  # fmt: skip
    models = ["standard", "linear-logits", "linear-encoder", "posthoc-logits", "posthoc-encoder"]
    for title in (
        "Single tasks and addition",
        "Negation",
        "Disentanglement error",
        "How far, and how straight",
    ):
        rows = table(report, title)
        assert [row["model"] for row in rows] == models
        assert {row["seeds"] for row in rows} == {"0 1"}
    assert {row["pair"] for row in table(report, "Disentanglement error")} == {"one + three"}
    cells = report.result["cells"]
    assert len(cells) == 10
    of = {(cell["regime"], cell["point"], cell["seed"]): cell for cell in cells}
    for title, column, read in (
        ("Single tasks and addition", "added", lambda cell: cell["addition"]["added"]),
        ("Negation", "target", lambda cell: cell["negation"]["target"]),
        ("Disentanglement error", "matched drift", lambda cell: cell["interference"]["matched"][0]["box"]),
    ):
        row = table(report, title)[1]
        assert (
            row[column] == spread([{"x": read(of["linear", "logits", seed])} for seed in (0, 1)], ["x"])["x"]
        )
        less = [
            {"x": read(of["linear", "logits", seed]) - read(of["standard", None, seed])} for seed in (0, 1)
        ]
        against = {"added": "added", "target": "negation target", "matched drift": "xi matched drift"}[column]
        assert table(report, "Against ordinary fine-tuning")[0][against] == spread(less, ["x"])["x"]
    row = table(report, "Single tasks and addition")[
        0
    ]  # the last column: the far end of the grid, on validation
    ends = [of["standard", None, seed]["addition"]["series"][0]["points"][-1] for seed in (0, 1)]
    assert [point["alpha"] for point in ends] == [2.0, 2.0]
    assert row["norm. at 2"] == spread([{"x": point["mean normalised"]} for point in ends], ["x"])["x"]
    assert (tmp_path / "study.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (
        json.loads((tmp_path / "report.json").read_text())["result"] == json.loads(report.to_json())["result"]
    )


def test_a_drift_that_is_never_reached_leaves_an_empty_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = home.measure.interference

    def out_of_reach(*given: Any) -> dict[str, Any]:
        found = measured(*given)
        if given[2].regime == "linear":
            found["matched"] = [{**pair, "box": None, "box s.e.": None} for pair in found["matched"]]
        return found

    monkeypatch.setattr(home.measure, "interference", out_of_reach)
    report = studied(tmp_path, dataclasses.replace(ONE, regimes=("standard", "linear")))
    ordinary, linear = table(report, "Disentanglement error")[::2]
    assert (linear["matched drift"], linear["matched drift s.e."]) == (None, None)
    assert None not in (ordinary["matched drift"], linear["equal alpha"], linear["equal alpha s.e."])
    (against,) = table(report, "Against ordinary fine-tuning")
    assert against["xi matched drift"] is None
    assert against["xi equal alpha"] is not None


# -- once ----------------------------------------------------------------------------------------------------


def numbers(report: ts.Report) -> Any:
    return json.loads(json.dumps(report.result))


@pytest.mark.slow
def test_a_study_that_was_interrupted_goes_on_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(ONE, lengths=(2, 8), regimes=("standard", "linear"))
    whole = studied(tmp_path / "whole", plan)
    calls, finetune = [], home.finetune

    def fragile(*given: Any, **options: Any) -> Finetuned:
        calls.append(given)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return finetune(*given, **options)

    monkeypatch.setattr(home, "finetune", fragile)
    with pytest.raises(KeyboardInterrupt):
        studied(tmp_path / "cut", plan)
    written = json.loads((tmp_path / "cut" / "report.json").read_text())  # the first cell's
    assert [cell["steps"] for cell in written["result"]["cells"]] == [2, 2]
    part = numbers(studied(tmp_path / "cut", plan, minutes=0))
    done = [cell for cell in numbers(whole)["cells"] if cell["steps"] == 2]
    assert part["cells"][:2] == done
    before = len(calls)
    assert numbers(studied(tmp_path / "cut", plan)) == numbers(whole)
    assert 0 < len(calls) - before < before
    monkeypatch.setattr(home, "finetune", lambda *_, **__: pytest.fail("was done before"))
    assert numbers(studied(tmp_path / "cut", plan)) == numbers(whole)
    assert numbers(studied(tmp_path / "cut", plan, minutes=0)) == numbers(whole)


@pytest.mark.slow
def test_more_lengths_and_seeds_reuse_what_is_there_and_no_time_begins_nothing(
    finished: tuple[Path, ts.Report], out: Path, tmp_path: Path
) -> None:
    assert studied(tmp_path / "new", minutes=0).result["cells"] == []
    stamps = {file: file.stat().st_mtime_ns for file in (out / "stages").glob("*.json")}
    plan = dataclasses.replace(ONE, lengths=(2, 4), seeds=(0, 1), regimes=("standard",))
    more = numbers(studied(out, plan))["cells"]
    assert more[0] == numbers(finished[1])["cells"][0]
    assert [(cell["steps"], cell["seed"]) for cell in more] == [(2, 0), (4, 0), (2, 1), (4, 1)]
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())


@pytest.mark.slow
def test_measurements_of_another_plan_are_made_anew_and_vectors_of_other_settings_refused(
    tmp_path: Path,
) -> None:
    studied(tmp_path)
    other = studied(tmp_path, dataclasses.replace(ONE, grid=(0.25,)))
    assert {cell["addition"]["alpha"] for cell in other.result["cells"]} == {0.25}
    with pytest.raises(StoreError, match="other settings"):
        studied(tmp_path, dataclasses.replace(ONE, batch_size=4))


# -- rates ---------------------------------------------------------------------------------------------------


def scored(accuracy: Callable[[int, float], float]) -> Callable[..., Finetuned]:
    """A fine-tuning that ends with an accuracy of our choice by length and learning rate."""

    def train(encoder: Any, task: Any, settings: Any, **_: Any) -> Finetuned:
        tried.append((settings.max_steps, settings.lr, settings.seed))
        return Finetuned(None, [{"accuracy": accuracy(settings.max_steps, settings.lr), "loss": 0.0}])  # type: ignore[arg-type]

    tried: list[tuple[int, float, int]] = []
    train.tried = tried  # type: ignore[attr-defined]
    return train


def test_a_rate_is_chosen_on_validation_with_its_neighbours_and_kept_for_longer_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {2: 0.4, 4: 0.2}
    train: Any = scored(lambda steps, rate: 1.0 - abs(rate - best.get(steps, 0.8)))
    monkeypatch.setattr(home, "finetune", train)
    plan = dataclasses.replace(
        PLAN, rates={"standard": (0.1, 0.2, 0.4, 0.8)}, regimes=("standard",), seeds=(0, 7)
    )
    made = home._Study(runs.encoder(), TASKS, tmp_path, plan, float("inf"))
    ordinary = Variant("standard", None)
    assert [made.rate(Cell(16, steps, 7), ordinary) for steps in (2, 4, 8)] == [0.4, 0.2, 0.2]
    tried = {steps: {rate for one, rate, _ in train.tried if one == steps} for steps in (2, 4, 8)}
    assert tried == {2: {0.1, 0.2, 0.4, 0.8}, 4: {0.2, 0.4, 0.8}, 8: set()}
    assert {seed for _, _, seed in train.tried} == {0}
    rows = [row for row in home.tables_of(plan, [], made.rates, [])[0].rows if row["chosen"]]
    assert [(row["steps"], row["learning rate"]) for row in rows] == [(2, "0.4"), (4, "0.2")]


def test_of_equal_rates_the_smallest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "finetune", scored(lambda *_: 0.5))
    made = home._Study(runs.encoder(), TASKS, tmp_path, PLAN, float("inf"))
    assert made.rate(Cell(16, 4, 0), Variant("linear", "logits")) == 0.02


# -- the plan ------------------------------------------------------------------------------------------------


def test_the_first_seed_goes_through_all_lengths_before_the_others_start() -> None:
    plan = dataclasses.replace(PLAN, seeds=(3, 1), rows=(8, 16), lengths=(2, 8), tune_to=2)
    assert [(c.seed, c.rows, c.steps) for c in plan.cells()] == [
        (3, 8, 2), (3, 8, 8), (3, 16, 2), (3, 16, 8), (1, 8, 2), (1, 16, 2), (1, 8, 8), (1, 16, 8),
    ]  # fmt: skip
    assert [str(variant) for variant in plan.variants()] == ["standard", "linear-logits", "posthoc-logits"]
    long, short = (plan.settings(Cell(16, steps, 1), Variant("linear", "logits"), 0.1) for steps in (8, 4))
    assert (long.epochs, long.max_steps, long.cache, long.seed) == (4, 8, "auto", 1)
    assert short.cache == "none"
    assert plan.settings(Cell(16, 8, 1), Variant("standard", None), 0.1).cache == "none"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lengths": ()}, "lengths=.*at least one"),
        ({"lengths": (4, 2)}, "rising order"),
        ({"lengths": (0, 2)}, "from 1"),
        ({"rows": (8, 8)}, "none twice"),
        ({"seeds": ()}, "seeds="),
        ({"regimes": ("linaer",)}, "Did you mean 'linear'"),
        ({"points": ("logit",)}, "Did you mean 'logits'"),
        ({"rates": {"standard": (0.1,)}}, "rates.'linear'.=.*above 0"),
        ({"rates": {"standard": (0.2, 0.1), "linear": (0.1,)}}, "rising order"),
        ({"rates": {"standard": (0.1,), "linear": (-0.1,)}}, "above 0"),
        ({"tune_to": 1}, "less than the shortest length, 2"),
    ],
)
def test_an_impossible_plan_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(PLAN, **options)


def test_tasks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for tasks, options, words in (
        (TASKS[:1], {}, "at least two"),
        ([TASKS[0], TASKS[0]], {}, "different names"),
        (TASKS, {"target": "thre"}, "Did you mean 'three'"),
        (TASKS, {"pairs": (("one", "tow"),)}, "Did you mean 'two'"),
        (TASKS, {"rows": (16, 90)}, "'one' has 20 training rows, fewer than the 90"),
    ):
        with pytest.raises(UsageError, match=words):
            study(runs.encoder(), tasks, tmp_path, dataclasses.replace(ONE, **options), **Q)


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_studies_a_text_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = program.make(tmp_path / "world")
    words = ["--model", here["model"], "--tasks", here["one"], here["two"], "--out", str(tmp_path / "out")]
    few = ["--lengths", "1", "--tune-to", "1", "--rows", "8", "--map-rows", "4", "--axis", "0", "1"]
    rates = ["--rates-standard", "0.01", "--rates-linear", "0.01"]
    before = torch.get_num_threads()
    found = when.main([*words, *few, *rates, "--params", "last:1", "--threads", str(before)])
    assert [cell["regime"] for cell in found.result["cells"]] == ["standard", "linear", "posthoc"]
    assert "Against ordinary" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.md").is_file()
