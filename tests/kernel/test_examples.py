"""The examples on the kernels of wide nets run, and find what their papers claim."""

import runpy
from pathlib import Path

import pytest
import torch

from tauspan.kernel import TangentKernel

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.slow
def test_the_kernels_error_falls_with_the_root_of_the_width(capsys):
    slope, gap = example("ntk_width")(widths=(64, 256, 1024), seeds=12)
    assert -0.56 < slope < -0.44
    assert gap < 1e-10
    assert "| 1024 |" in capsys.readouterr().out


@pytest.mark.slow
def test_permutations_are_learned_exactly(capsys):
    infinite, ensembles = example("permutations")(members=20, width=1000)
    assert [row["k"] for row in infinite] == [4, 6, 8, 10]
    assert [row["right by sign"] for row in infinite] == [2**k - 1 for k in (4, 6, 8, 10)]
    assert [round(row["smallest one"], 3) for row in infinite] == [0.638, 0.551, 0.490, 0.444]
    assert max(abs(row["largest zero"]) for row in infinite) < 1e-14
    assert max(row["off the formula"] for row in infinite) < 1e-12
    assert ensembles[0]["members"] == 10
    assert ensembles[0]["right, rounded at half"] > ensembles[0]["right, rounded at 0"]
    assert "right by sign" in capsys.readouterr().out


@pytest.mark.long
def test_an_ensemble_of_wide_nets_learns_permutations():
    _, ensembles = example("permutations")()
    assert [row["right, rounded at half"] for row in ensembles] == [1.0, 1.0, 1.0]
    assert ensembles[-1]["largest deviation"] < 0.1


@pytest.mark.slow
def test_poles_and_deep_classifiers(capsys):
    poles, classes = example("wide_and_deep")()
    for row, alpha in zip(poles, (2.0, 1.5178, 4.5379), strict=True):
        assert row["predicted"] == pytest.approx(alpha, abs=5e-5)
        assert row["measured"] == pytest.approx(alpha, abs=1e-4)
        assert row["raw kernel, depth 60"] == pytest.approx(alpha + 2, abs=2e-3)
    kinds = ["majority vote", "nearest neighbour", "singular kernel", "singular kernel"]
    assert [row["limit"] for row in classes] == kinds
    assert min(row["agrees with the limit"] for row in classes) > 0.9
    assert "4.5379" in capsys.readouterr().out


@pytest.mark.slow
def test_features_move_at_every_width_and_rates_stay(capsys):
    found = example("width")(short=True)
    assert [row["found"] for row in found.coordinates] == [row["says"] for row in found.coordinates]
    standard, wide, base, scaled = found.rates
    assert (standard.losses, standard.best) == (base.losses, base.best)  # one net at the base width
    assert wide.best[0] < standard.best[0]
    assert scaled.best == base.best
    assert 1.4 < found.linear[0]["error"] / found.linear[1]["error"] < 2.8
    assert found.words[0]["right"] < found.words[-1]["right"]
    assert "Nearest word" in capsys.readouterr().out


def test_soft_margin_training_is_a_support_vector_machine():
    found = example("nn_svm")(width=64, steps=200, falling=(200,))
    assert found.functions < 1e-12
    assert found.vectors < 1e-12
    assert found.flips == (0, 1)


def grokking():
    return runpy.run_path(str(EXAMPLES / "grokking.py"))


def test_the_toys_closed_forms_are_its_net():
    toy = grokking()
    sizes, alpha = toy["Sizes"](6, 20, 9, 12), 0.7
    world = toy["World"].of(sizes, 0)
    net = toy["Toy"](world.weights, alpha)
    optimiser = torch.optim.SGD(net.parameters(), lr=sizes.width / alpha**2)
    start = None
    for _, q, shift, now, residual in toy["steps_of"](world, alpha, sizes.steps):
        start = start or now
        weights = world.weights @ q.T + shift
        assert torch.allclose(net.layer.weight, weights, rtol=0, atol=1e-12)
        assert torch.allclose(net(world.x)[:, 0] - world.y, residual, rtol=0, atol=1e-12)
        kernel = TangentKernel(net, world.x, check="off").dense() * sizes.width / alpha**2
        assert torch.allclose(now.kernel(world.x, world.x), kernel, rtol=0, atol=1e-12)
        reached = net(world.other)[:, 0].detach()
        optimiser.zero_grad()
        (net(world.x)[:, 0] - world.y).square().mean().backward()
        optimiser.step()
    dual, x = world.y, world.other
    lazy = toy["of_tangent"](start, world.x, dual)
    assert torch.allclose(
        x @ lazy[0] + ((x @ lazy[1]) * x).sum(1) / 2, start.kernel(x, world.x) @ dual, atol=1e-12
    )
    b, a = toy["of_net"](now, start, alpha)
    assert torch.allclose(x @ b + ((x @ a) * x).sum(1) / 2, reached, atol=1e-12)
    # E (b.x + x^T A x / 2)^2 by the tensor of fourth moments, from E x_i x_j = [i = j] / D
    eye, apart = torch.eye(6, dtype=torch.float64) / 6, a - torch.outer(world.beta, world.beta)
    pairs = [torch.einsum(f"{p},{q}->ijkl", eye, eye) for p, q in (("ij", "kl"), ("ik", "jl"), ("il", "jk"))]
    wanted = b @ eye @ b + torch.einsum("ij,kl,ijkl->", apart, apart, sum(pairs)) / 4
    assert toy["population_loss"](b, a, world.beta) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.slow
