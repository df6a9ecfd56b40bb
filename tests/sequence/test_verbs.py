"""The verbs `label` and `sequence`: what they print and write is what the library gives."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

import tauspan as ts
from helpers.tiny import bert, save_bert, write_csv
from tauspan.cli.main import main, parser
from tauspan.cli.sequence import METHODS, PROTOCOLS
from tauspan.kernel import DRAWS, design, pool_kernel
from tauspan.sequence import PROTOCOLS as LEARNT
from tauspan.sequence import Options, continual
from tauspan.tasks import build_head


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, a file of rows, and two tasks, in one folder."""
    folder = tmp_path_factory.mktemp("sequence")
    save_bert(folder / "model", bert())
    texts = [f"{a} {b} {c}" for a in ("good", "bad") for b in ("film", "code", "dog") for c in ("a", "film")]
    write_csv(folder / "rows.csv", [{"text": text} for text in texts])
    for name, word in (("mood", "good"), ("dogs", "dog")):
        labels = torch.tensor([int(word in text) for text in texts])
        rows = dict.fromkeys(("train", "validation", "test"), (texts, labels))
        ts.Task.from_tensors(name, ["no", "yes"], **rows).to_directory(folder / name)
    return folder


def test_the_parser_knows_every_method_and_protocol() -> None:
    assert tuple(DRAWS) == METHODS
    assert tuple(LEARNT) == PROTOCOLS
    shown = parser().parse_args(["sequence", "m", "a", "b"])
    assert (shown.protocols, shown.kept, shown.growth) == (list(PROTOCOLS[1:]), 32, "gradient")


def test_label_writes_rows_weights_and_certificate(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "chosen.csv"
    words = [
        "label",
        str(home / "model"),
        str(home / "rows.csv"),
        "4",
        "--method",
        "repeated-dpp",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    told = capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"Wrote {out}: {len(rows)} rows" in told
    texts = [line for line in (home / "rows.csv").read_text().splitlines()[1:] if line]
    kernel = pool_kernel(ts.load(str(home / "model")), texts)
    found = design(kernel, 4, "repeated-dpp")
    assert [int(row["row"]) for row in rows] == list(found.chosen)
    assert [float(row["weight"]) for row in rows] == pytest.approx(list(found.weights), rel=1e-4)
    assert [row["text"] for row in rows] == [texts[place] for place in found.chosen]
    assert [row["name"] for row in rows] == [f"row {place + 1}" for place in found.chosen]
    assert main(words) == 5  # it is there
    assert "is already there" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["rows"] == list(found.chosen)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["99"], 2, "labels=99 of a pool of 12 rows: choose 1 to 12."),
        (["4", "--out", "x.txt"], 2, "x.txt: rows are written as .csv or .json. Name it x.csv."),
        (["4", "--text", "words"], 6, "words"),
        (["4", "--rows", "0"], 2, "--rows 0: a pool has at least 1 row."),
    ],
)
def test_label_refuses_before_anything_is_written(
    home: Path, words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(home.iterdir())
    assert main(["label", str(home / "model"), str(home / "rows.csv"), *words]) == code
    assert told in capsys.readouterr().err
    assert sorted(home.iterdir()) == before


@pytest.mark.slow
def test_a_pool_may_be_a_task_whose_labels_are_not_read(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(home / "model"), str(home / "mood"), "3", "--rows", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert found["labels"] <= 3
    assert max(found["rows"]) < 9
    encoder, task = ts.load(str(home / "model")), ts.Task.from_directory(home / "mood")
    inputs = list(task.split("train").inputs)
    read, alone = pool_kernel(encoder, task).dense(), pool_kernel(encoder, inputs).dense()
    assert torch.allclose(read, alone)  # its head is made of labelled rows, so features are read


def test_lines_keep_their_numbers_whatever_the_encoding(home: Path, tmp_path: Path) -> None:
    pool, out = tmp_path / "pool.txt", tmp_path / "chosen.csv"
    pool.write_bytes("a caf\u00e9\n\ngood film\nbad dog\n".encode("cp1252"))
    words = ["label", str(home / "model"), str(pool), "3", "--method", "uniform", "--functions", "2"]
    assert main([*words, "--encoding", "cp1252", "--out", str(out)]) == 0
    with out.open(newline="") as file:
        named = {row["name"]: row["text"] for row in csv.DictReader(file)}
    assert named == {"line 1": "a caf\u00e9", "line 3": "good film", "line 4": "bad dog"}


def test_a_class_without_a_row_is_nothing_to_keep(home: Path) -> None:
    task = ts.Task.from_directory(home / "mood")
    labels = task.split("train").labels
    one = [place for place in range(len(labels)) if int(labels[place]) == 0]
    encoder, options = ts.load(str(home / "model")), Options(ridge=1.0)
    splits = {**task.splits, "train": task.split("train").take(one)}
    fewer = dataclasses.replace(task, name="fewer", splits=splits, head=build_head(task, encoder))
    found = continual(encoder, [task, fewer], ["stored", "pseudo"], options, seed=None)
    assert all(0 <= run.average <= 1 for run in found.runs.values())


def test_an_empty_pool_is_refused(home: Path) -> None:
    with pytest.raises(ts.DataError, match="the pool holds no row"):
        pool_kernel(ts.load(str(home / "model")), [])


@pytest.mark.slow
def test_sequence_reports_protocols_and_writes_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sequence", str(home / "model"), str(home / "mood"), str(home / "dogs"), "--params", "last:1"]
    words += ["--protocols", "sum", "joint", "--ridge", "1", "--out", str(home / "report")]
    assert main(words) == 0
    assert "ends best: average accuracy" in " ".join(capsys.readouterr().out.split())
    kept = json.loads((home / "report" / "report.json").read_text())
    assert list(kept["result"]["runs"]) == ["sum", "joint"]
    assert main(["sequence", str(home / "model"), str(home / "mood"), "--protocols", "sum"]) == 2
    assert "one after another takes two or more" in capsys.readouterr().err
