"""Opening data sets: folders in each layout, the hub, class names, laziness, and hostile files."""

import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.imagesets import (
    CLASSES,
    encoded,
    picture,
    rows,
    table,
    write_card,
    write_folder,
    write_npz,
    write_parquet,
)
from tauspan.core.errors import DataError, RecipeError
from tauspan.tasks import SPLITS, images
from tauspan.tasks.data import DataSet, open_task
from tauspan.tasks.data.catalog import Columns, Hub, Sizes, Splits
from tauspan.tasks.data.classes import aligned
from tauspan.tasks.data.suite import find_task
from tauspan.tasks.split import permutation


def toy(name="toy", **changes):
    facts = {
        "title": "Toy", "hub": Hub("org/toy"), "class_count": 3, "templates": ("a photo of a {}.",), "source": "here",
        "licence": "MIT", "sizes": Sizes(22, 2, 9), "download_gb": 0.0, "classes": ("sea", "red fox", "polka dotted"),
    }  # fmt: skip
    return DataSet(name, **(facts | changes))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def lay_out(root, layout, splits=("train", "test")):
    """The same rows in one of the layouts."""
    folder = root / "toy"
    for split in splits:
        if layout == "image folders":
            write_folder(folder / split, rows(split))
        elif layout == "hub files":
            write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows(split))
        elif layout == "parquet":
            write_parquet(folder / f"{split}.parquet", rows(split))
        elif layout == "folders of parquet":
            write_parquet(folder / split / "0000.parquet", rows(split))
        else:
            write_npz(folder / f"{split}.npz", rows(split))
    return root


def pixels(task, split):
    """Rows by content: pixels with the class's name."""
    found = task.split(split)
    return sorted(
        (np.asarray(item).tobytes(), task.label_names[label])
        for item, label in zip(found.inputs, found.labels.tolist(), strict=True)
    )


# -- layouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["image folders", "hub files", "parquet", "folders of parquet"])
def test_every_layout_gives_the_same_rows_under_the_published_classes(root, layout):
    task = open_task(toy(), lay_out(root, layout))
    assert repr(task) == "Task('toy', 3 classes, train 22, validation 2, test 9)"
    assert (task.label_names, list(task.templates)) == (
        ["sea", "red fox", "polka dotted"],
        ["a photo of a {}."],
    )
    expected = sorted(
        (np.asarray(picture(2000 + row)).tobytes(), ("red fox", "polka dotted", "sea")[row % 3])
        for row in range(9)
    )
    assert pixels(task, "test") == expected
    assert len(pixels(task, "train") + pixels(task, "validation")) == len(set(pixels(task, "train"))) + 2


def test_npz_files_hold_numbers_in_the_order_of_the_class_list(root):
    task = open_task(toy(), lay_out(root, "npz"))
    assert task.split("test").labels.tolist() == [0, 1, 2] * 3


def test_a_card_directory_is_read_under_the_published_classes(root):
    task = open_task(toy(), write_card(root / "toy").parent)
    assert task.label_names == ["sea", "red fox", "polka dotted"]
    assert task.split("test").labels[:3].tolist() == [1, 2, 0]
    assert task.extra["validation"] == "own"


def test_validation_is_held_out_by_the_seed_and_by_the_same_rule_as_elsewhere(root):
    lay_out(root, "parquet")
    task = open_task(toy(), root, seed=3)
    order = permutation(24, "3/validation")
    labels = torch.tensor([1, 2, 0] * 8)
    assert task.split("validation").labels.tolist() == labels[order[:2]].tolist()
    assert task.split("train").labels.tolist() == labels[order[2:]].tolist()
    assert (task.extra["validation"], task.extra["seed"]) == ("held out of train", 3)
    assert open_task(toy(), root).checksum() != task.checksum() == open_task(toy(), root, seed=3).checksum()


def test_a_validation_split_of_the_data_s_own_is_used(root):
    task = open_task(toy(), lay_out(root, "image folders", SPLITS))
    assert repr(task) == "Task('toy', 3 classes, train 24, validation 6, test 9)"
    assert task.extra["validation"] == "own"


def test_other_columns_and_numbers_as_labels(root):
    for split in ("train", "test"):
        write_parquet(root / "toy" / f"{split}.parquet", rows(split), None, image="jpg", label="cls")
    task = open_task(toy(columns=Columns("jpg", "cls")), root)
    assert task.split("test").labels.tolist() == [0, 1, 2] * 3
    with pytest.raises(DataError, match=r"has no column 'image'; it has jpg, cls\."):
        open_task(toy(), root)