def test_grokking_is_later_for_a_larger_alpha(capsys, tmp_path):
    toy = grokking()
    small, large = toy["main"](toy["SHORT"], str(tmp_path))
    assert small.delay < large.delay
    assert small.left < large.left
    assert small.change > large.change > 0.05
    assert small.lazy_train == pytest.approx(large.lazy_train, rel=1e-9)  # the tangent model knows no alpha
    assert (
        "| 5 a larger alpha leaves the linearisation later | 1 of 1 | confirmed |" in capsys.readouterr().out
    )
    assert (tmp_path / "report.json").is_file()


@pytest.mark.slow
def test_a_start_of_a_sinusoidal_net_is_forecast(capsys, tmp_path):
    bands = example("spectral_bottleneck")(
        seeds=2, samples=64, width=16, steps=20, grid={"s0": [0.0, 50.0], "s1": [0.0, 0.3]}
    )
    assert list(bands) == ["low band", "high band"]
    for band in bands.values():
        assert [row["start"] for row in band.rows][:3] == ["no noise", "forecast", "best of the grid"]
        assert len(band.correlations) == 4
        assert [one["title"] for one in band.report().series][2:] == [
            "trained by Adam, training rows", "trained by Adam, held-out rows",
        ]  # fmt: skip
    assert "psi 0.7" in capsys.readouterr().out


@pytest.mark.slow
def test_recurrent_nets_start_at_low_rank(capsys):
    runs = example("rank_of_start")(ranks=(1, 8), units=8, seeds=2, steps=4, goal=0.9)
    assert {(run.rank, run.keep) for run in runs} == {(1, "frobenius"), (1, "spectral"), (8, "frobenius")}
    assert all(0 < run.end["kernel alignment"] <= 1 for run in runs)
    assert "Spectral norm kept" in capsys.readouterr().out


@pytest.mark.long
def test_minilm_starts_at_low_rank(capsys):
    (one, other) = example("rank_of_minilm")(ranks=(8,), seeds=1, steps=1, rows=4)
    assert (one["norm kept"], other["norm kept"]) == ("frobenius", "spectral")
    assert one["entropy rank"] == other["entropy rank"]
    assert "one seed" in capsys.readouterr().out


@pytest.mark.slow
def test_sign_nets_follow_the_surrogate_kernel(capsys):
    (on, beside), (row,) = example("surrogate_gradients")(members=8, widths=(20,), steps=300)
    assert 1.9 < on < 2.05
    assert abs(beside) < 0.05
    assert 0.5 < row["spread"] / row["predicted spread"] < 1.5
    assert "| 256.000 |" in capsys.readouterr().out


def test_the_limit_of_a_prefix_is_that_of_a_very_long_one():
    example = runpy.run_path(str(EXAMPLES / "prefix_limit.py"))
    x, z = example["rows"](4, 0), example["rows"](3, 1)
    net = example["LongPrefix"](100_000, 1.0, 0)
    found = 100_000 * TangentKernel(net, x, z, check="off").dense()
    assert float((found - example["limit"](x, z)).norm() / found.norm()) < 0.03
    query, key = x[0, 0, :8], x[0, 1:, :8]  # the layer by hand, one row
    weights = (torch.cat([key, net.tokens[:, :8]]) @ query / 8**0.5).softmax(0)
    values = torch.cat([x[0, 1:, 8], net.tokens[:, 8]])
    assert net(x)[0, 0].item() == pytest.approx((weights @ values).item(), rel=1e-10)
    mapped = example["NtkAttention"](example["MAPS"]["Taylor 2"])
    assert mapped(x)[0, 0].item() == pytest.approx(
        float((key @ query / 8**0.5).softmax(0) @ x[0, 1:, 8]), rel=1e-10
    )


@pytest.mark.slow
def test_long_prefixes_start_near_their_limit_and_elu_follows_none(capsys):
    found = example("prefix_limit")(short=True)
    for kernel, scaled in zip(found.near["kernel"], found.near["scale sqrt(m)"], strict=True):
        assert kernel[256] < 0.25 * kernel[16]  # a sixteenth of the length: 1/4 at rate 1/sqrt(m)
        assert scaled[256] < 0.5 * scaled[16]
    for elu, taylor in zip(found.others["ELU + 1"], found.others["Taylor 2"], strict=True):
        assert elu[256] > taylor[256] > 0.2
    for elu, constant in zip(found.related["ELU + 1"], found.related["mean value"], strict=True):
        assert elu[256] > 0.8 * constant[256] > 0.1
    assert "share of own tokens" in capsys.readouterr().out


