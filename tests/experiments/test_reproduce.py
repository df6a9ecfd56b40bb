"""`tauspan reproduce` at toy scale: every recipe, what it compares, what it refuses, and that it goes on after a kill."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from helpers import toy_paper
from helpers.program import contents
from tauspan.cli.main import main
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.reproduce import Changes, names, plan, recipes
from tauspan.experiments.reproduce.carry_out import ours
from tauspan.experiments.reproduce.experiment import experiment, laid_over, variant
from tauspan.experiments.reproduce.presets import PRESETS, Preset
from tauspan.experiments.reproduce.published import Ours, beside, sources
from tauspan.experiments.reproduce.timing import StepTime
from tauspan.experiments.run import Energies, Maps, Negation, Recipe
from tauspan.experiments.shipped import recipe_file

TEXTS = ("movie_sentiment", "debian_section")
MODELS = {"closed-vocabulary": "vit", "text7": "bert"}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    toy_paper.data(root / "data")
    toy_paper.models(root / "models")
    return root


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two coefficients in place of 21, no pictures and no timing: what a run does is the same, 30 times faster."""
    planning = importlib.import_module("tauspan.experiments.reproduce.planning")
    monkeypatch.setattr(planning, "step_time", lambda encoder, settings: StepTime(0.1, 8, 100.0))
    monkeypatch.setattr(importlib.import_module("tauspan.editing.search.grid"), "PAPER_GRID", (0.0, 1.0))
    monkeypatch.setattr(importlib.import_module("tauspan.editing"), "GRID", (0.0, 1.0))
    monkeypatch.setattr(figures, "draw", lambda *given: [])


def words(toy: Path, name: str, out: Path, *more: str) -> list[str]:
    tasks = TEXTS if name == "text7" else toy_paper.TASKS
    return [
        "reproduce", name, "--model", str(toy / "models" / MODELS.get(name, "clip")), "--data", str(toy / "data"),
        "--tasks", ",".join(tasks), "--rows", "8", "--max-steps", "2", "--seeds", "1", "--out", str(out), *more,
    ]  # fmt: skip


