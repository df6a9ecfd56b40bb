"""Tables as people and programs write them: encodings, delimiters, quotes, long fields, blank lines, JSON, parquet."""

import csv
import gzip
import json
import re

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from tauspan.core.errors import DataError, UsageError
from tauspan.tasks import Task
from tauspan.tasks.tables import Dialect
from tauspan.tasks.unlabelled import rows_of

ROWS = [(f"caf\u00e9 {i}, \u201cgood\u201d; a|b\tc", "yes" if i % 2 else "no") for i in range(30)]
PLAIN = [(f"caf\u00e9 {i}", "yes" if i % 2 else "no") for i in range(30)]


def content(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\n"):
    import io

    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(
        [("text", "label"), *rows]
    )
    return buffer.getvalue()


def one(file, **options):
    """A task of one file."""
    return Task.from_files("t", file, **options)


def texts(task):
    return sorted(text for split in task.splits.values() for text in split.inputs)


def write(tmp_path, text, name="a.csv", encoding="utf-8"):
    data = text.encode(encoding) if isinstance(text, str) else text
    file = tmp_path / name
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_delimiters_and_line_ends_are_found_out(tmp_path, encoding, delimiter, end):
    task = one(write(tmp_path, content(ROWS, delimiter, end=end), encoding=encoding))
    assert texts(task) == sorted(text for text, _ in ROWS)
    assert task.label_names == ["no", "yes"]


@pytest.mark.parametrize("name", ["a.tsv", "a.tab", "a.tsv.gz", "a.txt", "a.data", "A.CSV"])
def test_names_of_files_of_tabs(tmp_path, name):
    assert texts(one(write(tmp_path, content(ROWS, "\t"), name))) == sorted(text for text, _ in ROWS)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "gb18030", "shift_jis"])
def test_another_encoding_is_named_and_read_where_it_is_given(tmp_path, encoding):
    rows = (
        PLAIN
        if encoding != "shift_jis"
        else [(text.replace("\u00e9", "\u3042"), label) for text, label in PLAIN]
    )
    file = write(tmp_path, content(rows), encoding=encoding)
    hint = "utf-16-le" if encoding == "utf-16-le" else "cp1252"
    with pytest.raises(
        DataError, match=rf"a\.csv cannot be read as CSV: .*(line 2|first line).*encoding=\"{hint}\""
    ):
        one(file)
    assert texts(one(file, encoding=encoding)) == sorted(text for text, _ in rows)


def test_an_encoding_that_does_not_exist_is_an_option_error(tmp_path):
    with pytest.raises(UsageError, match="encoding='utf-9'"):
        one(write(tmp_path, content(PLAIN)), encoding="utf-9")


def test_a_delimiter_of_ones_own(tmp_path):
    file = write(tmp_path, content(PLAIN, "^"))
    with pytest.raises(DataError, match=r"pass delimiter='\^'"):
        one(file)
    assert len(texts(one(file, delimiter="^"))) == 30
    with pytest.raises(UsageError, match="one character"):
        one(file, delimiter="::")


BACKSLASHED = 'text,label\n"he said \\"hi\\", twice",0\nb,1\nc,0\n"a \\"b\\"",1\nd,0\n'


@pytest.mark.parametrize(
    ("text", "line", "options", "first"),
    [
        (BACKSLASHED, 2, {"quotes": "escaped"}, 'a "b"'),
        ("text,label\na,0\nb,1\nc,0\nx,1\n" + '"a "b" c",0\n', 6, {"quotes": "none"}, '"a "b" c"'),
        ('text\tlabel\na\t0\n"b" it was\t1\nc\t0\nd\t1\n', 3, {"quotes": "none"}, '"b" it was'),
        ('text,label\na,0\nb,1\n"never closed,1\nc,0\n', 4, {"quotes": "none"}, '"never closed'),
    ],
    ids=["backslashes", "quotes inside", "tabs with plain quotes", "never closed"],
)
def test_quotes_of_other_kinds_are_told_with_their_line_and_can_be_read(tmp_path, text, line, options, first):
    file = write(tmp_path, text)
    with pytest.raises(
        DataError, match=rf"record that begins at line {line}, .*quotes=\"{options['quotes']}\""
    ):
        one(file)
    assert texts(one(file, **options))[0] == first


