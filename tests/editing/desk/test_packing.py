"""Packed numbers say how far they are off; pruned classes win nowhere; intervals cover."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.editing.desk.held import Contributed, Lengths, Sampled
from tauspan.editing.desk.packing import Blob, packed
from tauspan.editing.desk.pruning import contenders
from tauspan.editing.search.exact import interval


def drawn(seed: int, rows: int = 200, terms: int = 4, classes: int = 7, spread: float = 1.0) -> np.ndarray:
    """Numbers of very different sizes from row to row."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(spread * rng.normal(size=(rows, 1, 1)) * 3)
    return rng.normal(size=(rows, terms, classes)) * sizes


def summed(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.einsum("k,nkc->nc", np.array([1.0, *at]), values)


def rows_of(values: np.ndarray, exact: bool = False, **more: object) -> Contributed:
    return Contributed(np.zeros(len(values), int), values, exact, **more)  # type: ignore[arg-type]


# -- packing -------------------------------------------------------------------------------------------------


def test_no_number_is_off_by_more_than_half_its_rows_scale() -> None:
    values = drawn(0)
    values[3] = 0.0
    values[4] *= 1e-40  # below the smallest normal float32
    made = packed(values)
    assert made.scales is not None
    assert made.numbers.dtype == np.int16
    off = np.abs(made.values() - values).max((1, 2))
    assert (off <= made.scales.astype(float) * 0.5000001).all()
    assert np.abs(made.numbers).max((1, 2))[0] == 32767
    assert off[3] == 0


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e39])
def test_numbers_that_a_page_cannot_hold_are_refused_with_their_row(number: float) -> None:
    values = drawn(0)
    values[5, 1, 2] = number
    with pytest.raises(NonFiniteError, match="row 5"):
        packed(values)


@pytest.mark.parametrize("seed", range(5))
def test_no_row_outside_the_unsure_ones_changes_its_class(seed: int) -> None:
    values = drawn(seed)
    held, rng = rows_of(values), np.random.default_rng(seed)
    changed = 0
    for _ in range(40):
        at = rng.uniform(-2, 2, 3)
        wrong = held.predicted(at) != summed(values, at).argmax(-1)
        assert not (wrong & ~held.unsure(at)).any()
        changed += int(wrong.sum())
        assert held.unsure(at).mean() < 0.05
    assert changed < 40


def test_rows_made_to_be_changed_are_among_the_unsure_ones() -> None:
    # two classes that differ by less than half a step, beside one that sets the scale
    rng = np.random.default_rng(1)
    values = np.zeros((500, 3, 3))
    values[:, :, 0] = -32767.0
    values[:, :, 1] = rng.integers(-50, 50, (500, 3)) + 0.5 - 1e-6
    values[:, :, 2] = values[:, :, 1] + 2e-6 * rng.choice([-1, 1], (500, 3))
    held = rows_of(values)
    found = 0
    for at in ([0.0, 0.0], [1.0, 1.0], [0.3, -0.7]):
        wrong = held.predicted(at) != summed(values, np.array(at)).argmax(-1)
        found += int(wrong.sum())
        assert not (wrong & ~held.unsure(at)).any()
    assert found > 100


def test_rounding_that_adds_up_over_all_terms_is_within_the_bound() -> None:
    # the first class is rounded down and the second up in every term, by nearly half a step each
    values = np.zeros((1, 3, 3))
    values[0, 0, 2] = -32767.0  # so that a step is 1
    values[0, :, 0] = np.array([5.0, 5.0, 5.0]) + 0.49
    values[0, :, 1] = np.array([5.0, 6.0, 6.0]) - 0.49
    held = rows_of(values, lengths=Lengths(np.ones((1, 6), np.float32), 1.0, None))  # which are not centred
    assert held.predicted([1.0, 1.0]).tolist() == [1]  # ahead by 2
    assert summed(values, np.array([1.0, 1.0])).argmax(-1).tolist() == [0]
    assert held.unsure([1.0, 1.0]).tolist() == [True]  # 2 is less than 1 + 1 + 1
    assert held.unsure([0.0, 20.0]).tolist() == [True]
    values[0, 1:, 1] += 3
    far = rows_of(values, lengths=held.lengths)
    assert far.unsure([1.0, 1.0]).tolist() == [False]


def test_float32_numbers_of_a_float32_model_leave_no_row_unsure_but_ties() -> None:
    values = drawn(2).astype(np.float32).astype(float)
    held = rows_of(values, exact=True)
    at = [0.3, -1.0, 0.5]
    assert not held.unsure(at).any()
    assert (held.predicted(at) == summed(values, np.array(at)).argmax(-1)).all()
    values[0, :, 3] = values[0, :, 1] = values[0].max() + 1
    tied = rows_of(values, exact=True)
    assert tied.unsure(at)[0]
    assert tied.predicted([0.0, 0.0, 0.0])[0] == 1  # of equal ones the first


