"""P: rows that are convex, the identity, composition, the hull of logits, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tiny
from tauspan.core.errors import MismatchError, NonFiniteError, StoreError, UsageError
from tauspan.store import write_tensors
from tauspan.surgery import RowMap

SIZES = st.integers(1, 6)


def drawn(rows: int, columns: int, shared: int = 1, seed: int = 0) -> RowMap:
    """A map with copies, mixtures, and entries of shared rows."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for row in range(rows):
        if row % 3 == 0:
            made.append({int(torch.randint(columns, (1,), generator=generator)): 1.0})
            continue
        some = torch.randperm(columns + shared, generator=generator)[: min(3, columns)].tolist()
        weights = torch.rand(len(some), generator=generator, dtype=torch.float64) + 0.1
        made.append(dict(zip(some, (weights / weights.sum()).tolist(), strict=True)))
    dense = torch.rand(shared, columns, generator=generator, dtype=torch.float64) + 0.1
    return RowMap.of(made, columns, dense / dense.sum(1, keepdim=True))


@settings(max_examples=25)
@given(SIZES, SIZES, st.integers(0, 99))
def test_rows_are_not_negative_and_sum_to_one(rows: int, columns: int, seed: int) -> None:
    dense = drawn(rows, columns, 2, seed).dense()
    assert bool((dense >= 0).all())
    torch.testing.assert_close(dense.sum(1), torch.ones(rows, dtype=torch.float64))


@settings(max_examples=25)
@given(SIZES, SIZES, SIZES, st.integers(0, 99))
def test_composition_is_the_product_of_matrices(one: int, two: int, three: int, seed: int) -> None:
    first, second = drawn(two, one, 2, seed), drawn(three, two, 1, seed + 1)
    torch.testing.assert_close((second @ first).dense(), second.dense() @ first.dense())
    table = torch.randn(one, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close((second @ first).apply(table), second.apply(first.apply(table)))


@settings(max_examples=25)
@given(SIZES, SIZES, st.integers(0, 99))
def test_no_new_logit_exceeds_the_largest_old_one(rows: int, columns: int, seed: int) -> None:
    """And where the best old token was copied, greedy decoding takes its copy."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(columns, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(columns, generator=generator, dtype=torch.float64)
    states = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    made = drawn(rows, columns, 1, seed)
    before = old @ states + bias[:, None]
    after = made.apply(old) @ states + made.apply(bias)[:, None]
    assert bool((after.amax(0) <= before.amax(0) + 1e-12).all())
    kept = made.copies >= 0
    torch.testing.assert_close(after[kept], before[made.copies[kept]])
    for state, best in enumerate(before.argmax(0).tolist()):
        own = (made.copies == best).nonzero().flatten()
        if len(own):
            assert float(after[own[0], state]) >= float(after[:, state].max()) - 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_identity_and_copies_change_no_bit(dtype: torch.dtype) -> None:
    table = torch.randn(5, 3).to(dtype)
    table[0, 0] = -0.0
    assert tiny.raw(RowMap.identity(5).apply(table)) == tiny.raw(table)
    some = RowMap.of([{4: 1.0}, {0: 1.0}, {0: 0.5, 1: 0.5}], 5)
    assert tiny.raw(some.apply(table)[:2]) == tiny.raw(table[[4, 0]])
    assert RowMap.identity(5).is_identity
    assert not some.is_identity
    assert (some @ RowMap.identity(5)).digest == some.digest


def test_blocks_change_no_bit_and_padding_is_not_read() -> None:
    made, table = drawn(40, 12, 2), torch.randn(12, 7)
    padded = torch.cat([table, torch.full((3, 7), torch.nan)])
    assert torch.equal(made.apply(padded), made.apply(table))
    parts = [made.apply(table, first, min(first + 7, 40)) for first in range(0, 40, 7)]
    assert torch.equal(torch.cat(parts), made.apply(table))
    assert made.apply(table[:, 0]).shape == (40,)
    assert RowMap.of([{0: 1.0}], 2).apply(torch.ones(2, 3, 4)).shape == (1, 3, 4)


def test_a_map_is_saved_and_read(tmp_path: Path) -> None:
    made = drawn(9, 4)
    again = RowMap.load(made.save(tmp_path / "rows.safetensors"))
    assert again.digest == made.digest
    assert again.base == ""
    based = RowMap.load(replace(made, base="b").save(tmp_path / "based.safetensors"))
    assert (based.base, (drawn(3, 9) @ based).base, based.digest) == ("b", "b", made.digest)
    assert "RowMap(9 x 4" in repr(again)


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    for rows, words in (
        ([{0: 0.5}], "row 0 of the map sums to 0.5"), ([{0: 1.5, 1: -0.5}], "at least 0 and sum to 1"),
        ([{0: 1.0}, {7: 1.0}], "an entry outside"), ([], "a map of 2 old rows makes no new one"),
        ([{0: 1.0}, {}], "row 1 of the map sums to 0"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            RowMap.of(rows, 2)
    for weight in (torch.nan, torch.inf):
        with pytest.raises(NonFiniteError, match="row 1 of the map has a weight that is NaN or infinite"):
            RowMap.of([{0: 1.0}, {0: weight}], 2)
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64)
    with pytest.raises(UsageError, match="an entry outside"):  # rows that run backwards, as of a damaged file
        RowMap(torch.tensor([0, 2, 1]), torch.tensor([0]), one, 2, none)
    repaired = {number: weight / 0.5 for number, weight in {0: 0.5}.items()}  # "divide them by their sum"
    assert RowMap.of([repaired], 2).rows == 1
    with pytest.raises(MismatchError, match="has 1 rows, and the map reads 2"):
        RowMap.of([{1: 1.0}], 2).apply(torch.ones(1, 1))
    with pytest.raises(MismatchError, match="the last one first"):
        RowMap.identity(3) @ RowMap.identity(2)
    assert RowMap.identity(2).__matmul__(3) is NotImplemented
    with pytest.raises(UsageError, match="knows no squares of single weights"):
        RowMap.of([{0: 0.5, 2: 0.5}], 2, torch.full((1, 2), 0.5, dtype=torch.float64)).squares()
    write_tensors(tmp_path / "other.safetensors", {"w": torch.ones(1)})
    with pytest.raises(StoreError, match="holds no map of rows"):
        RowMap.load(tmp_path / "other.safetensors")
    broken = {
        "starts": torch.tensor([0, 1]),
        "indices": torch.tensor([0]),
        "weights": one * torch.nan,
        "shared": none,
    }
    write_tensors(
        tmp_path / "nan.safetensors", broken, {"tauspan": '{"format": "tauspan-rows/1", "columns": 2}'}
    )
    with pytest.raises(StoreError, match=r"holds no map of rows .*graft the model again"):
        RowMap.load(tmp_path / "nan.safetensors")