def test_texts_as_labels_are_class_names(root):
    for split in ("train", "test"):
        found = [{"image": {"bytes": data}, "label": CLASSES[label]} for data, label in rows(split)]
        (root / "toy").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(found).to_parquet(root / "toy" / f"{split}.parquet")
    assert open_task(toy(), root).split("test").labels.tolist() == [1, 2, 0] * 3


# -- what is missing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["image folders", "hub files", "parquet", "npz"])
@pytest.mark.parametrize("left", ["train", "test"])
def test_a_missing_split_is_named_with_what_is_there(root, layout, left):
    lay_out(root, layout, (left,))
    lacking = {"train": "test", "test": "train"}[left]
    with pytest.raises(
        DataError, match=rf"'toy' has no {lacking} split in .*'{lacking}' is not there.*{left}"
    ):
        open_task(toy(), root)


def test_a_validation_split_that_the_set_asks_for_must_be_there(root):
    lay_out(root, "image folders")
    with pytest.raises(DataError, match="'toy' has no validation split"):
        open_task(toy(splits=Splits(validation="validation")), root)


def test_a_missing_folder_is_named_with_the_nearest(root):
    (root / "toys").mkdir(parents=True)
    with pytest.raises(DataError, match=r"has no folder 'toy'\. Did you mean 'toys'"):
        open_task(toy(), root)
    with pytest.raises(DataError, match="there is no folder"):
        open_task(toy(), root / "nowhere")
    with pytest.raises(DataError, match=r"no data set 'mnits'\. Did you mean 'mnist'"):
        open_task("mnits", root)
    with pytest.raises(DataError, match=r"no task 'mnits'.*Did you mean 'mnist'"):
        find_task("mnits", root)


def test_splits_in_different_forms_are_refused(root):
    lay_out(root, "image folders", ("train",))
    lay_out(root, "npz", ("test",))
    with pytest.raises(DataError, match=r"in different forms \(train: images, test: \.npz\)"):
        open_task(toy(), root)


# -- class names ---------------------------------------------------------------------------------------------


def test_another_number_of_classes_says_which_are_missing(root):
    for split in ("train", "test"):
        write_folder(root / "toy" / split, rows(split, 2), ("sea", "Red Fox"))
    with pytest.raises(DataError, match=r"has 2 classes, and 'toy' has 3: missing polka dotted\..*set\.yaml"):
        open_task(toy(), root)


def test_a_class_of_another_name_gets_the_nearest_and_a_rename_repairs_it(root):
    for split in ("train", "test"):
        write_folder(root / "toy" / split, rows(split), ("fox", "polka-dotted", "sea"))
    with pytest.raises(DataError, match=r"has a class 'fox', which 'toy' has not\. Did you mean 'red fox'"):
        open_task(toy(), root)
    assert open_task(toy(rename={"FOX": "red fox"}), root).label_names == ["sea", "red fox", "polka dotted"]


def test_a_class_list_that_numbers_do_not_fill_is_refused(root):
    for split in ("train", "test"):
        write_npz(root / "toy" / f"{split}.npz", rows(split, 2))
    with pytest.raises(DataError, match=r"1 of 3 classes have no training row: polka dotted"):
        open_task(toy(), root)
    for split in ("train", "test"):
        write_npz(root / "toy" / f"{split}.npz", rows(split, 4))
    with pytest.raises(DataError, match=r"train\.npz, row 3: .* label 3 lies outside 0\.\.2"):
        open_task(toy(), root)


def test_splits_with_other_class_names_are_refused(root):
    write_parquet(root / "toy" / "train.parquet", rows("train"))
    write_parquet(root / "toy" / "test.parquet", rows("test"), CLASSES[::-1])
    with pytest.raises(DataError, match="the test split has other class names than train"):
        open_task(toy(), root)


@pytest.mark.parametrize(
    ("own", "places"),
    [
        (
            ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"],
            [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9],
        ),
        (
            ["1", "10", "11", "12", "2", "3", "4", "5", "6", "7", "8", "9"],
            [0, 9, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8],
        ),
        ([f"{n:05}" for n in range(12)], list(range(12))),
        ([f"Class_{letter}" for letter in "lkjihgfedcba"], list(range(11, -1, -1))),
    ],
)
def test_numbers_and_spellings_find_their_place(own, places):
    wanted = tuple(f"class-{letter}" for letter in "abcdefghijkl")
    assert aligned(toy(classes=wanted, class_count=12), own, "here") == (list(wanted), places)


