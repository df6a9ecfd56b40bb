"""Labels mean the same in every format: names, numbers, truths, floats, and none at all."""

import csv
import io
import json
import math

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch
from pyarrow import parquet

from tauspan.core.errors import DataError, UsageError
from tauspan.tasks import Split, Task
from tauspan.tasks.labels import places, written

FORMATS = ["csv", "tsv", "semicolons", "json", "jsonl", "json columns", "parquet", "hub", "list"]
FILES = [
    "csv",
    "jsonl",
    "parquet",
    "list",
]  # one of each way that values come, where all would only take longer
NUMBERS = ["numpy", "tensor"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def texts(count, start=0):
    return [f"text {i}" for i in range(start, start + count)]


def write(folder, form, split, labels, start):
    """One split's file in a form; the labels as that form holds them."""
    frame = pandas.DataFrame({"text": texts(len(labels), start), "label": labels})
    file = folder / f"{split}.{ {'semicolons': 'csv', 'json columns': 'json'}.get(form, form) }"
    if form in ("csv", "tsv", "semicolons"):
        frame.to_csv(file, index=False, sep={"csv": ",", "tsv": "\t", "semicolons": ";"}[form])
    elif form == "json":
        file.write_text(json.dumps(frame.to_dict("records")))
    elif form == "json columns":
        frame.to_json(file)
    elif form == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        parquet.write_table(pyarrow.Table.from_pandas(frame, preserve_index=False), file)
    return file


def made(folder, form, train, test, names=None, **options):
    """A task of these labels through one door."""
    rows = {"train": (texts(len(train)), train), "test": (texts(len(test), 1000), test)}
    if form in ("list", "numpy", "tensor"):
        as_form = {"list": list, "numpy": np.array, "tensor": lambda values: torch.tensor(list(values))}[form]
        splits = {split: (inputs, as_form(labels)) for split, (inputs, labels) in rows.items()}
        implied = (
            names
            or Task.from_files(
                "x", write(folder, "csv", "x", train, 0), write(folder, "csv", "y", test, 0)
            ).label_names
        )
        return Task.from_tensors("t", implied, validation=splits["test"], **splits, **options)
    if form == "hub":
        (folder / "hub" / "data").mkdir(parents=True)
        for split, (inputs, labels) in rows.items():
            table = datasets.Dataset.from_dict({"text": inputs, "label": list(labels)})
            table.to_parquet(folder / "hub" / "data" / f"{split}-0.parquet")
        return Task.from_hub(str(folder / "hub"), label_names=names, **options)
    files = [
        write(folder, form, split, labels, 1000 * (split == "test")) for split, (_, labels) in rows.items()
    ]
    return Task.from_files("t", *files, label_names=names, **options)


def classes(task):
    """The class name of each test row."""
    return [task.label_names[place] for place in task.split("test").labels.tolist()]


COLUMNS = {
    "names": (["spam", "ham"] * 10, ["ham", "spam", "spam"]),
    "numbers from 0": ([0, 1, 2] * 10, [2, 0, 1]),
    "numbers from 1": ([1, 2, 3] * 10, [3, 1, 2]),
    "numbers with gaps": ([1, 2, 5, 10] * 10, [10, 2, 1, 5]),
    "minus one and one": ([-1, 1] * 10, [1, -1]),
    "truths": ([True, False] * 10, [False, True, True]),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", COLUMNS)
def test_a_label_is_its_own_class_where_no_names_are_given(tmp_path, case, form):
    train, test = COLUMNS[case]
    task = made(tmp_path, form, train, test)
    assert task.label_names == [str(value) for value in sorted(set(train))]
    assert classes(task) == [str(value) for value in test]


NAMED = {
    "names": (["no", "yes"], ["yes", "no"] * 10, ["no", "yes"], ["no", "yes"]),
    "indices": (["no", "yes"], [0, 1] * 10, [1, 0], ["yes", "no"]),
    "truths": (["no", "yes"], [False, True] * 10, [True, False], ["yes", "no"]),
    "truths that are names": (["True", "False"], [False, True] * 10, [True, False], ["True", "False"]),
    "truths in other letters": (["true", "false"], [False, True] * 10, [True, False], ["true", "false"]),
    "names that are numbers": (["1", "2", "5"], [1, 2, 5] * 10, [5, 1], ["5", "1"]),
    "numbers as names": ([1, 2, 5], [1, 2, 5] * 10, [5, 1], ["5", "1"]),
    "indices of names that are numbers": (["1", "2", "5"], [0, 1, 2] * 10, [2, 0], ["5", "1"]),
    "names in another order": (["5", "1", "2"], [1, 2, 5] * 10, [5, 1], ["5", "1"]),
    "whole floats": (["no", "yes"], [0.0, 1.0] * 10, [1.0, 0.0], ["yes", "no"]),
    "named floats": (["0.5", "1.0"], [0.5, 1.0] * 10, [1.0, 0.5], ["1.0", "0.5"]),
}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("form", [*FORMATS, *NUMBERS])
@pytest.mark.parametrize("case", NAMED)
def test_labels_under_given_names_mean_the_same_in_every_format(tmp_path, case, form):
    names, train, test, expected = NAMED[case]
    if form in NUMBERS and not all(isinstance(value, int) for value in train):
        pytest.skip("arrays hold whole numbers")
    task = made(tmp_path, form, train, test, names)
    assert task.label_names == [str(name) for name in names]
    assert classes(task) == expected


REFUSED = {
    "from 1, all there": (
        ["a", "b", "c"],
        [1, 2, 3] * 9,
        r"outside 0\.\.2.*run from 1 to 3: say labels=\"from_1\"",
        "from_1",
    ),
    "from 1, the top one absent": (
        ["a", "b", "c"],
        [1, 2] * 9,
        'smallest label.*class 0 .*labels="from_1"',
        "from_1",
    ),
    "from 0, the first absent": (
        ["a", "b", "c"],
        [1, 2] * 9,
        'or labels="from_0" if that class has no rows',
        "from_0",
    ),
    "both readings": (["1", "2", "3"], [1, 2] * 9, 'Say which is meant: labels="names" or', "names"),
    "both, as indices": (["1", "0"], [0, 1] * 9, 'or labels="from_0"', "from_0"),
}


@pytest.mark.parametrize("form", [*FILES, *NUMBERS])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused_with_a_way_out_that_works(tmp_path, case, form):
    names, labels, said, way = REFUSED[case]
    with pytest.raises(DataError, match=said):
        made(tmp_path, form, labels, labels[:2], names)
    (tmp_path / "again").mkdir()
    task = made(tmp_path / "again", form, labels, labels[:2], names, labels=way)
    first = names.index(str(labels[0])) if way == "names" else labels[0] - (way == "from_1")
    assert task.split("test").labels[0] == first


@pytest.mark.parametrize("form", FILES)
def test_names_and_indices_are_not_mixed(tmp_path, form):
    with pytest.raises(
        DataError, match=r"row 1.*: '1' is an index, and 'no' is the name of a class: write all"
    ):
        made(tmp_path, form, ["no", "1"] * 9, ["no"], ["no", "yes"])


def test_an_unknown_way_to_read_labels_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"labels='from_2'\. Did you mean"):
        made(tmp_path, "csv", [0, 1], [0, 1], labels="from_2")


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("missing", [None, "", "  ", math.nan])
def test_a_row_without_a_label_is_refused_or_left_out_and_counted(tmp_path, form, missing):
    if form == "csv" and missing == "  ":
        missing = " "
    train = ["spam", "ham"] * 10 + [missing] * 2
    if form == "list":
        with pytest.raises(
            DataError, match="row 20 is a row without a label; the train split has 2 rows without a label"
        ):
            made(tmp_path, form, train, ["ham"], ["ham", "spam"])
        return
    if form in ("hub", "parquet") and missing is not None and missing != missing:
        train = [0.0, 1.0] * 10 + [missing] * 2
    names = sorted({value for value in train if isinstance(value, str) and value.strip()}) or ["0", "1"]
    test = train[:2]
    with pytest.raises(
        DataError, match=r"row 20.* is a row without a label; .* 2 rows without a label.*clean=True"
    ):
        made(tmp_path, form, train, test)
    (tmp_path / "again").mkdir()
    with pytest.warns(UserWarning, match="leaves out train: 2 without a label"):
        task = made(tmp_path / "again", form, train, test, clean=True)
    assert task.label_names == names
    assert len(task.split("train")) + len(task.split("validation")) == 20
    assert task.extra["left_out"] == {"train": {"without a label": 2}}
    assert repr(task).endswith("left out: train: 2 without a label)")


@pytest.mark.parametrize("word", ["nan", "None", "NULL"])
def test_a_word_for_nothing_among_numbers_is_no_class(tmp_path, word):
    with pytest.raises(DataError, match=r"row 4 .* without a label"):
        made(tmp_path, "csv", ["0", "1", "1", "0", word], ["1"])
    (tmp_path / "again").mkdir()
    task = made(tmp_path / "again", "csv", ["yes", "no", "yes", "no", word], ["yes"])  # among names it is one
    assert word in task.label_names


@pytest.mark.parametrize("form", FILES)
def test_minus_one_is_no_class_under_given_names(tmp_path, form):
    with pytest.raises(
        DataError, match=r"without a label \(label -1\); the train split has 1 row without a label"
    ):
        made(tmp_path, form, [0, 1, -1], [0, 1], ["no", "yes"])


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "hub"])
@pytest.mark.parametrize("nothing", [-1, None])
def test_a_split_without_labels_is_named(tmp_path, form, nothing):
    with pytest.raises(DataError, match=r"the test split has no labels .* in all 4 rows.*Take labelled rows"):
        made(tmp_path, form, [0, 1] * 9, [nothing] * 4, ["no", "yes"])


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("label", ["spam ", "\tspam", "\u00a0spam"])
def test_white_space_around_a_label_makes_no_class_of_its_own(tmp_path, form, label):
    train, names = ["spam", "ham"] * 10 + [label], ["ham", "spam"] if form == "list" else None
    with pytest.raises(DataError, match=r"row 20.*white space around it.*clean=True"):
        made(tmp_path, form, train, ["spam"], names)
    (tmp_path / "again").mkdir()
    with pytest.warns(UserWarning, match="train: 1 spaces around a label"):
        task = made(tmp_path / "again", form, train, ["spam"], names, clean=True)
    assert task.label_names == ["ham", "spam"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "hub"])
