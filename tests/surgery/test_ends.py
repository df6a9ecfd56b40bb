"""How surgery ends: killed while it finishes and resumed, and refused before anything is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers import vocabularies as made
from tauspan.cli.main import main
from tauspan.core.errors import MismatchError, ModelError, NonFiniteError, StoreError, UsageError
from tauspan.models.extras import quiet
from tauspan.store import Checkpoint, read_json, write_json, write_tensors
from tauspan.surgery import Filling, Running, change_depth, graft, move, open_vocabulary
from tauspan.vector import TaskVector

TABLE, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
MEAN = Filling(how="mean")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two vectors, and a tokenizer."""
    folder = tmp_path_factory.mktemp("ends")
    made.with_vectors(folder)
    return folder


KILLED = """
import os, sys
from tauspan.surgery import Filling, change_depth, deepening, graft, grafting

what, model, tokenizer, out, *vectors = sys.argv[1:]
calls, moved = [], grafting.move_vector
def killed(*given):
    calls.append(given)
    if len(calls) == 2 or what != "vectors":
        os._exit(9)
    return moved(*given)
if what == "layers":
    deepening.Base = killed
    change_depth(model, "first:1", out, vectors=vectors)
setattr(grafting, {"ids": "renumber", "vectors": "move_vector"}[what], killed)
graft(model, tokenizer, out, Filling(how="mean"), vectors=vectors)
"""


