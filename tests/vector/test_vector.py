"""Task vectors: the laws of a vector space, what does not add, measures, views."""

import math
import operator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import tiny
from helpers.tiny import BASE, equal, vector
from tauspan.core import params
from tauspan.core.errors import BaseMismatchError, MismatchError, NonFiniteError, UsageError
from tauspan.vector import TaskVector, cosine_matrix

NAN, INF = math.nan, math.inf
CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
SHAPES = {"w": (2, 3), "b": (3,), "scale": (), "none": (0, 2)}
NUMBERS = st.lists(st.integers(-64, 64), min_size=10, max_size=10)
SCALES = st.one_of(st.integers(-16, 16), st.integers(-64, 64).map(lambda n: n / 8))  # exact in every product


def from_numbers(numbers):
    flat = iter(numbers)
    deltas = {
        name: torch.tensor([float(next(flat)) for _ in range(torch.Size(shape).numel())]).reshape(shape)
        for name, shape in SHAPES.items()
    }
    return TaskVector(deltas, BASE, "standard")


VECTORS = NUMBERS.map(from_numbers)
POINTS = NUMBERS.map(lambda numbers: from_numbers(numbers).deltas)


def zero_like(tau):
    return {name: torch.zeros_like(delta) for name, delta in tau.deltas.items()}


def same(first, second):
    return equal(first.deltas, second.deltas) and first.base == second.base and first.regime == second.regime


# -- the laws, exact on whole numbers ------------------------------------------------------------------------


@given(VECTORS, VECTORS, VECTORS)
def test_addition_is_associative_and_commutative(a, b, c):
    assert same((a + b) + c, a + (b + c))
    assert same(a + b, b + a)


@given(VECTORS, VECTORS)
def test_subtraction_undoes_addition(a, b):
    assert same((a + b) - b, a)
    assert same(a - b, a + (-b))
    assert tiny.same_bits((a - a).deltas, zero_like(a))


@given(VECTORS)
def test_negation_is_its_own_inverse(a):
    negated = -a
    assert tiny.same_bits((-negated).deltas, a.deltas)
    assert same(-a, -1 * a)


@given(VECTORS, VECTORS, SCALES, SCALES)
def test_scalars_distribute_over_vectors_and_vectors_over_scalars(a, b, s, t):
    assert same(s * (a + b), s * a + s * b)
    assert same((s + t) * a, s * a + t * a)
    assert same(s * (t * a), (s * t) * a)


@given(VECTORS, SCALES)
def test_scalars_work_on_both_sides_and_one_is_neutral(a, s):
    assert same(s * a, a * s)
    assert same(1 * a, a)
    assert same(0 * a, a - a)


@given(VECTORS, st.integers(-6, 6))
def test_division_by_a_power_of_two_undoes_the_product(a, exponent):
    assert same((a * 2.0**exponent) / 2.0**exponent, a)
    assert same(a / 2.0**exponent, a * 2.0**-exponent)


@given(st.lists(VECTORS, min_size=1, max_size=4))
def test_sum_is_repeated_addition_in_any_order(vectors):
    total = vectors[0]
    for other in vectors[1:]:
        total = total + other
    assert same(sum(vectors), total)
    assert same(sum(reversed(vectors)), total)


@given(VECTORS, VECTORS, VECTORS)
def test_analogy_c_plus_b_minus_a(a, b, c):
    assert same(c + (b - a), (c + b) - a)
    assert same(a + (b - a), b)
    assert same(c + (a - a), c)
    assert same((c + (b - a)) - (b - a), c)


@given(POINTS, VECTORS)
def test_applying_and_subtracting_the_point_gives_the_vector_back(point, tau):
    tau = tau.rebased(params.fingerprint(point))
    back = TaskVector.from_checkpoints(point, tau.apply(point))
    assert tiny.same_bits(back.deltas, tau.deltas)
    assert back.base == tau.base


@given(POINTS, VECTORS, VECTORS)
def test_applying_a_sum_is_applying_one_after_the_other(point, a, b):
    origin = params.fingerprint(point)
    middle = a.rebased(origin).apply(point)
    assert equal((a + b).rebased(origin).apply(point), b.rebased(params.fingerprint(middle)).apply(middle))