def test_numbers_that_are_not_whole_are_no_classes(tmp_path, form):
    with pytest.raises(DataError, match=r"not whole \(0\.25, 1\.5\).*classes, and no measurements"):
        made(tmp_path, form, [0.25, 1.5] * 9, [1.5])


@pytest.mark.parametrize("labels", [[[0, 1], [1]], [{"a": 1}, {"a": 2}], [(0,), (1,)]])
def test_several_labels_a_row_are_refused_with_a_sentence(tmp_path, labels):
    with pytest.raises(DataError, match=r"row 0.*a row has one class.*several labels a row"):
        Task.from_tensors(
            "t", ["a", "b"], train=(["x", "y"], labels), test=(["x"], [0]), validation=(["y"], [1])
        )
    table = pyarrow.Table.from_pylist(
        [{"text": f"{i}", "label": list(label)} for i, label in enumerate(labels)]
    )
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(
        DataError, match=r"train\.parquet, row 0: the label .* is a list, and a row has one class"
    ):
        Task.from_files("t", tmp_path / "train.parquet", tmp_path / "test.parquet")


@pytest.mark.parametrize(
    "labels",
    [np.array([[0, 1], [1, 0]]), np.array([0.5, 0.5]), torch.tensor([0.0, 1.0]), np.array([0.0, 1.0])],
    ids=["two columns", "shares", "a float tensor", "a float array"],
)
def test_arrays_of_labels_are_whole_numbers_in_one_row(labels):
    with pytest.raises(DataError, match="labels are int64 of shape"):
        Task.from_tensors(
            "t", ["a", "b"], train=(["x", "y"], labels), test=(["x"], [0]), validation=(["y"], [1])
        )


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.bool_])
def test_arrays_of_any_whole_kind_are_read(kind):
    rows = (np.zeros((2, 3), np.float32), np.array([1, 0], dtype=kind))
    task = Task.from_tensors("t", ["a", "b"], train=rows, test=rows, validation=rows)
    assert task.split("test").labels.tolist() == [1, 0]
    assert task.split("test").labels.dtype == torch.long


