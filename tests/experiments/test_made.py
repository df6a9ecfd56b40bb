"""A comparison of ways to make vectors, on a small model: its numbers are those of the vectors it writes."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import tauspan as ts
from helpers.small_runs import TASKS
from tauspan.core.errors import RecipeError
from tauspan.core.measure import Cost
from tauspan.core.reading import Reading
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.made import WAYS, ways
from tauspan.experiments.run import Recipe, Training, run
from tauspan.experiments.run.made import Made
from tauspan.experiments.run.made_tables import tables
from tauspan.tasks.data.suite import find_task
from tauspan.vector import FILE, TaskVector

Done = tuple[Path, Recipe, Report]
FEW = ("standard", "linear", "linear-exact", "superposed", "joint-linear")


def asked(recipe: Recipe, ways: tuple[str, ...], **options: object) -> Recipe:
    made = Made(
        ways, ("tsv_m", "iso_c@reduce"), ("linear",), (0.5, 1.0), ridge=0.5, reference="news_computing", references=3,
        xi_rows=2, **options,
    )  # type: ignore[arg-type]  # fmt: skip
    return dataclasses.replace(
        recipe, regimes=(), parts=(made,), finetune=Training(max_steps=2, batch_size=4, lr_standard=1e-2)
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *given: [])


@pytest.fixture(scope="module")
def done(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two seeds of a few ways; a rate and a weight are chosen."""
    whole = asked(
        recipe, FEW, rates={"linear": (1e-3, 1e-2)}, weights={"linear-exact": (0.1, 10.0)}
    )  # fmt: skip
    out = tmp_path_factory.mktemp("made") / "out"
    return out, whole, run(whole, out)


def vectors(out: Path, way: str, seed: int) -> dict[str, TaskVector]:
    folder = out / "vectors"
    return {
        name: TaskVector.from_pretrained(folder / f"made-{way}-{name}-seed{seed}" / FILE) for name in TASKS
    }


@pytest.mark.slow
@pytest.mark.parametrize("way", FEW)
def test_the_numbers_are_those_of_the_vectors_that_are_written(done: Done, way: str) -> None:
    out, recipe, report = done
    model, regime = ts.load(recipe.model), WAYS[way].regime
    tasks = [find_task(name).subset(train=8, validation=8, test=8) for name in TASKS]
    reading = Reading(max_tokens=8)
    for place, seed in enumerate(recipe.seeds):
        found = report.result["made"][way][place]
        own = vectors(out, way, seed if WAYS[way].seeded else recipe.seeds[0])
        total = own[TASKS[0]] if WAYS[way].together else own[TASKS[0]] + own[TASKS[1]]
        for index, task in enumerate(tasks):
            for bits, vector in ((found["bits"]["single"], own[task.name]), (found["bits"]["sum"], total)):
                scored = ts.evaluate(model, [task], vector, 1.0, regime, reading=reading)
                assert bits[index].count("1") / 8 == pytest.approx(scored.accuracy[task.name])


@pytest.mark.slow
def test_superposed_vectors_sum_to_the_joint_optimum(done: Done) -> None:
    out, recipe, _ = done
    model = ts.load(recipe.model)
    tasks = [find_task(name).subset(train=8, validation=8, test=8) for name in TASKS]
    found = ts.superpose(model, tasks, 1.0, 0.5, reading=Reading(batch_size=32, max_tokens=8))
    assert found.joint_residual is not None
    assert found.joint_residual < 1e-5
    written = vectors(out, "superposed", 0)
    for task, vector in found.vectors.items():
        for name, delta in vector.deltas.items():
            torch.testing.assert_close(written[task.name].deltas[name], delta)


@pytest.mark.slow
def test_what_validation_likes_best_is_chosen_with_the_first_seed_and_kept(done: Done) -> None:
    _, _, report = done
    for way, measured in (("linear", "single"), ("linear-exact", "sum")):
        first, second = report.result["made"][way]
        best = max(first["tried"], key=lambda value: first["tried"][value][measured])
        assert first["value"] == float(best)
        assert second["value"] == first["value"]
        assert not second["tried"]
    titles = [table.title.partition(". ")[2] for table in report.tables]
    assert titles[:6] == [
        "Ways to make vectors, test accuracy and cost", "Differences in pairs of test rows",
        "Rules that merge the vectors of each way, test accuracy", "Differences of rules in pairs of test rows",
        "Negation", "Choices",
    ]  # fmt: skip
    assert [row["way"] for row in report.tables[2].rows].count("linear") == 3
    assert report.result["made"]["linear-exact"][0]["xi"] is not None