def test_operations_leave_their_operands_alone():
    a, b = vector(w=[1, 2]), vector(w=[3, 4])
    (a + b).deltas["w"].zero_()
    (2 * a).deltas["w"].zero_()
    (-a).deltas["w"].zero_()
    assert (a.deltas["w"].tolist(), b.deltas["w"].tolist()) == ([1, 2], [3, 4])


# -- what does not add ---------------------------------------------------------------------------------------

TAU = vector(w=[1, 2])


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: 7 + TAU,
        lambda: TAU + 7,
        lambda: TAU - 0,
        lambda: TAU * TAU,
        lambda: 1 / TAU,
        lambda: TAU / TAU,
        lambda: TAU + nn.Linear(2, 1),
        lambda: nn.Linear(2, 1) + TAU,
        lambda: TAU + {"w": torch.ones(2)},
        lambda: TAU * torch.ones(2),
        lambda: torch.tensor(2.0) * TAU,
        lambda: TAU * "2",
    ],
)
def test_anything_but_vectors_and_scalars_is_a_type_error(nonsense):
    with pytest.raises(TypeError):
        nonsense()


@pytest.mark.parametrize("operation", [operator.add, operator.sub, TaskVector.dot])
@pytest.mark.parametrize(
    ("other", "error", "said"),
    [
        (vector("c" * 64, label="other", w=[1, 2]), BaseMismatchError, (BASE[:12], "c" * 12)),
        (
            vector(regime="linear", label="other", w=[1, 2]),
            MismatchError,
            ("a standard vector", "a linear one"),
        ),
        (vector(label="other", v=[1, 2]), MismatchError, ("lacks", "(w)", "(v)")),
        (vector(label="other", w=[1, 2, 3]), MismatchError, ("'w'", "(2,)", "(3,)")),
        (vector(label="other", w=[[1], [2]]), MismatchError, ("'w'", "(2,)", "(2, 1)")),
    ],
    ids=["base", "regime", "names", "shape", "shape that broadcasts"],
)
def test_vectors_that_do_not_fit_are_refused_by_name(operation, other, error, said):
    with pytest.raises(error) as caught:
        operation(TAU, other)
    assert all(part in str(caught.value) for part in ("'tau'", "'other'", *said))


def test_an_unknown_regime_is_refused():
    with pytest.raises(UsageError, match="Did you mean 'linear'"):
        vector(regime="liner", w=[1])


def test_a_regime_changes_only_by_name():
    assert same(TAU.as_regime("linear").as_regime("standard"), TAU)
    assert (TAU.as_regime("linear") + vector(regime="linear", w=[1, 2])).regime == "linear"


# -- provenance and labels -----------------------------------------------------------------------------------


def test_results_are_labelled_by_what_was_done():
    a, b = TAU.named("a"), TAU.named("b")
    assert [v.label for v in (a + b, a - b, -a, 0.5 * a, a / 4)] == [
        "(a + b)",
        "(a - b)",
        "-a",
        "0.5 a",
        "a/4",
    ]
    assert (
        str(3 * vector(w=[1, 0], b=[0]))
        == f"TaskVector(standard, 2 tensors, 3 values, norm 3, base {'b' * 12})"
    )


@pytest.mark.parametrize("key", ["seed", "recipe"])
def test_a_sum_keeps_provenance_except_a_seed_or_recipe_that_differs(key):
    shared = {"base_id": "m", "seed": 1, "recipe": "r"}
    first = TaskVector(TAU.deltas, BASE, "standard", info=shared)
    second = TaskVector(TAU.deltas, BASE, "standard", info=shared | {key: "other"})
    assert (first + first).info == shared
    assert (first + second).info == {name: value for name, value in shared.items() if name != key}


# -- measures ------------------------------------------------------------------------------------------------


def dense(tau):
    return torch.cat([delta.double().flatten() for delta in tau.deltas.values()])


@given(VECTORS, VECTORS)
def test_norm_and_dot_match_the_dense_float64_vector(a, b):
    assert a.norm() == pytest.approx(float(dense(a).norm()), rel=1e-14)
    assert a.dot(b) == float(dense(a) @ dense(b))


@given(st.lists(VECTORS, min_size=1, max_size=4))
def test_cosine_matrix_matches_the_dense_float64_one(vectors):
    stacked = torch.stack([dense(tau) for tau in vectors])
    scale = stacked.norm(dim=1)
    expected = torch.where(
        torch.outer(scale, scale) > 0, stacked @ stacked.T / torch.outer(scale, scale), 0.0
    )
    matrix = cosine_matrix(vectors)
    torch.testing.assert_close(matrix, expected, rtol=1e-13, atol=1e-15)
    assert torch.equal(matrix, matrix.T)


