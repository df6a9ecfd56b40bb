"""A whole recipe on a tiny encoder and two shipped tasks: what it writes, what it reuses, what it refuses."""

import dataclasses
import importlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import tauspan as ts
from helpers.program import contents
from helpers.small_runs import TASKS, reused
from tauspan import editing
from tauspan.core.errors import StoreError, UsageError
from tauspan.core.reading import Reading
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.run import Maps, Recipe, Rows, Training, plan, run
from tauspan.tasks.data.suite import find_task
from tauspan.vector import TaskVector

REGIMES = ("standard", "posthoc", "linear")
context = importlib.import_module("tauspan.experiments.run.context")


@pytest.fixture(scope="module")
def done(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(recipe, out)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of `done`, which is made before."""
    monkeypatch.setattr(figures, "draw", lambda *given: [])


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are trained into."""
    folders: list[str] = []
    original = context.finetune

    def spy(encoder: Any, task: Any, settings: Any, out: Path, **options: Any) -> Any:
        folders.append(Path(out).name)
        return original(encoder, task, settings, out=out, **options)

    monkeypatch.setattr(context, "finetune", spy)
    return folders


def test_a_run_writes_its_report_its_figures_and_its_vectors(done: tuple[Path, Report]) -> None:
    out, report = done
    assert json.loads((out / "report.json").read_text()) == json.loads(report.to_json())
    assert (out / "report.md").read_text() == report.to_markdown()
    pictures = {"addition.png", "alpha-addition.png", "alpha-negation-email_spam.png"}
    pictures |= {"xi-movie_sentiment-email_spam.png"}
    assert {file.name for file in out.glob("*.png")} == pictures
    for name in pictures:
        assert (out / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert (out / name).stat().st_size > 5000
    folders = {
        f"{regime}-{task}-seed{seed}"
        for regime in ("standard", "linear")
        for task in TASKS
        for seed in (0, 1)
    }
    assert {folder.name for folder in (out / "vectors").iterdir()} == folders
    for name in folders:
        assert TaskVector.from_pretrained(out / "vectors" / name).norm() > 0
    assert not list(out.rglob("*.part"))


def test_the_tables_hold_every_regime_and_task(done: tuple[Path, Report]) -> None:
    _, report = done
    addition, differences, negation, maps, cost = report.tables
    assert [(row["added in"], row["less added in"]) for row in differences.rows] == [
        ("posthoc", "standard"), ("linear", "standard"), ("linear", "posthoc"),
    ]  # fmt: skip
    assert all("], p " in str(row["difference"]) for row in differences.rows)
    assert [(row["regime"], row["task"]) for row in addition.rows] == [
        (regime, task) for regime in REGIMES for task in (*TASKS, "mean")
    ]
    assert all("±" in str(row["added"]) for row in addition.rows)
    assert [(row["regime"], row["model"]) for row in negation.rows] == [
        (regime, model) for regime in REGIMES for model in ("pre-trained", "negated", "alpha = 1")
    ]
    assert [(row["regime"], row["pair"]) for row in maps.rows] == [(r, " + ".join(TASKS)) for r in REGIMES]
    assert maps.note.startswith("seed 0; ")
    assert set(report.result["disentanglement"]) == set(REGIMES)
    assert {row["stage"] for row in cost.rows} == {"fine-tune", "add", "negate", "disentangle"}
    assert all(count == 0 for _, count in reused(report).values())
    assert report.provenance["recipe"]["model"] == report.provenance["base"]
    assert {regime: len(alphas) for regime, alphas in report.result["alpha"].items()} == dict.fromkeys(
        REGIMES, 2
    )


def test_posthoc_and_standard_share_their_vectors_and_start_from_the_same_model(
    done: tuple[Path, Report],
) -> None:
    _, report = done
    means = report.result["addition"]
    for task in (*TASKS, "mean"):
        assert len({means[regime][task]["zero shot"] for regime in REGIMES}) == 1
    assert ("posthoc", "fine-tune") not in reused(report)


def test_the_means_are_those_of_the_seeds(done: tuple[Path, Report]) -> None:
    out, report = done
    singles = [
        json.loads((out / "stages" / f"add-linear-seed{seed}.json").read_text())["content"] for seed in (0, 1)
    ]
    for index, task in enumerate((*TASKS, "mean")):
        both = [[*single["tasks"], single["mean"]][index]["added"] for single in singles]
        assert report.result["addition"]["linear"][task]["added"] == pytest.approx(sum(both) / 2)


def test_a_second_run_does_nothing_anew(
    recipe: Recipe, done: tuple[Path, Report], trainings: list[str]
) -> None:
    out, first = done
    before = {name: sha for name, sha in contents(out).items() if name.startswith(("vectors", "stages"))}
    again = run(recipe, out)
    assert trainings == []
    assert all(runs == count for runs, count in reused(again).values())
    assert [table.rows for table in again.tables[:-1]] == [table.rows for table in first.tables[:-1]]
    assert again.result == first.result
    assert {n: s for n, s in contents(out).items() if n.startswith(("vectors", "stages"))} == before


@pytest.mark.slow
def test_a_lost_stage_is_made_again_and_gives_the_same(
    recipe: Recipe, done: tuple[Path, Report], trainings: list[str]
) -> None:
    out, first = done
    (out / "stages" / "add-linear-seed1.json").unlink()
    again = run(recipe, out)
    assert trainings == []
    assert reused(again)["linear", "add"] == (2, 1)
    assert again.result == first.result


@pytest.mark.slow
def test_another_grid_searches_anew_with_the_same_vectors(
    recipe: Recipe, done: tuple[Path, Report], trainings: list[str]
) -> None:
    out, _ = done
    changed = dataclasses.replace(recipe, grid=(0.0, 1.0), regimes=("standard",), seeds=(0,))
    report = run(changed, out)
    assert trainings == []
    assert reused(report) == {
        ("standard", "fine-tune"): (2, 2), ("standard", "add"): (1, 0), ("standard", "negate"): (1, 0),
        ("standard", "disentangle"): (1, 1),
    }  # fmt: skip
    assert [point["alpha"] for point in report.series[0]["points"]] == [0.0, 1.0]
    assert report.result["seeds"].startswith("one seed (0)")
    assert isinstance(report.tables[0].rows[0]["added"], float)


def test_the_maps_are_those_of_the_first_seeds_vectors_on_some_of_the_rows(
    recipe: Recipe, done: tuple[Path, Report]
) -> None:
    out, report = done
    encoder = ts.load(recipe.model)
    tasks = [find_task(name).subset(train=8, validation=8, test=8).subset(test=4) for name in TASKS]
    for regime in REGIMES:
        fits = "linear" if regime == "linear" else "standard"
        vectors = {t: TaskVector.from_pretrained(out / "vectors" / f"{fits}-{t.name}-seed0") for t in tasks}
        alone: Any = ts.disentanglement(
            encoder,
            vectors,
            regime,
            grid=(0.0, 1.0),
            reading=Reading(max_tokens=8),
        ).report()
        assert alone.result["pairs"] == report.result["disentanglement"][regime]
        assert alone.series[0] in report.series


@pytest.mark.slow
def test_another_grid_of_the_maps_draws_them_anew(
    recipe: Recipe, done: tuple[Path, Report], trainings: list[str]
) -> None:
    out, _ = done
    changed = recipe.with_parts(Maps("all", (0.0, 0.5), ("linear",), 4))
    report = run(changed, out)
    assert trainings == []
    assert reused(report)["linear", "disentangle"] == (1, 0)
    assert ("standard", "disentangle") not in reused(report)
    assert [row["regime"] for row in report.tables[3].rows] == ["linear"]


@pytest.mark.parametrize("change", ["epochs", "rows", "other rows"])
def test_other_settings_or_data_never_replace_a_vector(
    recipe: Recipe, done: tuple[Path, Report], change: str
) -> None:
    out, _ = done
    changes: dict[str, Any] = {
        "epochs": {"finetune": Training(epochs=3, max_steps=1, batch_size=4)},
        "rows": {"rows": Rows(9, 8, 8)},
        "other rows": {"rows": Rows(8, 8, 8, seed=1)},
    }
    before = contents(out)
    with pytest.raises(StoreError, match="other settings, another base or other data"):
        run(
            dataclasses.replace(recipe, **changes[change]),
            out,
        )
    assert contents(out) == before


def test_a_run_starts_from_a_pre_trained_model(recipe: Recipe, tmp_path: Path) -> None:
    from helpers.program import vector_of
    from tauspan.editing.model.edit import apply, load, save

    model = Path(recipe.model)
    save(apply(load(model), vector_of(model), regime="posthoc"), tmp_path / "edited")
    with pytest.raises(UsageError, match="is an edited tangent model"):
        run(dataclasses.replace(recipe, model=str(tmp_path / "edited")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_plan_times_what_is_left(
    recipe: Recipe, done: tuple[Path, Report], tmp_path: Path, trainings: list[str]
) -> None:
    found = plan(recipe, tmp_path / "new", timed=True)
    rows = {row["fine-tuning"]: row for row in found.tables[1].rows}
    assert rows.keys() == {"standard", "linear"}
    for kind in rows:
        assert rows[kind]["left"] == len(TASKS) * len(recipe.seeds)
        assert rows[kind]["steps"] == rows[kind]["left"]  # one each
    assert found.result["seconds"] > 0
    assert plan(recipe, done[0], timed=True).result["seconds"] == 0
    assert trainings == []
    assert not (tmp_path / "new").exists()


def test_a_plan_counts_what_is_done_and_does_nothing(
    recipe: Recipe, done: tuple[Path, Report], tmp_path: Path, trainings: list[str]
) -> None:
    nothing, all_there = plan(recipe, tmp_path / "new"), plan(recipe, done[0])
    rows = {(row["regime"], row["stage"]): row["number"] for row in nothing.tables[0].rows}
    assert rows["standard", "fine-tune"] == rows["linear", "fine-tune"] == len(TASKS) * len(recipe.seeds)
    assert rows["posthoc", "add"] == len(recipe.seeds)
    assert nothing.result["done"] == 0
    assert all_there.result["done"] == all_there.result["stages"] == nothing.result["stages"]
    assert not (tmp_path / "new").exists()
    assert trainings == []
    other = plan(dataclasses.replace(recipe, finetune=Training(max_steps=2, batch_size=4)), done[0])
    assert all(row["done"] == 0 for row in other.tables[0].rows if row["stage"] == "fine-tune")


@pytest.mark.slow
def test_what_was_let_pass_is_in_the_report_of_every_later_run_too(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = editing.Editor.add

    def warning(*args: Any, **options: Any) -> Any:
        logging.getLogger("tauspan.tangent").warning("a layer was taken apart")
        return original(*args, **options)

    monkeypatch.setattr(editing.Editor, "add", warning)
    small = dataclasses.replace(recipe, regimes=("linear",), seeds=(0,), parts=())
    for _ in range(2):  # the second time nothing is done
        caplog.clear()
        assert run(small, tmp_path / "out").warnings == ("a layer was taken apart",)
        assert caplog.messages.count("a layer was taken apart") == 1
        assert json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]
        assert "- a layer was taken apart\n" in (tmp_path / "out" / "report.md").read_text()