def test_digits_are_names_and_not_places():
    reversed_digits = tuple("9876543210")
    found = aligned(toy(classes=reversed_digits, class_count=10), list("0123456789"), "here")
    assert found == (list(reversed_digits), list(range(9, -1, -1)))


def test_numbers_with_a_gap_are_no_places():
    with pytest.raises(DataError, match="has a class '0', which 'toy' has not"):
        aligned(toy(), ["0", "1", "7"], "here")


def test_two_spellings_of_one_class_are_refused():
    with pytest.raises(DataError, match=r"'red fox' and 'Red_Fox' are both 'red fox'"):
        aligned(toy(), ["red fox", "Red_Fox", "sea"], "here")


def test_without_a_class_list_the_data_s_own_names_are_taken():
    bare = toy(classes=None, rename={"polka-dotted": "dotted"})
    assert aligned(bare, ["red_fox", "polka-dotted", "sea"], "here") == (
        ["red fox", "dotted", "sea"],
        [0, 1, 2],
    )
    with pytest.raises(DataError, match="numbers as labels and no class names"):
        aligned(bare, None, "here")


def test_names_that_go_by_order_are_only_counted():
    assert aligned(toy(match="order"), ["n1", "n2", "n3"], "here") == (
        ["sea", "red fox", "polka dotted"],
        [0, 1, 2],
    )
    with pytest.raises(DataError, match="has 2 classes"):
        aligned(toy(match="order"), ["n1", "n2"], "here")


# -- a description beside the data ---------------------------------------------------------------------------

OVERRIDE = """
name: {name}
title: a toy
hub: {{id: org/toy}}
class_count: 3
classes: [a, b, c]
templates: ["{{}}."]
source: here
licence: MIT
sizes: {{train: 1, validation: 1, test: 1}}
download_gb: 0
splits: {{train: {train}}}
match: order
"""


def test_a_description_beside_the_data_stands_for_the_packaged_one(root):
    lay_out(root, "image folders")
    (root / "toy").rename(root / "mnist")
    with pytest.raises(DataError, match="has 3 classes, and 'mnist' has 10"):
        open_task("mnist", root)
    (root / "mnist" / "set.yaml").write_text(OVERRIDE.format(name="mnist", train="train"))
    assert find_task("mnist", root).label_names == ["a", "b", "c"]
    (root / "mnist" / "set.yaml").write_text(OVERRIDE.format(name="svhn", train="train"))
    with pytest.raises(DataError, match=r"set\.yaml describes 'svhn', and 'mnist' was asked for"):
        open_task("mnist", root)
    (root / "mnist" / "set.yaml").write_text(OVERRIDE.format(name="mnist", train="../elsewhere"))
    with pytest.raises(RecipeError, match=r"set\.yaml, line 12: splits\.train is '\.\./elsewhere'"):
        open_task("mnist", root)


# -- the hub -------------------------------------------------------------------------------------------------


def test_the_hub_s_splits_go_by_its_own_names(monkeypatch):
    found = datasets.DatasetDict({split: table(rows(split)) for split in ("train", "validation")})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or found)
    task = open_task(toy(hub=Hub("org/toy", "small", "abc", Splits(test="validation"))))
    assert asked == [(("org/toy", "small"), {"revision": "abc"})]
    assert repr(task) == "Task('toy', 3 classes, train 22, validation 2, test 6)"
    with pytest.raises(
        DataError, match=r"'toy' has no test split in org/toy: 'test' .* has: train, validation"
    ):
        open_task(toy())


def test_without_the_hub_the_way_out_is_named():
    with pytest.raises(
        DataError, match=r"'cars' could not be loaded from the hub .*cars/train and cars/test"
    ):
        open_task("cars")


# -- laziness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["image folders", "parquet"])
def test_nothing_is_decoded_before_it_is_looked_at(root, layout, monkeypatch):
    lay_out(root, layout)
    seen = []
    decode = images.decoded
    monkeypatch.setattr(images, "decoded", lambda data, name: seen.append(name) or decode(data, name))
    task = open_task(toy(), root)
    smaller = task.subset(train=4, test=2)
    assert task.checksum() != smaller.checksum()
    part = smaller.split("train").take([2, 0])
    assert seen == []
    assert part.inputs[1:][0].shape == (16, 16, 3)
    assert len(seen) == 1
    assert np.array_equal(part.inputs[0], smaller.split("train").inputs[2])
    assert len(list(part.inputs)) == 2
    with pytest.raises(IndexError):
        part.inputs[2]


