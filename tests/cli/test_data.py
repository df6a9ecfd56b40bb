"""`tauspan data`: lists, checks, manifests, and their exit codes."""

import json
import re

import datasets
import pytest

from helpers.imagesets import encoded, picture, rows, write_card, write_folder
from tauspan.cli.main import main
from tauspan.store import read_json
from tauspan.tasks.data import catalog
from tauspan.tasks.data.suite import find_task

NAMES = catalog()["stl10"].classes


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with a toy stl10."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        write_folder(tmp_path / "stl10" / split, rows(split, 10, 2), NAMES)
    return tmp_path


def plant(root, label=0, data=None):
    folder = root / "stl10" / "test" / NAMES[label]
    (folder / "9999.png").write_bytes(
        data or next(iter((root / "stl10" / "train" / NAMES[label]).iterdir())).read_bytes()
    )


def test_the_catalog_is_listed(capsys):
    assert main(["data", "list", "--json"]) == 0
    sets, sizes = json.loads(capsys.readouterr().out)["tables"]
    assert [row["name"] for row in sets["rows"]] == list(catalog())
    assert {"name": "dtd", "train": 3384, "validation": 376, "test": 1880} in sizes["rows"]
    assert "imagenet: test = official validation split" in sizes["note"]
    assert main(["data", "list"]) == 0
    assert "tanganke/stanford_cars" in capsys.readouterr().out


