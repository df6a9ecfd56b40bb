"""Work begun early: the same results in the same order, errors where they belong, and nothing left behind."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers.zoo import normal
from tauspan.core.ahead import ahead, in_threads
from tauspan.core.errors import DataError
from tauspan.models import Encoder, load_model
from tauspan.models.encoder import Inputs
from tauspan.tangent.contributions import by_batch
from tauspan.tasks import Split
from tauspan.tasks.batches import batches


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@given(st.lists(st.integers()), st.integers(0, 4))
def test_both_are_map(items: list[int], depth: int) -> None:
    wanted = [2 * item for item in items]
    assert list(ahead(lambda item: 2 * item, iter(items), depth)) == wanted
    assert in_threads(lambda item: 2 * item, items) == wanted


@pytest.mark.usefixtures("three_threads")
def test_items_are_made_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=30)
    assert in_threads(lambda item: (item, meeting.wait())[0], [1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_so_many_are_begun_before_they_are_asked_for(depth: int) -> None:
    begun: list[int] = []

    def make(item: int) -> int:
        begun.append(item)
        return item

    items = ahead(make, iter(range(9)), depth)
    assert next(items) == 0
    deadline = time.monotonic() + 30
    while len(begun) <= depth and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert begun == list(range(depth + 1))
    items.close()
    assert begun == list(range(depth + 1))


def test_an_error_is_raised_where_its_item_is_asked_for_and_ends_the_thread() -> None:
    def make(item: int) -> int:
        if item == 2:
            raise DataError("the third")
        return item

    before = threads()
    items = ahead(make, range(9), 2)
    assert (next(items), next(items)) == (0, 1)
    with pytest.raises(DataError, match="the third"):
        next(items)
    assert threads() == before


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_one_of_several_threads_is_the_first_items() -> None:
    def make(item: int) -> int:
        raise DataError(f"item {item}")

    with pytest.raises(DataError, match="item 0"):
        in_threads(make, range(8))


# -- batches of images ---------------------------------------------------------------------------------------


class Watched(list[Any]):
    """Images that note in which thread each is looked at."""

    def __init__(self, items: Any) -> None:
        super().__init__(items)
        self.seen: list[threading.Thread] = []

    def __getitem__(self, place: Any) -> Any:
        self.seen.append(threading.current_thread())
        return super().__getitem__(place)


IMAGES = list(normal(7, 3, 6, 5, seed=2).abs().clamp(0, 1).float())
INPUTS = Inputs("image", size=4)


@pytest.mark.usefixtures("three_threads")
def test_images_are_decoded_once_each_in_threads_and_stand_in_order() -> None:
    watched = Watched(IMAGES)
    batch = INPUTS.encode(watched)
    assert isinstance(batch, torch.Tensor)
    assert len(watched.seen) == len(IMAGES)
    assert threading.main_thread() not in watched.seen
    for image, found in zip(IMAGES, batch, strict=True):
        alone = INPUTS.encode([image])
        assert isinstance(alone, torch.Tensor)
        assert torch.equal(found, alone[0])


@pytest.mark.usefixtures("three_threads")
def test_text_among_images_is_refused() -> None:
    with pytest.raises(DataError, match="reads image inputs, and the task holds text"):
        INPUTS.encode([*IMAGES, "a cat"])


@pytest.mark.parametrize("inputs", [INPUTS, Inputs()])
def test_batches_are_the_same_gone_through_or_asked_for(inputs: Inputs) -> None:
    encoder = load_model(Encoder(nn.Flatten(), inputs=inputs))
    prepared = batches(encoder, Split(IMAGES, torch.zeros(7, dtype=torch.long)), None, 2)
    one_by_one = [prepared[place] for place in range(4)]
    gone_through = list(prepared)
    by = by_batch(lambda batch: batch, prepared)
    every_third = list(prepared.share(1, 3))
    assert [places for places, _ in one_by_one] == [[0, 1], [2, 3], [4, 5], [6]]
    for other in (gone_through, by):
        assert [places for places, _ in other] == [places for places, _ in one_by_one]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(other, one_by_one, strict=True))
    assert [places for places, _ in every_third] == [[2, 3]]
    assert inputs.ahead == (2 if inputs.modality == "image" else 0)
