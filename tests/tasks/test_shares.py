"""One table as three splits: in the shares asked for, alike in each class, equal texts together."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauspan.cli.main import main
from tauspan.core.errors import DataError, UsageError
from tauspan.tasks import SPLITS, Split, Task
from tauspan.tasks.data import find_leaks, seen_elsewhere
from tauspan.tasks.data.suite import find_task
from tauspan.tasks.shares import shared_out

SHARES = (0.7, 0.1, 0.2)


def rows(labels: list[int], same: int = 1) -> Split:
    return Split([f"text {n // same} of {label}" for n, label in enumerate(labels)], torch.tensor(labels))


def divided(split: Split, seed: int = 0, shares: tuple[float, ...] = SHARES) -> dict[str, Split]:
    names = [f"class {label}" for label in range(int(split.labels.max()) + 1)]
    return shared_out(split, shares, seed, names, "t")[0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(12, 60), min_size=1, max_size=5),
    st.integers(0, 5),
    st.sampled_from([SHARES, (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)]),
)
def test_every_class_and_the_whole_have_the_shares(
    counts: list[int], seed: int, shares: tuple[float, ...]
) -> None:
    whole = rows([label for label, count in enumerate(counts) for _ in range(count)])
    found = divided(whole, seed, shares)
    assert Counter(text for split in found.values() for text in split.inputs) == Counter(whole.inputs)
    for share, split in zip(shares, SPLITS, strict=True):
        assert abs(len(found[split]) - share * len(whole)) <= 1.5
        own = Counter(found[split].labels.tolist())
        for label, count in enumerate(counts):
            assert (
                abs(own[label] - share * count) <= 2.5
            )  # and never by chance: whole numbers and the first to train
            assert own[label] >= (split == "train")


def test_equal_texts_go_together_and_nothing_is_lost() -> None:
    texts = [f"Text {n % 40}{'!' * (n // 40)}" for n in range(120)]  # each three times, by other signs
    whole = Split(texts, torch.tensor([n % 40 % 2 for n in range(120)]))
    found, about = shared_out(whole, SHARES, 0, ["a", "b"], "t")
    assert sum(map(len, found.values())) == 120
    assert about["together"] == 80
    assert not find_leaks(Task("t", ["a", "b"], found))


def test_the_seed_decides_and_nothing_else_does() -> None:
    whole = rows([0, 1] * 40)
    assert [one.inputs for one in divided(whole).values()] == [one.inputs for one in divided(whole).values()]
    assert divided(whole)["test"].inputs != divided(whole, seed=1)["test"].inputs


def test_a_class_with_few_rows_is_in_train_and_the_others_are_told_to_lack_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = divided(rows([0] * 40 + [1] * 40 + [2]))
    assert found["train"].labels.tolist().count(2) == 1
    assert "validation has no row of class 2" in caplog.text


def test_too_few_rows_and_shares_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing is left for validation"):
        divided(rows([0, 0, 1, 1]))
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    for shares in ((0.7, 0.2), (0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (7, 1, 2)):
        with pytest.raises(UsageError, match=r"shares=.*add up to 1"):
            Task.from_files("t", tmp_path / "a.csv", shares=shares)
    with pytest.raises(UsageError, match=r"another argument says which rows are tested"):
        Task.from_files("t", tmp_path / "a.csv", tmp_path / "a.csv", shares=SHARES)


# -- the verb ------------------------------------------------------------------------------------------------

ROWS = [{"body": f"text {n}", "kind": "yes" if n % 3 else "no"} for n in range(60)]
ROWS += [{"body": "TEXT 7!", "kind": "yes"}, {"body": "", "kind": "no"}, {"body": "lost", "kind": ""}]


def write(folder: Path, kind: str) -> Path:
    file = folder / f"a.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "parquet":
        parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    else:
        mark = "\t" if kind == "tsv" else ","
        file.write_text(f"body{mark}kind\n" + "".join(f"{row['body']}{mark}{row['kind']}\n" for row in ROWS))
    return file


@pytest.mark.filterwarnings("default:task 'toy' leaves out:UserWarning")
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_task_is_made_of_one_file_of_any_form(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "make", str(write(tmp_path, kind)), "-o", str(tmp_path / "toy"), "--text", "body",
               "--label", "kind", "--shares", "0.7", "0.1", "0.2"]  # fmt: skip
    assert main(command) == 6
    assert "pass clean=True (--clean)" in capsys.readouterr().err
    assert main([*command, "--clean", "--json"]) == 0
    shown = capsys.readouterr()
    splits, leaks, dropped = json.loads(shown.out)["tables"]
    assert [row["rows"] for row in splits["rows"]] == [43, 6, 12]
    assert "1 rows repeat an earlier one" in splits["note"]
    assert all(row["equal"] == 0 for row in leaks["rows"])
    assert {(row["why"], row["rows"]) for row in dropped["rows"]} == {
        ("without a text", 1),
        ("without a label", 1),
    }
    assert "leaves out" in shown.err
    task = find_task(str(tmp_path / "toy"))
    assert [len(task.split(split)) for split in SPLITS] == [43, 6, 12]
    assert task.extra["test"] == "0.2 of the rows, alike in each class, equal ones together"


def test_rows_in_two_splits_are_told_with_the_option_that_prevents_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "same,x\nother,y\n" * 20)
    command = ["data", "make", str(tmp_path / "a.csv"), "-o", str(tmp_path / "toy")]
    assert main(command) == 0
    assert "--shares" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--shares", "2", "1", "1"]) == 2


# -- several columns of labels -------------------------------------------------------------------------------


def table(path: Path, count: int = 120) -> Path:
    lines = ["text,team,mood,urgency"]
    for n in range(count):
        mood, urgency = ["good", "bad"][n // 3 % 2], ["low", "mid", "high"][n // 5 % 3]
        team = (
            "" if n == 7 else ["billing", "login", "shipping"][n % 3]
        )  # one row that one of the tasks lacks
        lines.append(f"message number {n},{team},{mood},{urgency}")
    path.write_text("\n".join([*lines, "Message number 1!,login,good,low"]) + "\n")
    return path


@pytest.mark.filterwarnings("ignore:.*leaves out train. 1 without a label")
def test_tasks_of_one_file_have_one_division_of_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "all.csv")
    labels = ["team", "mood", "urgency"]
    line = ["data", "make", str(file), "--label", *labels, "--shares", "0.6", "0.2", "0.2", "--clean", "-o"]
    assert main([*line, str(tmp_path / "out")]) == 0
    tasks = [find_task(str(tmp_path / "out" / label)) for label in labels]
    assert [task.name for task in tasks] == labels
    assert seen_elsewhere(tasks) == []
    places = [{text: split for split in SPLITS for text in task.split(split).inputs} for task in tasks]
    for text, split in places[1].items():
        assert places[2][text] == split
        assert places[0].get(text, split) == split
    assert places[1]["message number 1"] == places[1]["Message number 1!"]
    for task in tasks:
        assert [round(len(task.split(split)) / 121, 1) for split in SPLITS] == [0.6, 0.2, 0.2]
    capsys.readouterr()
    assert main(["data", "check", *(str(tmp_path / "out" / label) for label in labels)]) == 0
    assert "training rows of" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*leaves out train. 1 without a label")
def test_tasks_divided_one_by_one_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, places = table(tmp_path / "all.csv"), []
    for seed, label in enumerate(["team", "mood"]):
        places.append(str(tmp_path / label))
        shares = ["--shares", "0.6", "0.2", "0.2", "--clean", "--seed", str(seed)]
        assert main(["data", "make", str(file), "--label", label, *shares, "-o", places[-1]]) == 0
    capsys.readouterr()
    assert main(["data", "check", *places]) == 0
    told = capsys.readouterr().err
    assert "test rows of 'team' are training rows of 'mood'" in told
    assert "--label team mood --shares 0.7 0.1 0.2" in told


def test_several_labels_need_shares_and_names_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(table(tmp_path / "all.csv"))
    for more in ([], ["--shares", "0.6", "0.2", "0.2", "--name", "one"]):
        assert main(["data", "make", file, "--label", "team", "mood", *more, "-o", str(tmp_path / "o")]) == 2
        assert "give --shares, such as 0.7 0.1 0.2" in capsys.readouterr().err
    with pytest.raises(UsageError, match="give shares too"):
        Task.from_files("t", file, label="mood", like=[Task.from_files("u", file, label="urgency")])
    assert not (tmp_path / "o").exists()
