"""Reading tasks from cards, CSV and parquet; the validation split."""

import gzip
import hashlib
import json

import pyarrow
import pytest
from pyarrow import parquet

from helpers.tiny import twice, write_csv
from tauspan.core.errors import DataError, StoreError
from tauspan.tasks import SPLITS, Task
from tauspan.tasks.data.suite import find_task


def rows(count, labels=("0", "1"), start=0):
    return [
        {"text": f"text {i}, with a comma", "label": labels[i % len(labels)]}
        for i in range(start, start + count)
    ]


def write_parquet(path, table_rows):
    parquet.write_table(pyarrow.Table.from_pylist(table_rows), path)
    return path


# -- cards ---------------------------------------------------------------------------------------------------


@pytest.fixture
def card(tmp_path):
    """A task directory, and a function that writes its card again with changes."""
    splits = {}
    for place, split in enumerate(SPLITS):
        file = write_csv(tmp_path / f"{split}.csv.gz", rows(4, start=10 * place))
        splits[split] = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    content = {"name": "c", "label_names": ["no", "yes"], "splits": splits, "suggested_max_tokens": 16}

    def write(**changes):
        changed = {key: value for key, value in (content | changes).items() if value is not None}
        (tmp_path / "card.json").write_text(json.dumps(changed))
        return tmp_path

    write.splits = splits
    write()
    return write


def test_a_card_directory_is_read(card):
    task = Task.from_directory(card(label_prompts=["a", "b"], source="here"))
    assert repr(task) == "Task('c', 2 classes, train 4, validation 4, test 4)"
    assert (task.max_tokens, task.label_prompts, task.source) == (16, ["a", "b"], "here")
    assert task.split("test").inputs[0] == "text 20, with a comma"
    assert find_task(str(card())).checksum() == Task.from_directory(card()).checksum()


def test_a_changed_file_is_refused_with_both_checksums(card):
    folder = card()
    write_csv(folder / "test.csv.gz", rows(5))
    with pytest.raises(
        DataError, match=r"test\.csv\.gz has SHA-256 \w{12}, its card says \w{12}: it was changed"
    ):
        Task.from_directory(folder)


def test_a_missing_file_and_a_missing_card_are_named(card):
    folder = card()
    (folder / "train.csv.gz").unlink()
    with pytest.raises(DataError, match=r"names 'train\.csv\.gz', which is not there"):
        Task.from_directory(folder)
    (folder / "card.json").unlink()
    with pytest.raises(StoreError, match=r"card\.json does not exist"):
        Task.from_directory(folder)


@pytest.mark.parametrize("key", ["name", "label_names", "splits"])
def test_a_card_without_a_key_is_refused(card, key):
    with pytest.raises(DataError, match=f"lacks '{key}'"):
        Task.from_directory(card(**{key: None}))


@pytest.mark.parametrize("key", ["file", "sha256"])
def test_a_card_whose_split_lacks_a_key_is_refused(card, key):
    entry = {k: v for k, v in card.splits["test"].items() if k != key}
    with pytest.raises(DataError, match=f"lacks '{key}' of its split 'test'"):
        Task.from_directory(card(splits=card.splits | {"test": entry}))


def test_a_card_reads_only_files_beside_it(card):
    entry = card.splits["test"] | {"file": "../outside/test.csv.gz"}
    assert len(Task.from_directory(card(splits=card.splits | {"test": entry})).split("test")) == 4


# -- CSV and parquet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "parquet with numbers"])
def test_csv_and_parquet_give_one_task(tmp_path, form):
    write = write_parquet if "parquet" in form else write_csv
    labels = (0, 1) if form.endswith("numbers") else ("0", "1")
    files = [write(tmp_path / f"{i}.{form.split()[0]}", rows(n, labels)) for i, n in enumerate((30, 10, 10))]
    task = Task.from_files("t", *files)
    expected = [write_csv(tmp_path / f"expected{i}.csv", rows(n)) for i, n in enumerate((30, 10, 10))]
    assert task.checksum() == Task.from_files("t", *expected).checksum()
    assert task.split("train").labels[:4].tolist() == [0, 1, 0, 1]


def test_class_names_are_sorted_values_or_given(tmp_path):
    file = write_csv(tmp_path / "a.csv", rows(20, ("spam", "ham")))
    assert Task.from_files("t", *twice(file)).label_names == ["ham", "spam"]
    given = Task.from_files("t", *twice(file), label_names=["spam", "ham"])
    assert given.split("test").labels[:2].tolist() == [0, 1]