@pytest.mark.parametrize("line", ["sep=;\n", '"sep=;"\r\n'])
def test_the_line_in_which_excel_says_the_delimiter(tmp_path, line):
    assert texts(one(write(tmp_path, line + content(PLAIN, ";")))) == sorted(text for text, _ in PLAIN)
    with pytest.raises(DataError, match="line 4: 1 fields"):
        one(write(tmp_path, line + "text;label\na;0\nb\n"))


def test_an_unknown_kind_of_quotes_is_an_option_error(tmp_path):
    with pytest.raises(UsageError, match=r"quotes='escape'\. Did you mean 'escaped'"):
        one(write(tmp_path, content(PLAIN)), quotes="escape")


def test_fields_are_as_long_as_they_are_and_the_limit_of_others_stays(tmp_path):
    before = csv.field_size_limit()
    long = "word " * 60_000
    assert texts(one(write(tmp_path, content([*PLAIN, (long, "no")]))))[-1] == long
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("blank", ["\n", "\n\n\n", "   \n", "\t\n"])
def test_blank_lines_are_no_rows(tmp_path, blank):
    text = blank + "text,label\n" + blank + "a,0\n" + blank + '"b\n\nb",1\nc,0\n' + blank
    task = one(write(tmp_path, text))
    assert texts(task) == ["a", "b\n\nb", "c"]
    with pytest.raises(DataError, match=r"line 4: 1 fields"):
        one(write(tmp_path, "\ntext,label\na,0\nb\n"))


def test_rows_of_empty_fields_are_refused_or_left_out_and_counted(tmp_path):
    file = write(tmp_path, content(PLAIN) + ",\n,\n")
    with pytest.raises(
        DataError, match=r"row 30 \(line 32\) is a row without a label; .* 2 rows without a label"
    ):
        one(file)
    with pytest.warns(UserWarning, match="train: 2 without a label"):
        assert len(texts(one(file, clean=True))) == 30


@pytest.mark.parametrize("empty", ["", "   ", "\u00a0"])
def test_empty_texts_are_refused_or_left_out_and_counted(tmp_path, empty):
    file = write(tmp_path, content([*PLAIN, (empty, "no"), (empty, "yes")]))
    with pytest.raises(
        DataError, match=r"row 30 \(line 32\) is a row without a text; .* 2 rows without a text.*clean=True"
    ):
        one(file)
    with pytest.warns(UserWarning, match="leaves out train: 2 without a text"):
        task = one(file, clean=True)
    assert task.extra["left_out"] == {"train": {"without a text": 2}}


def test_columns_that_stand_twice(tmp_path):
    file = write(tmp_path, "text,label,label,other,other\na,0,1,x,y\nb,1,0,x,y\n")
    with pytest.raises(DataError, match=r"a\.csv has 2 columns called 'label'"):
        one(file)
    renamed = write(tmp_path, "text,label,note,note\na,0,x,y\nb,1,x,y\nc,1,x,y\n")
    assert one(renamed).label_names == ["0", "1"]
    twice = write(tmp_path, '{"text": "a", "label": 0, "label": 1}\n', "a.jsonl")
    with pytest.raises(DataError, match=r"line 1: the key 'label' stands twice"):
        one(twice)


def test_a_header_with_spaces_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no column 'label'; it has text,  label\. Did you mean ' label'"):
        one(write(tmp_path, "text, label\na, 0\nb, 1\n"))


@pytest.mark.parametrize("suffix", ["xlsx", "zip", "bz2", "arrow", "pkl"])
def test_files_of_other_kinds_say_what_to_do(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"a\.{suffix} is (a|an|compressed)"):
        one(write(tmp_path, b"PK\x03\x04", f"a.{suffix}"))


# -- JSON ----------------------------------------------------------------------------------------------------