@pytest.mark.parametrize("what", ["ids", "vectors", "layers"])
def test_a_run_that_is_killed_while_it_finishes_goes_on(what: str, place: Path, tmp_path: Path) -> None:
    vectors = [place / "one.safetensors", place / "two.safetensors"]
    given = [what, place / "bert", place / "new", tmp_path / "out", *vectors]
    assert subprocess.run([sys.executable, "-c", KILLED, *given], check=False).returncode == 9

    def run(out: Path, running: Running) -> None:
        if what == "layers":
            change_depth(place / "bert", "first:1", out, vectors=vectors, running=running)
        else:
            graft(place / "bert", place / "new", out, MEAN, vectors=vectors, running=running)

    run(tmp_path / "out", Running(resume=True))
    run(tmp_path / "whole", Running())
    files = {file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*")}
    assert {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")} == files
    for file in files:
        if file.suffix == ".safetensors":
            both = (Checkpoint(tmp_path / name / file).read() for name in ("out", "whole"))
            assert tiny.same_bits(*both)
    assert read_json(tmp_path / "out" / "config.json") == read_json(tmp_path / "whole" / "config.json")


def test_a_vector_is_given_once(place: Path, tmp_path: Path) -> None:
    twice = [place / "one.safetensors", place / "." / "one.safetensors"]
    with pytest.raises(UsageError, match="It is one vector: give it once"):
        graft(place / "bert", place / "new", tmp_path / "out", MEAN, vectors=twice)
    with pytest.raises(UsageError, match="It is one vector: give it once"):
        change_depth(place / "bert", "first:1", tmp_path / "out", vectors=twice)
    (tmp_path / "other").mkdir()
    TaskVector.from_pretrained(twice[0]).save_pretrained(tmp_path / "other" / "one.safetensors")
    with pytest.raises(UsageError, match="Rename one of the files"):
        graft(
            place / "bert", place / "new", tmp_path / "out", MEAN,
            vectors=[twice[0], tmp_path / "other" / "one.safetensors"],
        )  # fmt: skip
    assert [one.name for one in tmp_path.iterdir()] == ["other"]
    graft(place / "bert", place / "new", tmp_path / "out", MEAN, vectors=twice[:1])


def test_a_plan_looks_at_the_vectors(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TaskVector({TABLE: torch.ones(64, 8)}, "f" * 64, "standard").save_pretrained(tmp_path / "v.safetensors")
    vector = ["--plan", "--vector", str(tmp_path / "v.safetensors")]
    graft_plan = ["vocabulary", "graft", str(place / "bert"), str(place / "new"), "--how", "mean"]
    for verb in (graft_plan, ["layers", str(place / "bert"), "first:1"]):
        assert main([*verb, *vector]) != 0
        assert "base" in capsys.readouterr().err
        assert main([*verb, "--plan", "--vector", str(place / "one.safetensors")]) == 0


@pytest.mark.parametrize("rows", [60, 68])
def test_a_head_of_another_height_than_the_table_is_refused(rows: int, place: Path, tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    tensors = Checkpoint(place / "bert").read()
    for name in (BIAS, "cls.predictions.decoder.weight"):
        odd = torch.zeros(rows, *([] if name == BIAS else [8]))
        folder = tmp_path / name
        made_of = {**tensors, name: odd}
        with quiet(__import__("transformers")):
            BertForMaskedLM.from_pretrained(place / "bert").save_pretrained(folder)
        made.save(folder, made.word_pieces(60))
        write_tensors(folder / "model.safetensors", made_of, {"format": "pt"}, overwrite=True)
        with pytest.raises(
            MismatchError, match=rf"'{name}' of .* has {rows} rows and the table of tokens 64"
        ):
            graft(folder, place / "new", tmp_path / "out", MEAN)
    graft(place / "bert", place / "new", tmp_path / "out", MEAN)  # "give both as many rows"


def test_an_id_that_no_table_reaches_is_refused(place: Path, tmp_path: Path) -> None:
    made.save(tmp_path / "huge", made.word_pieces(60))
    file = tmp_path / "huge" / "tokenizer.json"
    content = read_json(file)
    content["model"]["vocab"]["zzz"] = 3_000_000_000
    write_json(file, content)
    with pytest.raises(ModelError, match=r"gives 'zzz' the id 3,000,000,000 among \d+ tokens"):
        open_vocabulary(tmp_path / "huge")
    content["model"]["vocab"]["zzz"] = len(content["model"]["vocab"]) - 1
    write_json(file, content)
    assert open_vocabulary(tmp_path / "huge").ids["zzz"] < 100  # "number the tokens without gaps"


def test_cw2v_says_where_no_text_has_a_new_token(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0 of \d+ new tokens are in the texts"):
        graft(place / "bert", place / "new", tmp_path / "out", Filling(how="cw2v"), texts=["a a a a", "a a"])
    graft(place / "bert", place / "new", tmp_path / "out", Filling(how="cw2v", epochs=1), texts=made.TEXTS)


def test_what_is_no_map_or_has_moved_already_does_not_move(place: Path, tmp_path: Path) -> None:
    done = graft(place / "bert", place / "new", tmp_path / "out", MEAN)
    with pytest.raises(StoreError, match=r"keeps no map of rows .* Graft first, `tauspan vocabulary graft"):
        move(place / "one.safetensors", place / "bert", place / "bert", tmp_path / "v.safetensors")
    moved = move(place / "one.safetensors", place / "bert", done.out, tmp_path / "v.safetensors")
    with pytest.raises(UsageError, match="there is nothing left to move"):
        move(moved, place / "bert", done.out, tmp_path / "w.safetensors")


def test_files_of_tokenizers_in_other_forms_are_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "my.json").write_bytes((place / "new" / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match=r"is called tokenizer.json"):
        open_vocabulary(tmp_path / "my.json")
    made.save(tmp_path / "listed", made.word_pieces(60))
    write_json(tmp_path / "listed" / "added_tokens.json", ["a"])
    with pytest.raises(ModelError, match=r"added_tokens.json holds a list, and ids by token are wanted"):
        open_vocabulary(tmp_path / "listed")
    (tmp_path / "listed" / "added_tokens.json").unlink()  # "or take the file away"
    assert open_vocabulary(tmp_path / "listed").ids


def test_infinity_in_a_table_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "bert", tmp_path / "bert")
    tensors = Checkpoint(place / "bert").read()
    tensors[TABLE][5, 1] = float("inf")
    write_tensors(tmp_path / "bert" / "model.safetensors", tensors, {"format": "pt"}, overwrite=True)
    with pytest.raises(NonFiniteError, match="row"):
        graft(tmp_path / "bert", place / "new", tmp_path / "out", MEAN)
    assert not (tmp_path / "out").exists()


def test_drawn_rows_are_called_drawn(place: Path, tmp_path: Path) -> None:
    done = graft(place / "bert", place / "new", tmp_path / "out", Filling(how="normal"))
    assert "% drawn." in done.verdict
    assert "the mean of all" not in done.verdict
