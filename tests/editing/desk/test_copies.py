"""What a page offers to copy does what it says: the program, the recipe and the command line give the same mix."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import tauspan as ts
from helpers.desk_page import Page
from helpers.program import World, make
from tauspan.cli.main import main
from tauspan.editing.desk.copies import copies
from tauspan.vector import TaskVector


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("a world"))  # with a space in its path


def written(copy: Mapping[str, Any], values: list[float], split: str = "chosen on validation") -> str:
    """A template as the page fills it."""
    items = copy["join"].join(
        re.sub(
            r"\{(name|value)\}",
            lambda place, at=at: {"name": at[0], "value": f"{at[1]:g}"}[place[1]],
            copy["item"],
        )
        for at in zip(copy["names"], values, strict=True)
    )
    return re.sub(
        r"\{(items|split)\}", lambda place: {"items": items, "split": split}[place[1]], copy["text"]
    )


@pytest.fixture(scope="module")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> Page:
    place = tmp_path_factory.mktemp("page") / "desk.html"
    words = ["desk", world["model"], f"{world['one']}={world['linear']}", f"{world['two']}={world['linear']}"]
    assert main([*words, "-o", str(place), "--quiet", "--range", "-1", "1", "--max-tokens", "8"]) == 0
    return Page.of(place.read_text("utf-8"))


def test_the_verb_writes_what_the_function_makes(page: Page, world: World) -> None:
    assert [vector["file"] for vector in page.data["vectors"]] == [world["linear"]] * 2
    assert page.data["regime"] == "linear"
    assert page.texts["one"]["test"][0] == "a b c"
    assert page.data["front"]["target"] == "one"
    model, tasks = ts.load(world["model"]), ts.suite([world["one"], world["two"]])
    tau = TaskVector.from_pretrained(world["linear"])
    reading = ts.Reading(max_tokens=8)
    made = ts.desk(
        model, dict.fromkeys(tasks, tau), range=(-1, 1), reading=reading,  # type: ignore[arg-type]
        files={"one": world["linear"], "two": world["linear"]},
    )  # fmt: skip
    assert Page.of(made.html).data == page.data


def test_all_copies_give_the_same_mix(
    page: Page, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy, values = page.data["copy"], [0.5, -0.25]
    wanted = 0.25 * TaskVector.from_pretrained(world["linear"])
    for line in written(copy["command"], values).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "tauspan"
            assert main([*words[1:], "--quiet"]) == 0
    mixed = TaskVector.from_pretrained("mix.safetensors")
    (tmp_path / "mix.yaml").write_text(written(copy["recipe"], values))
    assert main(["merge", "mix.yaml", "again.safetensors", "--quiet"]) == 0
    names: dict[str, Any] = {}
    exec(written(copy["python"], values), names)
    for name, delta in wanted.deltas.items():
        for other in (mixed, TaskVector.from_pretrained("again.safetensors"), names["mix"]):
            assert (other.deltas[name] - delta).abs().max() < 1e-7
    assert ts.load("edited").task_vector().norm() == pytest.approx(wanted.norm(), rel=1e-5)  # type: ignore[union-attr]
    assert written(copy["command"], values).startswith("# coefficients chosen on validation\n")


def test_names_of_files_stay_names(tmp_path: Path) -> None:
    hostile = ["a b; rm -rf x", "$(x)", '"\\\n: {', "-o", "\u202e\U0001f600", "'; import os"]
    files = {str(place): name for place, name in enumerate(hostile)}
    made = copies("m'; x", list(files), files, "standard", "logits")
    values = [0.5] * len(hostile)
    line = written(made["command"], values).split("\n", 1)[1]
    words = shlex.split(line.rsplit("\ntauspan apply", 1)[0])
    paths = [f"./{name}" if name.startswith("-") else name for name in hostile]
    assert words[-len(hostile) :] == paths
    recipe = yaml.safe_load(written(made["recipe"], values))
    assert [model["model"] for model in recipe["models"]] == paths
    compile(written(made["python"], values), "copied", "exec")