def test_forms_of_json_are_one_task(tmp_path):
    rows = [{"text": text, "label": label} for text, label in PLAIN]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    columns = {key: [row[key] for row in rows] for key in ("text", "label")}
    numbered = {key: dict(enumerate(values)) for key, values in columns.items()}
    forms = {
        "a.jsonl": lines, "a.ndjson": lines.replace("\n", "\r\n"), "a.jsonl.gz": lines, "b.jsonl": "\n" + lines + "\n\n",
        "a.json": json.dumps(rows, indent=1), "lines.json": lines, "columns.json": json.dumps(columns),
        "pandas.json": json.dumps(numbered), "c.json.gz": json.dumps(rows),
    }  # fmt: skip
    sums = {name: one(write(tmp_path, text, name)).checksum() for name, text in forms.items()}
    assert len(set(sums.values())) == 1, sums
    assert one(write(tmp_path, content(PLAIN), "z.csv")).checksum() == sums["a.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"text": "a", "label": 0}\n{"text": "b"', r"cannot be read as JSON: line 2"),
        ('{"text": "a", "label": 0}\n["b", 1]\n', r"line 2: a row is an object with keys, not list"),
        ('{"text": "a", "label": 0}\n{"text": "b"}\n', r"row 1 \(line 2\) is a row without a label"),
        ('{"text": "a", "label": 0}\n{"label": 1}\n', r"row 1 \(line 2\) is a row without a text"),
        ('{"text": ["a"], "label": 0}\n', r"row 0: the column 'text' holds a list"),
        ('{"text": "a", "y": 0}\n', "has no column 'label'; it has text, y"),
        (
            '{"text": "a \\ud83d", "label": 0}\n{"text": "b", "label": 1}\n',
            "row 0 .line 1. is a row with half a surrogate",
        ),
    ],
)
def test_damaged_json_is_named_by_line(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        one(write(tmp_path, text, "a.jsonl"))


def test_half_of_a_surrogate_pair_is_left_out_where_that_was_asked_for(tmp_path):
    lines = [{"text": "a \ud83d", "label": 0}, *({"text": f"b {i}", "label": i % 2} for i in range(9))]
    file = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "a.jsonl")
    with pytest.warns(UserWarning, match="1 with half a surrogate pair in the text"):
        task = one(file, clean=True)
    assert len(task.checksum()) == 64
    broken = (["a \udc80", "b"], [0, 1])
    with pytest.raises(DataError, match="half a surrogate pair"):
        Task.from_tensors("t", ["x", "y"], train=broken, test=broken, validation=broken)


# -- parquet -------------------------------------------------------------------------------------------------

TEXT_TYPES = {
    "string": pyarrow.array([f"{i}" for i in range(20)]),
    "large string": pyarrow.array([f"{i}" for i in range(20)], pyarrow.large_string()),
    "string view": pyarrow.array([f"{i}" for i in range(20)], pyarrow.string_view()),
    "categorical": pyarrow.array([f"{i}" for i in range(20)]).dictionary_encode(),
    "bytes": pyarrow.array([f"{i}".encode() for i in range(20)]),
    "large bytes": pyarrow.array(
        [None, *(f"{i}".encode() for i in range(1, 20))], pyarrow.large_binary()
    ).fill_null(b"0"),
    "whole numbers": pyarrow.array(range(20)),
    "small numbers": pyarrow.array(range(20), pyarrow.uint8()),
}
LABEL_TYPES = {
    "int8": pyarrow.array([0, 1] * 10, pyarrow.int8()),
    "uint64": pyarrow.array([0, 1] * 10, pyarrow.uint64()),
    "float": pyarrow.array([0.0, 1.0] * 10),
    "half": pyarrow.array(np.array([0, 1] * 10, np.float16)),
    "decimal": pyarrow.array([0, 1] * 10).cast(pyarrow.decimal128(20, 1)),
    "string": pyarrow.array(["0", "1"] * 10),
    "bytes": pyarrow.array([b"0", b"1"] * 10),
    "categorical": pyarrow.array(["0", "1"] * 10).dictionary_encode(),
}