# -- hostile files -------------------------------------------------------------------------------------------


def bomb(side):
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


HOSTILE = {
    "text": (b"not an image", "cannot be read as an image"),
    "nothing": (b"", "cannot be read as an image"),
    "cut": (encoded(picture(1))[:60], "cannot be read as an image"),
    "bomb": (bomb(60_000), "cannot be read as an image: .*decompression bomb"),
    "small bomb": (bomb(10_000), "decompression bomb"),
    "other format": (encoded(picture(1), "PCX"), "cannot be read as an image"),
    "16 bit": (encoded(Image.fromarray(np.full((4, 4), 999, dtype=np.uint16))), "pixels of mode 'I;16'"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as it is outside of tests
@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("layout", ["image folders", "parquet"])
def test_bytes_that_are_no_image_are_named(root, layout, what):
    data, message = HOSTILE[what]
    found = [*rows("test"), (data, 0)]
    if layout == "parquet":
        write_parquet(root / "toy" / "train.parquet", rows("train"))
        write_parquet(root / "toy" / "test.parquet", found)
        name = r"toy:test, row 9"
    else:
        write_folder(root / "toy" / "train", rows("train"))
        write_folder(root / "toy" / "test", found)
        name = r"red fox/0009\.png"
    task = open_task(toy(), root)
    with pytest.raises(DataError, match=f"{name}.*{message}"):
        list(task.split("test").inputs)


def test_a_cell_with_a_path_alone_is_never_followed(root, tmp_path):
    (tmp_path / "secret.png").write_bytes(encoded(picture(1)))
    for split in ("train", "test"):
        cells = [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 3
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        made = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 2]}, features=features)
        (root / "toy").mkdir(parents=True, exist_ok=True)
        made.with_format(None).cast_column("image", datasets.Image(decode=False)).to_parquet(
            root / "toy" / f"{split}.parquet", storage_options=None
        )
    with pytest.raises(DataError, match=r"test, row 0: 'image' holds no encoded image"):
        open_task(toy(), root).split("test").inputs[0]


def test_damaged_tables_are_named(root):
    write_parquet(root / "toy" / "train.parquet", rows("train"))
    (root / "toy" / "test.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"test\.parquet cannot be read as parquet"):
        open_task(toy(), root)
    datasets.Dataset.from_dict({}).to_parquet(root / "toy" / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet cannot be read as parquet"):
        open_task(toy(), root)
    datasets.Dataset.from_dict({"label": [0]}).to_parquet(root / "toy" / "test.parquet")
    with pytest.raises(DataError, match=r"toy:test has no column 'image'; it has label"):
        open_task(toy(), root)


@pytest.mark.parametrize("value", [None, 0.5])
def test_a_label_that_is_none_names_its_row(root, value):
    write_parquet(root / "toy" / "train.parquet", rows("train"), None)
    found = {"image": [{"bytes": data} for data, _ in rows("test")], "label": [0.0] * 8 + [value]}
    datasets.Dataset.from_dict(found).to_parquet(root / "toy" / "test.parquet")
    with pytest.raises(DataError, match=r"toy:test, row 0: the label 0\.0 is no class"):
        open_task(toy(), root)


@pytest.mark.parametrize("what", ["image", "class", "split"])
def test_links_that_lead_out_of_the_folder_are_refused(root, tmp_path, what):
    lay_out(root, "image folders")
    outside = tmp_path / "outside"
    write_folder(outside, rows("test"))
    test = root / "toy" / "test"
    if what == "image":
        (test / "sea" / "link.png").symlink_to(outside / "sea" / "0002.png")
    else:
        target = test if what == "split" else test / "sea"
        for file in sorted(target.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        target.rmdir()
        target.symlink_to(outside if what == "split" else outside / "sea")
    with pytest.raises(DataError, match=r"leads out of .*outside"):
        open_task(toy(), root)


def test_a_data_set_may_be_a_link_itself(root, tmp_path):
    lay_out(root, "image folders")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "toy").symlink_to(root / "toy")
    assert len(open_task(toy(), tmp_path / "links").split("test").inputs[0]) == 16
