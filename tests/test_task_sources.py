"""Reading tasks from npz files, image folders and data set directories."""

import datasets
import numpy as np
import pytest
from PIL import Image

from tauspan.errors import DataError
from tauspan.tasks import Task


def rows(count, labels):
    return [{"text": f"text {i}", "label": labels[i % len(labels)]} for i in range(count)]


def write_images(folder, per_class):
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 3), (i, 0, 255)).save(folder / name / f"{i}.png")
        (folder / name / "notes.txt").write_text("not an image")
    return folder


# -- arrays and images ---------------------------------------------------------------------------------------


def test_npz_files_hold_images_and_labels(tmp_path):
    np.savez(
        tmp_path / "a.npz", image=np.arange(48, dtype=np.uint8).reshape(4, 4, 3), label=np.array([0, 1, 1, 0])
    )
    task = Task.from_files("t", tmp_path / "a.npz", tmp_path / "a.npz", label_names=["no", "yes"])
    assert task.split("test").labels.tolist() == [0, 1, 1, 0]
    assert task.split("test").inputs[1].tolist() == np.arange(12, 24).reshape(4, 3).tolist()


@pytest.mark.parametrize("damage", ["cut", "one array", "no key", "float labels"])
def test_an_npz_file_that_does_not_fit_is_named(tmp_path, damage):
    labels = np.array([0.5, 1.0] if damage == "float labels" else [0, 1])
    np.savez(tmp_path / "a.npz", image=np.zeros((2, 3)), **{"y" if damage == "no key" else "label": labels})
    if damage == "cut":
        (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    if damage == "one array":
        np.save(tmp_path / "a.npy", labels)
        (tmp_path / "a.npy").replace(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz"):
        Task.from_files("t", tmp_path / "a.npz", tmp_path / "a.npz", label_names=["no", "yes"])


def test_image_folders_have_one_folder_a_class(tmp_path):
    train = write_images(tmp_path / "train", {"dog": 4, "cat": 3})
    test = write_images(tmp_path / "test", {"dog": 1, "cat": 2})
    task = Task.from_files("t", train, test)
    assert task.label_names == ["cat", "dog"]
    assert task.split("test").labels.tolist() == [0, 0, 1]
    assert (task.split("test").inputs[1].shape, task.split("test").inputs[1][0, 0].tolist()) == (
        (3, 4, 3),
        [1, 0, 255],
    )


def test_a_folder_of_no_class_and_a_damaged_image_are_named(tmp_path):
    train = write_images(tmp_path / "train", {"dog": 2, "cat": 2})
    other = write_images(tmp_path / "other", {"dog": 1, "catt": 1})
    with pytest.raises(DataError, match=r"catt is the folder of no class\. Did you mean 'cat'"):
        Task.from_files("t", train, other)
    (train / "dog" / "0.png").write_bytes(b"\x89PNG broken")
    task = Task.from_files("t", train, train)  # images are decoded when they are looked at
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        list(task.split("test").inputs)


# -- data set directories ------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that writes a local data set directory of parquet splits; the library's cache beside."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def write(features=None, **splits):
        folder = tmp_path / "org" / "toy"
        (folder / "data").mkdir(parents=True)
        for split, found in splits.items():
            made = datasets.Dataset.from_list(found, features=features)
            made.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return str(folder)

    yield write
    datasets.enable_progress_bars()


def test_a_data_set_directory_gives_a_task(hub):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
    )
    folder = hub(features, train=rows(20, (0, 1)), test=rows(6, (1, 0)))
    task = Task.from_hub(folder, label_prompts=["bad", "good"], max_tokens=8)
    assert repr(task) == "Task('toy', 2 classes, train 18, validation 2, test 6)"
    assert (task.label_names, task.label_prompts, task.max_tokens) == (["neg", "pos"], ["bad", "good"], 8)
    assert task.split("test").labels.tolist() == [1, 0] * 3


def test_a_data_set_whose_labels_are_values_takes_them_as_class_names(hub):
    task = Task.from_hub(hub(train=rows(20, (1, 3, 10)), validation=rows(3, (3,)), test=rows(6, (10, 1))))
    assert task.label_names == ["1", "3", "10"]
    assert task.split("test").labels.tolist() == [2, 0] * 3


def test_a_data_set_without_the_columns_says_what_it_has(hub):
    folder = hub(train=[{"sentence": "a", "label": 0}], test=[{"sentence": "a", "label": 0}])
    with pytest.raises(DataError, match=r"needs a train split .* 'text' and 'label'; it has .*'sentence'"):
        Task.from_hub(folder)


def test_a_data_set_that_cannot_be_loaded_is_named():
    with pytest.raises(DataError, match="the data set 'no/where' could not be loaded"):
        Task.from_hub("no/where")