@pytest.mark.parametrize("text", TEXT_TYPES)
@pytest.mark.parametrize("label", LABEL_TYPES)
def test_parquet_columns_of_any_type_are_one_task(tmp_path, text, label):
    table = pyarrow.table({"text": TEXT_TYPES[text], "label": LABEL_TYPES[label]})
    parquet.write_table(table, tmp_path / "a.parquet")
    plain = write(tmp_path, content([(f"{i}", str(i % 2)) for i in range(20)]))
    assert one(tmp_path / "a.parquet").checksum() == one(plain).checksum()


def test_nullable_columns_of_pandas(tmp_path):
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": pandas.array([1, None, 0], dtype="Int64")})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 1 is a row without a label"):
        one(tmp_path / "a.parquet")
    frame.fillna({"label": 1}).to_parquet(tmp_path / "a.parquet")
    assert one(tmp_path / "a.parquet").label_names == ["0", "1"]


def test_bytes_that_are_neither_text_nor_image_are_refused(tmp_path):
    table = pyarrow.table({"text": [b"first", b"\xff\xfe"] * 10, "label": [0, 1] * 10})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet: Invalid UTF8"):
        one(tmp_path / "a.parquet")


@pytest.mark.parametrize("items", [[["a", "b"], ["c"]], [{"x": 1}, {"x": 2}], [[0.5], [1.5]]])
def test_a_parquet_column_of_lists_is_no_text(tmp_path, items):
    parquet.write_table(
        pyarrow.Table.from_pylist([{"text": t, "label": i} for i, t in enumerate(items)]),
        tmp_path / "a.parquet",
    )
    with pytest.raises(DataError, match=r"row 0: the column 'text' holds a (list|dict) .* which is no text"):
        one(tmp_path / "a.parquet")


# -- several files, one file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_folder_of_shards_is_one_split(tmp_path, form):
    folder = tmp_path / "train"
    folder.mkdir()
    for part in range(3):
        frame = pandas.DataFrame(PLAIN[10 * part : 10 * part + 10], columns=["text", "label"])
        file = folder / f"part-{part}.{form}"
        if form == "csv":
            frame.to_csv(file, index=False)
        elif form == "jsonl":
            frame.to_json(file, orient="records", lines=True)
        else:
            frame.to_parquet(file)
    for other in ("_SUCCESS", ".part-0.crc", "README.md", "notes.txt"):
        (folder / other).write_text("x")
    task = one(folder)
    assert texts(task) == sorted(text for text, _ in PLAIN)
    assert task.checksum() == one(write(tmp_path, content(PLAIN))).checksum()
    (folder / "more.tsv").write_text("text\tlabel\n")
    with pytest.raises(DataError, match="tables of several forms"):
        one(folder)


def test_files_of_several_splits_are_no_shards(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, content(PLAIN), f"{split}-00000.csv")
    with pytest.raises(DataError, match=r"holds files of several splits \(test, train\)"):
        one(tmp_path)


@pytest.mark.parametrize("same", ["path", "another spelling", "a link"])
def test_one_file_for_two_splits_is_warned_about(tmp_path, same):
    file = write(tmp_path, content(PLAIN))
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.csv").symlink_to(file)
    other = {
        "path": file,
        "another spelling": tmp_path / "deep" / ".." / "a.csv",
        "a link": tmp_path / "link.csv",
    }[same]
    with pytest.warns(
        UserWarning, match=r"reads .* as train and as test: both have the same rows.*Leave `test` out"
    ):
        Task.from_files("t", file, other)


def test_one_file_alone_gives_its_test_rows(tmp_path):
    file = write(tmp_path, content(ROWS))
    task = one(file)
    assert repr(task) == "Task('t', 2 classes, train 22, validation 2, test 6)"
    assert (task.extra["test"], task.extra["validation"]) == ("held out of train", "held out of train")
    assert texts(task) == sorted(text for text, _ in ROWS)
    assert task.checksum() == one(file).checksum() != one(file, seed=1).checksum()


