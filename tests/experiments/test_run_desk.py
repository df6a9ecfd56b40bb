"""A run ends with a desk where its recipe asks for one, and a finished run's folder is enough for another."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.desk_page import Page
from helpers.small_runs import recipe as recipe
from tauspan.cli.main import main
from tauspan.core.errors import RecipeError, StoreError
from tauspan.core.report import Report
from tauspan.experiments import figures
from tauspan.experiments.run import Desk, Recipe, plan, run
from tauspan.experiments.run.finished import finished_run

LEAST = "model: minilm\ntasks: [email_spam, movie_sentiment]\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("true", Desk(True)),
        ("false", Desk()),
        ("{}", Desk(True)),
        ("{range: [-1, 1], rows: 50}", Desk(True, range=(-1.0, 1.0), rows=50)),
        ("{regime: linear, examples: false, exact: true}", Desk(True, "linear", examples=False, exact=True)),
    ],
)
def test_a_section_is_true_or_a_mapping(text: str, wanted: Desk) -> None:
    found = Recipe.parse(f"{LEAST}desk: {text}\n")
    assert found.part(Desk) == wanted
    assert wanted.asked == (text != "false")
    assert Recipe.parse(found.to_yaml()) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("desk: {range: [0.5, 1]}", "the first at most 0"),
        ("desk: {range: [0]}", "two numbers"),
        ("desk: {rows: 0}", "desk.rows: 0"),
        ("desk: {write: true}", "unknown key 'desk.write'"),
        ("desk: {rowz: 3}", "Did you mean 'rows'?"),
        ("desk: 3", "desk"),
        ("desk: {regime: linear}\nregimes: [standard]", "desk.regime: 'linear' is not among"),
        ("desk: true\nregimes: []\nenergy: {}", "desk needs vectors"),
    ],
)
def test_a_section_that_cannot_be_right_is_refused(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe.parse(f"{LEAST}{text}\n")


def test_fewer_rows_are_fewer_on_the_page() -> None:
    assert Desk(True).fewer(5).rows == 5
    assert Desk(True, rows=3).fewer(5).rows == 3


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *given: [])
        yield


@pytest.fixture(scope="module")
def done(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, Report]:
    out = tmp_path_factory.mktemp("run")
    one = dataclasses.replace(recipe.with_parts(), seeds=(0,))
    asked = Recipe.parse(one.to_yaml() + "desk: {range: [-1, 1]}\n")
    return out, asked, run(asked, out)


def test_the_run_writes_its_page(done: tuple[Path, Recipe, Report]) -> None:
    out, asked, report = done
    page = Page.of((out / "desk.html").read_text("utf-8"))
    assert page.data["title"] == asked.title
    assert page.data["regime"] == "linear"
    assert {choice["name"] for choice in page.data["choices"]} >= {"zero", "alpha = 1", "shared alpha"}
    assert page.texts["email_spam"]["test"]
    files = [vector["file"] for vector in page.data["vectors"]]
    assert all(Path(file).is_file() for file in files)
    table = next(table for table in report.tables if table.title.endswith("The desk"))
    assert table.note.startswith("desk.html, ")
    assert report.result["desk"] == {
        "file": "desk.html",
        "bytes": (out / "desk.html").stat().st_size,
        "regime": "linear",
    }
    added = json.loads((out / "stages" / "add-linear-seed0.json").read_text())["content"]
    assert page.task("email_spam")["splits"]["test"]["zeroShot"]["value"] in [
        row["zero_shot"] for row in added["tasks"]
    ]


def test_the_page_is_a_stage_that_is_not_done_again_while_it_is_there(
    done: tuple[Path, Recipe, Report],
) -> None:
    out, asked, _ = done
    before = (out / "desk.html").stat().st_mtime_ns
    assert plan(asked, out).result["done"] == plan(asked, out).result["stages"]
    run(asked, out)
    assert (out / "desk.html").stat().st_mtime_ns == before
    text = (out / "desk.html").read_bytes()
    (out / "desk.html").unlink()
    run(asked, out)
    assert (out / "desk.html").read_bytes() == text


def test_the_verb_makes_a_page_of_a_finished_run(
    done: tuple[Path, Recipe, Report], tmp_path: Path, capsys: Any
) -> None:
    out, _, _ = done
    place = tmp_path / "other.html"
    assert (
        main(["desk", str(out), "-o", str(place), "--regime", "posthoc", "--rows", "3", "--json", "--quiet"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["result"]["bytes"] == place.stat().st_size
    page = Page.of(place.read_text("utf-8"))
    assert page.data["regime"] == "posthoc"
    assert page.task("email_spam")["splits"]["test"]["rows"] == 3
    assert main(["desk", str(out)]) == 5  # desk.html is there
    assert "already there" in capsys.readouterr().err
    assert main(["desk", str(out), "--control", "email_spam", "-o", str(tmp_path / "x")]) == 2
    assert "of a run are those of its recipe" in capsys.readouterr().err
    assert main(["desk", str(out), "--seed", "7", "-o", str(tmp_path / "x")]) == 5
    assert "no finished vector" in capsys.readouterr().err
    assert main(["desk", str(tmp_path)]) == 2
    assert "is no finished run" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not the folder of a finished run"):
        finished_run(tmp_path)
    (tmp_path / "stages").mkdir()
    (tmp_path / "report.json").write_text('{"provenance": {}}')
    with pytest.raises(StoreError, match="holds no recipe"):
        finished_run(tmp_path)
