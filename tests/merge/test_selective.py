"""Entry by entry: NearSwap, Arcee Fusion, SCE and RAM on small tables by hand, against plain oracles, and at limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.blocks import all_merged, drawn, merged
from tauspan.core.errors import UsageError
from tauspan.core.params import fingerprint
from tauspan.merge.engine.memory import merge
from tauspan.merge.methods.selective import ARCEE_FUSION
from tauspan.vector import TaskVector

MANY = ("sce", "ram", "ram_plus", "ramplus_tl")


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(
        got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance
    )


def test_nearswap_by_hand():
    tau = rows([0.5, -0.5, 0.2, -0.1, 0.0])
    close(merged("nearswap", tau, {"t": 0.25}), [0.25, -0.25, 0.2, -0.1, 0.0])
    assert torch.equal(merged("nearswap", tau, {"t": 0.5}), tau[0])  # far enough: the model
    assert torch.equal(merged("nearswap", tau, {"t": 0.0}), torch.zeros(5, dtype=torch.float64))


def test_nearswap_is_the_published_interpolation():
    base, model, t = drawn(50), drawn(50, seed=1), 0.3
    weight = (t / (model - base).abs()).clamp(0, 1)
    close(merged("nearswap", (model - base)[None], {"t": t}), weight * model + (1 - weight) * base - base)


def fusion_oracle(delta, base):
    fine, pre = torch.softmax(base + delta, -1) + 1e-8, torch.softmax(base, -1) + 1e-8
    scores = delta.abs() * (fine * torch.log(fine / pre)).sum(-1, keepdim=True)
    flat = scores.flatten().sort().values
    first, median, third = (flat[int(q * (len(flat) - 1))] for q in (0.25, 0.5, 0.75))
    return torch.where(scores >= median + 1.5 * (third - first), delta, 0.0)


def test_arcee_fusion_by_hand():
    # one row, so the divergence is a common factor: quartiles of |tau| at places 1, 2, 3 of 0.1 0.1 0.2 0.3 0.9
    delta = rows([0.1, -0.9, 0.2, 0.3, 0.1])
    # threshold 0.2 + 1.5 (0.3 - 0.1) = 0.5
    close(merged("arcee_fusion", delta, base=torch.zeros(5, dtype=torch.float64)), [0.0, -0.9, 0.0, 0.0, 0.0])
    # another entry above it
    delta[0, 3] = 0.6  # 0.2 + 1.5 (0.6 - 0.1) = 0.95: none
    close(merged("arcee_fusion", delta, base=torch.zeros(5, dtype=torch.float64)), [0.0] * 5)


def test_arcee_fusion_weighs_rows_by_their_divergence():
    base = torch.zeros(2, 4, dtype=torch.float64)
    delta = torch.full((1, 2, 4), 1.0, dtype=torch.float64)
    delta[0, 1] = rows([3.0, -3.0, 3.0, -3.0])[0]
    # the same shift of a whole row is no change of its softmax: importance 0, and only the other row is kept
    got = merged("arcee_fusion", delta, base=base)
    close(got, fusion_oracle(delta[0], base))
    assert torch.equal(got[0], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(9, 13), (40,), (4, 3, 2, 5), ()])
def test_arcee_fusion_against_the_oracle(shape):
    base, delta = drawn(*shape), 0.1 * drawn(1, *shape, seed=1)
    got = merged("arcee_fusion", delta, base=base)
    assert torch.equal(got, fusion_oracle(delta[0], base) if shape else delta[0])
    for size in (1, 30, 1000):
        assert torch.equal(merged("arcee_fusion", delta, base=base, size=size), got)


def test_arcee_fusion_of_no_change_is_no_change():
    zero = torch.zeros(1, 3, 4, dtype=torch.float64)
    assert torch.equal(merged("arcee_fusion", zero, base=drawn(3, 4)), zero[0])


def test_arcee_fusion_needs_the_base():
    vector = TaskVector({"w": drawn(3, 4)}, "b", "standard", "v")
    with pytest.raises(UsageError, match="'arcee_fusion' needs the base"):
        merge([vector], "arcee_fusion")
    with pytest.raises(UsageError, match="'arcee_fusion' compares 'w' with the base"):
        merged("arcee_fusion", drawn(1, 3, 4))
    base = {"w": drawn(3, 4, seed=2)}
    own = TaskVector(vector.deltas, fingerprint(base), "standard", "v")
    got = merge([own], ARCEE_FUSION, base=base).deltas["w"]
    assert torch.equal(got, fusion_oracle(vector.deltas["w"], base["w"]))


def test_sce_by_hand():
    tau = rows([3.0, 1.0, -1.0, 0.0], [1.0, -2.0, -1.0, 2.0])
    # energies 11 and 10 of 21; entry 1 elects minus, so only the second model is left
    close(merged("sce", tau), [(33 + 10) / 21, -2.0, -1.0, 2.0])
    # variances 1, 9/4, 0, 1: half of three entries is one, the second; the entry's energies are 1 and 4
    close(merged("sce", tau, {"select_topk": 0.5}), [0.0, -2.0, 0.0, 0.0])
    # two thirds: two of three, and of the two with variance 1 the first; energies 10 and 5
    close(merged("sce", tau, {"select_topk": 0.67}), [(30 + 5) / 15, -2.0, 0.0, 0.0])
    close(merged("sce", tau, {"scale": 2.0}), [2 * (33 + 10) / 21, -4.0, -2.0, 4.0])


def test_sce_with_equal_weights_below_a_mean_square():
    tau = rows([3.0, 1.0], [1.0, 1.0])  # energies 10 and 2, mean squares 5 + 1
    close(merged("sce", tau), [(30 + 2) / 12, 1.0])
    close(merged("sce", tau, {"equal_below": 5.9}), [(30 + 2) / 12, 1.0])
    close(merged("sce", tau, {"equal_below": 6.0}), [2.0, 1.0])


def sce_oracle(values, share):
    spread = ((values - values.mean(0)) ** 2).mean(0)
    rank = int(share * (spread > 0).sum())
    chosen = spread >= spread.flatten().sort(descending=True).values[rank - 1] if rank else spread > math.inf
    values = values * (chosen if share < 1 else torch.ones_like(chosen))
    weights = (values**2).flatten(1).sum(1)
    weights = (weights / weights.sum()).view(-1, *[1] * (values.dim() - 1))
    kept = weights * (values.sign() == torch.where(values.sum(0) >= 0, 1.0, -1.0))
    return torch.nan_to_num((kept * values).sum(0) / kept.sum(0))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_sce_against_the_oracle(share):
    values = drawn(5, 6, 7)
    close(merged("sce", values, {"select_topk": share}), sce_oracle(values, share))


def test_sce_elects_plus_at_a_tie_and_counts_shares_in_decimals():
    close(merged("sce", rows([1.0], [-1.0])), [1.0])
    kept = merged("sce", drawn(2, 100), {"select_topk": 0.29})  # 0.29 * 100 is 28.999... in binary
    assert int(kept.count_nonzero()) == 29


def test_sce_limits():
    same = drawn(1, 6, 7).expand(3, 6, 7)
    close(merged("sce", same), same[0])
    zero = torch.zeros(6, 7, dtype=torch.float64)
    assert torch.equal(merged("sce", same, {"select_topk": 0.5}), zero)  # nothing varies: the base
    assert torch.equal(merged("sce", drawn(3, 6, 7), {"select_topk": 0.0}), zero)
    assert torch.equal(merged("sce", torch.zeros(3, 6, 7, dtype=torch.float64)), zero)


def test_ram_by_hand():
    tau = rows([3.0, 0.0, 1.0, 0.1], [1.0, 2.0, -2.0, 0.1])
    close(merged("ram", tau, {"epsilon": 0.5}), [2.0, 2.0, -0.5, 0.0])
    close(merged("ram", tau, {"epsilon": 0.5, "scale": 3.0}), [6.0, 6.0, -1.5, 0.0])
    # at epsilon itself an entry is unchanged
    close(merged("ram", tau, {"epsilon": 1.0}), [3.0, 2.0, -2.0, 0.0])


def test_ram_rescaled_by_hand():
    # model 1: two shared entries, two of its own: rho 1; model 2: two shared and one: rho 2
    tau = rows([3.0, 1.0, 4.0, 5.0, 0.0], [1.0, 1.0, 0.0, 0.0, 6.0])
    close(merged("ramplus_tl", tau, {"r": 0.5, "alpha": 10.0}), [2.0, 1.0, 6.0, 7.5, 12.0])
    close(merged("ramplus_tl", tau, {"r": 0.5, "alpha": 1.0}), [2.0, 1.0, 6.0, 7.5, 9.0])
    close(merged("ramplus_tl", tau), [2.0, 1.0, 4 * 1.02, 5 * 1.02, 6 * 1.02])  # r 0.1, alpha 0.2
    close(merged("ramplus_tl", tau, {"r": 0.0}), merged("ram", tau))


def test_ram_plus_counts_over_the_model():
    tensors = {"a": rows([1.0, 2.0], [1.0, 0.0]), "b": rows([0.0, 4.0], [8.0, 2.0])}
    # model 1: shared a0, b1, own a1: rho 2; model 2: shared a0, b1, own b0: rho 2
    got = all_merged("ram_plus", tensors, {"r": 1.0, "alpha": 5.0})
    close(got["a"], [1.0, 2 * 3.0])
    close(got["b"], [8 * 3.0, 3.0])
    # by tensor: in a, model 1 has rho 1; in b, model 2 has rho 1
    got = all_merged("ramplus_tl", tensors, {"r": 1.0, "alpha": 5.0})
    close(got["a"], [1.0, 2 * 2.0])
    close(got["b"], [8 * 2.0, 3.0])


@pytest.mark.parametrize("name", MANY)
def test_one_model_is_itself_and_equal_models_are_that_model(name):
    one = drawn(1, 7, 11, dtype=torch.float32)
    assert torch.equal(merged(name, one), one[0])
    torch.testing.assert_close(merged(name, one.expand(3, 7, 11)), one[0])


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_order_of_models_does_not_matter(order, seed):
    values = drawn(4, 3, 4, seed=seed) * (drawn(4, 3, 4, seed=seed + 1) > 0)
    for name in MANY:
        close(merged(name, values[list(order)]), merged(name, values))
    share = {"select_topk": 0.4}
    close(merged("sce", values[list(order)], share), merged("sce", values, share))


@pytest.mark.parametrize("name", MANY)
def test_blocks_do_not_matter(name):
    values = drawn(6, 7, 11, dtype=torch.float32) * (drawn(6, 7, 11, seed=1) > 0)
    options = {"select_topk": 0.4} if name == "sce" else {"r": 1.0} if name != "ram" else {}
    whole = merged(name, values, options)
    assert whole.dtype == torch.float32
    for size in (1, 5, 64):
        got = merged(name, values, options, size=size)
        assert torch.equal(got, whole) if name != "sce" else torch.allclose(got, whole, rtol=2e-7, atol=0)


def test_options_outside_their_range():
    for name, options in (
        ("sce", {"select_topk": 1.1}),
        ("sce", {"equal_below": -1.0}),
        ("ram", {"epsilon": -1.0}),
        ("ram_plus", {"alpha": -0.1}),
        ("nearswap", {"t": -1.0}),
    ):
        with pytest.raises(UsageError, match=f"option .* of '{name}'"):
            merged(name, drawn(1, 3), options)
