"""Tasks of pairs from tables, lists and data sets: what a row is, which splits it goes to, and what is told."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tauspan.cli.main import main
from tauspan.core.errors import DataError, UsageError
from tauspan.objectives import Contrastive, Preference, Similarity
from tauspan.objectives.passages import Group
from tauspan.tasks import Split, Task

SCORED = ("sentence1", "sentence2", "points")


def write(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def choices(count: int = 20) -> list[list[str]]:
    return [[f"question {n}: ", f"good {n}", f"bad {n}"] for n in range(count)]


def matches(count: int, start: int = 0) -> list[list[str]]:
    return [[f"a {n}", f"b {n}"] for n in range(start, start + count)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_preferences_are_read_from_tables(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"t.{suffix}", Preference.columns, choices())
    task = Task.from_files("t", file, objective="preference(beta=0.5)", shares=(0.6, 0.2, 0.2))
    assert [len(task.split(one)) for one in ("train", "validation", "test")] == [12, 4, 4]
    assert task.objective == Preference(0.5)
    for split in task.splits.values():
        for (chosen, rejected), length in zip(split.inputs, split.labels.tolist(), strict=True):
            assert chosen[:length] == rejected[:length]
            assert (chosen[length : length + 4], rejected[length : length + 3]) == ("good", "bad")
    again = Task.from_directory(task.to_directory(tmp_path / "made"))
    assert again.checksum() == task.checksum()
    assert again.objective == Preference(0.5)


def test_columns_of_other_names_are_named_and_prompts_may_lack(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", ("yes", "no"), [row[1:] for row in choices()])
    named = {"prompt": None, "chosen": "yes", "rejected": "no"}
    task = Task.from_files("t", file, objective="preference", columns=named)
    assert bool((task.split("train").labels == 0).all())
    assert isinstance(task.split("train").inputs[0], Group)
    for columns, said in (
        ({"chose": "yes"}, "did you mean 'chosen'|reads prompt"), ({"chosen": ""}, "no column for 'chosen'"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            Task.from_files("t", file, objective="preference", columns=columns)
    with pytest.raises(UsageError, match="--columns chosen=COLUMN"):
        Task.from_files("t", file, objective="preference", text="yes")
    with pytest.raises(UsageError, match="columns= is for pairs"):
        Task.from_files("t", file, columns={"chosen": "yes"})


def test_incomplete_rows_are_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "t.csv", Preference.columns, [*choices(), ["question: ", "good", ""]])
    with pytest.raises(DataError, match=r"row 20 \(line 22\) is a row without a text"):
        Task.from_files("t", file, objective="preference")
    task = Task.from_files("t", file, objective="preference", clean=True)
    assert "leaves out train: 1 without a text" in caplog.text
    assert sum(len(split) for split in task.splits.values()) == 20
    lacking = write(
        tmp_path / "s.csv", Similarity.columns, [["a", "b", ""], *[[f"a{n}", "b", n] for n in range(9)]]
    )
    with pytest.raises(DataError, match=r"row 0 .*without a label"):
        Task.from_files("t", lacking, objective="similarity(most=9)")


def test_similarities_are_numbers(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.csv",
        ("sentence1", "sentence2", "points"),
        [[*row, n / 4] for n, row in enumerate(matches(20))],
    )
    task = Task.from_files("t", file, objective="similarity(most=5)", columns={"score": "points"})
    for (first, _), score in zip(task.split("train").inputs, task.split("train").labels, strict=True):
        assert float(score) == int(first.split()[1]) / 4
    assert Task.from_directory(task.to_directory(tmp_path / "made")).checksum() == task.checksum()
    with pytest.raises(DataError, match=r"most=4\.75"):
        Task.from_files("t", file, objective="similarity", columns={"score": "points"})


def pairs_of(split: Split) -> list[list[tuple[str, str]]]:
    """The pairs of each group that count."""
    return [
        [(group[2 * k], group[2 * k + 1]) for k in range(count)]
        for group, count in zip(split.inputs, split.labels.tolist(), strict=True)
    ]


def test_pairs_are_put_into_groups_by_the_seed(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", Contrastive.columns[:2], matches(50))
    made = [Task.from_files("t", file, objective="contrastive(size=4)", seed=seed) for seed in (0, 0, 1)]
    assert made[0].checksum() == made[1].checksum() != made[2].checksum()
    everything = [pair for split in made[0].splits.values() for group in pairs_of(split) for pair in group]
    assert sorted(everything) == sorted(map(tuple, matches(50)))
    for split in made[0].splits.values():
        assert {len(group) for group in split.inputs} == {8}
        assert int(split.labels.max()) - int(split.labels.min()) <= 1
    again = Task.from_directory(made[0].to_directory(tmp_path / "made"))
    assert again.checksum() == made[0].checksum()


def test_equal_texts_are_never_in_one_group(tmp_path: Path) -> None:
    """Else a text would be the negative of itself."""
    rows = [["same", f"b {n}"] for n in range(3)] + matches(21)
    file = write(tmp_path / "t.csv", Contrastive.columns[:2], rows)
    task = Task.from_files("t", file, objective="contrastive(size=4)", shares=(0.5, 0.25, 0.25))
    for split in task.splits.values():
        for group in pairs_of(split):
            assert len({text for pair in group for text in pair}) == 2 * len(group)


def test_pairs_that_find_no_group_are_told(caplog: pytest.LogCaptureFixture) -> None:
    given: Any = (["same"] * 3, ["x", "y", "z"])
    other: Any = tuple(map(list, zip(*matches(4), strict=True)))
    with pytest.raises(DataError, match="make no group"):
        Task.from_tensors("t", [], objective="contrastive", train=given, validation=other, test=other)
    task = Task.from_tensors(
        "t", [], objective="contrastive(size=2)", validation=other, test=other,
        train=(["same"] * 3 + ["a"], ["x", "y", "z", "w"]),
    )  # fmt: skip
    assert "leaves out train: 2 that found no group" in caplog.text
    assert task.extra["left_out"]["train"] == {"that found no group of other texts": 2}


def test_groups_may_be_told(tmp_path: Path) -> None:
    rows = [[*row, n // 3] for n, row in enumerate(matches(30))]
    file = write(tmp_path / "t.csv", ("anchor", "positive", "page"), rows)
    task = Task.from_files("t", file, objective="contrastive(size=3)", columns={"group": "page"})
    for split in task.splits.values():
        for group in pairs_of(split):
            assert len({int(a.split()[1]) // 3 for a, _ in group}) == 1
            assert len(group) == 3
    with pytest.raises(DataError, match=r"3 pairs, and the objective's groups at most 2.*size=3"):
        Task.from_files("t", file, objective="contrastive(size=2)", columns={"group": "page"})


def test_lists_make_pairs() -> None:
    chosen: Any = (["q "] * 4, ["a"] * 4, ["b"] * 4)
    task = Task.from_tensors("t", [], objective="preference", train=chosen, validation=chosen, test=chosen)
    assert task.split("test").inputs[0] == ("q a", "q b")
    bare: Any = (None, ["a"] * 2, ["b"] * 2)
    assert Task.from_tensors("t", [], objective="preference", train=bare, validation=bare, test=bare).splits
    scored: Any = (torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0.0, 0.5, 1.0, -1.0]))
    task = Task.from_tensors("t", [], objective="similarity", train=scored, validation=scored, test=scored)
    assert task.split("test").labels.flatten().tolist() == [0.0, 0.5, 1.0, -1.0]
    faults: list[tuple[Any, str]] = [
        ("text", "not a str"), ((["a"],), "not 1 things"), ((None, ["a"], "b"), "rejected is a str"),
        ((None, ["a"], ["b", "c"]), "several lengths"),
    ]  # fmt: skip
    for wrong, said in faults:
        with pytest.raises(DataError, match=said):
            Task.from_tensors("t", [], objective="preference", train=wrong, validation=bare, test=bare)


def test_rows_that_are_no_groups_are_refused() -> None:
    rows = Split(["a", "b"], torch.tensor([0, 0]))
    with pytest.raises(DataError, match="row 0, is 1 inputs, and a row of preference is a group of 2"):
        Task("t", [], {"train": rows, "validation": rows, "test": rows}, objective=Preference())


def test_the_hub_has_pairs_too(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(
        dict(zip(Preference.columns, zip(*choices(), strict=True), strict=True))
    )
    datasets.DatasetDict({"train": table, "test": table.select(range(5))}).save_to_disk(str(tmp_path / "set"))
    task = Task.from_hub(str(tmp_path / "set"), objective="preference")
    assert len(task.split("test")) == 5
    assert task.split("test").inputs[0] == ("question 0: good 0", "question 0: bad 0")


def test_the_command_line_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(
        tmp_path / "t.csv",
        ("sentence1", "sentence2", "points"),
        [[*row, n / 4] for n, row in enumerate(matches(20))],
    )
    out = tmp_path / "made"
    base = ["data", "make", str(file), "-o", str(out), "--objective", "similarity(most=5)"]
    assert main([*base, "--columns", "score=points", "--shares", "0.6", "0.2", "0.2"]) == 0
    assert "Pairs with their similarity." in capsys.readouterr().out
    assert Task.from_directory(out).objective == Similarity(5)
    assert main([*base, "--columns", "points", "--overwrite"]) != 0
    assert "NAME=COLUMN" in capsys.readouterr().err