def test_a_column_can_say_the_splits(tmp_path):
    words = ["train", "train", "test", "dev"] * 5
    rows = [f"{text},{label},{word}" for (text, label), word in zip(PLAIN, words, strict=False)]
    file = write(tmp_path, "text,label,part\n" + "\n".join(rows))
    task = one(file, split="part")
    assert repr(task) == "Task('t', 2 classes, train 10, validation 5, test 5)"
    assert task.split("test").inputs == [
        text for (text, _), word in zip(PLAIN, words, strict=False) if word == "test"
    ]
    with pytest.raises(UsageError, match="says which split a row belongs to, and so does the file for test"):
        Task.from_files("t", file, file, split="part")
    with pytest.raises(DataError, match="says 'dve', and the splits are train, validation, test"):
        one(write(tmp_path, file.read_text().replace("dev", "dve")), split="part")


def test_a_split_prints_one_line(tmp_path):
    task = one(write(tmp_path, content(PLAIN)))
    assert repr(task.split("test")) == "Split(6 rows; rows of each class: 0: 3, 1: 3)"
    assert len(repr(task.splits)) < 400


# -- what cannot be read says how it can be ------------------------------------------------------------------


def test_a_first_line_that_is_a_row_is_shown(tmp_path):
    (tmp_path / "a.csv").write_text("".join(f"row {i},{i % 2}\n" for i in range(12)))
    with pytest.raises(DataError, match=r"its first line is 'row 0,0'.*text,label"):
        one(tmp_path / "a.csv")


@pytest.mark.parametrize("counts", [(24, 23), (23, 24)])
def test_npz_with_other_numbers_of_images_and_labels_is_refused(tmp_path, counts):
    images, labels = np.zeros((counts[0], 4, 4), np.uint8), np.arange(counts[1]) % 2
    np.savez(tmp_path / "a.npz", image=images, label=labels)
    with pytest.raises(DataError, match=f"{counts[0]} images and {counts[1]} labels"):
        Task.from_files("t", tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({f"t{i}" for i in range(12)}, "are a set .* in order"),
        (pandas.DataFrame({"a": ["x"] * 12, "b": ["y"] * 12}), "a data frame with the columns a, b"),
    ],
)
def test_inputs_without_one_entry_for_each_row_are_refused(inputs, said):
    with pytest.raises(DataError, match=said):
        Task.from_tensors("t", ["a", "b"], train=(inputs, [i % 2 for i in range(12)]))


def test_an_infinite_label_is_no_class(tmp_path):
    rows = "".join(f'{{"text": "a{i}", "label": {("1", "1e400")[i % 2]}}}\n' for i in range(12))
    (tmp_path / "a.jsonl").write_text(rows)
    with pytest.raises(DataError, match="infinite, and no class"):
        one(tmp_path / "a.jsonl")


# -- rows for predictions are read in the same way -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "one\u2028still one\ntwo\x0cstill two\n", ["one\u2028still one", "two\x0cstill two"]),
        ("a.jsonl", '{"text": "one\u2028x"}\n\n"two"\n', ["one\u2028x", "two"]),
        ("a.csv", "label;text\n1;a\n2;b\n", ["a", "b"]),
        ("a.tsv", "text\tlabel\na, b\t1\n", ["a, b"]),
    ],
)
def test_rows_for_predictions_end_where_those_of_tasks_do(tmp_path, name, content, wanted):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert rows_of(tmp_path / name)[1] == wanted


