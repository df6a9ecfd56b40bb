"""Sums, elections, drops, masks and PCB: small tables by hand, plain oracles, limits, and order."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.blocks import all_merged, drawn, merged
from tauspan.core.errors import UsageError
from tauspan.merge.engine.engine import Engine
from tauspan.merge.engine.memory import merge
from tauspan.merge.methods import METHODS
from tauspan.merge.methods.election import kept_ranks
from tauspan.merge.methods.method import Spec
from tauspan.vector import TaskVector

SIGNED = ("ties", "ties_peft", "ties_mergekit")
DROPS = ("dare_linear", "dare_ties", "della", "della_linear")
CRUMBS = ("breadcrumbs", "breadcrumbs_ties")
ALL = ("linear", "task_arithmetic", "lines", *SIGNED, *DROPS, *CRUMBS, "magmax", "consensus", "emr", "pcb")
WHOLE = {  # options with which one vector, or several equal ones at weights 1 / T, come back
    **{method: {"density": 1.0} for method in (*SIGNED, *DROPS, *CRUMBS)},
    **{method: {} for method in ("linear", "task_arithmetic", "lines", "magmax", "emr")},
}


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(
        got, torch.as_tensor(expected, dtype=got.dtype), rtol=tolerance, atol=tolerance
    )


def vectors(count, seed=0, shapes=((4, 3), (5,), ()), labels="abcdefgh"):
    return [
        TaskVector(
            {f"h.{k}.w": drawn(*shape, seed=10 * seed + 100 * t + k) for k, shape in enumerate(shapes)},
            "base",
            "standard",
            labels[t],
        )
        for t in range(count)
    ]


def test_vectors_of_one_label_have_masks_of_their_own():
    ones = [
        TaskVector({"w": torch.ones(64, 64)}, "base", "standard", label) for label in ("tau", "tau", "tau#2")
    ]
    same = merge(ones[:2], "dare_linear", {"density": 0.5}).deltas["w"]
    assert 0.22 < float((same == 0).double().mean()) < 0.28
    apart = [replace(one, label=label) for one, label in zip(ones, ("tau", "tau#3", "tau#2"), strict=True)]
    every = [merge(them, "dare_linear", {"density": 0.5}).deltas["w"] for them in (ones, apart)]
    assert torch.equal(*every)


# -- sums ----------------------------------------------------------------------------------------------------


def test_linear_by_hand():
    models = rows([1.0, 3.0], [3.0, -1.0])
    close(merged("linear", models, {"weight": [1, 3]}), [2.5, 0.0])
    close(merged("linear", models, {"weight": [1, 3], "normalize": False}), [10.0, 0.0])
    assert torch.equal(merged("linear", models, {"weight": [0, 1]}), models[1])
    with pytest.raises(UsageError, match=r"'linear' are .* for 'w'; their sum 0"):
        merged("linear", models, {"weight": [1, -1]})


def test_task_arithmetic_by_hand():
    taus = rows([1.0, 3.0], [3.0, -1.0])
    close(merged("task_arithmetic", taus, {"weight": [1, 2], "scale": 0.5}), [3.5, 0.5])
    close(merged("task_arithmetic", taus, {"weight": [1, 3], "normalize": True}), [2.5, 0.0])
    close(merged("task_arithmetic", taus, {"weight": [1, -1], "normalize": True}), [-2.0, 4.0])  # a sum of 0


def test_lines_by_hand():
    ones = {name: torch.ones(2) for name in ("emb", "h.0.w", "h.1.w", "h.2.w")}
    pair = [TaskVector(ones, "b", "standard", label) for label in "ab"]

    def factors(**options):
        return [float(delta[0]) / 2 for delta in merge(pair, "lines", options).deltas.values()]

    assert factors() == [0.5, 0.5, 0.75, 1.0]  # 1 / T at first and outside, 1 at last
    assert factors(alpha=0.25, beta=0.5) == [0.25, 0.25, 0.5, 0.75]


def test_passthrough_is_one_model():
    model = rows([1.5, -2.0])
    assert torch.equal(merged("passthrough", model), model[0])
    close(merged("passthrough", model, {"scale": 0.5}), [0.75, -1.0])
    with pytest.raises(UsageError, match="merges exactly 1 models, and 2 were given"):
        merge(vectors(2), "passthrough")


# -- elections -----------------------------------------------------------------------------------------------


def test_ties_by_hand():
    taus = rows([5.0, -4.0, 1.0, 0.5, 0.2], [-3.0, 2.0, 6.0, 0.1, 0.0])
    # the authors' code keeps int(d n) + 1: 5, -4 and -3, 6; signs of the sums 2, -4, 6
    close(merged("ties", taus, {"density": 0.2}), [5.0, -4.0, 6.0, 0.0, 0.0])
    # kept: 5, -4, 1 and -3, 2, 6; sums 2, -2, 7; the mean of 1 and 6
    close(merged("ties", taus, {"density": 0.4, "scale": 2.0}), [10.0, -8.0, 7.0, 0.0, 0.0])


def test_a_sum_of_zero_has_the_sign_of_the_majority():
    taus = rows([2.0, -1.0, 3.0, 1.0], [-2.0, -1.0, 3.0, 1.0])
    every = {"density": 1.0}
    close(merged("ties", taus, every), [2.0, -1.0, 3.0, 1.0])
    close(merged("ties", -taus, every), [-2.0, 1.0, -3.0, -1.0])
    close(merged("ties_mergekit", -taus, every), [2.0, 1.0, -3.0, -1.0])  # plus, whatever the others are
    close(merged("ties_peft", -taus, every), [2.0, 1.0, -3.0, -1.0])


def test_ties_trims_over_the_model_and_its_variants_tensor_by_tensor():
    tensors = {"small": rows([0.1, 0.2], [0.1, 0.3]), "large": rows([4.0, 5.0], [6.0, 8.0])}
    got = all_merged("ties", tensors, {"density": 0.25})
    close(got["small"], [0.0, 0.0])
    close(got["large"], [5.0, 6.5])
    for variant in ("ties_mergekit", "ties_peft"):
        got = all_merged(variant, tensors, {"density": 0.5})
        close(got["small"], [0.0, 0.25])
        close(got["large"], [0.0, 6.5])


def test_ties_over_the_model_takes_one_density():
    specs = [Spec(name, torch.Size([1]), {"density": (share,)}) for name, share in (("a", 0.1), ("b", 0.2))]
    with pytest.raises(UsageError, match="one 'density' for the whole model"):
        Engine(METHODS["ties"], specs, lambda *_: None).measure()


def test_weights_vote_in_mergekit_and_not_in_peft():
    taus, weight = rows([1.0], [-1.5]), {"weight": [2.0, 1.0], "density": 1.0}
    close(merged("ties_mergekit", taus, weight), [1.0])  # 2 against -1.5; 2 / 2
    close(merged("ties_mergekit", taus, weight | {"normalize": False, "scale": 0.5}), [1.0])
    close(merged("ties_peft", taus, weight), [-1.5])  # 1 against -1.5
    crowd = rows([1.0], [1.0], [-5.0])
    close(merged("ties_peft", crowd, {"density": 1.0}), [-5.0])
    close(merged("ties_peft", crowd, {"density": 1.0, "majority": "frequency"}), [1.0])


def test_kept_counts():
    assert kept_ranks((0.2, 0.29, 0.0, 1.0), 10) == [2, 2, 0, 11]
    assert kept_ranks((0.2, 0.0), 4) == [1, 0]  # one at least
    assert kept_ranks((0.2,), 4, fewest=0) == [0]


def test_equal_magnitudes_share_their_fate_in_the_authors_ties_alone():
    taus = rows([1.0, -1.0, 1.0, 0.5])
    close(merged("ties", taus, {"density": 0.25}), [1.0, -1.0, 1.0, 0.0])
    for method in ("ties_mergekit", "ties_peft"):  # the lower place comes first
        close(merged(method, taus, {"density": 0.25}), [1.0, 0.0, 0.0, 0.0])
        close(merged(method, taus, {"density": 0.5}), [1.0, -1.0, 0.0, 0.0])
    crowd = rows([2.0, 2.0, 2.0, -2.0, 2.0, 1.0, 1.0, 1.0])
    close(
        merged("breadcrumbs", crowd, {"density": 0.5, "gamma": 0.25}),
        [0.0, 0.0, 2.0, -2.0, 2.0, 1.0, 0.0, 0.0],
    )


EXACT = {  # how many of n entries each method keeps, and its options
    "ties_mergekit": (lambda n, d: max(int(d * n), 1), {}),
    "ties_peft": (lambda n, d: int(d * n), {}),
    "breadcrumbs": (lambda n, d: int(d * n), {"gamma": 0.02}),
    "breadcrumbs_ties": (lambda n, d: int(d * n), {"gamma": 0.02}),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("size", [100, 4096, 1 << 18])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_so_many_entries_are_kept_as_were_asked_for_however_many_are_equal(method, size, levels):
    """In 16 bits displacements are a few multiples of the spacing; no block decides which of them are kept."""
    count, more = EXACT[method]
    values = (drawn(1, 60, 210, dtype=torch.float32) * levels).round().clamp(-3 * levels, 3 * levels)
    values = values + values.sign() + (values == 0)  # none is 0
    for density in (0.2, 0.5, 0.77):
        options = {"density": density, **more, "weight": 1.0}
        got = merged(method, values, options, size=size)
        assert int(got.count_nonzero()) == count(values.numel(), density)
        assert torch.equal(got, merged(method, values, options))


@pytest.mark.parametrize("method", [*EXACT, "ties", "dare_linear", "della", "sce"])
def test_a_merge_says_which_share_it_kept(method):
    values = drawn(3, 500, seed=4).mul(3).round().float()
    taus = [TaskVector({"w": row}, "base", "standard", name) for row, name in zip(values, "abc", strict=True)]
    options = {"select_topk": 0.4} if method == "sce" else {"density": 0.4}
    kept = merge(taus, method, options).info["merge"]["kept"]
    assert len(kept) == 3
    if method == "ties":  # the authors' keeps all that equal the last
        magnitudes = values.abs().sort(descending=True).values
        least = magnitudes[:, 200:201]
        assert kept == pytest.approx((magnitudes >= least).double().mean(1).tolist())
    elif method in EXACT:
        assert kept == [0.4] * 3
    elif method == "sce":
        varied = int(values.double().var(0, correction=0).count_nonzero())
        assert kept == [int(0.4 * varied) / 500] * 3
    else:
        assert kept == pytest.approx((values != 0).double().mean(1).mul(0.4).tolist(), abs=0.1)


def ties_oracle(models, density, weight, scale):
    """The authors' rule, number by number: what reaches the (n - int(d n))-th smallest magnitude is kept."""
    kept = []
    for model, factor in zip(models, weight, strict=True):
        below = len(model) - int(density * len(model))
        least = sorted(map(abs, model))[below - 1] if below else 0.0
        kept.append([factor * x if abs(x) >= least else 0.0 for x in model])
    sums = [sum(column) for column in zip(*kept, strict=True)]
    majority = 1 if sum((s > 0) - (s < 0) for s in sums) > 0 else -1
    result = []
    for total, column in zip(sums, zip(*kept, strict=True), strict=True):
        sign = majority if total == 0 else math.copysign(1, total)
        agree = [x for x in column if x * sign > 0]
        result.append(scale * sum(agree) / max(len(agree), 1))
    return result


