"""Order statistics and random numbers: exact, and the same for any split into blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.blocks import drawn
from tauspan.core.errors import UsageError
from tauspan.merge.methods import histogram
from tauspan.merge.methods.method import Block, Spec, uniform
from tauspan.merge.methods.scope import Blocks

FLOATS = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, float("inf")])


def blocks(tensors, size, grain="entry", options=None, reads=None):
    """The scope of tensors of shape (R, n): what was read is noted in `reads`."""

    def read(spec, start, stop):
        if reads is not None:
            reads.append(stop - start)
        values = tensors[spec.name][:, start:stop]
        return Block(values, None, spec.name, start, spec.shape, spec.options, ("a",) * len(values))

    specs = [Spec(name, t.shape[1:], (options or {}).get(name, {})) for name, t in tensors.items()]
    return Blocks(specs, read, grain, size)


def largest(tensors, ranks, size=8, **kind):
    found = blocks(tensors, size, **kind).kth_largest(lambda block: block.values, ranks)
    together = torch.cat(list(tensors.values()), 1).abs().sort(descending=True).values
    for row, rank in enumerate(ranks):
        expected = torch.inf if rank < 1 else 0.0 if rank > together.shape[1] else together[row, rank - 1]
        assert found[row] == expected, (row, rank)


@given(
    st.lists(FLOATS, min_size=1, max_size=60),
    st.integers(0, 70),
    st.integers(1, 70),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=150)
def test_kth_largest_is_the_sorted_one(numbers, rank, size, dtype):
    values = torch.tensor([numbers, numbers[::-1]], dtype=dtype)
    largest({"a": values, "b": values[:, :7] * 2}, [rank, max(rank - 3, 0)], size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grain", ["entry", "row", "tensor"])
def test_many_entries_of_many_magnitudes(dtype, grain):
    values = drawn(3, 20_000, dtype=dtype) * torch.tensor([1e-3, 1.0, 1e20], dtype=dtype)[:, None]
    largest({"a": values[:, :15_000], "b": values[:, 15_000:]}, [1, 4_000, 20_000], size=4096, grain=grain)


def test_most_entries_are_equal():
    values = torch.zeros(2, 30_000)
    values[0, ::3], values[1, :5] = 0.25, torch.tensor([1.0, -2.0, 3.0, 0.5, 0.5])
    for rank in (1, 4, 5, 6, 10_000, 10_001):
        largest({"w": values}, [rank, rank], size=4096)


def test_a_first_interval_that_misses_costs_only_passes(monkeypatch):
    values = drawn(2, 9_000, dtype=torch.float32)
    for low, high in ((0, 5), (2**31 - 9, 2**31 - 1), (0x3F800000, 0x3F800000)):
        missed = histogram.Interval(low, high)
        monkeypatch.setattr(histogram.Interval, "around", lambda *_, at=missed: at)
        largest({"w": values}, [1, 3_000], size=1024)


@pytest.mark.parametrize("room", [1, 100])
def test_few_bins_need_more_passes_and_give_the_same(monkeypatch, room):
    monkeypatch.setattr(histogram, "_BINS", 4)
    monkeypatch.setattr(histogram, "_ROOM", room)
    largest({"w": drawn(2, 9_000, dtype=torch.float32)}, [7, 3_000], size=1024)


@pytest.mark.parametrize("room", [1, 1 << 20])
def test_neighbouring_floats_are_told_apart(monkeypatch, room):
    one = 0x3F800000  # the pattern of 1.0
    around = histogram.Interval(one - 4, one + 4)
    monkeypatch.setattr(histogram, "_ROOM", room)
    monkeypatch.setattr(histogram.Interval, "around", lambda *_: around)
    steps = (drawn(1, 5_000) * 2).round().int().clamp(-4, 4)
    for rank in (400, 2_600, 4_999):
        largest({"w": (one + steps).view(torch.float32)}, [rank], size=512)


def test_one_pass_finds_the_quantile_of_smooth_data():
    reads = []
    values = drawn(1, 1 << 20, dtype=torch.float32)
    blocks({"w": values}, 1 << 15, reads=reads).kth_largest(lambda block: block.values, [1 << 18])
    assert sum(reads) < 1.2 * (1 << 20)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=80),
    st.integers(0, 90),
    st.integers(1, 80),
    st.sampled_from([1, 3, 1 << 20]),
    st.booleans(),
)
@settings(max_examples=150)
def test_the_largest_are_exactly_so_many_and_the_lower_place_comes_first(numbers, rank, size, room, alike):
    values = torch.tensor([numbers, numbers[::-1]], dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histogram, "_ROOM", room)
        scope = blocks({"a": values, "b": -values[:, :7]}, size)
        reach = scope.largest(lambda block: block.values, [rank, max(rank - 3, 0)], alike=alike)
    together = torch.cat([values, -values[:, :7]], 1).abs()
    places = torch.arange(together.shape[1])
    for row, wanted in enumerate([rank, max(rank - 3, 0)]):
        own = together[row]
        bound, end = reach.magnitudes[row], reach.places[row]
        got = (own > bound) | ((own == bound) & (places < end))
        order = own.argsort(descending=True, stable=True)[:wanted]
        expected = torch.zeros_like(got).index_fill_(0, order, True)
        if alike and wanted > 0:
            expected |= own >= own[order].min()
        assert torch.equal(got, expected)
        assert reach.counts[row] == int(expected.sum())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_equal_magnitudes_cost_no_pass_more(share):
    """As with 16-bit models: few values, many entries of each."""
    reads = []
    values = (drawn(1, 1 << 20, dtype=torch.float32) * 2).round()
    scope = blocks({"w": values}, 1 << 15, reads=reads)
    reach = scope.largest(lambda block: block.values, [int(share * (1 << 20))])
    assert sum(reads) < 1.2 * (1 << 20)
    own = values[0].abs()
    equal = own == reach.magnitudes[0]
    assert int((own > reach.magnitudes[0]).sum() + equal[: reach.places[0]].sum()) == int(share * (1 << 20))


def test_totals_and_highest_add_up():
    tensors = {"a": drawn(2, 50), "b": drawn(2, 9, seed=1)}
    scope = blocks(tensors, 7)
    whole = torch.cat(list(tensors.values()), 1)
    torch.testing.assert_close(scope.total(lambda block: block.values.sum(1)), whole.sum(1))
    assert torch.equal(scope.highest(lambda block: block.values.amax(1)), whole.amax(1))
    assert scope.entries == 59


def test_an_option_over_the_model_is_one_number():
    tensors = {"a": drawn(1, 3), "b": drawn(1, 3)}
    same = {"a": {"density": (0.2,)}, "b": {"density": (0.2,)}}
    assert blocks(tensors, 2, options=same).option("density") == (0.2,)
    other = same | {"b": {"density": (0.5,)}}
    with pytest.raises(UsageError, match=r"'density' is \(0.2,\) for 'a' and \(0.5,\) for 'b'"):
        blocks(tensors, 2, options=other).option("density")


# -- random numbers ------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(0, 200))
@settings(max_examples=60)
def test_numbers_belong_to_their_place(start, count):
    whole = uniform((0, "w", "a"), 0, 400)
    assert torch.equal(uniform((0, "w", "a"), start, count), whole[start : start + count])


def test_numbers_are_uniform_and_keys_are_independent():
    count = 1 << 18
    a, b = (uniform((0, "w", model), 0, count).double() for model in "ab")
    assert a.min() >= 0
    assert a.max() < 1
    assert abs(float(a.mean()) - 0.5) < 5 / (12 * count) ** 0.5
    assert abs(float(a.square().mean()) - 1 / 3) < 5 * (4 / 45 / count) ** 0.5
    assert abs(float(((a - 0.5) * (b - 0.5)).mean())) < 5 / 12 / count**0.5
    bins = torch.histc(a, 64, 0, 1)
    assert float(((bins - count / 64) ** 2 / (count / 64)).sum()) < 63 + 6 * (2 * 63) ** 0.5  # chi squared


def test_numbers_stay_what_they_were():
    """A recipe with a seed gives the same model with every version."""
    expected = np.array(GOLDEN, dtype=np.float32)
    assert np.array_equal(uniform((0, "layer.weight", "model"), 2**33 + 1, 4).numpy(), expected)


GOLDEN = [3678225 / 2**24, 66709 / 2**24, 7167102 / 2**24, 7369365 / 2**24]


def test_what_is_kept_of_a_block_does_not_hold_the_block():
    row = np.arange(1000, dtype=np.int32)
    inside = histogram.Interval(10, 12)
    beside = histogram.Interval(10, 10, first=2000)  # its entries are at later places
    for interval in (inside, beside):
        part = interval.located(row)
        assert part.bits.base is None
        assert part.places.base is None
    assert list(inside.located(row).bits) == [10, 11, 12]
    assert len(beside.located(row).bits) == 0