@pytest.mark.parametrize(
    "content", ["text,b\nx\n", "text,b\nx,1,2\n", "text,text\na,b\n", 'text,b\n"abc,1\n']
)
def test_rows_for_predictions_are_refused_where_those_of_tasks_are(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError):
        rows_of(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "options", "wanted"),
    [
        ("a.csv", "text\né\n".encode("latin-1"), {"encoding": "latin-1"}, ["é"]),
        ("a.txt", "é\n".encode("utf-16"), {}, ["é"]),
        ("a.csv", b"text^label\na^1\n", {"delimiter": "^"}, ["a"]),
        ("a.csv", b'text,x\n"a \\" b",1\n', {"quotes": "escaped"}, ['a " b']),
        ("a.jsonl", b'{"text": 5}\n{"text": true}\n', {}, ["5", "True"]),
        ("a.json", b'[{"text": "a"}, "b"]', {}, ["a", "b"]),
        ("a.csv.gz", b"text\na\n", {}, ["a"]),
    ],
)
def test_rows_for_predictions_are_read_by_the_reader_of_tasks(tmp_path, name, content, options, wanted):
    assert rows_of(write(tmp_path, content, name), dialect=Dialect(**options))[1] == wanted


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text\né\n".encode("latin-1"), "--encoding cp1252"),
        ("a.csv", b"text^label\na^1\n", "--delimiter '\\^'"),
        ("a.csv", b'text,x\n"a \\" b",1\n', "--quotes escaped"),
        ("a.csv", b"5,6\n7,8\n", r"columns are meant \(text=...; --text\)"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "line 1, is a row with half a surrogate pair"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "cannot be read as JSON: line 1"),
        ("a.jsonl", b'{"text": "abc", "text": "xyz"}\n', "the key 'text' stands twice"),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', "cannot be read as JSON: line 1"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": " "}\n',
            "line 2, is a row without a text; .* 1 row .*--clean",
        ),
        ("a.jsonl", b'{"text": ["a"]}\n', "holds a list"),
        ("a.csv", b"text,b\na,1\n,2\n ,3\n", "line 3, is a row without a text; the file has 2 rows"),
    ],
)
def test_rows_for_predictions_are_refused_with_options_that_predict_has(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        rows_of(write(tmp_path, content, name))
    options = {line.split()[0] for line in re.findall(r"--\w+", said)}
    assert options <= set(_predict_options())


def _predict_options():
    from tauspan.cli.main import parser

    verbs = next(action for action in parser()._actions if action.dest == "verb" or action.choices)
    return verbs.choices["predict"]._option_string_actions


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", b"text,b\na,1\n,2\n ,3\nb,4\n", ["1", "4"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": null}\n{"text": "\\ud83d"}\n"b"\n', ["1", "4"]),
    ],
)
def test_rows_without_a_text_are_left_out_of_predictions_when_asked(tmp_path, name, content, rows):
    with pytest.warns(UserWarning, match="left out"):
        assert rows_of(write(tmp_path, content, name), clean=True) == (rows, ["a", "b"])


@pytest.mark.parametrize(("delimiter", "named"), [(" ", "' '"), ("_", "'_'")])
def test_a_space_or_a_line_between_columns_is_named(tmp_path, delimiter, named):
    file = write(tmp_path, content([(f"a{i}", "xy"[i % 2]) for i in range(20)], delimiter))
    with pytest.raises(DataError, match=f"pass delimiter={named}"):
        one(file)
    assert one(file, delimiter=delimiter).label_names == ["x", "y"]


@pytest.mark.parametrize("label", ["inf", "-inf", "Infinity", "+INF"])
def test_an_infinite_label_among_numbers_is_no_class_in_csv_either(tmp_path, label):
    file = write(tmp_path, content([(f"a{i}", (label, "1", "0")[i % 3]) for i in range(30)]))
    with pytest.raises(DataError, match="infinite, and no class"):
        one(file)
    assert one(file, label_names=["0", "1", label]).label_names[2] == label
    words = write(tmp_path, content([(f"a{i}", (label, "sup")[i % 2]) for i in range(30)]))
    assert set(one(words).label_names) == {label, "sup"}


@pytest.mark.parametrize("label", ["-nan", "+NaN", "nan"])
def test_a_label_that_is_no_number_among_numbers_is_none(tmp_path, label):
    file = write(tmp_path, content([(f"a{i}", (label, "1", "0")[i % 3]) for i in range(30)]))
    with pytest.raises(DataError, match="without a label"):
        one(file)