@given(
    st.lists(st.lists(st.integers(-6, 6), min_size=12, max_size=12), min_size=1, max_size=5),
    st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]),
    st.integers(1, 13),
)
@settings(max_examples=120)
def test_ties_is_its_definition(models, density, size):
    weight = [1.0, 2.0, 0.5, 1.0, -1.0][: len(models)]
    options = {"density": density, "weight": weight, "scale": 0.5}
    values = torch.tensor(models, dtype=torch.float64)
    close(merged("ties", values, options, size=size), ties_oracle(models, density, weight, 0.5))


def test_magmax_by_hand():
    taus = rows([3.0, -1.0, -2.0, 0.0], [1.0, 2.0, 2.0, 0.0], [-2.0, -2.5, 1.0, 0.0])
    close(merged("magmax", taus), [3.0, -2.5, 2.0, 0.0])  # of -2 and 2 the positive
    close(merged("magmax", taus, {"weight": [0, 1, 1], "scale": 0.5}), [-1.0, -1.25, 1.0, 0.0])


# -- drops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DROPS)
def test_dropping_nothing_is_the_plain_sum_or_election(method):
    taus = drawn(3, 4, 5)
    plain = merged("task_arithmetic" if method.endswith("linear") else "ties_mergekit", taus)
    assert torch.equal(merged(method, taus, {"density": 1.0}), plain)
    assert torch.equal(merged(method, taus, {"density": 0.0}), torch.zeros(4, 5, dtype=torch.float64))