def test_table_has_one_row_a_tensor_and_shares_of_one():
    table = vector(w=[[3, 0], [0, 0]], b=[0, -4], scale=0, none=[]).table()
    rows = {row["tensor"]: row for row in table.rows}
    assert [row["shape"] for row in table.rows] == ["2x2", "2", "scalar", "0"]
    assert (rows["b"]["norm"], rows["b"]["largest"], rows["w"]["rms"]) == (4.0, 4.0, 1.5)
    assert [row["share"] for row in table.rows] == pytest.approx([9 / 25, 16 / 25, 0, 0])
    assert {row["dtype"] for row in table.rows} == {"float32"}


def test_table_of_a_zero_vector_divides_by_nothing():
    assert [row["share"] for row in (TAU - TAU).table().rows] == [0.0]


# -- other views ---------------------------------------------------------------------------------------------


def test_filled_like_adds_zeros_so_that_partial_vectors_add():
    attention, norms = vector(w=[1, 2]), vector(b=[3], w2=[4])
    filled = attention.filled_like(norms)
    assert {name: delta.tolist() for name, delta in filled.deltas.items()} == {
        "b": [0],
        "w2": [0],
        "w": [1, 2],
    }
    total = filled + norms.filled_like(attention)
    assert {name: delta.tolist() for name, delta in total.deltas.items()} == {
        "b": [3],
        "w2": [4],
        "w": [1, 2],
    }
    assert same(TAU.filled_like(TAU), TAU)


def test_to_changes_the_type_and_nothing_else():
    half = TAU.to(torch.bfloat16)
    assert half.deltas["w"].dtype == torch.bfloat16
    assert same(half.to(torch.float32), TAU)


# -- what cannot be a vector's content -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tau: tau.to(torch.float16),
            r"'w' of 'big', as float16: 70000 would become inf.* 65504\. Take",
        ),
        (
            lambda tau: tau * 1e37,
            r"'w' of 'big', times 1e\+37: 70000 would become inf, since float32 ends at 3\.4",
        ),
        (lambda tau: tau / -1e-37, r"'w' of 'big', over -1e-37: 70000 would become -inf"),
    ],
)
def test_a_value_beyond_its_type_is_an_error_and_never_infinity(change, said):
    with pytest.raises(NonFiniteError, match=said):
        change(vector(label="big", b=[1], w=[1, 70000]))


def test_the_widest_value_of_a_type_is_kept():
    assert vector(w=[65504, -65504]).to(torch.float16).deltas["w"].tolist() == [65504, -65504]
    assert vector(w=[1e30]).to(torch.bfloat16).deltas["w"].isfinite().all()


@pytest.mark.parametrize(
    "scaled", [lambda: TAU / 0, lambda: TAU / 0.0, lambda: TAU / NAN, lambda: INF * TAU, lambda: TAU * NAN]
)
def test_a_scale_that_is_no_number_is_refused(scaled):
    with pytest.raises(
        UsageError, match=r"'tau' (times|over) (0|0\.0|nan|inf): the (factor|divisor) must be a finite"
    ):
        scaled()


def test_a_vector_holds_floating_point_numbers_only():
    with pytest.raises(UsageError, match=r"'tau' as torch\.int8: a vector holds floating-point"):
        TAU.to(torch.int8)


@pytest.mark.parametrize(
    "value",
    [torch.ones(1), {1, 2}, {"inner": [object()]}, {1: "a", "b": 2}, CIRCLE],
    ids=lambda v: type(v).__name__,
)
def test_provenance_that_is_no_json_is_refused_by_its_key(value):
    with pytest.raises(
        UsageError, match=r"info\['note'\] of the vector 'tau' cannot be saved as JSON \(.*give text"
    ):
        replace(TAU, info={"seed": 1, "note": value})


@pytest.mark.parametrize("key", [(1, 2), b"note"])
def test_a_key_of_provenance_that_is_no_text_is_refused(key):
    with pytest.raises(UsageError, match=r"a key of `info` is .* and a text is wanted"):
        replace(TAU, info={key: 1})
