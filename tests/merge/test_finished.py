"""`--resume` where nothing is left to do: it says so, and nothing else is taken for it."""

import time
from pathlib import Path

import pytest
import torch

from helpers import merging
from tauspan.cli.main import main
from tauspan.core.errors import StoreError
from tauspan.merge import merge_files
from tauspan.merge.stream.stream import work_folder
from tauspan.store import Checkpoint, write_json, write_tensors

KINDS = ("model", "vector", "file", "adapter")


def command(tmp_path: Path, kind: str) -> tuple[list[str], Path]:
    names = {"h.0.q.weight": (4, 4), "h.1.q.weight": (4, 4)}
    for number, name in enumerate(("base", "a", "b")):
        draw = torch.Generator().manual_seed(number)
        tensors = {key: torch.randn(shape, generator=draw) for key, shape in names.items()}
        if kind in ("model", "adapter"):
            write_tensors(tmp_path / name / "model.safetensors", tensors, {"format": "pt"})
            write_json(tmp_path / name / "config.json", {"model_type": "x"})
        else:
            write_tensors(tmp_path / f"{name}.safetensors", tensors)
    end = "" if kind in ("model", "adapter") else ".safetensors"
    base, *models = (str(tmp_path / f"{name}{end}") for name in ("base", "a", "b"))
    out = tmp_path / f"out{'' if kind in ('model', 'adapter') else '.safetensors'}"
    more = {"vector": ["--output", "vector"], "adapter": ["--output", "adapter", "--rank", "2"]}.get(kind, [])
    return ["merge", "--method", "task_arithmetic", "--base", base, *models, "-o", str(out), *more], out


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_merge_says_so(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, out = command(tmp_path, kind)
    assert main(words) == 0
    before = merging.sha(out)
    folder = work_folder(out)  # what a process killed just after the end leaves
    folder.mkdir()
    (folder / "journal.jsonl").write_text('{"format": "tauspan-merge-journal/1"}\n')
    capsys.readouterr()
    assert main(words) == 5  # without --resume it is there already
    assert "already there" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert capsys.readouterr().out == f"{out} is finished already: nothing was left to do\n"
    assert merging.sha(out) == before
    assert not folder.exists()


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", ["model", "vector", "file"])
@pytest.mark.parametrize(
    "change", [["--set", "scale=0.5"], ["--seed", "3"], ["--weight", "1", "--weight", "2"]]
)
def test_another_merges_result_is_not_taken_for_it(kind: str, change: list[str], tmp_path: Path) -> None:
    words, _ = command(tmp_path, kind)
    assert main([*words, "-q"]) == 0
    assert main([*words, "-q", "--resume", *change]) == 5


def test_an_input_that_changed_or_a_file_that_is_gone_is_no_finished_merge(tmp_path: Path) -> None:
    words, out = command(tmp_path, "model")
    assert main([*words, "-q"]) == 0
    (out / "config.json").rename(tmp_path / "config.json")
    assert main([*words, "-q", "--resume"]) == 5
    (tmp_path / "config.json").rename(out / "config.json")
    assert main([*words, "-q", "--resume"]) == 0
    changed = Checkpoint(tmp_path / "a").read()  # other values under the same header
    time.sleep(0.01)
    write_tensors(
        tmp_path / "a" / "model.safetensors", {n: t + 1 for n, t in changed.items()}, {"format": "pt"}
    )
    recipe = {
        "method": "task_arithmetic",
        "base_model": tmp_path / "base",
        "models": [tmp_path / "a", tmp_path / "b"],
    }
    with pytest.raises(StoreError, match="not as the result of this merge"):
        merge_files(recipe, out, resume=True)


def test_a_folder_that_no_merge_wrote_is_left_alone(tmp_path: Path) -> None:
    words, out = command(tmp_path, "model")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main([*words, "-q", "--resume"]) == 5
    assert (out / "mine.txt").read_text() == "mine"


def test_several_merges_go_on_where_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = command(tmp_path, "model")
    text = (
        "method: linear\nname: half\nmodels: [{0}/a, {0}/b]\n---\nmethod: linear\nmodels: [half, {0}/base]\n"
    )
    (tmp_path / "r.yaml").write_text(text.format(tmp_path))
    assert main(["merge", str(tmp_path / "r.yaml"), str(out), "-q"]) == 0
    for file in sorted(out.iterdir()):
        file.unlink()
    out.rmdir()
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "r.yaml"), str(out), "--resume"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/out.parts/half is finished already" in said
    assert f"wrote {out}" in said
    assert main(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "new"), "--plan"]) == 0
    assert "planned when the merges that it reads are there" in capsys.readouterr().out