def told(capsys: pytest.CaptureFixture[str], line: list[str]) -> dict[str, Any]:
    assert main([*line, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


# -- every recipe --------------------------------------------------------------------------------------------

BESIDE = "Ours beside published numbers"
EXPECTED = {
    "addition": {"Addition, test accuracy", "Leak check"},
    "closed-vocabulary": {"Addition, test accuracy", "Leak check"},
    "disentanglement": {"Disentanglement error", "Leak check"},
    "local-energy": {"Local energy", "Leak check"},
    "negation": {"Negation, test accuracy", "Leak check"},
    "posthoc": {"Addition, test accuracy", "Leak check"},
    "random-init": {"pretrained: Disentanglement error", "random: Disentanglement error"},
    "single-task": {"Addition, test accuracy", "Cost"},
    "text7": {"pretrained: Negation, test accuracy", "pretrained: Local energy", "pretrained: References, test accuracy",
              "pretrained: Disentanglement error at matched drift", "random: Addition, test accuracy"},
}  # fmt: skip


def test_every_recipe_is_tested() -> None:
    assert set(EXPECTED) == set(names())


def carried_out(
    toy: Path, name: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    report = told(capsys, words(toy, name, out, *more))
    assert json.loads((out / "report.json").read_text()) == report
    titles = {table["title"].partition(". ")[2] for table in report["tables"]}
    published = {BESIDE} if experiment(name).measures else set()
    for wanted in EXPECTED[name] | published:  # maps say of what axes in the corrected variant
        assert any(title.startswith(wanted) for title in titles), wanted
    for part, recipe in recipes(name).items():
        written = Recipe.read(out / part / "recipe.yaml")
        assert written.finetune.max_steps == 2
        assert (written.start, written.regimes) == (recipe.start, recipe.regimes)
        assert bool(list((out / part / "vectors").rglob("vector.safetensors"))) == bool(recipe.regimes)
    return report


@pytest.mark.thinned(9)
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"posthoc", "single-task"}))  # those two: below
def test_a_recipe_runs_from_the_program(
    name: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = carried_out(toy, name, tmp_path / "out", capsys, "--variant", "paper")
    first = report["tables"][0]
    assert (first["title"] == f"1. {BESIDE}") == bool(experiment(name).measures)
    for row in first["rows"] if experiment(name).measures else ():
        assert (row["published"], row["certainty"], row["source"]) == (
            None,
            None,
            None,
        )  # no such model is published
        assert row["ours"] is not None


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_recipe_runs_with_its_whole_grid_and_its_pictures(
    name: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out(toy, name, tmp_path / "out", capsys, "--variant", "corrected", "--workers", "2")
    assert list((tmp_path / "out").rglob("*.png"))


# -- the corrected variant, resuming -------------------------------------------------------------------------


@pytest.mark.usefixtures("short")
def test_rates_are_chosen_on_validation_and_their_vectors_used_again(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = words(toy, "single-task", out, "--variant", "corrected")
    report = carried_out(toy, "single-task", out, capsys, "--variant", "corrected")
    table = next(table for table in report["tables"] if "Learning rates" in table["title"])
    assert [(row["regime"], row["learning rate"]) for row in table["rows"]] == [
        ("standard", "1e-05"), ("standard", "3e-05"), ("linear", "1e-05"), ("linear", "0.0001"), ("linear", "0.0003"),
    ]  # fmt: skip
    assert table["note"].startswith("seed 0, svhn; ")  # of the recipe's subset, what was asked for
    for regime in ("standard", "linear"):
        here = [row for row in table["rows"] if row["regime"] == regime]
        best = min(here, key=lambda row: (-row["mean"], float(row["learning rate"])))
        assert [row["chosen"] for row in here] == [row is best for row in here]
        written = Recipe.read(out / "main" / "recipe.yaml").finetune
        assert getattr(written, f"lr_{regime}") == float(best["learning rate"])
        trial = (
            out / "main" / "rates" / f"{regime}-{best['learning rate']}" / "vectors" / f"{regime}-svhn-seed0"
        )
        used = out / "main" / "vectors" / f"{regime}-svhn-seed0"
        assert (trial / "vector.safetensors").samefile(used / "vector.safetensors")
    before = contents(out)
    planned = told(capsys, [*line, "--plan"])
    assert planned["result"]["done"] == planned["result"]["trainings"] == 5 + 4
    assert contents(out) == before
    again = told(capsys, line)
    assert again["tables"][0] == report["tables"][0]
    cost = next(table for table in again["tables"] if table["title"].endswith("Cost"))
    assert all(row["reused"] == row["runs"] for row in cost["rows"])


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_an_interrupted_reproduction_goes_on_to_the_same_numbers(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carried_out(toy, "posthoc", tmp_path / "whole", capsys)
    loop = importlib.import_module("tauspan.train.loop")
    original, steps = loop.Run.one_step, []

    def interrupted(self: Any, *args: Any) -> float:
        steps.append(args)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(loop.Run, "one_step", interrupted)
    line = words(toy, "posthoc", tmp_path / "cut")
    assert main([*line, "-q"]) == 130
    assert not (tmp_path / "cut" / "report.json").exists()
    resumed = told(capsys, line)
    for first, second in zip(whole["tables"][:3], resumed["tables"][:3], strict=True):
        assert first["rows"] == second["rows"]
    assert len(steps) == 2 * 2 + 1  # two tasks of two steps, and the one that was cut


# -- beside published numbers --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_known_model_stands_beside_published_numbers(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "ViT-B-32", Preset(str(toy / "models" / "clip"), 0.0, 1, 4))
    line = words(toy, "single-task", tmp_path / "out")
    line[line.index("--model") + 1] = "ViT-B-32"
    table = told(capsys, line)["tables"][0]
    rows = {(row["regime"], row["quantity"]): row for row in table["rows"]}
    assert rows["linear", "svhn"]["published"] == pytest.approx(0.80)
    assert rows["linear", "svhn"]["certainty"] == "pub"
    assert rows["linear", "mean"]["published"] is None  # the mean of two tasks has no counterpart
    assert "not comparable: only the tasks mnist, svhn" in table["note"]


def test_ours_are_means_over_seeds_with_their_spread() -> None:
    columns = ("zero shot", "single", "added", "added norm.", "alpha 1", "alpha 1 norm.")
    seeds = {column: [0.5 + 0.1 * place, 0.7 + 0.1 * place] for place, column in enumerate(columns)}
    negated = [
        {"pre-trained": {"target": 0.5, "control": 0.6}, "negated": {"target": target, "control": 0.58}}
        for target in (0.1, 0.3)
    ]
    report = Report("r", [], result={
        "addition_by_seed": {"linear": {"a": seeds, "mean": seeds}},
        "negation": {"linear": {"a": negated, "b": negated}},
        "references": {"joint": {"mean": {"one model": 0.9}}},
    })  # fmt: skip
    found = {(one.measure, one.regime, one.quantity): one.value
             for one in ours(("addition", "negation", "single-task"), report)}  # fmt: skip
    assert found["addition", "linear", "added"] == "0.800 ± 0.141"
    assert found["addition", "pretrained", "zero shot"] == "0.600 ± 0.141"
    assert found["addition", "joint", "added"] == 0.9
    assert found["single-task", "linear", "a"] == "0.700 ± 0.141"
    assert found["negation", "linear", "target"] == "0.200 ± 0.141"
    assert found["negation", "pretrained", "control"] == "0.600 ± 0.000"


def test_a_remembered_number_is_marked_and_never_stands_as_ours() -> None:
    table = beside(
        [Ours("addition", "linear", "added", 0.123), Ours("negation", "posthoc", "target", 0.2)], "ViT-B-32"
    )
    paper, *others, posthoc = table.rows
    assert (paper["ours"], paper["published"], paper["certainty"]) == (0.123, 0.765, "recall")
    assert {row["certainty"] for row in others} == {"pub"}
    assert {row["ours"] for row in (paper, *others)} == {0.123}
    assert (posthoc["ours"], posthoc["published"], posthoc["source"]) == (0.2, None, None)
    assert "`recall` remembered" in table.note


def test_published_numbers_are_percentages_of_known_models_and_regimes() -> None:
    regimes = {"pretrained", "standard", "posthoc", "linear", "joint", "attention"}
    for source in sources():
        assert set(source.values) <= set(PRESETS)
        for model in source.values.values():
            assert set(model) <= regimes
            assert all(0 < value < 100 for numbers in model.values() for value in numbers.values())
    only_recalled = [source for source in sources() if source.certainty == "recall"]
    assert len(only_recalled) == 1
    assert only_recalled[0].paper


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(toy: Path, tmp_path: Path) -> Path:
    """A copy of the data to spoil."""
    return Path(shutil.copytree(toy / "data", tmp_path / "data"))


def refused(
    toy: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str]:
    line = words(toy, "posthoc", out, *more)
    line[line.index("--data") + 1] = str(data)
    return main([*line, "-q"]), capsys.readouterr().err


def test_a_planted_leak_is_refused_before_anything_is_trained(
    toy: Path, spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], short: None
) -> None:
    source = spoilt / "svhn" / "test" / "red square" / "1.png"
    pixels = Image.open(source)
    pixels.save(spoilt / "svhn" / "train" / "red square" / "7.bmp")  # other bytes, the same picture
    code, text = refused(toy, spoilt, tmp_path / "out", capsys)
    assert code == 6
    assert "task 'svhn'" in text
    assert "--allow-leaks" in text
    assert not list((tmp_path / "out").rglob("vector.safetensors"))
    assert refused(toy, spoilt, tmp_path / "out", capsys, "--allow-leaks")[0] == 0
    assert "| svhn |" in (tmp_path / "out" / "report.md").read_text()


def test_a_missing_split_and_a_class_list_of_another_length_are_refused(
    toy: Path, spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(spoilt / "mnist" / "test")
    code, text = refused(toy, spoilt, tmp_path / "out", capsys)
    assert code == 6
    assert "'mnist' has no test split" in text
    shutil.rmtree(spoilt / "mnist")
    toy_paper.data_set(spoilt, "mnist", classes=toy_paper.CLASSES[:2])
    code, text = refused(toy, spoilt, tmp_path / "out", capsys)
    assert code == 6
    assert "2" in text
    assert "3" in text


def test_a_missing_data_set_and_an_unknown_model_are_refused(
    toy: Path, spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(spoilt / "svhn")
    code, text = refused(toy, spoilt, tmp_path / "out", capsys)
    assert code == 2
    assert "may download 1.5 GB" in text
    code, text = refused(toy, spoilt, tmp_path / "out", capsys, "--yes")
    assert code == 6
    assert "svhn" in text


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("addtion", 2, "Did you mean 'addition'?"),
        ("addition --plan --seeds 0", 2, "--seeds 0"),
        ("addition --plan --rows -1", 2, "--rows -1"),
        ("addition --plan --tasks minst", 2, "Did you mean 'mnist'?"),
        ("disentanglement --plan --tasks mnist", 2, "a pair needs at least two tasks"),
        ("addition", 2, "Say --yes to go on"),
        ("addition --yes --model no/such/model", 3, "no/such/model"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    line: str, code: int, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["reproduce", *line.split(), "--out", str(tmp_path / "out"), "-q"]) == code
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("vector.safetensors"))


# -- lists and plans -----------------------------------------------------------------------------------------


def test_the_list_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in told(capsys, ["reproduce", "list"])["tables"][0]["rows"]}
    assert tuple(rows) == names()
    assert rows["addition"]["in the paper"] == "Table 1"
    assert rows["addition"]["trainings"] == 16
    assert rows["text7"]["trainings"] == 3 * (3 * 7 + 1) + 3 * 2 * 7


def test_a_plan_says_what_will_be_fetched_trained_and_paid(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = told(capsys, ["reproduce", "negation", "--plan", "--seeds", "3", "--out", str(tmp_path / "out")])
    fetch, train, cost = (table["rows"] for table in report["tables"])
    assert all(row["from trials"] == 0 for row in train)
    assert fetch[0] == {
        "what": "model ViT-B-32", "GB": 0.61, "from": PRESETS["ViT-B-32"].source, "state": "to be fetched"
    }  # fmt: skip
    assert [row["what"] for row in fetch[1:]] == [*recipes("negation")["main"].tasks, "imagenet"]
    assert [(row["fine-tuning"], row["number"], row["done"]) for row in train] == [
        ("standard", 24, 0), ("linear", 24, 0)
    ]  # fmt: skip
    assert train[0]["steps each"] == "1960 to 2150"
    assert train[0]["steps left"] == 3 * sum((2030, 2052, 2028, 2068, 2150, 1995, 1960, 2136))
    values = {row["what"]: row["value"] for row in cost}
    assert not any("step" in what or "left" in what for what in values)  # no time that was not measured
    assert "times are not known" in report["tables"][2]["note"]
    assert values["disk for vectors"] == "16.9 GB"  # 48 x 87,849,216 x 4 bytes
    assert not (tmp_path / "out").exists()


def test_a_run_times_a_step_before_it_starts(toy: Path, tmp_path: Path) -> None:
    changes = Changes(str(toy / "models" / "clip"), (0,), str(toy / "data"), 8, 2, toy_paper.TASKS)
    made = plan("single-task", "paper", changes, tmp_path / "out", measure=True)
    assert set(made.times) == {"standard", "linear"}
    assert all(taken.seconds > 0 and 1 <= taken.rows <= 128 for taken in made.times.values())
    cost = {row["what"]: row["value"] for row in made.report().tables[2].rows}
    assert cost["one standard step"].endswith(" s")
    assert cost["fine-tuning that is left"].endswith("seconds")
    assert made.parameters == 1568


def test_changes_reach_every_part_of_a_recipe() -> None:
    made = recipes("text7", "paper", Changes(rows=20, tasks=TEXTS, seeds=(5,), max_steps=3))
    for recipe in made.values():
        assert (recipe.rows.train, recipe.rows.validation, recipe.rows.test) == (20, 20, 20)
        assert (recipe.tasks, recipe.seeds, recipe.finetune.max_steps) == (TEXTS, (5,), 3)
        assert recipe.part(Maps).pairs == (TEXTS,)
        assert recipe.part(Maps).rows == 20
    assert made["pretrained"].part(Energies).rows == 20
    assert made["pretrained"].part(Negation).targets == TEXTS
    assert (
        recipes("disentanglement", changes=Changes(tasks=("cars", "svhn")))["main"].part(Maps).pairs == "all"
    )


def test_text7_agrees_with_the_recipe_beside_it() -> None:
    """The same tasks, rows and rates as the recipe `text7` that `tauspan run` takes."""
    shipped = yaml.safe_load(recipe_file("text7").read_text())
    ours = experiment("text7").recipe
    assert {key: ours[key] for key in ("tasks", "rows", "max_tokens", "finetune")} == {
        key: shipped[key] for key in ("tasks", "rows", "max_tokens", "finetune")
    }
    assert experiment("text7").seeds == len(shipped["seeds"])


def test_variants_are_laid_over_each_other() -> None:
    assert laid_over({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"d": 3}, "e": [1]}) == {
        "a": 1, "b": {"c": 1, "d": 3}, "e": [1]
    }  # fmt: skip
    assert variant(experiment("addition"), "corrected")[1]["references"] == ["joint", "attention"]
