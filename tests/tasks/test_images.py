"""Images: one picture by every door, hidden and nested folders, odd names."""

import io
import os
import sys

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from helpers.imagesets import encoded, picture
from tauspan.core.errors import DataError
from tauspan.models.inputs import Inputs
from tauspan.tasks import Task
from tauspan.tasks.images import decoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def turned(form="JPEG", orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(1), form, exif=exif)


def palette(transparent=None):
    image = picture(2).quantize(8)
    options = {} if transparent is None else {"transparency": transparent}
    return encoded(image, "PNG", **options)


def with_alpha(mode):
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))
    image = picture(3).convert("L") if mode == "LA" else picture(3)
    image.putalpha(alpha)
    return image


PICTURES = {
    "png": (encoded(picture(0)), picture(0)),
    "grey": (encoded(picture(0).convert("L")), picture(0).convert("L").convert("RGB")),
    "black and white": (encoded(picture(0).convert("1")), picture(0).convert("1").convert("RGB")),
    "palette": (palette(), picture(2).quantize(8).convert("RGB")),
    "palette, one colour transparent": (palette(3), picture(2).quantize(8).convert("RGB")),
    "palette, several transparent": (palette(b"\x00\x80\xff"), picture(2).quantize(8).convert("RGB")),
    "gif": (encoded(picture(2).quantize(8), "GIF"), picture(2).quantize(8).convert("RGB")),
    "rgba": (encoded(with_alpha("RGBA")), picture(3)),
    "grey with alpha": (encoded(with_alpha("LA")), picture(3).convert("L").convert("RGB")),
    "webp with alpha": (encoded(with_alpha("RGBA"), "WEBP", lossless=True, exact=True), picture(3)),
    "cmyk": (encoded(picture(4).convert("CMYK"), "TIFF"), picture(4).convert("CMYK").convert("RGB")),
    "turned": (turned("PNG"), picture(1).transpose(Image.Transpose.ROTATE_270)),
    "mirrored": (turned("PNG", 2), picture(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "turned tiff": (turned("TIFF", 8), picture(1).transpose(Image.Transpose.ROTATE_90)),
}


def by_files(tmp_path, data):
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for row in range(3):
            (tmp_path / "folder" / name / f"{row}.png").write_bytes(data)
    return Task.from_files("t", tmp_path / "folder")


def by_parquet(tmp_path, data):
    rows = [{"text": {"bytes": data, "path": None}, "label": row % 2} for row in range(6)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    return Task.from_files("t", tmp_path / "a.parquet")


def by_bytes(tmp_path, data):
    parquet.write_table(pyarrow.table({"text": [data] * 6, "label": [0, 1] * 3}), tmp_path / "a.parquet")
    return Task.from_files("t", tmp_path / "a.parquet")


def by_hub(tmp_path, data):
    (tmp_path / "hub").mkdir()
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    content = {"image": [{"bytes": data, "path": None}] * 6, "label": [0, 1] * 3}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(content, features=features).to_parquet(
            tmp_path / "hub" / f"{split}.parquet"
        )
    return Task.from_hub(str(tmp_path / "hub"), text="image")


def by_library(tmp_path, data):
    """A folder of images that the `datasets` library makes a table of, whose cells name the files."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for row in range(3):
                (tmp_path / "images" / split / name / f"{row}.png").write_bytes(data)
    return Task.from_hub(str(tmp_path / "images"), text="image")


DOORS = {"folder": by_files, "parquet": by_parquet, "bytes": by_bytes, "hub": by_hub}


@pytest.mark.thinned(4)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_the_same_by_every_door(tmp_path, kind, door):
    data, expected = PICTURES[kind]
    found = DOORS[door](tmp_path, data).split("test").inputs[0]
    assert (found.dtype, found.shape) == (np.uint8, (16, 16, 3))
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_pillow_become_the_same_pixels(kind):
    data, expected = PICTURES[kind]
    inputs = Inputs("image", size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    found = inputs.encode([Image.open(io.BytesIO(data)), np.asarray(expected)])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], torch.from_numpy(np.asarray(expected) / np.float32(255)).permute(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_, np.float32])
def test_pixels_of_an_unknown_scale_are_refused(dtype):
    pixels = np.full((4, 4, 3), 200).astype(dtype)
    with pytest.raises(DataError, match=r"an image has .* values.*(uint8, 0 to 255)"):
        Inputs("image", size=4).encode([pixels])


def test_a_cmyk_jpeg_has_the_colours_that_pillow_gives_it():
    data = encoded(picture(4).convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decoded(data, "x"), expected)
    assert np.abs(expected.astype(int) - np.asarray(picture(4))).mean() < 12  # not inverted


@pytest.mark.parametrize("kind", ["palette", "turned", "rgba"])
def test_a_picture_is_the_same_from_files_that_a_table_names(tmp_path, kind):
    data, expected = PICTURES[kind]
    np.testing.assert_array_equal(by_library(tmp_path, data).split("test").inputs[0], np.asarray(expected))


WIDE = {
    "16 bit": encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 200), "PNG"),
    "32 bit": encoded(Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)), "TIFF"),
    "floats": encoded(Image.fromarray(np.ones((16, 16), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", WIDE)
def test_pixels_without_a_known_scale_are_refused_by_every_door(tmp_path, kind, door):
    task = DOORS[door](tmp_path, WIDE[kind])
    with pytest.raises(
        DataError, match=r"(\.png|row \d) has pixels of mode .*; 8-bit images are read\. Convert it"
    ):
        task.split("test").inputs[0]


@pytest.mark.parametrize("where", ["a file outside", "dots", "a link"])
def test_a_path_in_a_cell_is_not_followed_out_of_its_folder(tmp_path, where):
    (tmp_path / "secret.png").write_bytes(encoded(picture(0)))
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    paths = {
        "a file outside": tmp_path / "secret.png",
        "dots": folder / ".." / "secret.png",
        "a link": folder / "link.png",
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    content = {"image": [{"bytes": None, "path": str(paths[where])}] * 4, "label": [0, 1] * 2}
    for split in ("train", "test"):
        table = datasets.Dataset.from_dict(content, features=features)
        parquet.write_table(table.data.table, folder / f"{split}.parquet")
    task = Task.from_hub(str(folder), text="image")
    with pytest.raises(DataError, match="holds no encoded image"):
        task.split("test").inputs[0]


def test_damaged_exif_data_turn_nothing():
    good = turned()
    place = good.index(b"Exif\x00\x00")
    damaged = good[: place + 6] + b"\xff" * 8 + good[place + 14 :]
    np.testing.assert_array_equal(
        decoded(damaged, "x"), np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
    )


# -- folders -------------------------------------------------------------------------------------------------


def place(folder, *names):
    """Images below a folder, each another picture."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        form = {
            "jfif": "JPEG",
            "jpg": "JPEG",
            "jpe": "JPEG",
            "jpeg": "JPEG",
            "pgm": "PPM",
            "dib": "BMP",
            "apng": "PNG",
        }
        ending = name.rpartition(".")[2].lower()
        (folder / name).write_bytes(encoded(picture(seed), form.get(ending, ending.upper())))
    return folder


HIDDEN = [".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/._0.png", ".cache/x.png", "@eaDir/thumb.png"]


@pytest.mark.parametrize("hidden", [*HIDDEN, *(f"a/{name}" for name in HIDDEN)])
def test_hidden_folders_are_no_classes_and_their_images_are_counted(tmp_path, hidden):
    folder = place(tmp_path / "x", "a/0.png", "a/1.png", "b/0.png", "b/1.png", hidden)
    for name in (".DS_Store", "a/.DS_Store", "a/Thumbs.db", "desktop.ini", "a/notes.txt"):
        (folder / name).write_bytes(b"x")
    if "._" in hidden:  # a resource fork is no image
        task = Task.from_files("t", folder)
        assert "left_out" not in task.extra
    else:
        with pytest.warns(UserWarning, match="leaves out train: 1 images in hidden folders"):
            task = Task.from_files("t", folder)
    assert task.label_names == ["a", "b"]
    assert sum(map(len, task.splits.values())) == 4


@pytest.mark.parametrize("ending", ["jfif", "JPG", "jpe", "pgm", "dib", "webp", "gif", "tiff", "apng"])
def test_image_files_of_every_ending_that_is_read(tmp_path, ending):
    task = Task.from_files("t", place(tmp_path / "x", f"a/0.{ending}", "a/1.png", f"b/2.{ending}", "b/3.png"))
    pictures = [image for split in task.splits.values() for image in split.inputs]
    assert [image.shape for image in pictures] == [(16, 16, 3)] * 4


def test_images_of_other_formats_are_counted(tmp_path):
    folder = place(tmp_path / "x", "a/0.png", "a/1.png", "b/0.png", "b/1.png")
    for name in ("a/2.heic", "b/3.avif"):
        (folder / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="train: 2 images of a format that is not read"):
        Task.from_files("t", folder)
    (folder / "c").mkdir()
    (folder / "c" / "4.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"c holds no image, so it is no class\. Remove it, or put"):
        Task.from_files("t", folder)


def test_nested_folders_belong_to_the_class_above(tmp_path):
    task = Task.from_files(
        "t", place(tmp_path / "x", "a/0.png", "a/deep/1.png", "a/deep/er/2.png", "b/3.png", "b/1/3.png")
    )
    assert task.label_names == ["a", "b"]
    assert sum(map(len, task.splits.values())) == 5


ODD = ["\u732b", "polka dots", "a,b", "caf\u00e9", "x'y", 'q"', "100%", "#1"]


def test_odd_names_of_classes_and_files(tmp_path):
    folder = place(tmp_path / "x", *(f"{name}/{name} {i}.png" for name in ODD for i in range(2)))
    assert Task.from_files("t", folder).label_names == sorted(ODD)


def test_folders_called_by_numbers_are_in_the_order_of_numbers(tmp_path):
    folder = place(tmp_path / "x", *(f"{name}/{i}.png" for name in (1, 2, 10) for i in range(2)))
    assert Task.from_files("t", folder).label_names == ["1", "2", "10"]
    with pytest.raises(DataError, match=r"label 10 lies outside 0\.\.2"):
        Task.from_files("t", folder, label_names=["one", "two", "ten"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf_8(tmp_path):
    folder = os.fsencode(tmp_path / "x")
    for name in (b"a", b"\xff"):
        os.makedirs(os.path.join(folder, name))
        for row in (b"0\xff.png", b"1.png"):
            with open(os.path.join(folder, name, row), "wb") as file:
                file.write(b"broken" if name == b"a" and row[:1] == b"0" else encoded(picture(0)))
    with pytest.raises(DataError, match="which UTF-8 cannot write"):
        Task.from_files("t", tmp_path / "x")
    os.rename(os.path.join(folder, b"\xff"), os.path.join(folder, b"b"))
    task = Task.from_files("t", tmp_path / "x")
    with pytest.raises(DataError, match=r"0\\udcff\.png cannot be read as an image"):
        [list(split.inputs) for split in task.splits.values()]


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"splits \(test, train\), and no classes\. Give the folder of each split"
    ):
        Task.from_files("t", place(tmp_path / "x", "train/a/0.png", "test/a/0.png"))
    with pytest.raises(DataError, match=r"1 images outside of any class's folder \(0\.png\)"):
        Task.from_files("t", place(tmp_path / "y", "a/0.png", "b/0.png", "0.png"))
    (tmp_path / "z").mkdir()
    with pytest.raises(DataError, match="holds neither a table nor folders of images"):
        Task.from_files("t", tmp_path / "z")


def test_a_link_to_a_folder_above_is_refused(tmp_path):
    folder = place(tmp_path / "x", "a/0.png", "b/0.png")
    (folder / "a" / "again").symlink_to(folder / "a")
    with pytest.raises(DataError, match="is a link to a folder that it lies in"):
        Task.from_files("t", folder)


def test_images_given_to_from_tensors_stay_encoded(tmp_path):
    images = (
        Task.from_files("t", place(tmp_path / "x", "a/0.png", "a/1.png", "b/0.png", "b/1.png"))
        .split("train")
        .inputs
    )
    rows = (images, [0] * len(images))
    task = Task.from_tensors("u", ["a", "b"], train=rows, validation=rows, test=rows)
    assert task.split("train").inputs is images
