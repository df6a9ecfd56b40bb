"""Rounding and its account: neighbours, expectation, and sums against float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tauspan.merge.engine.engine import Account, account, restore, rounded

HALVES = [torch.bfloat16, torch.float16]


def made(n=4096, seed=0, scale=1.0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale


# -- rounding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
def test_nearest_is_the_cast(dtype):
    x = made()
    assert torch.equal(rounded(x, dtype, "nearest", (0, "w"), 0), x.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_stochastic_takes_one_of_the_two_neighbours(dtype, scale):
    x = made(scale=scale)
    got = rounded(x, dtype, "stochastic", (0, "w"), 0)
    near = x.to(dtype)
    assert (got != near).any()
    step = got.view(torch.int16).int() - near.view(torch.int16).int()
    assert step.abs().max() == 1
    error, taken = x.double() - near.double(), got.double() - near.double()
    assert bool(((taken == 0) | (taken.sign() == error.sign())).all())  # towards x, never away
    assert bool((taken.abs() >= error.abs())[taken != 0].all())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [1.001, -1.001, 3e-8, -3e-8, 0.1, -65.3])
def test_stochastic_is_right_in_the_mean(dtype, value):
    x = torch.full((1 << 17,), value)
    got = rounded(x, dtype, "stochastic", (0, "w"), 0).double()
    low, high = got.min(), got.max()
    assert low <= value <= high
    assert len(got.unique()) == 2
    deviation = float(high - low) / 2 / math.sqrt(len(x))
    assert abs(float(got.mean()) - float(x[0])) < 5 * deviation
    assert abs(float(rounded(x[:1], dtype, "nearest", (0, "w"), 0)) - float(x[0])) > 5 * deviation


@pytest.mark.parametrize("dtype", HALVES)
def test_numbers_of_the_type_stay(dtype):
    x = torch.cat([made().to(dtype).float(), torch.tensor([0.0, -0.0])])
    got = rounded(x, dtype, "stochastic", (0, "w"), 0)
    assert torch.equal(got.view(torch.int16), x.to(dtype).view(torch.int16))


@given(cut=st.integers(0, 300), seed=st.integers(0, 9))
def test_stochastic_does_not_depend_on_the_cut(cut, seed):
    x = made(300)
    whole = rounded(x, torch.bfloat16, "stochastic", (seed, "w"), 0)
    parts = [rounded(x[a:b], torch.bfloat16, "stochastic", (seed, "w"), a) for a, b in ((0, cut), (cut, 300))]
    assert torch.equal(torch.cat(parts), whole)


def test_stochastic_depends_on_seed_and_tensor():
    x = made()
    draws = [rounded(x, torch.bfloat16, "stochastic", key, 0) for key in ((0, "w"), (1, "w"), (0, "v"))]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# -- the account ---------------------------------------------------------------------------------------------


def test_an_account_by_hand():
    base = torch.tensor([1.0, 1.0, 1.0, 2.0])
    moved = torch.tensor([0.0, 2**-10, 0.5, 2**-6])
    anchor = base.bfloat16()
    stored = (
        base + moved
    ).bfloat16()  # the second is swallowed: bfloat16 keeps 8 bits; the last lies on the grid
    got = account(stored, moved, base, anchor)
    assert got == Account(4, 3, 1, 2**-20 + 0.25 + 2**-12, 2**-20)
    row = got.row()
    assert row["swallowed"] == pytest.approx(1 / 3)
    assert row["loss"] == pytest.approx(math.sqrt(2**-20 / (2**-20 + 0.25 + 2**-12)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_account_is_the_formula_in_float64(dtype):
    anchor = made(seed=1).to(dtype)
    base, moved = anchor.float(), made(seed=2, scale=1e-3) * (made(seed=3) > 0)
    stored = (base + moved).to(dtype)
    got = account(stored, moved, base, anchor)
    kept, wanted = stored.double() - anchor.double(), moved.double()
    assert got.changed == int((wanted != 0).sum())
    assert got.swallowed == int(((stored == anchor) & (wanted != 0)).sum())
    assert got.moved == pytest.approx(float((wanted**2).sum()), rel=1e-5)
    assert got.lost == pytest.approx(float(((kept - wanted) ** 2).sum()), rel=1e-4)


def test_accounts_of_parts_add_up():
    anchor = made(seed=1).bfloat16()
    base, moved = anchor.float(), made(seed=2, scale=1e-2)
    stored = (base + moved).bfloat16()
    whole = account(stored, moved, base, anchor)
    parts = [account(stored[s], moved[s], base[s], anchor[s]) for s in (slice(0, 100), slice(100, None))]
    total = parts[0] + parts[1]
    assert (total.entries, total.changed, total.swallowed) == (whole.entries, whole.changed, whole.swallowed)
    assert total.lost == pytest.approx(whole.lost, rel=1e-5)


def test_a_displacement_is_accounted_without_a_base():
    moved = made()
    assert account(moved, moved, None, None).row()["loss"] == 0
    assert account(moved.bfloat16(), moved, None, None).row()["loss"] == pytest.approx(2**-9, rel=0.5)


def test_the_norm_of_very_large_numbers_is_finite():
    moved = torch.full((4,), 1e30)
    assert account(moved, moved, None, None).moved == pytest.approx(4e60)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_restore_puts_back_where_it_is_told(share):
    stored, value = made(seed=1).bfloat16(), made(seed=2)
    where = (torch.rand(len(stored)) < share).numpy()
    wanted = torch.where(torch.from_numpy(where), value.bfloat16(), stored)
    restore(stored, value, where)
    assert torch.equal(stored, wanted)
