"""TSV-M, Iso-C, Iso-CTS and truncation against the authors' dense formulas in float64, at their limits, and permuted."""

import math

import pytest
import torch
from benchmarks import rows, spectral
from benchmarks.shapes import SHAPES as MODELS
from hypothesis import given
from hypothesis import strategies as st

from tauspan.core.errors import NonFiniteError, UsageError
from tauspan.merge import merge
from tauspan.merge.methods.method import Block
from tauspan.merge.methods.spectral import ISO_C, ISO_CTS, SVD, TSV_M, kept_rank, polar, support, svd
from tauspan.vector import TaskVector

METHODS = (TSV_M, ISO_C, ISO_CTS)
SHAPES = [(6, 6), (12, 5), (5, 12)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(tasks, rows, columns, rank, seed=0):
    return draw(tasks, rows, rank, seed=seed) @ draw(tasks, rank, columns, seed=seed + 1)


def merged(method, values, *, depth=None, name="w", **options):
    weights = options.pop("weight", [1.0] * len(values))
    chosen = {option.name: option.default for option in method.options} | options | {"weight": tuple(weights)}
    labels = tuple(f"t{number}" for number in range(len(values)))
    return method.combine(Block(values, None, name, 0, values.shape[1:], chosen, labels, depth=depth), None)


def spectrum(matrix):
    return torch.linalg.svdvals(matrix)


def same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# -- the authors' formulas ---------------------------------------------------------------------------------------


def orthogonal(matrix):
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def authors_tsv_m(values):
    share = min(values.shape[1:]) // len(values)
    u, s, vt = torch.linalg.svd(values, full_matrices=False)
    left = orthogonal(torch.cat([one[:, :share] for one in u], 1))
    right = orthogonal(torch.cat([one[:share] for one in vt]))
    return left @ torch.diag(torch.cat([one[:share] for one in s])) @ right


def authors_iso_c(values):
    return orthogonal(values.sum(0)) * spectrum(values.sum(0)).mean()


def authors_iso_cts(values, fraction=0.8):
    rank, tasks = min(values.shape[1:]), len(values)
    common = rank - round((rank - int(rank * fraction)) / tasks) * tasks
    own = (rank - common) // tasks
    u, s, vt = (
        one[..., :common] if one.dim() == 1 else one
        for one in torch.linalg.svd(values.sum(0), full_matrices=False)
    )
    u, vt = u[:, :common], vt[:common]
    parts = [torch.linalg.svd(value - u @ u.T @ value, full_matrices=False) for value in values]
    left = torch.cat([one[0][:, :own] for one in parts] + [u], 1)
    right = torch.cat([one[2][:own] for one in parts] + [vt])
    mean = torch.cat([one[1][:own] for one in parts] + [s]).mean()
    return orthogonal(left) @ orthogonal(right) * mean


AUTHORS = {"tsv_m": authors_tsv_m, "iso_c": authors_iso_c, "iso_cts": authors_iso_cts}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_full_rank_vectors_merge_as_in_the_authors_code(method, shape):
    values = draw(2, *shape)
    expected = AUTHORS[method.name](values)
    same(merged(method, values), expected)
    same(merged(method, values, scale=1.5), 1.5 * expected)
    single = merged(method, values.float())
    assert single.dtype == torch.float32
    same(single.double(), expected, 1e-3)


def test_the_common_share_decides_how_many_directions_the_tasks_give():
    values = draw(3, 10, 14)
    for common in (0.0, 0.5, 0.7, 1.0):
        same(merged(ISO_CTS, values, common=common), authors_iso_cts(values, common))
    same(merged(ISO_CTS, values, common=1.0), merged(ISO_C, values))


def test_rounding_up_does_not_take_more_directions_than_there_are():
    values = draw(5, 8, 9)  # 8 / 5 rounds to 2, and 10 are not there: 1 for each task, 3 for the sum
    same(merged(ISO_CTS, values, common=0.0), authors_iso_cts(values, 0.375))


def test_weights_multiply_the_vectors():
    values, weights = draw(2, 6, 6), [2.0, -0.5]
    for method in METHODS:
        same(
            merged(method, values, weight=weights),
            merged(method, values * torch.tensor(weights).view(2, 1, 1)),
        )


# -- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_one_vector(shape):
    values = draw(1, *shape)
    same(merged(TSV_M, values), values[0])
    flat = spectrum(merged(ISO_C, values))
    same(flat, spectrum(values[0]).mean().expand_as(flat))
    same(flat.sum(), spectrum(values[0]).sum())
    same(merged(ISO_CTS, values), merged(ISO_C, values))


def test_equal_vectors_are_one_vector_truncated_in_tsv_m_and_summed_in_iso_c():
    value = draw(6, 8)
    values = value.expand(3, 6, 8)
    same(merged(TSV_M, values), merged(SVD, value[None], rank=2))
    same(merged(ISO_C, values), 3 * merged(ISO_C, value[None]))


def test_vectors_in_orthogonal_subspaces_do_not_disturb_each_other():
    values = torch.zeros(2, 6, 6, dtype=torch.float64)
    values[0, :3, :3], values[1, 3:, 3:] = draw(3, 3), draw(3, 3, seed=1)
    same(merged(TSV_M, values), values.sum(0))


def test_directions_that_are_not_there_stay_null():
    values = low_rank(2, 20, 30, 3)
    for method, rank in ((TSV_M, 6), (ISO_C, 6), (ISO_CTS, 6)):
        for found in (merged(method, values), merged(method, values.float()).double()):
            kept = spectrum(found)
            assert (kept[rank:] < 1e-5 * kept[0]).all()
    flat = spectrum(merged(ISO_C, values))
    same(flat[:6], spectrum(values.sum(0)).sum().expand(6) / 6)


def test_a_vector_that_did_not_move_leaves_the_others_directions_alone():
    values = torch.stack([low_rank(1, 8, 8, 2)[0], torch.zeros(8, 8, dtype=torch.float64)])
    same(merged(TSV_M, values), values[0])
    same(merged(ISO_C, values), merged(ISO_C, values[:1]))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_zeros_merge_to_zeros(method):
    for shape in [(4, 3), (3, 4), (1, 1)]:
        assert not merged(method, torch.zeros(3, *shape)).any()


def test_more_vectors_than_directions():
    values = draw(4, 2, 9)
    assert spectrum(merged(TSV_M, values))[0] > 0.1  # the authors' share of 2 // 4 directions would be none
    assert torch.isfinite(merged(ISO_CTS, values)).all()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@given(order=st.permutations(range(3)), seed=st.integers(0, 1000), rank=st.sampled_from([4, 5, 8, 14]))
def test_the_order_of_tasks_does_not_matter(method, order, seed, rank):
    values = low_rank(3, 15, 14, rank, seed)
    same(merged(method, values[list(order)]), merged(method, values), 1e-6)


# -- tensors that are no matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (4, 3, 2, 2)])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_other_tensors_are_averaged_as_the_authors_do(method, shape):
    values = draw(3, *shape)
    same(merged(method, values, scale=2.0), 2 * values.mean(0))
    same(merged(method, values, others="sum", weight=[1.0, 0.0, 2.0]), values[0] + 2 * values[2])
    assert not merged(method, values, others="zero").any()


def test_which_tensors_are_matrices_is_an_option():
    matrix, kernel = draw(2, 4, 6), draw(2, 4, 3, 2, 1)
    same(merged(ISO_C, matrix, matrices="none"), matrix.mean(0))
    same(merged(ISO_C, matrix, matrices="layers"), matrix.mean(0))
    same(merged(ISO_C, matrix, matrices="layers", depth=0.5), merged(ISO_C, matrix))
    flat = merged(ISO_C, kernel.view(2, 4, 6)).view(4, 3, 2, 1)
    same(merged(ISO_C, kernel, matrices="flattened"), flat)
    same(merged(ISO_C, matrix, matrices="flattened"), merged(ISO_C, matrix))


# -- truncation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_what_truncation_loses_is_the_tail_of_the_spectrum(shape, rank):
    values = draw(1, *shape)
    found, s = merged(SVD, values, rank=rank), spectrum(values[0])
    same(torch.linalg.matrix_norm(values[0] - found), s[rank:].square().sum().sqrt())
    assert (spectrum(found) > 1e-9).sum() == rank


@pytest.mark.parametrize("error", [0.0, 0.2, 0.6, 1.0])
def test_a_stated_error_takes_the_least_rank_that_keeps_it(error):
    matrix = draw(8, 12)
    found, s = merged(SVD, matrix[None], error=error), spectrum(matrix)
    rank = int((spectrum(found) > 1e-9).sum())
    norm = torch.linalg.matrix_norm(matrix)
    assert torch.linalg.matrix_norm(matrix - found) <= error * norm + 1e-12
    if rank:
        assert s[rank - 1 :].square().sum().sqrt() > error * norm


def test_rank_and_error_hold_together():
    s = torch.tensor([4.0, 3.0, 0.0])
    assert [kept_rank(s, error=error) for error in (0.0, 0.59, 0.61, 1.0)] == [2, 2, 1, 0]
    assert [kept_rank(s, rank) for rank in (1, 2.4, 9)] == [1, 2, 3]
    assert [kept_rank(s, 1, 0.1), kept_rank(s, 2, 0.7)] == [1, 1]
    assert kept_rank(torch.zeros(3), error=0.0) == 0


def test_a_rank_that_keeps_all_changes_nothing():
    values = draw(2, 4, 7, dtype=torch.float32)
    assert torch.equal(merged(SVD, values[:1], rank=4), values[0])
    same(merged(SVD, values, rank=9, weight=[1.0, -1.0], scale=0.5), (values[0] - values[1]) / 2, 1e-6)
    bias = draw(2, 5)
    same(merged(SVD, bias, rank=1), bias.sum(0))


def test_truncation_needs_a_rank_or_an_error():
    vector = TaskVector({"head.b": draw(3), "head.w": draw(3, 3)}, "b", "standard")
    with pytest.raises(UsageError, match=r"neither 'rank' nor 'error' for 'head\.w'"):
        merge([vector], SVD)
    bias = TaskVector({"head.b": draw(3)}, "b", "standard")
    assert torch.equal(merge([bias], SVD).deltas["head.b"], bias.deltas["head.b"])


# -- the SVD -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, (4, 0), (1, 1)])
def test_the_svd_of_wide_and_tall_matrices(shape):
    matrix = draw(*shape)
    u, s, vt = svd(matrix, "w")
    rank = min(shape)
    assert (u.shape, s.shape, vt.shape) == ((shape[0], rank), (rank,), (rank, shape[1]))
    same((u * s) @ vt, matrix)
    same(u.mT @ u, torch.eye(rank, dtype=u.dtype))


def test_the_polar_factor_is_the_nearest_partial_isometry():
    column = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    same(polar(torch.cat([column, column], 1), "w"), torch.cat([column, column], 1) / (5 * math.sqrt(2)))
    factor = polar(low_rank(1, 7, 5, 3)[0], "w")
    same(factor @ factor.mT @ factor, factor)


def test_support_ignores_what_rounding_leaves():
    s = torch.tensor([1.0, 1e-4, 1e-8])
    assert support(s, 100) == 2
    assert support(s, 100, torch.tensor(1e3)) == 1
    assert support(torch.zeros(3), 100) == 0


def test_an_svd_that_does_not_converge_names_the_tensor():
    values = torch.full((1, 3, 3), float("nan"))
    with pytest.raises(NonFiniteError, match=r"spectrum of 'head\.w' does not converge"):
        merged(ISO_C, values, name="head.w")


# -- in the table, and in the benchmark --------------------------------------------------------------------------


def test_the_methods_stand_in_the_table():
    tasks = [TaskVector({"w": draw(5, 4, seed=t)}, "base", "linear", f"t{t}") for t in range(2)]
    values = torch.stack([task.deltas["w"] for task in tasks])
    for method in METHODS:
        same(merge(tasks, method.name).deltas["w"], merged(method, values))
    same(merge(tasks, "svd", {"rank": 1}).deltas["w"], merged(SVD, values, rank=1))


@pytest.mark.parametrize("method", ["iso_c", "tsv_m"])
def test_the_benchmark_times_the_svds_that_a_method_takes(monkeypatch, method):
    taken, real = [], torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda matrix, **options: taken.append(matrix.shape) or real(matrix, **options)
    )
    tasks = spectral.deltas(MODELS["tiny-text"])
    merge(tasks, method)
    needed, taken[:] = sorted(taken), []
    spectral.turned(spectral.needed(tasks, method))
    assert sorted(taken) == needed


def test_the_benchmark_gives_rows():
    setting = rows.Setting(threads=1, rounds=1, shapes=("tiny-text",), short=True)
    found = {one.what: one for one in spectral.spectral(setting)}
    assert found["tiny-text: iso_c / its SVDs"].goal == 2.0
    assert len(found) == 6
