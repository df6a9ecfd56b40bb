"""Models with another vocabulary: files, bits, resuming, cards, vectors and adapters that move, and the program."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.graft import made_model, made_tokenizer

import tauspan as ts
from helpers import tiny
from helpers import vocabularies as made
from helpers.memory import on_linux, peak_mb
from tauspan.cli.main import main
from tauspan.core.errors import BaseMismatchError, MismatchError, ModelError, StoreError, UsageError
from tauspan.core.report import Report
from tauspan.editing.model.edit_files import Base
from tauspan.merge import AdapterSource, doctor, merge, reproduce, save_adapter
from tauspan.merge.lora.lowrank import LowRank, Term
from tauspan.models.extras import quiet
from tauspan.store import Checkpoint, read_json, write_json, write_tensors
from tauspan.surgery import (
    Filling,
    RowMap,
    Running,
    graft,
    move,
    move_adapter,
    move_low,
    move_vector,
    open_vocabulary,
    planned_graft,
)  # fmt: skip
from tauspan.surgery.checks import renumbered
from tauspan.surgery.grafting import ROWS
from tauspan.vector import TaskVector

TABLE, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
MEAN = Filling(how="mean")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of two kinds, two tokenizers, and a vector and its sums of the first model."""
    import transformers

    folder = tmp_path_factory.mktemp("graft")
    made.with_vectors(folder)
    with quiet(transformers):
        made.gpt(folder / "tied", made.byte_level(300))
        made.gpt(folder / "untied", made.byte_level(300), tied=False)
    made.save(
        folder / "bytes",
        made.byte_level(320, [*made.TEXTS, "caf\u00e9 na\u00efve \u65e5\u672c \u65e5\u672c"]),
    )
    return folder


def vector(place: Path, name: str = "one") -> TaskVector:
    return TaskVector.from_pretrained(place / f"{name}.safetensors")


def test_tables_and_biases_are_p_times_the_old_ones_and_all_else_is_as_it_was(
    place: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, BertForMaskedLM

    done = graft(place / "bert", place / "new", tmp_path / "out", embed=made.letters, texts=made.TEXTS)
    old, new = Checkpoint(place / "bert").read(), Checkpoint(tmp_path / "out").read()
    rows = RowMap.load(tmp_path / "out" / ROWS)
    assert torch.equal(new[TABLE], rows.apply(old[TABLE]))
    assert torch.equal(new[BIAS], rows.apply(old[BIAS]))
    others = old.keys() - {TABLE, BIAS}
    assert tiny.same_bits({name: new[name] for name in others}, {name: old[name] for name in others})
    assert done.kept is not None
    size = len(open_vocabulary(place / "new").pieces)
    assert (done.kept.rows, done.kept.inside, done.kept.tables) == (size, True, (TABLE, BIAS))
    assert done.kept.copied + done.kept.doubled + done.kept.mixed + done.kept.mean == size
    assert done.kept.excess is not None
    assert done.kept.excess <= done.kept.tolerance
    assert (done.kept.after or 9) < (done.kept.before or 0)
    assert done.verdict.startswith("Every new row is a mean of old ones")
    assert done.report().verdict == done.verdict
    model = BertForMaskedLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer) == size
    assert model(**tokenizer("the good film", return_tensors="pt")).logits.isfinite().all()