@pytest.mark.long
def test_an_analogy_of_labels_and_texts_is_measured_both_ways(capsys):
    toy = runpy.run_path(str(EXAMPLES / "analogy.py"))
    found = toy["main"](toy["SHORT"], seeds=1)
    assert list(found) == ["tweets to films", "films to tweets"]
    for (seed,) in found.values():
        assert list(seed)[-3:] == ["own, 8 rows", "own, 2 rows", "own, 4 rows"]
        assert all(0 <= value <= 1 for value in seed.values())
    assert "From films to tweets" in capsys.readouterr().out


def test_nested_lists_have_the_value_that_they_say():
    toy = runpy.run_path(str(EXAMPLES / "self_pretraining.py"))
    draw = torch.Generator().manual_seed(0)
    kinds = {"MIN": min, "MAX": max, "FIRST": lambda values: values[0], "LAST": lambda values: values[-1]}
    for operators in toy["OPERATORS"].values():
        for _ in range(50):
            words, value = toy["nested"](operators, draw)
            left = list(words)
            while len(left) > 1:  # the innermost list first
                end = left.index("]")
                begin = end - left[end::-1].index("[")
                left[begin : end + 1] = [str(kinds[left[begin + 1]](list(map(int, left[begin + 2 : end]))))]
            assert left == [str(value)]
            assert 5 <= len(words) <= toy["LENGTH"]


@pytest.mark.slow
def test_two_starts_of_a_small_transformer_are_compared(capsys):
    toy = runpy.run_path(str(EXAMPLES / "self_pretraining.py"))
    random, own = (
        found for (found,) in toy["main"](toy["SHORT"], 1, regimes=("standard", "linear")).values()
    )
    assert own["hidden tokens, nats"] < random["hidden tokens, nats"]
    assert random.keys() == own.keys() >= {"KTA", "standard", "xi, linear"}
    assert "| probe |" in capsys.readouterr().out


@pytest.mark.long
def test_representations_are_stitched_taken_apart_and_moved(capsys):
    found = example("representations")(short=True)
    heads = {row["head"]: float(row["classifier"]) for row in found.stitching}
    assert heads["absolute, other seed"] < 0.3 < 0.8 < heads["relative, other seed"]
    r2 = {
        name: [row["R2"] for row in found.concepts if row["model"] == name] for name in ("MiniLM", "random 0")
    }
    assert max(r2["random 0"]) < min(r2["MiniLM"])
    assert [row["edit"] for row in found.drifts] == ["one", "sum x 1", "sum x 2", "sum x 4"]
    assert "Rank correlation of drift with accuracy lost" in capsys.readouterr().out


def test_the_measures_of_a_geometry_know_squares_and_tetrahedra():
    toy = runpy.run_path(str(EXAMPLES / "task_geometry.py"))
    latents = toy["CONDITIONS"].repeat(5, 1)
    product = latents.prod(1)
    assert toy["abstract"](latents, latents[:, 0]) == (pytest.approx(1.0), 1.0)
    assert toy["abstract"](latents, product) == (pytest.approx(-1.0), 0.0)
    equal = torch.cat([latents, product[:, None]], 1)
    assert [toy["abstract"](equal, one)[0] for one in equal.T] == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    x, found = toy["rows"](1.0, 0, 0)
    means = torch.stack([x[place::4].mean(0) for place in range(4)])
    assert torch.pdist(means).std() < 0.1 * torch.pdist(means).mean()
    assert torch.equal(found[:20], equal)


@pytest.mark.slow
def test_two_activations_are_compared_seed_by_seed(capsys):
    found = example("task_geometry")(deltas=(1.0,), starts=(0.1,), seeds=2, goal=0.3)
    assert [row["target"] for row in found["parallelism"]] == ["s", "s t", "s and t"]
    *_, both = found["parallelism"]
    assert float(both["tanh"].split()[0]) > float(both["ReLU"].split()[0])
    assert "of 2 seeds; largest training loss 0.29" in capsys.readouterr().out


@pytest.mark.slow
def test_starts_of_several_depths_are_compared(capsys):
    toy = runpy.run_path(str(EXAMPLES / "depths.py"))
    found = toy["main"](toy["SHORT"], 1)
    assert [name for depth, name in found if depth == 3] == ["random", "first L", "TLEG", "SWS"]
    assert [name for depth, name in found if depth == 4] == ["random", "interpolated", "TLEG"]
    assert all(len(run) == 2 for runs in found.values() for run in runs)
    known, right = toy["ancestors"](0, toy["SHORT"])
    assert {name: len(net.short.layers) for name, net in known.items()} == {
        "ordinary": 3,
        "TLEG": 2,
        "SWS": 3,
    }
    assert right.keys() == known.keys()
    assert "numbers" in capsys.readouterr().out


def test_known_kernels_in_small_spaces_are_their_formulas():
    prefix, features = example("known_kernels")(widths=(256,), seeds=2)
    for row in (prefix, features):
        assert float(row["to the formula"]) < 1e-12
        assert row["to the limit"] < 0.3
    assert 0.01 < float(prefix["from linear"]) < 0.3
    assert float(features["from linear"]) < 1e-12