def test_clean_splits_pass(root, capsys):
    assert main(["data", "check", "stl10", "--root", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    splits, leaks = found["tables"]
    assert found["result"] == {"leaks": False}
    assert [(row["split"], row["rows"], row["benchmark"], row["made"]) for row in splits["rows"]] == [
        ("train", 18, 4500, "own"), ("validation", 2, 500, "held out of train"), ("test", 20, 8000, "own"),
    ]  # fmt: skip
    assert all(row["equal"] == row["near"] == 0 for row in leaks["rows"])
    assert "within 4 of 64 bits" in leaks["note"]


def test_a_planted_row_ends_with_exit_code_6_and_can_be_allowed(root, capsys):
    plant(root)
    arguments = ["data", "check", "stl10", "--root", str(root)]
    assert main(arguments) == 6
    shown = capsys.readouterr()
    assert "rows that stand in two splits" in shown.out
    assert "rows of task 'stl10' stand in two splits: 1 of test in " in shown.err
    assert main([*arguments, "--allow-leaks", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_near_duplicates_are_looked_for_as_asked(root):
    plant(root, data=encoded(picture(0), "JPEG", quality=90))
    arguments = ["data", "check", "stl10", "--root", str(root), "--quiet"]
    assert main(arguments) == 6
    assert main([*arguments, "--near", "none"]) == 0
    assert main([*arguments, "--near", "8"]) == 6


@pytest.mark.parametrize("value", ["9", "-1", "few"])
def test_a_distance_that_is_none_is_a_usage_error(value, capsys):
    assert main(["data", "check", "stl10", f"--near={value}"]) == 2
    assert f"--near {value}" in capsys.readouterr().err


def test_shipped_tasks_and_directories_are_checked_together(tmp_path, capsys):
    folder = write_card(tmp_path / "mine", ("x", "y", "z"))
    assert main(["data", "check", "tweet_sentiment", str(folder), "--json"]) == 0
    splits, _ = json.loads(capsys.readouterr().out)["tables"]
    assert [row["task"] for row in splits["rows"]] == ["tweet_sentiment"] * 3 + ["mine"] * 3


def test_an_unknown_name_gets_the_nearest(capsys):
    assert main(["data", "check", "stl"]) == 6
    assert "Did you mean 'stl10'" in capsys.readouterr().err


def test_a_manifest_is_written_printed_and_compared(root, capsys):
    file = root / "stl10.json"
    arguments = ["stl10", "--root", str(root)]
    assert main(["data", "manifest", *arguments, "-o", str(file)]) == 0
    assert "Wrote" in capsys.readouterr().out
    assert main(["data", "manifest", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())
    assert main(["data", "check", *arguments, "--against", str(file), "--quiet"]) == 0
    assert main(["data", "check", *arguments, "--against", str(file), "--quiet", "--seed", "1"]) == 6
    assert "validation split was drawn with seed 0, this one with 1" in capsys.readouterr().err
    assert main(["data", "check", "svhn", *arguments, "--against", str(file)]) == 2


def test_a_damaged_image_is_an_error_that_names_it(root, capsys):
    plant(root, data=b"no image")
    assert main(["data", "check", "stl10", "--root", str(root), "--quiet"]) == 6
    assert "9999.png cannot be read as an image" in capsys.readouterr().err


# -- making a task -------------------------------------------------------------------------------------------


def table(count=30, more=""):
    return "body;kind\n" + "".join(f"text {i};{'yes' if i % 2 else 'no'}\n" for i in range(count)) + more


def make(folder, *options):
    """The command that makes `folder`/toy of `folder`/a.csv."""
    return ["data", "make", str(folder / "a.csv"), "-o", str(folder / "toy"), *options]


def test_a_task_directory_is_made_of_a_csv_file_and_found_by_its_path(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(table())
    arguments = make(tmp_path, "--text", "body", "--label", "kind")
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Task('toy', 2 classes, train 22, validation 2, test 6)" in out
    assert "held out of train" in out
    task = find_task(str(tmp_path / "toy"))
    assert (task.label_names, len(task.split("train"))) == (["no", "yes"], 22)
    assert main(arguments) == 5  # it is there already
    assert main([*arguments, "--overwrite", "--seed", "1", "--quiet"]) == 0
    assert find_task(str(tmp_path / "toy")).checksum() != task.checksum()


@pytest.mark.parametrize("which", ["train", "test", "validation"])
def test_a_task_never_replaces_the_files_that_it_is_made_of(tmp_path, capsys, which):
    folder = tmp_path / "toy"
    folder.mkdir()
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "test", "validation")}
    files[which] = folder / "rows.csv"
    for file in files.values():
        file.write_text(table())
    arguments = ["data", "make", files["train"], "--test", files["test"], "--validation", files["validation"],
                 "--text", "body", "--label", "kind", "-o", folder, "--overwrite"]  # fmt: skip
    assert main(list(map(str, arguments))) == 2
    assert "holds the input" in capsys.readouterr().err
    assert files[which].read_text() == table()


@pytest.mark.filterwarnings("always:task .* leaves out")
def test_what_a_made_task_leaves_out_is_in_the_report_and_in_the_card(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(table(more=";yes\nlast;\ntext 0;no\n"))
    arguments = make(tmp_path, "--text", "body", "--label", "kind")
    assert main(arguments) == 6
    assert "2 rows" not in capsys.readouterr().out
    assert main([*arguments, "--clean", "--json"]) == 0
    counts = {"train": {"without a text": 1, "without a label": 1}}
    out, err = capsys.readouterr()
    assert "1 without a label, 1 without a text" in err
    assert json.loads(out)["result"]["left_out"] == counts
    assert read_json(tmp_path / "toy" / "card.json")["left_out"] == counts


@pytest.mark.filterwarnings("always:task .* leaves out")
@pytest.mark.parametrize(
    ("content", "options"),
    [
        (table(more="caf\u00e9;no\n").encode("cp1252"), ()),
        (table().encode("utf-16-be"), ()),
        (table(more='"a" b;no\n').encode(), ()),
        (table(more='"a \\" b;c";no\n').encode(), ()),
        (table(more="last; no\n").encode(), ()),
        (table().replace(";no", ";1").replace(";yes", ";2").encode(), ("--label-names", "bad", "good")),
        (table().replace(";no", ";0.5").replace(";yes", ";1.5").encode(), ()),
    ],
)
def test_the_repair_that_a_refusal_names_works_on_the_command_line(tmp_path, capsys, content, options):
    (tmp_path / "a.csv").write_bytes(content)
    arguments = [*make(tmp_path, "--text", "body", "--label", "kind"), *options]
    assert main(arguments) == 6
    repairs = re.findall(r"\((--[a-z-]+)(?: ([\w-]+))?\)", capsys.readouterr().err)
    assert repairs
    values = {"--label-names": ["0.5", "1.5"]}
    codes = [main([*arguments, *filter(None, repair), *values.get(repair[0], [])]) for repair in repairs]
    assert 0 in codes, repairs


def test_all_that_a_file_leaves_open_can_be_said(tmp_path):
    rows = "".join(f"text {i}\t{1 + i % 2}\t{'test' if i % 5 == 0 else 'train'}\n" for i in range(40))
    (tmp_path / "a.csv").write_text("text\tlabel\tpart\n" + rows, encoding="utf-16-le")
    said = [
        "--split",
        "part",
        "--label-names",
        "bad",
        "good",
        "--labels",
        "from_1",
        "--label-prompts",
        "It is bad.",
    ]
    said += [
        "It is good.",
        "--encoding",
        "utf-16-le",
        "--delimiter",
        "\\t",
        "--max-tokens",
        "32",
        "--name",
        "mine",
    ]
    assert main(make(tmp_path, *said, "--quotes", "none", "--quiet")) == 0
    task = find_task(str(tmp_path / "toy"))
    assert repr(task) == "Task('mine', 2 classes, train 29, validation 3, test 8)"
    assert (task.label_names, task.max_tokens) == (["bad", "good"], 32)
    assert task.split("test").labels.tolist() == [0, 1] * 4
