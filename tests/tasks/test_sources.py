"""Reading tasks from npz files, image folders and data set directories."""

import datasets
import numpy as np
import pytest
from PIL import Image

from helpers.tiny import twice
from tauspan.core.errors import DataError
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
    task = Task.from_files("t", *twice(tmp_path / "a.npz"), label_names=["no", "yes"])
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
        Task.from_files("t", *twice(tmp_path / "a.npz"), label_names=["no", "yes"])


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
    with pytest.raises(
        DataError, match=r"catt/0\.png: 'catt' is neither a class index nor a class\. Did you mean 'cat'"
    ):
        Task.from_files("t", train, other)
    (train / "dog" / "0.png").write_bytes(b"\x89PNG broken")
    task = Task.from_files("t", *twice(train))  # images are decoded when they are looked at
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
    with pytest.raises(DataError, match="toy:train has no column 'text'; it has sentence, label"):
        Task.from_hub(folder)


def test_a_data_set_that_cannot_be_loaded_is_named():
    with pytest.raises(DataError, match="the data set 'no/where' could not be loaded"):
        Task.from_hub("no/where")


def test_splits_can_be_named(hub):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
    )
    folder = hub(features, train=rows(20, (0, 1)), validation=rows(8, (0, 1)), test=rows(6, (-1,)))
    with pytest.raises(DataError, match=r'toy:test: the test split has no labels .*test="validation" takes'):
        Task.from_hub(folder)
    task = Task.from_hub(folder, test="validation")  # as the message says
    assert repr(task) == "Task('toy', 2 classes, train 18, validation 2, test 8)"
    assert task.extra["validation"] == "held out of train"
    with pytest.raises(
        DataError, match=r"has no split 'tset' to take as test; it has train, validation, test"
    ):
        Task.from_hub(folder, test="tset")
    with pytest.raises(DataError, match=r"'train' is taken as train and as test"):
        Task.from_hub(folder, test="train")


def test_a_data_set_with_one_split_says_which(hub):
    with pytest.raises(DataError, match=r'no split \'test\' to take as test; it has train\. .*test="train"'):
        Task.from_hub(hub(train=rows(20, (0, 1))))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("text", [None, "", " \n"])
def test_rows_without_a_text_are_refused_or_left_out_and_counted(hub, split, text):
    found = {"train": rows(20, (0, 1)), "test": rows(6, (0, 1))}
    found[split][3]["text"] = text
    folder = hub(**found)
    with pytest.raises(
        DataError, match=rf"toy:{split}, row 3 is a row without a text; the {split} split has 1 row"
    ):
        Task.from_hub(folder)
    with pytest.warns(UserWarning, match=f"leaves out {split}: 1 without a text"):
        first, second = (Task.from_hub(folder, clean=True) for _ in range(2))
    assert first.checksum() == second.checksum()
    assert sum(map(len, first.splits.values())) == 25


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["a", "b"], "holds a list .* neither a text nor an array"),
        ([[0.5], [0.5, 1.0]], "holds a list .* neither a text nor an array"),
        ({"en": "a", "de": "b"}, "holds a dict"),
    ],
)
def test_columns_of_no_text_are_named(hub, column, said):
    found = [{"text": column, "label": i % 2} for i in range(20)]
    with pytest.raises(DataError, match=rf"toy:train, row 0: the column 'text' {said}"):
        Task.from_hub(hub(train=found, test=found[:6]))


@pytest.mark.parametrize("column", [[0.5, 1.5], [[1, 2], [3, 4]], [[True], [False]]])
def test_columns_of_numbers_in_lists_are_arrays(hub, column):
    found = [{"text": column, "label": i % 2} for i in range(20)]
    task = Task.from_hub(hub(train=found, test=found[:6]))
    assert task.split("test").inputs[0].tolist() == column


def test_columns_of_numbers_are_texts_as_in_csv(hub, tmp_path):
    found = [{"text": i, "label": i % 2} for i in range(20)]
    task = Task.from_hub(hub(train=found, test=found[:6]))
    assert task.split("test").inputs[:2] == ["0", "1"]


@pytest.mark.parametrize("item", [None, "", b"bytes", {"a": 1}, object(), np.array(["a"])])
def test_inputs_that_are_neither_texts_nor_numbers_are_refused_with_their_row(item):
    given = (["a", item], [0, 1])
    with pytest.raises(
        DataError, match=r"row 1(,|) is a row (without a text|whose input is neither a text nor numbers)"
    ):
        Task.from_tensors("t", ["x", "y"], train=given, validation=given, test=given)


# -- task directories ----------------------------------------------------------------------------------------

AWKWARD = [
    "plain",
    "a, b",
    'say "x"',
    "two\nlines",
    "cr\rlf\r\n",
    " spaces ",
    "\u732b\u2028\u0085",
    "\\backslash",
    "\u200b",
]


@pytest.mark.parametrize("names", [["no", "yes"], ["1", "2"], ["5", "1"], ["True", "False"], ["a, b", '"c"']])
def test_a_task_directory_that_was_written_is_read_back(tmp_path, names):
    labels = [i % 2 for i in range(len(AWKWARD))]
    given = (AWKWARD, labels)
    task = Task.from_tensors("t", names, train=given, validation=given, test=given, labels="from_0")
    written = task.to_directory(tmp_path / "t")
    again = Task.from_directory(written)
    assert again.checksum() == task.checksum()
    before = {file.name: file.read_bytes() for file in written.iterdir()}
    task.to_directory(written, overwrite=True)
    assert {file.name: file.read_bytes() for file in written.iterdir()} == before


def test_only_tasks_of_texts_become_directories(tmp_path):
    given = (np.zeros((2, 3)), [0, 1])
    task = Task.from_tensors("t", ["a", "b"], train=given, validation=given, test=given)
    with pytest.raises(
        DataError, match=r"train of task 't', row 0, is a ndarray: a directory is written of texts"
    ):
        task.to_directory(tmp_path / "t")
    assert not (tmp_path / "t").exists()