def test_a_series_of_pandas_is_read():
    rows = (pandas.Series(["x", "y"]), pandas.Series([1, 0], dtype="Int64"))
    assert Task.from_tensors("t", ["a", "b"], train=rows, test=rows, validation=rows).split(
        "test"
    ).labels.tolist() == [1, 0]
    gap = (pandas.Series(["x", "y"]), pandas.Series([1, None], dtype="Int64"))
    with pytest.raises(DataError, match="row 1 is a row without a label"):
        Task.from_tensors("t", ["a", "b"], train=gap, test=rows, validation=rows)


def test_labels_of_another_kind_in_a_split_are_named():
    rows = Split(["x", "y"], torch.tensor([0, 1]))
    for labels in ([0, 1], np.array([0, 1])):
        with pytest.raises(
            DataError, match=r"test of task 't': labels are int64 of shape .*`Task\.from_tensors` makes"
        ):
            Task("t", ["a", "b"], {"train": rows, "validation": rows, "test": Split(["x", "y"], labels)})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b", "a"], r"two classes of one name: 'a' \(class 0\) and 'a' \(class 2\)"),
        (["a", "b", "a "], "two classes of one name: 'a' .* and 'a ' "),
        (["caf\u00e9", "b", "cafe\u0301"], "two classes of one name"),
        (["a", "", "c"], "class 1 of task 't' has no name"),
        (["a", "b", "\ud800"], "UTF-8 cannot write"),
        (["a", "b", 2], r"class 2 .* is called 2, a int: write '2'"),
    ],
)
def test_class_names_are_texts_that_can_be_told_apart(names, said):
    rows = Split(["x", "y"], torch.tensor([0, 1]))
    with pytest.raises(DataError, match=said):
        Task("t", names, dict.fromkeys(("train", "validation", "test"), rows))


