"""Models behind a URL, through fsspec's own file systems: in memory, and local files under `file://`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.zoo import normal
from tauspan import store
from tauspan.core.errors import StoreError
from tauspan.merge import merge_files, parse_recipe
from tauspan.merge.sources.opening import halves, open_source
from tauspan.store import remote

NAMES = ("base", "one", "two")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three models of one shape, each with a configuration."""
    found = {}
    for seed, name in enumerate(NAMES):
        found[name] = tmp_path / "models" / name
        found[name].mkdir(parents=True)
        tensors = {
            "a.weight": normal(40, 30, seed=0) + 0.1 * normal(40, 30, seed=seed),
            "b.weight": normal(7, seed=8) + 0.1 * normal(7, seed=seed + 9),
        }
        store.write_tensors(found[name] / "model.safetensors", tensors)
        (found[name] / "config.json").write_text('{"model_type": "made-up"}')
    return found


@pytest.fixture
def memory(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """The same models in fsspec's memory, of which nothing counts as small but texts; by name their URLs."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote, "_SMALL", 100)
    system = fsspec.filesystem("memory")
    for name, folder in folders.items():
        system.put(str(folder), f"/bucket/{name}", recursive=True)
    yield {name: f"memory://bucket/{name}" for name in folders}
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_values_are_read_by_ranges(
    memory: dict[str, str], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(memory["one"])
    assert source.label == "one"
    asked = []
    system = fsspec.filesystem("memory")
    whole = system.cat_file
    monkeypatch.setattr(
        type(system), "cat_file", lambda _, path, **kwargs: asked.append(kwargs) or whole(path, **kwargs)
    )
    expected = load_file(folders["one"] / "model.safetensors")
    torch.testing.assert_close(source.read("a.weight", 10, 50), expected["a.weight"].flatten()[10:50])
    assert [one["end"] - one["start"] for one in asked] == [320]


def test_a_plus_in_a_url_is_no_adapter(
    memory: dict[str, str], folders: dict[str, Path], tmp_path: Path
) -> None:
    fsspec.filesystem("memory").put(str(folders["two"]), "/bucket/c++/two", recursive=True)
    assert open_source("memory://bucket/c++/two").label == "two"
    assert halves("memory://bucket/c++/two") == ("memory://bucket/c++/two", None)
    assert halves(f"{memory['one']}+{memory['two']}") == (memory["one"], memory["two"])
    assert halves(f"{memory['one']}+{tmp_path}") == (memory["one"], str(tmp_path))
    assert halves("org/model+org/adapter") == ("org/model", "org/adapter")
    recipe = parse_recipe(
        "method: task_arithmetic\nbase_model: memory://bucket/base\nmodels: [{model: memory://bucket/c++/two}]\n"
    )
    merge_files(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_copy_of_headers_is_no_model_for_others(memory: dict[str, str]) -> None:
    folder = store.fetched(memory["one"], False)
    assert (folder / "config.json").is_file()
    assert (folder / "model.safetensors").stat().st_size < 400
    with pytest.raises(Exception, match="incomplete metadata"):
        load_file(folder / "model.safetensors")
    assert list(store.Checkpoint(folder)) == ["a.weight", "b.weight"]


@pytest.mark.parametrize("access", store.ACCESS)
def test_a_merge_of_remote_models_is_that_of_local_ones(
    memory: dict[str, str], folders: dict[str, Path], tmp_path: Path, access: store.Access
) -> None:
    def merged(places: Mapping[str, Any], out: Path) -> dict[str, Tensor]:
        models = ", ".join(f"{{model: {places[name]}}}" for name in ("one", "two"))
        text = f"method: ties\nbase_model: {places['base']}\nmodels: [{models}]\n"
        merge_files(parse_recipe(text), out, access=access)
        return load_file(out / "model.safetensors")

    near, far = merged(folders, tmp_path / "near"), merged(memory, tmp_path / "far")
    assert near.keys() == far.keys()
    assert all(torch.equal(near[name], far[name]) for name in near)
    assert not list((tmp_path / "far").glob(".*"))
    assert (tmp_path / "far" / "config.json").is_file()
    assert memory["one"] in (tmp_path / "far" / "README.md").read_text()


def test_the_program_takes_urls(folders: dict[str, Path], tmp_path: Path) -> None:
    code = "from tauspan.store import remote; remote._SMALL = 100; from tauspan.cli.main import main; main()"
    urls = [f"file://{folders[name]}" for name in NAMES]
    out = tmp_path / "out"
    words = ["merge", "--method", "task_arithmetic", "--base", urls[0], *urls[1:], "-o", str(out), "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    base, one, two = (load_file(folders[name] / "model.safetensors") for name in NAMES)
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, base[name] + (one[name] - base[name]) + (two[name] - base[name]))


def test_loading_downloads_the_whole_and_again_only_what_changed(memory: dict[str, str]) -> None:
    first = store.fetched(memory["one"], True)
    assert set(load_file(first / "model.safetensors")) == {"a.weight", "b.weight"}
    assert store.fetched(memory["one"], True) == first
    fsspec.filesystem("memory").pipe_file("/bucket/one/config.json", b'{"model_type": "another"}')
    again = store.fetched(memory["one"], True)
    assert again != first
    assert json.loads((again / "config.json").read_text())["model_type"] == "another"


def test_one_file_is_a_model_too(memory: dict[str, str]) -> None:
    source = open_source(f"{memory['one']}/model.safetensors")
    assert sorted(source.tensors) == ["a.weight", "b.weight"]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(memory: dict[str, str]) -> None:
    source = open_source(memory["one"])
    system = fsspec.filesystem("memory")
    whole = system.cat_file("/bucket/one/model.safetensors")
    system.pipe_file("/bucket/one/model.safetensors", whole[:-3000])
    with pytest.raises(StoreError, match="it was replaced or cut short while it was read"):
        source.read("a.weight", 0, 1200)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/nothing", "holds no files, or does not exist"),
        ("nosuchkind://bucket/model", "nosuchkind://bucket/model cannot be opened: Protocol not known"),
    ],
)
@pytest.mark.usefixtures("memory")
def test_what_is_not_there_is_said(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_source(url)


def test_names_that_lead_out_of_the_folder_are_refused(
    memory: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fsspec.filesystem("memory")
    found = {"/bucket/one/../../x.json": {"name": "/bucket/one/../../x.json", "size": 1, "type": "file"}}
    monkeypatch.setattr(type(system), "find", lambda *_, **__: found)
    with pytest.raises(StoreError, match="lies outside of it"):
        open_source(memory["one"])


def test_a_damaged_header_is_an_error_as_of_a_local_file(memory: dict[str, str]) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/one/model.safetensors", b"\xff" * 500)
    with pytest.raises(StoreError, match="not a whole safetensors file"):
        open_source(memory["one"])