def test_columns_have_the_names_that_are_asked_for(tmp_path):
    renamed = [{"body": row["text"], "kind": row["label"], "id": "7"} for row in rows(20)]
    file = write_csv(tmp_path / "a.csv", renamed)
    assert (
        Task.from_files("t", *twice(file), text="body", label="kind")
        .split("test")
        .inputs[0]
        .startswith("text 0")
    )
    with pytest.raises(DataError, match="has no column 'text'; it has body, kind, id"):
        Task.from_files("t", *twice(file), label="kind")
    with pytest.raises(DataError, match="has no column 'label'"):
        Task.from_files("t", *twice(file), text="body")


def test_an_unknown_class_names_row_and_nearest(tmp_path):
    train = write_csv(tmp_path / "a.csv", rows(20, ("spam", "ham")))
    test = write_csv(tmp_path / "b.csv", rows(4, ("spam", "hamm")))
    with pytest.raises(DataError, match=r"b\.csv, row 1 \(line 3\): 'hamm' is neither .* Did you mean 'ham'"):
        Task.from_files("t", train, test)


@pytest.mark.parametrize("value", ["1.5", "--1", "²", "nan", "01"])
def test_what_is_no_whole_number_is_no_class_index(tmp_path, value):
    file = write_csv(tmp_path / "a.csv", rows(3, (value,)))
    with pytest.raises(DataError, match=r"row 0 \(line 2\): .* is neither a class index nor a class"):
        Task.from_files("t", *twice(file), label_names=["no", "yes"])


def test_an_index_beyond_the_classes_is_an_error(tmp_path):
    file = write_csv(tmp_path / "a.csv", rows(20, ("0", "2")))
    with pytest.raises(DataError, match=r"label 2 lies outside 0\.\.1"):
        Task.from_files("t", *twice(file), label_names=["no", "yes"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('text,label\n"two\nlines",1\nonly one field\n', "line 4: 1 fields, the header has 2"),
        ("text,label\na,b,1\n", "line 2: 3 fields"),
        ('text,label\n"never closed,1\na,0\n', "cannot be read as CSV"),
        ("", "is empty: it needs a column 'text'"),
        ("text,label\n", "no rows in its train split"),
    ],
    ids=[
        "too few fields after a field of two lines",
        "too many fields",
        "open quote",
        "no header",
        "no rows",
    ],
)
def test_a_malformed_csv_is_named_by_line(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        Task.from_files("t", *twice(tmp_path / "a.csv"), label_names=["no", "yes"])


def test_the_mark_that_spreadsheets_write_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\na,0\nb,1\n")
    assert Task.from_files("t", *twice(tmp_path / "a.csv")).split("test").inputs == ["a", "b"]


def damaged_gzip():
    whole = gzip.compress(("text,label\n" + "abc,1\n" * 500).encode(), mtime=0)
    return {
        "cut": whole[:-12],
        "flipped": whole[:14] + b"\xff\xff\xff" + whole[17:],
        "none": b"text,label\na,1\n",
    }


@pytest.mark.parametrize("damage", ["cut", "flipped", "none"])
def test_a_damaged_gzip_is_named(tmp_path, damage):
    (tmp_path / "a.csv.gz").write_bytes(damaged_gzip()[damage])
    with pytest.raises(DataError, match=r"a\.csv\.gz cannot be read as CSV"):
        Task.from_files("t", *twice(tmp_path / "a.csv.gz"))


def test_damaged_or_incomplete_parquet_and_missing_files_are_named(tmp_path):
    good = write_csv(tmp_path / "good.csv", rows(20))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    write_parquet(tmp_path / "hole.parquet", [{"text": "a", "label": 0}, {"text": None, "label": 1}])
    for name, said in [
        ("bad.parquet", "cannot be read as parquet"),
        ("hole.parquet", "row 1 is a row without a text; the test split has 1 row without a text"),
        ("nowhere.csv", "does not exist"),
    ]:
        with pytest.raises(DataError, match=said):
            Task.from_files("t", good, tmp_path / name)


# -- the validation split ------------------------------------------------------------------------------------


@pytest.mark.thinned(4)
@pytest.mark.parametrize(("train", "held"), [(2, 1), (19, 1), (200, 20), (60000, 5000)])
def test_validation_is_a_tenth_of_train_and_at_most_5000(tmp_path, train, held):
    files = [write_csv(tmp_path / f"{i}.csv", rows(n)) for i, n in enumerate((train, 4))]
    first, second = (Task.from_files("t", *files) for _ in range(2))
    assert (len(first.split("train")), len(first.split("validation"))) == (train - held, held)
    together = [*first.split("train").inputs, *first.split("validation").inputs]
    assert sorted(together) == sorted(row["text"] for row in rows(train))
    assert first.checksum() == second.checksum()