@pytest.mark.slow
def test_a_second_run_makes_nothing_again(done: Done) -> None:
    out, recipe, report = done
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = run(recipe, out)
    assert again.result["made"] == report.result["made"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


@pytest.mark.slow
@pytest.mark.long
def test_every_way_makes_vectors(recipe: Recipe, tmp_path: Path) -> None:
    one = dataclasses.replace(asked(recipe, tuple(WAYS)), seeds=(0,))
    report = run(one, tmp_path / "out")
    assert list(report.result["made"]) == list(WAYS)
    for name in ("linear-expand", "standard-reduce"):
        assert report.result["made"][name][0]["ratio"] > 0


def test_sparse_vectors_of_other_tensors_are_added_all_the_same() -> None:
    one, two = (TaskVector({name: torch.ones(2)}, "b", "linear", name) for name in ("first", "second"))
    tasks = [find_task(name) for name in TASKS]
    filled = ways.filled(dict(zip(tasks, (one, two), strict=True)))
    total = sum(filled.values())
    assert {name: delta.tolist() for name, delta in total.deltas.items()} == {
        "first": [1, 1],
        "second": [1, 1],
    }


def measured(seed: int, seconds: float, right: dict[str, str]) -> dict[str, object]:
    """What a way gives with one seed, made up: of two tasks, the same rows right in both."""
    rules = {
        name: {"tuned": [0.5, 0.5], "alpha": 1.0} for name in right if name not in ("single", "zero shot")
    }
    gone = {
        "target": 0.5,
        "kept": 1.0,
        "alpha": 1.0,
        "target at floor": 0.6,
        "kept at floor": 0.99,
        "chance": 0.5,
    }
    return {
        "zero shot": [0.5, 0.5], "bits": {name: [text, text] for name, text in right.items()}, "rules": rules,
        "changed": 0.1, "drift": 0.2, "xi": 0.3, "negated": [gone], "tried": {}, "value": None, "ratio": None,
        "seconds": seconds, "cost": Cost(0.0, 100.0 * (seed + 1)),
    }  # fmt: skip


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_cost_stands_beside_accuracy_and_rules_have_intervals(seeds: tuple[int, ...]) -> None:
    """Against differences by eye: the rule has 4 of 8 rows more than the sum, joint training has 2 more than it."""
    tasks = [find_task(name) for name in TASKS]
    right = {"single": "11110000", "sum": "11000000", "ties": "11111100"}
    joint = {"single": "11110000", "sum": "11110000"}
    done = {
        "linear": [measured(seed, 30.0 + seed, right) for seed in seeds],
        "joint-linear": [
            {key: value for key, value in measured(seed, 2.5, joint).items() if key != "xi"} for seed in seeds
        ],
    }
    made = {table.title: table for table in tables(seeds, tasks, done, 0.99)}  # type: ignore[arg-type]
    first = made["Ways to make vectors, test accuracy and cost"]
    costs = [(row["way"], row["seconds"], row["MB"]) for row in first.rows]
    assert costs == [("linear", 30 + seeds[-1], 100 * len(seeds)), ("joint-linear", 2.5, 100 * len(seeds))]
    assert first.columns[1:5] == ["single", "sum at 1", "seconds", "MB"]
    told = made["Differences of rules in pairs of test rows"]
    (row,) = told.rows
    assert (row["way"], row["rule"]) == ("linear", "ties")
    assert re.match(r"\+0\.500 \[\+0\.\d+, \+0\.\d+\], p ", str(row["less the sum"]))
    assert re.match(r"\+0\.250 \[\+0\.\d+, \+0\.\d+\], p ", str(row["less joint-linear"]))
    for table in (told, made["Differences in pairs of test rows"]):
        assert ("one seed: another training may differ by more" in table.note) is (len(seeds) == 1)
        assert "95 % intervals" in table.note
    assert "seconds" not in made["Choices"].columns


def test_what_cannot_be_asked_is_refused() -> None:
    for told, options in [
        ("Did you mean 'linear-exact'", {"ways": ("linear", "linear-exakt")}),
        ("none may stand twice", {"ways": ("linear", "linear")}),
        ("add 'linear'", {"ways": ("standard", "standard-delta")}),
        ("Did you mean 'tsv_m'", {"ways": ("linear",), "rules": ("tsv",)}),
        ("after @ comes one of reduce, expand", {"ways": ("linear",), "rules": ("iso_c@ekfac",)}),
        ("no way of this recipe", {"ways": ("linear",), "weights": {"linear": (1.0,)}}),
        ("Did you mean 'linear'", {"ways": ("linear",), "rates": {"linaer": (1.0,)}}),
        ("name a task in made.reference", {"ways": ("superposed-reference",)}),
        ("between 0 and 1", {"ways": ("linear",), "floor": 2.0}),
        ("made.merged", {"ways": ("linear",), "merged": ("standard",)}),
    ]:
        with pytest.raises(RecipeError, match=told):
            Made(**options)  # type: ignore[arg-type]
    text = "model: minilm\ntasks: [email_spam]\nregimes: []\nmade: {ways: [linear]}\n"
    with pytest.raises(RecipeError, match="at least two tasks"):
        Recipe.parse(text)
    with pytest.raises(RecipeError, match="is a task of the recipe"):
        Recipe.parse(
            "model: minilm\ntasks: [email_spam, movie_sentiment]\nregimes: []\n"
            "made: {ways: [superposed-reference], reference: email_spam}\n"
        )
    with pytest.raises(RecipeError, match="leave it out"):
        Recipe.parse(
            "model: minilm\ntasks: [email_spam, movie_sentiment]\nregimes: []\nmade: {ways: [linear]}\n"
            "finetune: {epochs_by_task: {email_spam: 2}}\n"
        )
    again = Recipe.parse(
        Recipe.parse(text.replace("[email_spam]", "[email_spam, movie_sentiment]")).to_yaml()
    )
    assert again.part(Made) == Made(("linear",))