def test_dare_keeps_or_drops_and_rescales():
    tau = torch.ones(1, 20_000, dtype=torch.float64)
    got = merged("dare_linear", tau, {"density": 0.25})
    assert set(got.tolist()) == {0.0, 4.0}
    share = float((got > 0).double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    assert set(merged("dare_linear", tau, {"density": 0.25, "rescale": "none"}).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_the_mean_over_seeds_is_the_plain_sum(method):
    pair, seeds = vectors(2, shapes=((5, 4),)), 400
    plain = merge(pair, "task_arithmetic").deltas["h.0.w"]
    draws = torch.stack([merge(pair, method, seed=seed).deltas["h.0.w"] for seed in range(seeds)])
    error = (draws.mean(0) - plain).abs()
    assert bool((error <= 5 * draws.std(0) / seeds**0.5 + 1e-12).all())
    assert float(draws.std(0).max()) > 0


def test_della_keeps_large_entries_more_often():
    taus = rows([1.0, -3.0, 2.0]).repeat(20_000, 1)[None]
    options = {"density": 0.5, "epsilon": 0.3, "rescale": "none"}
    kept = (merged("della_linear", taus, options) != 0).double().mean(0)
    close(kept, [0.2, 0.8, 0.5], tolerance=5 * 0.5 / 20_000**0.5)
    expected = merged("della_linear", taus, options | {"rescale": "probability"})
    close(expected[expected != 0].abs().unique(), sorted({1 / 0.2, 3 / 0.8, 2 / 0.5}))


def test_della_refuses_probabilities_outside_0_and_1():
    with pytest.raises(UsageError, match=r"density 0.9 and epsilon 0.2 of '0' .* 0.7 to 1.1 in 'w'"):
        merged("della", drawn(1, 3), {"density": 0.9, "epsilon": 0.2})


def test_l1_rescaling_restores_each_tensors_norm():
    taus = drawn(2, 30, 4)
    for method in ("dare_linear", "della_linear", "breadcrumbs"):
        for weight in ([1.0, 0.0], [0.0, 1.0]):
            options = {"density": 0.5, "rescale": "l1", "weight": weight}
            options |= {"epsilon": 0.1} if "della" in method else {}
            alone = taus[weight.index(1.0)]
            close(merged(method, taus, options, size=16).abs().sum(), alone.abs().sum())
    assert merged("dare_linear", torch.zeros(1, 3), {"rescale": "l1"}).tolist() == [0.0] * 3


def test_dare_ties_by_hand():
    taus = rows([4.0, -1.0, 2.0], [1.0, 3.0, 0.0])
    whole = {"density": 1.0}
    close(merged("dare_ties", taus, whole), [2.5, 3.0, 2.0])
    close(merged("dare_ties", taus, whole | {"normalize": False}), [5.0, 3.0, 2.0])
    close(merged("della", taus[:, None], whole | {"weight": [1.0, 3.0]}), [[7 / 4, 3.0, 2.0]])


# -- breadcrumbs ---------------------------------------------------------------------------------------------


def test_breadcrumbs_by_hand():
    tau = rows([10.0, -9.0, 8.0, -7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    expected = [0.0, 0.0, 8.0, -7.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    close(merged("breadcrumbs", tau, {"density": 0.3, "gamma": 0.2}), expected)
    # 90 % must stay, so only one of the two largest goes
    assert merged("breadcrumbs", tau, {"density": 0.9, "gamma": 0.2}).tolist() == [0.0, *tau[0, 1:].tolist()]
    pair = torch.cat([tau, -tau.flip(1)])
    close(merged("breadcrumbs", pair, {"density": 0.3, "gamma": 0.2})[2:8], [8.0, -7.0, 6.0, -6.0, 7.0, -8.0])
    assert torch.equal(
        merged("breadcrumbs_ties", pair, {"density": 0.3, "gamma": 0.2}),
        merged("breadcrumbs", pair, {"density": 0.3, "gamma": 0.2}),
    )


# -- masks ---------------------------------------------------------------------------------------------------


def test_consensus_by_hand():
    taus = rows([1.0, 3.0, 0.0, 1.0], [1.0, 0.1, 0.0, -1.0], [1.0, 0.1, 5.0, 0.1])
    # entry 0: each 1 > 0.4 * 2; entry 1: only 3 > 0.4 * 0.2; entry 2: only 5 > 0; entry 3: 1 > 0.36, 1 > 0.44
    close(merged("consensus", taus), [3.0, 0.0, 0.0, 0.1])
    close(merged("consensus", taus, {"least": 1, "scale": 2.0}), [6.0, 6.4, 10.0, 0.2])
    close(merged("consensus", taus, {"threshold": 0.6}), [0.0, 0.0, 0.0, 0.1])
    close(merged("consensus", taus, {"least": 0}), taus.sum(0))
    close(merged("consensus", rows([1.0], [2.0]), {"threshold": 0.5}), [0.0])  # 1 is not above 0.5 * 2


def test_emr_by_hand():
    taus = rows([3.0, -1.0, 2.0, 0.0], [1.0, -4.0, -1.0, 0.0])
    close(merged("emr", taus), [3.0, -4.0, 2.0, 0.0])
    # mask 1 keeps 3, -4, 2 of mean magnitude 9 / 4, own mean 6 / 4; mask 2 keeps 3, -4: 7 / 4, own 6 / 4
    close(
        merged("emr", taus, {"task": 0}), (6 / 9) * torch.tensor([3.0, -4.0, 2.0, 0.0], dtype=torch.float64)
    )
    close(
        merged("emr", taus, {"task": 1}), (6 / 7) * torch.tensor([3.0, -4.0, 0.0, 0.0], dtype=torch.float64)
    )
    # over several tensors the means add up: own 2 + 1, masked 2 + 1 / 2
    tensors = {"a": rows([2.0], [-1.0]), "b": rows([1.0, 1.0], [1.0, -3.0])}
    got = all_merged("emr", tensors, {"task": 0})
    close(got["a"], [2.4])
    close(got["b"], [1.2, 0.0])
    with pytest.raises(UsageError, match="'task' of 'emr' is 2, and there are 2 models"):
        merged("emr", taus, {"task": 2})


def pcb_oracle(taus, ratio, scale):
    """The formula over the whole model at once, with sorting."""
    models, entries = taus.shape
    size = taus.abs()
    order = size.sort(dim=1).values
    low = order[:, [int(entries * 1e-4)]]
    high = order[:, [max(int(entries * (1 - 1e-4) - 1), 0)]]
    size = size.clamp(low, high)
    score = (models * ((size - low) / (high - low)) ** 2).exp() * (taus * taus.sum(0)).tanh()
    order = score.sort(dim=1).values
    least, best = order[:, [min(int(entries * (1 - ratio)), entries - 1)]], order[:, [-1]]
    share = (score.clamp(min=least) - least) / (best - least)
    return scale * (share * taus.sign() * size).sum(0) / share.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.99])  # the last reaches below a score of 0
def test_pcb_is_its_formula(ratio):
    tensors = {"a": drawn(3, 90, 5), "b": drawn(3, 51, seed=1)}
    whole = torch.cat([value.flatten(1) for value in tensors.values()], 1)
    got = all_merged("pcb", tensors, {"ratio": ratio, "scale": 1.2}, size=64)
    close(torch.cat([value.flatten() for value in got.values()]), pcb_oracle(whole, ratio, 1.2), 1e-9)


def test_pcb_by_hand():
    taus = rows([0.0, 1.0, 2.0, 2.0], [0.0, 1.0, -2.0, 2.0])
    # magnitudes lie from 0 to 2 in each; scores: 0, e^0.5 tanh 2, 0, e^2 tanh 8: the upper half wins above 1.59
    least, best = math.exp(0.5) * math.tanh(2), math.exp(2) * math.tanh(8)
    assert least < best
    close(merged("pcb", taus, {"ratio": 0.5}), [0.0, 0.0, 0.0, 2.0])
    close(merged("pcb", taus, {"ratio": 1.0}), [0.0, 1.0, 0.0, 2.0])


# -- laws of all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WHOLE)
def test_one_vector_comes_back(method):
    (one,) = vectors(1, shapes=((4, 3), (5,), (), (0, 3)))
    got = merge([one], method, WHOLE[method])
    for name, delta in one.deltas.items():
        assert torch.equal(got.deltas[name], delta), name


@pytest.mark.parametrize("method", WHOLE)
def test_equal_vectors_come_back(method):
    tau = drawn(4, 3).float()
    means = method in ("linear", "magmax", "emr", "dare_ties", "della", *SIGNED)
    options = WHOLE[method] | ({} if means else {"weight": 0.25} if method != "lines" else {"alpha": 0.25})
    got = merged(method, torch.stack([tau] * 4), options)
    assert torch.equal(got, tau)


@pytest.mark.parametrize("method", ALL)
def test_the_order_of_the_models_does_not_matter(method):
    a, b, c = vectors(3)
    first, second = merge([a, b, c], method, seed=3), merge([c, a, b], method, seed=3)
    for name, delta in first.deltas.items():
        torch.testing.assert_close(second.deltas[name], delta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (2, 1, 3)])
def test_small_tensors_and_zeros(method, shape):
    taus = drawn(2, *shape)
    assert merged(method, taus).shape == shape
    assert bool(merged(method, taus).isfinite().all())
    assert torch.equal(merged(method, torch.zeros_like(taus)), torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("method", ALL)
@given(size=st.integers(1, 40), seed=st.integers(0, 3))
@settings(max_examples=8)
def test_blocks_do_not_show(method, size, seed):
    tensors = {"a": drawn(3, 6, 5, seed=seed).mul(4).round(), "b": drawn(3, 11, seed=seed)}
    once, cut = all_merged(method, tensors), all_merged(method, tensors, size=size)
    for name, whole in once.items():
        torch.testing.assert_close(cut[name], whole, rtol=1e-13, atol=1e-14)