def test_the_classes_that_a_table_names_itself_are_taken_by_both_doors(tmp_path):
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
    )
    (tmp_path / "hub").mkdir()
    for split, labels in (("train", [1, 0] * 10), ("test", [1, 0])):
        rows = {"text": texts(len(labels), len(split)), "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    files = Task.from_files("hub", tmp_path / "hub" / "train.parquet", tmp_path / "hub" / "test.parquet")
    hub = Task.from_hub(str(tmp_path / "hub"))
    assert files.label_names == hub.label_names == ["neg", "pos"]
    assert files.checksum() == hub.checksum()
    turned = Task.from_hub(str(tmp_path / "hub"), label_names=["pos", "neg"])
    assert classes(turned) == classes(hub)
    renamed = Task.from_hub(str(tmp_path / "hub"), label_names=["bad", "good"])
    assert classes(renamed) == ["good", "bad"]
    with pytest.raises(DataError, match=r"has the classes neg, pos, and the task has a, b, c"):
        Task.from_hub(str(tmp_path / "hub"), label_names=["a", "b", "c"])


def test_one_label_in_many_writings():
    values = [
        1,
        1.0,
        np.int32(1),
        np.float64(1),
        torch.tensor(1),
        True,
        None,
        float("nan"),
        pandas.NA,
        pandas.NaT,
    ]
    assert [written(value) for value in values] == ["1"] * 5 + ["True"] + [None] * 4
    assert places(["5", "1"], ["1", "2", "5"]) == {"5": 2, "1": 0}


def test_an_empty_column_is_not_a_class_of_empty_names(tmp_path):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("text", "label"), ("a", "x"), ("b", ""), ("c", "y"), ("d", "")])
    (tmp_path / "a.csv").write_text(buffer.getvalue())
    with pytest.raises(
        DataError, match=r"a\.csv, row 1 \(line 3\) is a row without a label; .* 2 rows without a label"
    ):
        Task.from_files("t", tmp_path / "a.csv")


