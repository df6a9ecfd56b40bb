"""Tables that the `datasets` library saved, in its own ways, become tasks whose rows are those that it gives back."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from helpers import imagesets
from tauspan.core.errors import DataError
from tauspan.tasks import Task

NAMES = ["spam", "ham", "eggs"]  # not in the order of the alphabet
FORMS = {
    "as made": lambda table: table,
    "shuffled": lambda table: table.shuffle(seed=3),
    "selected": lambda table: table.select(range(len(table) - 1, 0, -2)),
    "filtered": lambda table: table.filter(lambda row: row["label"] != 1),
    "joined": lambda table: datasets.concatenate_datasets([table, table.select([0])]),
    "formatted for torch": lambda table: table.with_format("torch"),
    "formatted for numpy, one column": lambda table: table.with_format("numpy", columns=["label"]),
    "cast": lambda table: table.cast_column("label", datasets.Value("int32")).cast_column(
        "label", datasets.ClassLabel(names=NAMES)
    ),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table(rows: int, start: int = 0) -> Any:
    features = datasets.Features(
        id=datasets.Value("int64"), text=datasets.Value("string"), label=datasets.ClassLabel(names=NAMES)
    )
    numbers = range(start, start + rows)
    content = {"id": numbers, "text": [f"text {n} ä\n" for n in numbers], "label": [n % 3 for n in numbers]}
    return datasets.Dataset.from_dict(content, features=features)


def require_rows(task: Task, split: str, wanted: Any) -> None:
    """The rows of a split are the library's: texts, labels as it counts them, and classes as it names them."""
    plain, found = wanted.with_format(None), task.split(split)
    assert list(found.inputs) == list(plain["text"])
    assert found.labels.tolist() == list(plain["label"])
    kind = plain.features["label"]
    assert [task.label_names[label] for label in found.labels] == [kind.int2str(n) for n in plain["label"]]


@pytest.mark.parametrize("form", FORMS)
def test_splits_saved_to_disk_are_the_task(form, tmp_path):
    made = {"train": FORMS[form](table(30)), "validation": table(6, 100), "test": FORMS[form](table(9, 200))}
    datasets.DatasetDict(made).save_to_disk(
        tmp_path / "toy", num_shards={"train": 3, "validation": 1, "test": 2}
    )
    task = Task.from_hub(str(tmp_path / "toy"))
    assert task.label_names == NAMES
    for split, wanted in datasets.load_from_disk(tmp_path / "toy").items():
        require_rows(task, split, wanted)


def test_splits_of_any_name_can_be_named(tmp_path):
    made = datasets.DatasetDict(fold_a=table(30), fold_b=table(6, 100), held=table(9, 200))
    made.save_to_disk(tmp_path / "toy")
    task = Task.from_hub(str(tmp_path / "toy"), train="fold_a", validation="fold_b", test="held")
    for split, name in (("train", "fold_a"), ("validation", "fold_b"), ("test", "held")):
        require_rows(task, split, made[name])
    with pytest.raises(DataError, match=r"no split 'train'.*it has fold_a, fold_b, held"):
        Task.from_hub(str(tmp_path / "toy"))


def test_images_saved_to_disk_are_those_that_the_library_decodes(tmp_path):
    made = {split: imagesets.table(imagesets.rows(split)) for split in ("train", "validation", "test")}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "toy")
    task = Task.from_hub(str(tmp_path / "toy"), text="image")
    for split, wanted in made.items():
        found = task.split(split)
        assert found.labels.tolist() == list(wanted["label"])
        assert all(
            np.array_equal(one, np.asarray(row["image"]))
            for one, row in zip(found.inputs, wanted, strict=True)
        )


def test_one_table_saved_to_disk_is_the_split_train_and_the_way_out_of_files_works(tmp_path):
    table(30).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="has no split 'test' to take as test; it has train"):
        Task.from_hub(str(tmp_path / "one"))
    with pytest.raises(DataError, match=r"load_from_disk\(DIR\)\.to_parquet\(FILE\)"):
        Task.from_files("t", tmp_path / "one")
    for split, rows in (("train", table(30)), ("test", table(9, 200))):
        rows.save_to_disk(tmp_path / f"saved {split}")
        datasets.load_from_disk(tmp_path / f"saved {split}").to_parquet(tmp_path / f"{split}.parquet")
    task = Task.from_files("t", tmp_path / "train.parquet", tmp_path / "test.parquet")
    assert task.label_names == NAMES
    require_rows(task, "test", table(9, 200))


def test_a_damaged_table_is_named(tmp_path):
    datasets.DatasetDict(train=table(30), test=table(9)).save_to_disk(tmp_path / "toy")
    next((tmp_path / "toy" / "train").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(DataError, match="could not be loaded"):
        Task.from_hub(str(tmp_path / "toy"))


@pytest.mark.parametrize("form", ["as made", "shuffled", "formatted for torch"])
def test_columns_of_a_table_in_memory_are_rows(form):
    train, test = FORMS[form](table(30)), FORMS[form](table(9, 200))
    given = {
        split: (rows.with_format(None)["text"], rows["label"])
        for split, rows in (("train", train), ("test", test))
    }
    task = Task.from_tensors("t", NAMES, labels="from_0", **given)
    require_rows(task, "test", test)


@pytest.mark.parametrize("write", ["to_csv", "to_json", "to_parquet"])
def test_files_that_the_library_exports_are_its_rows(write, tmp_path):
    files = []
    for split, rows in (("train", table(30)), ("test", table(9, 200))):
        files.append(tmp_path / f"{split}.{write.removeprefix('to_')}")
        getattr(rows, write)(str(files[-1]))
    names = {} if write == "to_parquet" else {"label_names": NAMES, "labels": "from_0"}
    require_rows(Task.from_files("t", *files, **names), "test", table(9, 200))


def test_a_task_directory_is_a_data_set_of_the_library(tmp_path):
    given = {
        split: (table(9, n)["text"], table(9, n)["label"])
        for n, split in enumerate(("train", "validation", "test"))
    }
    task = Task.from_tensors("t", NAMES, labels="from_0", **given)
    folder = Path(task.to_directory(tmp_path / "t"))
    found = datasets.load_dataset(
        "csv", data_files={split: str(next(folder.glob(f"{split}.csv*"))) for split in given}
    )
    for split in given:
        assert list(found[split]["text"]) == list(task.split(split).inputs)
        labels = [name if isinstance(name, str) else NAMES[name] for name in found[split]["label"]]
        assert labels == [NAMES[label] for label in task.split(split).labels]
