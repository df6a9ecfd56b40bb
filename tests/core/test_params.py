"""Named tensors: strict pairing, finite checks, combinations, measures, fingerprints."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tauspan.core import params
from tauspan.core.errors import MismatchError, NonFiniteError

VALUES = {"w": torch.tensor([[1.5, -2.0], [0.25, 8.0]]), "b": torch.tensor([0.0, 3.0])}
SEEDS = st.integers(0, 2**31)


def random_params(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(v.shape, generator=generator).to(dtype) for name, v in VALUES.items()}


def test_zip_pairs_by_name_in_the_order_of_the_first():
    pairs = list(params.zip_strict(VALUES, dict(reversed(VALUES.items())), "one", "two"))
    assert [name for name, _, _ in pairs] == ["w", "b"]
    assert all(first is second for _, first, second in pairs)


def test_zip_names_both_sides_and_the_missing_and_extra_tensors():
    with pytest.raises(MismatchError) as caught:
        list(params.zip_strict({"w": VALUES["w"]}, {"v": VALUES["w"]}, "the base", "the tuned model"))
    assert "the tuned model lacks 1 of the base's tensors (w)" in str(caught.value)
    assert "the tuned model has 1 that the base lacks (v)" in str(caught.value)


def test_zip_lists_few_of_many_missing_tensors():
    many = {f"layer{i}": VALUES["b"] for i in range(9)}
    with pytest.raises(MismatchError, match=r"lacks 9 of .* and 4 more"):
        params.require_same(many, {}, "one", "two")


def test_zip_says_both_shapes():
    with pytest.raises(MismatchError) as caught:
        params.require_same({"w": torch.zeros(2, 3)}, {"w": torch.zeros(3, 2)}, "the base", "the tuned")
    message = str(caught.value)
    assert "'w'" in message
    assert "(2, 3) in the base" in message
    assert "(3, 2) in the tuned" in message


def test_a_shape_that_would_broadcast_is_refused():
    with pytest.raises(MismatchError):
        params.combine([(1.0, {"w": torch.zeros(2, 3)}), (1.0, {"w": torch.zeros(3)})], ["a", "b"])


@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
def test_finite_check_names_tensor_owner_count_and_kind(value, kind):
    with pytest.raises(NonFiniteError) as caught:
        params.require_finite({"w": VALUES["w"], "b": torch.tensor([0.0, value, value])}, "the vector 'x'")
    assert f"tensor 'b' of the vector 'x' has 2 of 3 values that are not finite ({kind})" in str(caught.value)


def test_finite_check_passes_integers_empty_tensors_and_the_largest_floats():
    params.require_finite(
        {"ids": torch.arange(3), "none": torch.zeros(0), "big": torch.tensor(torch.finfo(torch.float32).max)},
        "x",
    )


@given(SEEDS, st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4))
def test_combine_matches_a_plain_float64_sum(seed, scales):
    terms = [(scale, random_params(seed + i, torch.float64)) for i, scale in enumerate(scales)]
    total = params.combine(terms, [f"term {i}" for i in range(len(terms))])
    for name in VALUES:
        plain = sum(scale * term[name] for scale, term in terms)
        torch.testing.assert_close(total[name], plain, rtol=1e-14, atol=1e-14)


def test_combine_changes_no_input_and_shares_no_memory():
    first, second = random_params(1), random_params(2)
    before = {name: tensor.clone() for name, tensor in first.items()}
    params.combine([(1.0, first)], ["a"])["w"].zero_()
    params.combine([(1.0, first), (1.0, second)], ["a", "b"])["w"].zero_()
    assert all(torch.equal(first[name], before[name]) for name in first)


def test_combine_names_the_term_that_does_not_fit():
    with pytest.raises(MismatchError, match="tau_c lacks 1 of tau_a's tensors"):
        params.combine([(1.0, VALUES), (1.0, VALUES), (1.0, {"w": VALUES["w"]})], ["tau_a", "tau_b", "tau_c"])


@given(SEEDS, SEEDS)
def test_dot_and_norm_match_plain_python(seed, other):
    first, second = random_params(seed), random_params(other)
    a, b = ([v for tensor in p.values() for v in tensor.flatten().tolist()] for p in (first, second))
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    assert params.dot(first, second) == pytest.approx(product, abs=1e-12)
    assert params.norm(first) == pytest.approx(math.sqrt(math.fsum(x * x for x in a)), rel=1e-14)


def test_dot_accumulates_in_float64_where_the_storage_type_would_lose_everything():
    values = {"w": torch.tensor([300.0, 1.0], dtype=torch.float16)}
    assert params.dot(values, values) == 90001.0
    assert params.norm(values) == math.sqrt(90001.0)


def test_measures_of_nothing_are_zero():
    assert params.dot({}, {}) == 0.0
    assert params.norm({}) == 0.0
    assert params.norm({"none": torch.zeros(0, 3)}) == 0.0


def test_fingerprint_ignores_order_and_memory_layout():
    turned = {"b": VALUES["b"], "w": VALUES["w"].t().contiguous().t()}
    assert params.fingerprint(turned) == params.fingerprint(VALUES)


def test_fingerprint_is_stable_between_releases():
    assert params.fingerprint(VALUES) == "9a4f42f740c74441f0774b3630eac5fd9cec25ddac3f27de4bfe2a34dad4a3d0"


@given(SEEDS)
def test_fingerprint_is_the_same_for_every_type_that_holds_the_values_exactly(seed):
    narrow = random_params(seed, torch.bfloat16)
    expected = params.fingerprint(narrow)
    for dtype in (torch.float32, torch.float64):
        assert params.fingerprint({name: tensor.to(dtype) for name, tensor in narrow.items()}) == expected


def test_fingerprint_keeps_float64_digits_that_float32_cannot_hold():
    fine = {"w": torch.tensor([1.0 + 2.0**-40], dtype=torch.float64)}
    assert params.fingerprint(fine) != params.fingerprint({"w": fine["w"].float()})


@pytest.mark.parametrize(
    "other",
    [
        {"w2": VALUES["w"], "b": VALUES["b"]},
        {"w": VALUES["w"].reshape(4), "b": VALUES["b"]},
        {"w": VALUES["w"], "b": torch.tensor([0.0, 3.0000002])},
        {"w": VALUES["w"]},
        {**VALUES, "none": torch.zeros(0)},
    ],
    ids=["name", "shape", "value", "fewer", "one more, empty"],
)
def test_fingerprint_changes_with(other):
    assert params.fingerprint(other) != params.fingerprint(VALUES)


def test_fingerprint_ignores_integer_tensors():
    assert params.fingerprint({**VALUES, "position_ids": torch.arange(7)}) == params.fingerprint(VALUES)


def test_fingerprint_reads_parameters_that_require_grad():
    grad = {name: tensor.clone().requires_grad_() for name, tensor in VALUES.items()}
    assert params.fingerprint(grad) == params.fingerprint(VALUES)