@pytest.mark.parametrize("given", [1, None, torch.tensor(1), {"a": 1}, "ab", b"ab"])
@pytest.mark.parametrize("what", ["inputs", "labels"])
def test_what_is_no_list_of_inputs_or_labels_is_named(given, what):
    if isinstance(given, torch.Tensor) and what == "inputs":
        pytest.skip("a tensor of no dimension has no rows to be compared with")
    pair = (given, [0, 1]) if what == "inputs" else (["x", "y"], given)
    with pytest.raises(DataError, match=rf"train of 't': (its {what} are a |labels are int64 of shape)"):
        Task.from_tensors("t", ["a", "b"], train=pair)


def test_labels_may_come_from_a_generator():
    task = Task.from_tensors("t", ["a", "b"], train=([f"{i}" for i in range(10)], (i % 2 for i in range(10))))
    assert repr(task) == "Task('t', 2 classes, train 7, validation 1, test 2)"
    assert (task.extra["test"], task.extra["validation"]) == ("held out of train", "held out of train")


def test_a_split_of_another_name_is_not_taken_for_none():
    rows = (["x", "y"], [0, 1])
    with pytest.raises(DataError, match=r"is given a split 'tset'\. Did you mean 'test'"):
        Task.from_tensors("t", ["a", "b"], train=rows, tset=rows)


@pytest.mark.parametrize("labels", [["x"] * 30, [f"x{i}" for i in range(30)], list(range(30)), [7] * 30])
def test_a_column_that_can_hold_no_classes_is_named_unless_names_are_given(tmp_path, labels):
    with pytest.raises(
        DataError, match=r"(in all|in each of) 30 rows: is that the column of the classes\? .*`label_names`"
    ):
        made(tmp_path, "csv", labels, labels[:2])
    (tmp_path / "again").mkdir()
    names = sorted({*map(str, labels), "another"}, key=lambda name: (len(name), name))
    task = made(tmp_path / "again", "csv", labels, labels[:2], names, labels="names")
    assert classes(task) == [str(label) for label in labels[:2]]


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("mark", ["\u200b", "\ufeff", "\u2060", "\xa0"])
def test_characters_that_are_not_seen_make_no_class_of_their_own(tmp_path, form, mark):
    train, names = ["spam", "ham"] * 10 + ["spam" + mark], ["ham", "spam"] if form == "list" else None
    with pytest.raises(DataError, match=r"row 20.*or characters that are not seen.*clean=True"):
        made(tmp_path, form, train, ["spam"], names)
    with pytest.warns(UserWarning, match="1 spaces around a label"):
        task = made(tmp_path, form, train, ["spam"], names, clean=True)
    assert task.label_names == ["ham", "spam"]


def test_truths_in_several_spellings_are_no_classes_of_their_own(tmp_path):
    with pytest.raises(DataError, match=r"two classes of one name: 'TRUE'.*'True'"):
        made(tmp_path, "csv", ["TRUE", "False", "True"] * 7, ["True"])
    assert classes(made(tmp_path, "csv", ["TRUE", "False", "True"] * 7, ["true"], ["False", "True"])) == [
        "True"
    ]


def test_very_large_numbers_are_sorted_as_numbers(tmp_path):
    large = [2**63 + 1, 2**63] * 10
    assert made(tmp_path, "csv", large, large[:2]).label_names == [str(2**63), str(2**63 + 1)]


@pytest.mark.parametrize(
    "bad", [(["a", "b", ""], [0, 1, 1]), (["a", "b", "c"], [0, 1, -1]), (["a", "b", "c"], [0, 1, None])]
)
def test_lists_are_cleaned_as_files_are(bad):
    splits = {"validation": (["v"], [0]), "test": (["w"], [1])}
    with pytest.raises(DataError, match="clean=True"):
        Task.from_tensors("t", ["x", "y"], train=bad, **splits)
    with pytest.warns(UserWarning, match="leaves out train: 1 without"):
        task = Task.from_tensors("t", ["x", "y"], train=bad, clean=True, **splits)
    assert len(task.split("train")) == 2