def test_the_same_tokenizer_changes_no_bit(place: Path, tmp_path: Path) -> None:
    done = graft(place / "bert", place / "bert", tmp_path / "out")
    assert tiny.same_bits(Checkpoint(tmp_path / "out").read(), Checkpoint(place / "bert").read())
    assert done.kept is not None
    assert done.kept.mixed == 0
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == 64  # padding stays
    moved = move(place / "one.safetensors", place / "bert", tmp_path / "out", tmp_path / "v.safetensors")
    assert tiny.same_bits(TaskVector.from_pretrained(moved).deltas, vector(place).deltas)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_heads_that_are_tied_or_not_give_convex_logits(name: str, place: Path, tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    graft(place / name, place / "bytes", tmp_path / "out", MEAN)
    old, new = (GPT2LMHeadModel.from_pretrained(folder).eval() for folder in (place / name, tmp_path / "out"))
    rows = RowMap.load(tmp_path / "out" / ROWS)
    assert ("lm_head.weight" in Checkpoint(tmp_path / "out")) == (name == "untied")
    hidden = torch.randn(7, 8)
    before, after = old.lm_head(hidden), new.lm_head(hidden)
    torch.testing.assert_close(after, rows.apply(before.T.contiguous()).T)
    assert bool((after.amax(1) <= before.amax(1) + 1e-5).all())
    content = read_json(place / "bytes" / "tokenizer.json")["added_tokens"]
    eos = next(one["id"] for one in content if one["content"] == "<eos>")
    assert new.config.eos_token_id == new.generation_config.eos_token_id == eos


def test_drawn_rows_say_that_they_leave_the_hull(place: Path, tmp_path: Path) -> None:
    runs = [graft(place / "bert", place / "new", tmp_path / name, Filling(how="normal", seed=seed, spread=1.0))
            for name, seed in (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    tables = [Checkpoint(run.out)[TABLE] for run in runs]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert runs[0].verdict.startswith("The drawn rows are outside the hull")
    rows = RowMap.load(tmp_path / "a" / ROWS)
    kept = rows.copies >= 0
    assert torch.equal(tables[0][kept], tables[2][kept])


def test_bytes_that_are_no_text_are_made_of_bytes_or_the_mean(place: Path, tmp_path: Path) -> None:
    done = graft(place / "bert", place / "bytes", tmp_path / "out", MEAN)
    assert done.kept is not None
    assert done.kept.unread > 100
    assert read_json(tmp_path / "out" / "config.json")["pad_token_id"] is None
    assert any("pad_token_id" in note for note in done.warnings)
    again = graft(place / "tied", place / "bytes", tmp_path / "again", MEAN)  # has every byte itself
    assert again.kept is not None
    assert again.kept.unread == 0


# -- resuming, plans and cards ---------------------------------------------------------------------------------------


KILLED = """
import os, sys
from tauspan.merge.stream import stream
from tauspan.surgery import Filling, Running, graft

stream.FLUSH, add = 0.0, stream.Journal.add

def killed(journal, finished):
    add(journal, finished)
    os._exit(9)

stream.Journal.add = killed
model, tokenizer, out = sys.argv[1:]
graft(model, tokenizer, out, Filling(how="mean"), running=Running(workers=1))
"""


def test_a_killed_graft_goes_on_to_the_same_bytes(place: Path, tmp_path: Path) -> None:
    whole = graft(place / "bert", place / "new", tmp_path / "whole", MEAN)
    arguments = [place / "bert", place / "new", tmp_path / "out"]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode == 9
    assert not (tmp_path / "out").exists()
    with pytest.raises(StoreError, match="unfinished merge"):
        graft(place / "bert", place / "new", tmp_path / "out", MEAN)
    with pytest.raises(StoreError, match="of another plan"):
        graft(place / "bert", place / "bytes", tmp_path / "out", MEAN, running=Running(resume=True))
    done = graft(place / "bert", place / "new", tmp_path / "out", MEAN, running=Running(resume=True))
    assert (done.merge.resumed or 0) > 0
    assert done.merge.digest == whole.merge.digest
    assert tiny.same_bits(Checkpoint(tmp_path / "out").read(), Checkpoint(tmp_path / "whole").read())
    again = graft(place / "bert", place / "new", tmp_path / "out", MEAN, running=Running(resume=True))
    assert again.merge.finished
    with pytest.raises(StoreError, match="finished before, without"):
        graft(
            place / "bert", place / "new", tmp_path / "out", MEAN, vectors=[place / "one.safetensors"],
            running=Running(resume=True),
        )  # fmt: skip
    with pytest.raises(StoreError, match="already there"):
        graft(place / "bert", place / "new", tmp_path / "out", MEAN)
    graft(
        place / "bert", place / "new", tmp_path / "out", MEAN, vectors=[place / "one.safetensors"],
        running=Running(overwrite=True),
    )  # fmt: skip


def test_a_plan_writes_nothing_and_a_card_says_how_it_was_made(place: Path, tmp_path: Path) -> None:
    with planned_graft(place / "bert", place / "new", MEAN) as planned:
        report = planned.report()
    assert report.verdict.startswith("Every new row")
    assert report.result["rows"] > 60
    assert not list(tmp_path.iterdir())
    graft(place / "bert", place / "new", tmp_path / "out", MEAN)
    text = (tmp_path / "out" / "README.md").read_text()
    assert '"how": "mean"' in text
    assert "tauspan vocabulary graft" in text
    with pytest.raises(UsageError, match="was made by `tauspan vocabulary graft`"):
        reproduce(tmp_path / "out")
    merged = ts.merge_files(
        {"method": "linear", "models": [tmp_path / "out", tmp_path / "out"]}, tmp_path / "sum"
    )
    assert merged.loss == 0.0  # a graft is an ordinary model


# -- vectors and adapters ----------------------------------------------------------------------------------------------


def test_vectors_move_and_moving_commutes_with_adding_scaling_and_merging(
    place: Path, tmp_path: Path
) -> None:
    done = graft(
        place / "bert",
        place / "new",
        tmp_path / "out",
        MEAN,
        vectors=[place / "one.safetensors", place / "two.safetensors"],
    )
    rows = RowMap.load(tmp_path / "out" / ROWS)
    one, two = (TaskVector.from_pretrained(file) for file in done.vectors)
    assert one.base == Base(str(tmp_path / "out")).fingerprint == two.base
    old = [vector(place, name) for name in ("one", "two")]
    torch.testing.assert_close(one.deltas[TABLE], rows.apply(old[0].deltas[TABLE]))

    def moved(tau: TaskVector) -> TaskVector:
        return move_vector(tau, rows, one.base)

    for first, second in (
        (moved(old[0] + old[1]), one + two), (moved(0.5 * old[0] - old[1]), 0.5 * one - two),
        (moved(merge(old, "task_arithmetic", {"weight": 0.3})), merge([one, two], "task_arithmetic", {"weight": 0.3})),
    ):  # fmt: skip
        for name, delta in first.deltas.items():
            torch.testing.assert_close(delta, second.deltas[name], rtol=1e-5, atol=1e-6)
    # P (E + tau) = P E + P tau: the vector on the grafted model is the graft of the edited one
    edited = ts.apply(ts.load(str(tmp_path / "out")), one)
    whole = old[0].apply(Checkpoint(place / "bert").read())[TABLE]
    torch.testing.assert_close(
        dict(edited.backbone.named_parameters())["embeddings.word_embeddings.weight"].detach(),
        rows.apply(whole),
    )


def test_a_vector_moves_alone_and_one_of_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    graft(place / "bert", place / "new", tmp_path / "out", MEAN)
    other = vector(place).rebased("f" * 64)
    other.save_pretrained(tmp_path / "other.safetensors")
    with pytest.raises(BaseMismatchError, match=r"re-label the vector: `vector.rebased\(model\)`"):
        graft(
            place / "bert", place / "new", tmp_path / "never", MEAN, vectors=[tmp_path / "other.safetensors"]
        )
    assert not (tmp_path / "never").exists()
    with pytest.raises(BaseMismatchError):
        move(tmp_path / "other.safetensors", place / "bert", tmp_path / "out", tmp_path / "no.safetensors")
    repaired = other.rebased(Base(str(place / "bert")).fingerprint)
    repaired.save_pretrained(tmp_path / "mine.safetensors")
    file = move(
        tmp_path / "mine.safetensors", place / "bert", tmp_path / "out", tmp_path / "moved.safetensors"
    )
    assert TaskVector.from_pretrained(file).info["rows"] == RowMap.load(tmp_path / "out" / ROWS).digest
    (tmp_path / "b").mkdir()
    shutil.copy(place / "one.safetensors", tmp_path / "b")
    with pytest.raises(UsageError, match="would both be"):
        graft(
            place / "bert", place / "new", tmp_path / "never", MEAN,
            vectors=[place / "one.safetensors", tmp_path / "b" / "one.safetensors"],
        )  # fmt: skip


def test_a_small_space_of_a_table_is_made_whole(place: Path, tmp_path: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    encoder = ts.restrict(ts.load(str(place / "bert")), {name: torch.arange(512).view(64, 8) % 9 == 0})
    deltas = {f"{name}_delta": torch.ones(57)}
    small = TaskVector(deltas, Base(str(place / "bert")).fingerprint, "linear", "small", space=encoder.space)
    rows = RowMap.of([{0: 1.0}], 64)
    with pytest.raises(MismatchError, match="Make it whole: `tauspan vector dense"):
        move_vector(small, rows, "new")
    whole = small.dense(ts.load(str(place / "bert")))  # what the command does
    assert move_vector(whole, rows, "new").deltas[TABLE].shape == (1, 8)
    small.save_pretrained(tmp_path / "small.safetensors")
    done = graft(
        place / "bert", place / "new", tmp_path / "out", MEAN, vectors=[tmp_path / "small.safetensors"]
    )
    assert TaskVector.from_pretrained(done.vectors[0]).space is None


def _adapter(folder: Path, trained_on: str | None) -> Path:
    """An adapter of the table of `bert`."""
    low = LowRank({TABLE: (Term(torch.ones(1, 64), torch.ones(8, 1), 1.0, "embedding"),)})
    save_adapter(low, folder)
    content = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**content, "base_model_name_or_path": trained_on})
    return folder


def test_what_moves_must_start_from_the_model_that_was_grafted(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with quiet(__import__("transformers")):
        made.bert(
            tmp_path / "twin", made.word_pieces(60), padding=4, head=True
        )  # the same tokenizer and shapes
    tensors = Checkpoint(tmp_path / "twin").read()
    file = tmp_path / "twin" / "model.safetensors"
    write_tensors(file, {name: 2 * one for name, one in tensors.items()}, {"format": "pt"}, overwrite=True)
    mine, twin = (
        graft(model, place / "new", tmp_path / out, MEAN).out
        for model, out in ((place / "bert", "mine"), (tmp_path / "twin", "other"))
    )
    assert RowMap.load(mine / ROWS).base == Base(str(place / "bert")).fingerprint
    adapter = _adapter(tmp_path / "adapter", str(place / "bert"))
    for change in (place / "one.safetensors", adapter):
        with pytest.raises(
            BaseMismatchError, match=r"other was grafted from base .* the map is of other rows"
        ):
            move(change, place / "bert", twin, tmp_path / "no")
        with pytest.raises(ModelError):
            move(change, tmp_path / "nowhere", mine, tmp_path / "no")
    with pytest.raises(BaseMismatchError, match=r"was trained on .*bert, base .* and .*twin is"):
        move(adapter, tmp_path / "twin", twin, tmp_path / "no")
    with pytest.raises(BaseMismatchError, match="the map is of the rows of base"):
        move_vector(vector(place).rebased("f" * 64), RowMap.load(mine / ROWS), "new")
    assert not (tmp_path / "no").exists()
    assert not caplog.messages
    move(adapter, place / "bert", mine, tmp_path / "moved")  # "name the model that it was grafted from"
    assert not caplog.messages
    move(_adapter(tmp_path / "named", "org/other"), place / "bert", mine, tmp_path / "named-moved")
    assert "was trained on 'org/other', and the base is" in caplog.messages[-1]
    move(_adapter(tmp_path / "nameless", None), place / "bert", mine, tmp_path / "nameless-moved")
    assert "names no base: it is unverified" in caplog.messages[-1]
    (tmp_path / "emptied").mkdir()
    move(
        _adapter(tmp_path / "gone", str(tmp_path / "emptied")), place / "bert", mine, tmp_path / "gone-moved"
    )
    assert "which cannot be read any more" in caplog.messages[-1]
    replace(RowMap.load(mine / ROWS), base="").save(
        mine / ROWS, overwrite=True
    )  # as earlier versions wrote it
    move(place / "one.safetensors", place / "bert", mine, tmp_path / "old.safetensors")
    assert "it is unverified that it was" in caplog.messages[-1]


@pytest.mark.parametrize("layout", ["embedding", "linear"])
def test_factors_of_a_table_move_and_keep_their_rank(layout: Any, tmp_path: Path) -> None:
    rows = RowMap.of([{1: 1.0}, {0: 0.25, 2: 0.75}], 3)
    sides = (
        (torch.randn(2, 3), torch.randn(4, 2))
        if layout == "embedding"
        else (torch.randn(2, 4), torch.randn(3, 2))
    )
    name = "embed_tokens.weight" if layout == "embedding" else "lm_head.weight"
    low = LowRank(
        {name: (Term(*sides, 0.5, layout),), "q.weight": (Term(torch.ones(1, 3), torch.ones(3, 1), 1.0),)}
    )
    moved = move_low(low, rows)
    assert moved.rank(name) == 2
    torch.testing.assert_close(moved.dense(name), rows.apply(low.dense(name)))
    assert moved.terms["q.weight"] == low.terms["q.weight"]
    folder = save_adapter(low, tmp_path / "adapter")
    out = move_adapter(folder, rows, tmp_path / "moved", base="new")
    torch.testing.assert_close(AdapterSource(out).low.dense(name), moved.dense(name))
    assert read_json(out / "adapter_config.json")["base_model_name_or_path"] == "new"


# -- bad inputs ----------------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_grafted_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a displacement, and surgery is done on models"):
        graft(place / "one.safetensors", place / "new", tmp_path / "out", MEAN)
    write_tensors(tmp_path / "bare.safetensors", {"w": torch.ones(2)})
    with pytest.raises(ModelError, match="no input table with a known name"):
        graft(tmp_path / "bare.safetensors", place / "new", tmp_path / "out", MEAN)
    with pytest.raises(UsageError, match="a model is written as a directory"):
        graft(place / "bert", place / "new", tmp_path / "out.safetensors", MEAN)
    with pytest.raises(UsageError, match="lie in one another"):
        graft(place / "bert", place / "new", place / "bert" / "out", MEAN)
    with pytest.raises(StoreError):
        move(place / "one.safetensors", place / "bert", place / "bert", tmp_path / "v.safetensors")


def test_a_head_of_another_height_than_the_table(place: Path, tmp_path: Path) -> None:
    """Padded otherwise than the table: read as far as tokens go; with too few rows refused."""
    shutil.copytree(place / "untied", tmp_path / "model")
    tensors = Checkpoint(tmp_path / "model").read()
    head = tensors["lm_head.weight"]
    write_tensors(
        tmp_path / "model" / "model.safetensors",
        {**tensors, "lm_head.weight": torch.cat([head, head[:5]])},
        {"format": "pt"},
    )
    with planned_graft(tmp_path / "model", place / "bytes", MEAN) as planned:
        assert planned.view.tensors["lm_head.weight"].shape[0] == planned.view.rows.rows
    write_tensors(
        tmp_path / "model" / "model.safetensors", {**tensors, "lm_head.weight": head[:-9]}, {"format": "pt"}
    )
    with pytest.raises(MismatchError, match=r"'lm_head.weight' of .* has 291 rows, and the map reads 300"):
        graft(tmp_path / "model", place / "bytes", tmp_path / "out", MEAN)


def test_doctor_proposes_a_graft_and_says_what_is_lost(place: Path, tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    found = doctor([place / "bert", place / "bert"])
    assert not any("vocabulary graft" in one.message for one in found.problems)
    made.bert(tmp_path / "other", made.word_pieces(62), head=True)
    (problem, *_) = [
        one
        for one in doctor([place / "bert", tmp_path / "other"]).problems
        if "vocabulary graft" in one.message
    ]
    command = problem.message.partition("`tauspan vocabulary graft ")[2].partition("`")[0]
    assert "are lost" in problem.message
    model, tokenizer, _, out = command.split()
    graft(model, tokenizer, tmp_path / out, MEAN)  # the repair
    assert not any(one.kind == "tokenizer" for one in doctor([place / "bert", tmp_path / out]).problems)
    assert BertForMaskedLM.from_pretrained(tmp_path / out).config.vocab_size == 60


# -- the program -----------------------------------------------------------------------------------------------


def test_the_program_grafts_moves_and_plans(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(made.TEXTS))
    words = ["vocabulary", "graft", str(place / "bert"), str(place / "new"), "--text", "texts.txt"]
    assert main([*words, "--how", "cw2v", "--epochs", "1", "--plan", "--json"]) == 0
    planned = Report.from_json(capsys.readouterr().out)
    assert planned.verdict.startswith("Every new row")
    assert planned.result["after"] < planned.result["before"]
    assert main([*words, "--how", "mean"]) == 2
    assert "an output is needed" in capsys.readouterr().err
    assert main([*words, "--how", "hybrid", "-o", "out"]) == 2
    assert "--embed minilm" in capsys.readouterr().err
    vectors = ["--vector", str(place / "one.safetensors")]
    assert main([*words, "--how", "mean", "-o", "out", "--pad-to-multiple-of", "8", *vectors]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Every new row")
    assert "wrote out/vectors/one.safetensors" in told
    assert Checkpoint("out")[TABLE].shape[0] == 88
    assert main([*words, "--how", "mean", "-o", "out", "--pad-to-multiple-of", "8", "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    line = [
        "vocabulary",
        "move",
        str(place / "two.safetensors"),
        str(place / "bert"),
        "out",
        "-o",
        "two.safetensors",
    ]
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"moved": "two.safetensors"}
    Path("texts.txt").write_text("\n\n")
    assert main([*words, "--how", "mean", "-o", "no"]) == 6
    assert "every line is empty" in capsys.readouterr().err
    assert main([*words[:-1], "nowhere.txt", "-o", "no"]) == 6
    assert main([*words[:4], "--how", "mean", "--workers", "0", "-o", "no"]) == 2
    assert replace(MEAN, how="copy").how == "copy"


def test_every_number_of_a_token_moves() -> None:
    new, lost = {1: 11, 2: 12, 3: 3}, list[str]()
    said = {
        "eos_token_id": [1, 2], "suppress_tokens": [1, 9], "begin_suppress_tokens": [2],
        "bad_words_ids": [[1, 2], [3, 9]],
        "force_words_ids": [[[1], [9]], [2]], "forced_decoder_ids": [[1, 2], [2, 9], [3, None]],
        "sequence_bias": [[[1, 3], -0.5], [[9], 1.0]], "pad_token_id": None, "max_length": 2, "num_beams": 1,
    }  # fmt: skip
    assert renumbered(said, new, lost) == {
        "eos_token_id": [11, 12], "suppress_tokens": [11], "begin_suppress_tokens": [12],
        "bad_words_ids": [[11, 12]],
        "force_words_ids": [[[11]], [12]], "forced_decoder_ids": [[1, 12], [3, None]], "sequence_bias": [[[11, 3], -0.5]],
        "pad_token_id": None, "max_length": 2, "num_beams": 1,
    }  # fmt: skip
    assert lost == [
        "suppress_tokens",
        "bad_words_ids",
        "force_words_ids",
        "forced_decoder_ids",
        "sequence_bias",
    ]


@pytest.mark.slow
@on_linux
def test_memory_grows_with_the_tokens_and_not_with_their_vectors(tmp_path: Path) -> None:
    peaks, rows = [], 20_000
    new = made_tokenizer(tmp_path / "new", rows, rows // 2 + 1)
    for width in (256, 2048):
        model = made_model(tmp_path / f"model{width}", rows, width)
        work = "graft(sys.argv[1], sys.argv[2], sys.argv[3], Filling(how='mean'))"
        prepared = "from tauspan.surgery import Filling, graft"
        peaks.append(peak_mb(prepared, work, model, new, tmp_path / f"out{width}"))
    assert peaks[1] < peaks[0] + 70, peaks  # MB; the wider table has 143 MB more