def test_float32_numbers_of_a_float64_model_are_off_by_their_rounding() -> None:
    values = np.ones((1, 2, 2))
    values[0, 0] = [1.0 + 2.0**-40, 1.0]
    held = rows_of(values, exact=True)
    assert held.unsure([0.5]).tolist() == [True]


# -- lengths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_a_head_that_divides_by_the_length_is_followed(biased: bool, exact: bool) -> None:
    rng = np.random.default_rng(3)
    z, weight = rng.normal(size=(300, 4, 6)), rng.normal(size=(5, 6))
    z[:100] -= z[:100, 1:].sum(1, keepdims=True) * np.eye(4)[0][:, None]  # nearly nothing is left at a = 1
    bias = 0.3 * rng.normal(size=5) if biased else None
    upper = np.triu_indices(4)
    gram = np.einsum("nkd,nld->nkl", z, z)[:, upper[0], upper[1]].astype(np.float32)
    held = rows_of(z @ weight.T, exact, lengths=Lengths(gram, 5.0, bias))
    for at in ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.2, -0.4, 0.9]):
        features = np.einsum("k,nkd->nd", np.array([1.0, *at]), z)
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        wanted = (5.0 * unit @ weight.T + (0.0 if bias is None else bias)).argmax(-1)
        wrong = held.predicted(at) != wanted
        assert not (wrong & ~held.unsure(at)).any()
        assert held.unsure(at).mean() < 0.05


# -- pruning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 2.0)])
@pytest.mark.parametrize("classes", [2, 7, 40])
def test_pruned_classes_win_nowhere_in_the_box(low: float, high: float, classes: int) -> None:
    values = drawn(4, rows=60, classes=classes, spread=0.0)
    values[:, 1:] *= 0.4
    kept = contenders(values, low, high)
    less = rows_of(values, kept=kept)
    assert 0 < kept.sum() < kept.size
    rng = np.random.default_rng(0)
    corners = itertools.product([low, high], repeat=3)
    for at in (*corners, *rng.uniform(low, high, (100, 3))):
        truth = summed(values, np.array(at)).argmax(-1)
        assert kept[np.arange(len(values)), truth].all()
        same = less.predicted(at) == truth
        assert (same | less.unsure(at)).all()
    assert rows_of(values).pruned(low, high).nbytes <= rows_of(values).nbytes


def test_equal_classes_all_stay() -> None:
    values = np.ones((3, 2, 5))
    assert contenders(values, 0.0, 1.0).all()


def test_with_a_bias_beside_lengths_nothing_is_pruned() -> None:
    values = drawn(5, rows=3)
    lengths = Lengths(np.ones((3, 10), np.float32), 1.0, np.zeros(7))
    held = rows_of(values, lengths=lengths)
    assert held.pruned(0.0, 1.0) is held


def test_sampled_points_are_not_pruned_and_never_unsure() -> None:
    held = Sampled(np.zeros(2, int), np.array([[0.0], [1.0]]), np.array([[0, 1], [1, 1]]))
    assert held.pruned(0.0, 1.0) is held
    assert held.predicted([0.4]).tolist() == [0, 1]
    assert not held.unsure([0.4]).any()


def test_bytes_are_those_of_the_blob() -> None:
    values = drawn(6, rows=50)
    for held in (rows_of(values), rows_of(values, exact=True), rows_of(values).pruned(0.0, 1.0)):
        blob = Blob()
        held.written(blob)
        assert held.nbytes <= len(blob) < held.nbytes + 4 * 8  # what is between aligned arrays


# -- intervals -----------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.data())
def test_intervals_are_clopper_and_pearsons(rows: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    found, known = interval(right, rows), binomtest(right, rows).proportion_ci(0.95, "exact")
    assert found.low == pytest.approx(known.low, abs=1e-9)
    assert found.high == pytest.approx(known.high, abs=1e-9)
    assert found.low <= found.value <= found.high


def test_intervals_cover_whatever_the_probability_is() -> None:
    rows, ends = 30, [interval(k, 30) for k in range(31)]
    for p in np.linspace(0.01, 0.99, 50):
        inside = [one.low <= p <= one.high for one in ends]
        assert (binom.pmf(np.arange(rows + 1), rows, p) * inside).sum() >= 0.95


def test_an_interval_needs_rows() -> None:
    with pytest.raises(UsageError, match="0 right of 0"):
        interval(0, 0)
    with pytest.raises(UsageError, match="3 right of 2"):
        interval(3, 2)
