"""Split manifests: the same rows agree, and what differs is named."""

import json
from dataclasses import replace

import pytest
import torch

from tauspan.core.errors import DataError, StoreError
from tauspan.tasks import SPLITS, Split, Task
from tauspan.tasks.data import check_manifest, manifest, write_manifest


def task_of(train, extra=None, names=("a", "b"), **splits):
    made = {}
    for split in SPLITS:
        found = splits.get(split, [("v", 0), ("w", 1)]) if split != "train" else train
        labels = torch.tensor([label for _, label in found])
        made[split] = Split([text for text, _ in found], labels)
    return Task("toy", list(names), made, source="here", extra=extra or {"seed": 0})


ROWS = [(f"text {row}", row % 2) for row in range(600)]


def test_a_manifest_says_rows_classes_and_hashes():
    made = manifest(task_of(ROWS, {"seed": 4, "validation": "own", "control_split": "the official one"}))
    assert (made["name"], made["source"], made["seed"], made["validation"]) == ("toy", "here", 4, "own")
    assert made["control_split"] == "the official one"
    train = made["splits"]["train"]
    assert (train["rows"], train["rows_per_class"], len(train["leaves"])) == (600, [300, 300], 3)
    assert json.loads(json.dumps(made)) == made


def test_the_same_rows_agree_wherever_they_come_from(tmp_path):
    made = write_manifest(task_of(ROWS), tmp_path / "m.json")
    check_manifest(replace(task_of(ROWS), source="elsewhere"), made)
    check_manifest(task_of(ROWS), tmp_path / "m.json")


def changed(row, text=None, label=None):
    found = list(ROWS)
    found[row] = (text or found[row][0], found[row][1] if label is None else label)
    return found


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (task_of(ROWS[:-1]), r"train: 599 rows, not 600\.$"),
        (task_of(ROWS[::-1]), r"train: the same rows in another order\.$"),
        (task_of(changed(300, "other")), r"train: other content in rows 256\.\.511 \(1 of 3 blocks\)\.$"),
        (
            task_of(changed(599, label=0)),
            r"train: other numbers of rows per class; train: other content in rows 512\.\.599 ",
        ),
        (
            task_of(ROWS, test=[("v", 0), ("x", 1)]),
            r"the manifest: test: other content in rows 0\.\.1 \(1 of 1 blocks\)\.$",
        ),
        (task_of(ROWS, names=("a", "c")), r"its class 1 is 'b', the task's 'c'\.$"),
        (
            task_of(ROWS, names=("a", "b", "c")),
            r"it has 2 classes, the task 3\.$",
        ),
        (replace(task_of(ROWS), name="yot"), r"it describes 'toy'\.$"),
        (
            task_of(ROWS[::-1], {"seed": 1}),
            r"another order\. Its validation split was drawn with seed 0, this one with 1",
        ),
    ],
)
def test_what_differs_is_named(task, message):
    known = manifest(task_of(ROWS))
    with pytest.raises(DataError, match=message):
        check_manifest(task, known)


@pytest.mark.parametrize("damage", ["list", "format", "splits", "split", "leaves", "names", "block"])
def test_what_is_no_manifest_is_refused(tmp_path, damage):
    known = manifest(task_of(ROWS))
    if damage == "list":
        known = [1]
    elif damage == "format":
        known["format"] = "tauspan-manifest/9"
    elif damage == "splits":
        del known["splits"]
    elif damage == "split":
        known["splits"]["test"] = 3
    elif damage == "leaves":
        known["splits"]["train"]["leaves"] = "abc"
    elif damage == "names":
        known["label_names"] = None
    else:
        known["block"] = 10
    (tmp_path / "m.json").write_text(json.dumps(known))
    with pytest.raises(DataError, match=r"m\.json is (no|a damaged) split manifest"):
        check_manifest(task_of(ROWS), tmp_path / "m.json")


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"m\.json does not exist"):
        check_manifest(task_of(ROWS), tmp_path / "m.json")
