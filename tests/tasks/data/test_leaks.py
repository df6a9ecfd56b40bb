"""Rows that stand in two splits: planted ones are found, and the search for near hashes equals comparing all pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from helpers.imagesets import encoded, picture
from tauspan.core.errors import DataError
from tauspan.tasks import SPLITS, Split, Task
from tauspan.tasks.data import find_leaks
from tauspan.tasks.data.hamming import distances, within
from tauspan.tasks.data.suite import suite
from tauspan.tasks.images import Images
from tauspan.tasks.shares import normalised

PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))


class Memory:
    """Encoded images in a list."""

    def __init__(self, found):
        self.found = found

    def __len__(self):
        return len(self.found)

    def read(self, index):
        return self.found[index]

    def name(self, index):
        return f"row {index}"


def split_of(inputs):
    return Split(inputs, torch.zeros(len(inputs), dtype=torch.long))


def images(**planted):
    """A task of distinct encoded images; `test={2: bytes}` puts an image of one's own into row 2 of test."""
    splits = {}
    for place, (split, count) in enumerate((("train", 40), ("validation", 10), ("test", 12))):
        found = [encoded(picture(1000 * place + row)) for row in range(count)]
        for row, data in planted.get(split, {}).items():
            found[row] = data
        splits[split] = split_of(Images(Memory(found)))
    return Task("toy", ["only"], splits)


def texts(train, validation, test):
    return Task("toy", ["only"], dict(zip(SPLITS, map(split_of, (train, validation, test)), strict=True)))


# -- images --------------------------------------------------------------------------------------------------


def test_distinct_images_are_no_leak():
    found = find_leaks(images(), 4)
    assert not found
    assert set(found.counts.values()) == {0}
    assert set(found.counts) == {(kind, *pair) for kind in ("equal", "near") for pair in PAIRS}
    found.require_none()


def test_equal_pixels_are_found_whatever_the_encoding_and_both_rows_are_named():
    copies = {3: encoded(picture(7), "BMP"), 5: encoded(picture(7))}
    found = find_leaks(images(test=copies, validation={9: encoded(picture(2001), compress_level=0)}))
    assert found.counts == {
        ("equal", "train", "validation"): 0, ("equal", "train", "test"): 2, ("equal", "validation", "test"): 1,
    }  # fmt: skip
    assert [str(one) for one in found.examples] == [
        "train row 7 = test row 3", "train row 7 = test row 5", "validation row 9 = test row 1",
    ]  # fmt: skip
    with pytest.raises(
        DataError, match=r"2 of test in train, 1 of test in validation\. First: train row 7 = test row 3"
    ):
        found.require_none()


CHANGES = {
    "re-encoded": lambda image: encoded(image, "JPEG", quality=85),
    "scaled": lambda image: encoded(image.resize((48, 48), Image.Resampling.BICUBIC)),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.03)),
    "one pixel": lambda image: encoded(
        Image.fromarray(np.asarray(image) ^ np.eye(16, dtype=np.uint8)[0, :, None])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_slightly_changed_image_is_near_and_not_equal(change):
    task = images(test={4: CHANGES[change](picture(11))}, validation={0: encoded(picture(11))})
    found = find_leaks(task, 4)
    assert found.counts["equal", "train", "test"] == 0
    assert found.counts["equal", "train", "validation"] == 1
    assert (found.counts["near", "train", "test"], found.counts["near", "validation", "test"]) == (1, 1)
    near = [one for one in found.examples if one.kind == "near"]
    assert [(one.splits, one.rows) for one in near] == [
        (("train", "test"), (11, 4)),
        (("validation", "test"), (0, 4)),
    ]
    with pytest.raises(
        DataError, match=r"1 of test nearly in train.*train row 11 = test row 4, \d bits apart"
    ):
        found.require_none()
    assert ("near", "train", "test") not in find_leaks(task).counts


def test_the_nearest_of_several_is_named():
    close = encoded(ImageEnhance.Brightness(picture(11)).enhance(1.2), "JPEG", quality=40)
    task = images(test={4: encoded(picture(11), "JPEG", quality=95)}, train={2: close})
    (near,) = [one for one in find_leaks(task, 8).examples if one.splits == ("train", "test")]
    assert near.rows == (11, 4)


def test_arrays_and_grey_images_are_looked_at_too():
    rng = np.random.default_rng(0)
    grey = [np.asarray(picture(row).convert("L")) for row in range(8)]
    task = texts(grey[:4], [grey[4], grey[0]], [grey[5], np.minimum(grey[1], 250) + 1])
    found = find_leaks(task, 4)
    assert found.counts["equal", "train", "validation"] == 1
    assert [one.rows for one in found.examples if one.kind == "near"] == [(1, 1)]
    vectors = [rng.normal(size=3) for _ in range(3)]
    assert find_leaks(texts(vectors[:1], vectors[1:2], vectors[:1]), 4).counts["equal", "train", "test"] == 1


def test_a_damaged_image_ends_the_search():
    with pytest.raises(DataError, match="row 2 cannot be read as an image"):
        find_leaks(images(validation={2: b"no image"}))


# -- texts ---------------------------------------------------------------------------------------------------


def test_texts_are_equal_but_for_case_punctuation_and_space():
    task = texts(["It's  HERE!", "other"], ["else"], ["it s here", "Other?", "!!"])
    found = find_leaks(task, 4)
    assert found.counts == {("equal", *pair): 2 * (pair == ("train", "test")) for pair in PAIRS}
    assert [one.rows for one in found.examples] == [(0, 0), (1, 1)]


def test_texts_of_signs_alone_stay_apart():
    assert (normalised("!!"), normalised("??"), normalised(" ﬁne ")) == ("!!", "??", "fine")
    assert not find_leaks(texts(["!!"], ["??"], ["..."]))


def test_the_shipped_tasks_do_not_leak():
    for task in suite():
        find_leaks(task).require_none()


# -- the search for near hashes ------------------------------------------------------------------------------

hashes = st.lists(st.integers(0, 2**64 - 1), max_size=12)


@settings(max_examples=50)
@given(
    hashes,
    hashes,
    st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=10))),
    st.integers(0, 8),
)
def test_all_near_pairs_are_found_once(left, right, planted, distance):
    right = right + [
        left[place] ^ sum(1 << bit for bit in bits) for place, bits in planted if place < len(left)
    ]
    a, b = np.array(left, dtype=np.uint64), np.array(right, dtype=np.uint64)
    found = list(zip(*(part.tolist() for part in within(a, b, distance)), strict=True))
    expected = {
        (i, j, (x ^ y).bit_count())
        for i, x in enumerate(left)
        for j, y in enumerate(right)
        if (x ^ y).bit_count() <= distance
    }
    assert len(found) == len(expected)
    assert set(found) == expected


def test_equal_hashes_are_compared_in_chunks(monkeypatch):
    monkeypatch.setattr("tauspan.tasks.data.hamming._CHUNK", 7)
    same = np.full(9, 5, dtype=np.uint64)
    i, j, bits = within(same, np.array([5, 4, 2**40], dtype=np.uint64), 1)
    assert (i.tolist(), j.tolist()) == ([*range(9), *range(9)], [0] * 9 + [1] * 9)
    assert bits.tolist() == [0] * 9 + [1] * 9


def test_many_hashes_take_seconds_and_not_hours():
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 2**64, size, dtype=np.uint64) for size in (70_000, 10_000))
    right[:50] = left[:50] ^ np.uint64(0b101)
    i, j, _ = within(left, right, 4)
    assert i.tolist() == j.tolist() == list(range(50))
    assert distances(left[:50], right[:50]).tolist() == [2] * 50
