"""Methods by angles: small tables by hand, ends and limits, plain float64 oracles, and every degenerate case."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.blocks import drawn, merged
from tauspan.core.errors import UsageError
from tauspan.core.params import fingerprint
from tauspan.merge.engine.memory import merge
from tauspan.merge.methods.geometry import gram
from tauspan.merge.methods.method import Block
from tauspan.vector import TaskVector

HALF = math.sqrt(0.5)
NAMES = ("slerp", "nuslerp", "nuslerp_point", "multislerp", "multislerp_point", "karcher", "model_stock")
SYMMETRIC = ("multislerp", "multislerp_point", "karcher", "model_stock")


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(
        got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance
    )


def slerp_oracle(a, b, t):
    cosine = (a.flatten() @ b.flatten()) / (a.norm() * b.norm())
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def test_slerp_by_hand():
    quarter = rows([2.0, 0.0], [0.0, 2.0])  # 90 degrees: t = 1/2 is at 45, t = 1/3 at 30
    close(merged("slerp", quarter), [2 * HALF, 2 * HALF])
    close(merged("slerp", quarter, {"t": 1 / 3}), [math.sqrt(3), 1.0])
    sixty = rows([1.0, 0.0], [0.5, math.sqrt(3) / 2])
    close(merged("slerp", sixty), [math.sqrt(3) / 2, 0.5])
    unequal = rows([1.0, 0.0], [0.0, 3.0])  # vectors as they are: (v_1 + v_2) sin 45 / sin 90
    close(merged("slerp", unequal), [HALF, 3 * HALF])


def test_slerp_ends_are_exact_and_the_length_is_kept():
    pair = drawn(2, 5, 7, dtype=torch.float32)
    assert torch.equal(merged("slerp", pair, {"t": 0.0}), pair[0])
    assert torch.equal(merged("slerp", pair, {"t": 1.0}), pair[1])
    unit = drawn(2, 35)
    unit = unit / unit.norm(dim=1, keepdim=True)
    for t in (0.1, 0.5, 0.83):
        between = merged("slerp", unit, {"t": t})
        close(between.norm(), 1.0)
        close(between, slerp_oracle(unit[0], unit[1], t))


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "nuslerp_point"])
def test_degenerate_pairs(name):
    options = {"t": 0.25} if name == "slerp" else {"weight": [3.0, 1.0]}
    v, zero = rows([3.0, 4.0])[0], torch.zeros(2, dtype=torch.float64)
    close(merged(name, torch.stack([v, 2 * v]), options), 1.25 * v)  # parallel: the limit, a straight line
    close(merged(name, torch.stack([v, -v]), options), 0.5 * v)  # opposite: a straight line by definition
    close(
        merged(name, torch.stack([v, zero]), options), math.sin(3 * math.pi / 8) * v
    )  # a zero vector is orthogonal
    close(merged(name, torch.stack([zero, zero]), options), zero)


def test_slerp_is_smooth_where_vectors_become_parallel():
    a = drawn(50)
    for apart in (1e-3, 1e-6, 1e-9, 1e-15):
        b = a + apart * drawn(50, seed=1)
        close(
            merged("slerp", torch.stack([a, b]), {"t": 0.3}),
            0.7 * a + 0.3 * b,
            tolerance=max(apart**2, 1e-14),
        )


def test_slerp_straightens_above_the_threshold():
    pair = rows([1.0, 0.0], [0.6, 0.8])
    assert not torch.allclose(merged("slerp", pair), rows([0.8, 0.4])[0])
    close(merged("slerp", pair, {"dot_threshold": 0.59}), [0.8, 0.4])
    close(merged("slerp", rows([1.0, 0.0], [-0.6, 0.8]), {"dot_threshold": 0.59}), [0.2, 0.4])
    close(merged("slerp", pair, {"dot_threshold": 0.61}), merged("slerp", pair))


def test_nuslerp_of_the_tensor_rows_columns_and_last_axis():
    pair = drawn(2, 3, 2, 4)
    options = {"weight": [1.0, 3.0]}
    close(merged("nuslerp", pair, options), slerp_oracle(pair[0], pair[1], 0.75))
    flat = pair.reshape(2, 3, 8)
    by_rows = torch.stack([slerp_oracle(flat[0, i], flat[1, i], 0.75) for i in range(3)])
    by_columns = torch.stack([slerp_oracle(flat[0, :, j], flat[1, :, j], 0.75) for j in range(8)], dim=1)
    lines = pair.reshape(2, 6, 4)
    by_lines = torch.stack([slerp_oracle(lines[0, i], lines[1, i], 0.75) for i in range(6)])
    for along, expected in (("rows", by_rows), ("columns", by_columns), ("last_axis", by_lines)):
        for size in (1, 8, 16, 1000):
            got = merged("nuslerp", pair, {**options, "along": along}, size=size)
            close(got, expected.view(3, 2, 4))


@pytest.mark.parametrize("along", ["rows", "columns", "last_axis"])
def test_a_tensor_of_one_axis_is_one_vector(along):
    for shape in ((9,), ()):
        pair = drawn(2, *shape)
        assert torch.equal(merged("nuslerp", pair, {"along": along}), merged("nuslerp", pair))


def test_multislerp_by_hand():
    # lengths 2 and 4, directions x and y: the mean length 3 at 45 degrees
    close(merged("multislerp", rows([2.0, 0.0], [0.0, 4.0])), [3 * HALF, 3 * HALF])
    # weights 3 : 1, direction (3, 1) / sqrt(10), length (3 * 2 + 4) / 4
    got = merged("multislerp", rows([2.0, 0.0], [0.0, 4.0]), {"weight": [3.0, 1.0]})
    close(got, [2.5 * 3 / math.sqrt(10), 2.5 / math.sqrt(10)])
    doubled = merged("multislerp", rows([2.0, 0.0], [0.0, 4.0]), {"weight": [6.0, 2.0], "normalize": False})
    close(doubled, 8 * got)


def test_multislerp_is_what_the_published_projections_compute():
    values, weights = drawn(4, 30), rows([0.1, 0.2, 0.3, 0.4])[0]
    lengths = values.norm(dim=1, keepdim=True)
    unit = values / lengths
    mean = (weights[:, None] * unit).sum(0)
    mean = mean / mean.norm()
    tangent = (weights[:, None] * (unit - (unit @ mean)[:, None] * mean)).sum(0)
    angle = tangent.norm() + 1e-8
    expected = mean * torch.cos(angle) + tangent * torch.sin(angle) / angle
    close(merged("multislerp", values, {"weight": weights.tolist()}), expected * (weights @ lengths), 1e-10)


@pytest.mark.parametrize("name", ["multislerp", "multislerp_point", "karcher"])
def test_directions_that_cancel_give_the_weighted_sum(name):
    v = rows([3.0, 4.0])[0]
    close(merged(name, torch.stack([v, -3 * v])), -v)  # unit vectors cancel: the mean of v and -3 v
    star = rows([2.0, 0.0], [-1.0, math.sqrt(3)], [-1.0, -math.sqrt(3)])
    close(merged(name, torch.stack([*(2 * star[:1]), *star[1:]])), [2 / 3, 0.0])
    close(merged(name, torch.zeros(3, 2, dtype=torch.float64)), [0.0, 0.0])


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_zero_vectors_shorten_and_do_not_turn(name):
    values = drawn(3, 20)
    values[1] = 0
    others = merged(name, values[[0, 2]])
    close(merged(name, values), others * 2 / 3)


def karcher_oracle(values, weights):
    unit = values / values.norm(dim=1, keepdim=True)
    mean = (weights[:, None] * unit).sum(0)
    mean = mean / mean.norm()
    for _ in range(500):
        near = (unit @ mean).clamp(-1, 1)
        angle = torch.arccos(near)
        logs = (angle / torch.sin(angle))[:, None] * (unit - near[:, None] * mean)
        step = (weights[:, None] * logs).sum(0)
        length = step.norm()
        if length < 1e-15:
            break
        mean = torch.cos(length) * mean + torch.sin(length) / length * step
    return mean * (weights @ values.norm(dim=1))


def test_karcher_of_two_is_slerp_and_of_equal_vectors_is_itself():
    pair = drawn(2, 6, 5)
    pair = pair / pair.flatten(1).norm(dim=1)[:, None, None]
    close(merged("karcher", pair), merged("slerp", pair), 1e-7)
    shares = {"weight": [3.0, 1.0]}
    close(merged("karcher", pair, shares), merged("slerp", pair, {"t": 0.25}), 1e-7)
    same = drawn(1, 6, 5).expand(4, 6, 5)
    close(merged("karcher", same), same[0])
    # x, y, z at equal shares: (1, 1, 1) / sqrt(3)
    close(merged("karcher", torch.eye(3, dtype=torch.float64)), [1 / math.sqrt(3)] * 3)


def test_karcher_next_to_an_opposite_vector():
    v = rows([3.0, 4.0])[0]
    close(merged("karcher", torch.stack([v, v, -v])), v)  # the direction of two, the mean length of three


def test_karcher_is_where_the_weighted_logarithms_cancel():
    values, weights = drawn(4, 6) + 0.3, rows([0.4, 0.3, 0.2, 0.1])[0]
    got = merged("karcher", values, {"weight": weights.tolist(), "tol": 1e-8, "max_iter": 500})
    close(got, karcher_oracle(values, weights), 1e-7)
    once = merged("karcher", values, {"weight": weights.tolist(), "max_iter": 1})
    assert not torch.allclose(got, once, rtol=1e-4)


def test_model_stock_limits_and_formula():
    v = drawn(1, 4, 3)
    close(merged("model_stock", v.expand(3, 4, 3)), v[0])  # equal: their mean
    close(merged("model_stock", rows([1.0, 0.0], [0.0, 2.0])), [0.0, 0.0])  # orthogonal: the base
    close(merged("model_stock", torch.cat([v, -v])), torch.zeros(4, 3))  # the pole: the base
    star = rows([4.0, 0.0], [-1.0, math.sqrt(3)], [-1.0, -math.sqrt(3)])
    close(merged("model_stock", star), [0.0, 0.0])  # the pole of three, though their sum is not 0
    # cos 60 = 1/2: t = 2 * 0.5 / 1.5 = 2/3 of the mean (3/4, sqrt(3)/4)
    sixty = rows([1.0, 0.0], [0.5, math.sqrt(3) / 2])
    close(merged("model_stock", sixty), [0.5, math.sqrt(3) / 6])
    close(merged("model_stock", sixty, {"scale": 0.5}), [0.25, math.sqrt(3) / 12])
    values = drawn(3, 4, 5) + 0.5
    flat = values.flatten(1)
    pairs = [torch.cosine_similarity(flat[i], flat[j], dim=0) for i, j in ((0, 1), (0, 2), (1, 2))]
    mean = sum(pairs) / 3
    close(merged("model_stock", values), 3 * mean / (1 + 2 * mean) * values.mean(0))


def test_model_stock_by_lines_and_with_a_floor():
    values = drawn(3, 4, 2, 5) + 0.5
    lines = values.reshape(3, 8, 5)
    expected = torch.stack([merged("model_stock", lines[:, i]) for i in range(8)]).view(4, 2, 5)
    for size in (1, 10, 100):
        close(merged("model_stock", values, {"filter_wise": True}, size=size), expected)
    close(
        merged("model_stock", values[:, 0, 0], {"filter_wise": True}), merged("model_stock", values[:, 0, 0])
    )
    sixty = rows([1.0, 0.0], [0.5, math.sqrt(3) / 2])
    halved = merged("model_stock", sixty, {"floor": 2.0})  # cosine 1/4: t = 2 * 0.25 / 1.25 = 0.4
    close(halved, [0.3, 0.1 * math.sqrt(3)])


@pytest.mark.parametrize("name", NAMES)
def test_blocks_do_not_matter(name):
    values = drawn(2, 7, 11, dtype=torch.float32)
    whole = merged(name, values)
    assert whole.dtype == torch.float32
    for size in (1, 5, 22, 64):
        torch.testing.assert_close(merged(name, values, size=size), whole, rtol=3e-7, atol=1e-7)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_order_of_models_does_not_matter(order, seed):
    values = drawn(4, 3, 4, seed=seed)
    for name in SYMMETRIC:
        close(merged(name, values[list(order)]), merged(name, values), 1e-6 if name == "karcher" else 1e-10)


@settings(max_examples=15, deadline=None)
@given(power=st.integers(-60, 60), seed=st.integers(0, 1000))
def test_units_do_not_matter(power, seed):
    values = drawn(2, 3, 4, seed=seed)
    for name in NAMES:
        close(merged(name, values * 2.0**power) / 2.0**power, merged(name, values))


@pytest.mark.parametrize("name", ["multislerp", "multislerp_point", "karcher"])
def test_one_model_is_itself(name):
    one = drawn(1, 7, 11, dtype=torch.float32)
    assert torch.equal(merged(name, one), one[0])


def test_inner_products_are_those_of_float64():
    values = drawn(3, 40000, dtype=torch.float32) + 1.0
    block = Block(values, None, "w", 0, values.shape[1:], {}, ("a", "b", "c"))
    close(gram(block), values.double() @ values.double().T, 1e-13)


def test_float32_is_measured_in_float64():
    values = (
        1e-3 * drawn(3, 40000, dtype=torch.float32) + 1.0
    )  # nearly parallel: float32 products would lose the angle
    for name in SYMMETRIC:
        exact = merged(name, values.double())
        torch.testing.assert_close(merged(name, values), exact.float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("nuslerp", {"weight": [1.0, -1.0]}), ("multislerp", {"weight": 0.0}), ("karcher", {"weight": 0.0})],
)
def test_weights_without_a_sum_are_an_error_that_names_the_tensor(name, options):
    with pytest.raises(UsageError, match=r"sum to 0 at the tensor 'w'"):
        merged(name, drawn(2, 3), options)


def test_options_outside_their_range():
    for name, options in (
        ("karcher", {"weight": -1.0}),
        ("karcher", {"max_iter": 0}),
        ("slerp", {"dot_threshold": 1.5}),
        ("nuslerp", {"along": "diagonal"}),
        ("model_stock", {"floor": -1.0}),
    ):
        with pytest.raises(UsageError, match=f"option .* of '{name}'"):
            merged(name, drawn(2, 3), options)


def test_task_vectors_merge_without_a_base_and_models_with_one():
    base = {"w": drawn(3, 4, seed=9)}
    pair = [TaskVector({"w": drawn(3, 4, seed=i)}, "b", "linear", str(i)) for i in (1, 2)]
    deltas = torch.stack([vector.deltas["w"] for vector in pair])
    for name in NAMES:
        close(merge(pair, name).deltas["w"], merged(name, deltas))
    points = [vector_of(base["w"], delta) for delta in deltas]
    got = merge(points, "slerp", base=base).deltas["w"]
    close(got + base["w"], slerp_oracle(base["w"] + deltas[0], base["w"] + deltas[1], 0.5))


def vector_of(base, delta):
    return TaskVector({"w": delta}, fingerprint({"w": base}), "standard", "v")
