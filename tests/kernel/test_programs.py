"""Infinite-width programs: wirings against older recursions, against formulas by hand, and against their finite nets."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel import TangentKernel
from tauspan.kernel.analytic import (
    Act,
    Attention,
    Convolution,
    Dense,
    Mix,
    Norm,
    Pool,
    Program,
    Recurrent,
    Residual,
    dual_activation,
    ensemble,
    ensemble_posterior,
    flattened,
    leaky_relu,
    mean_readout,
    nngp,
    ntk,
    posterior,
    program,
    stacked,
    windows,
)
from tauspan.kernel.analytic.activation import find

CUBIC = dual_activation([0.3, 0.7, -0.2, 0.4], name="cubic")
BLUR = torch.tensor(
    [[0.6, 0.4, 0, 0, 0], [0.3, 0.4, 0.3, 0, 0], [0, 0.5, 0, 0.5, 0], [0, 0, 0, 1, -1]]
).double()

# every scale differs from 1 and from the others, so that a factor that is missing or in the wrong power shows
WIRINGS = {
    "rnn, last": Program([Recurrent("erf", 1.1, 1.3, 0.3), Pool("last"), Dense(0.9, 0.2)]),
    "rnn, mean": Program([Recurrent("erf", 1.1, 1.3, 0.3), Pool("mean"), Dense(0.9, 0.2)]),
    "two rnns": Program(
        [Recurrent("relu", 0.8, 1.3, 0.3), Recurrent("erf", 0.7, 1.2, 0.1), Pool(), Dense(1.1)]
    ),
    "transformer": Program(
        [
            Dense(1.3),
            *[
                Residual([Attention(0.7), Dense(0.9)]),
                Norm(),
                Residual([Dense(0.8, 0.2), Act("relu"), Dense(1.2)]),
                Norm(),
            ]
            * 2,
            Pool("mean"),
            Dense(1.1),
        ]
    ),
    "causal, before norms": Program(
        [
            Dense(1.2, 0.1),
            Residual([Norm(), Dense(1.4), Attention(1.2, causal=True), Dense(0.7)]),
            Residual([Norm(center=False, eps=0.1), Dense(1.3), Act("gelu"), Dense(0.8)]),
            Pool("last"),
            Dense(0.8),
        ]
    ),
    "residual": Program(
        [
            Dense(1.3, 0.2),
            Residual([Norm(), Dense(0.8), Act("gelu"), Dense(1.4)]),
            Norm(),
            Residual([Act("erf"), Dense(1.3)]),
            Pool("last"),
            Dense(0.7),
        ]
    ),
    "graph": Program(
        [
            Mix(BLUR),
            Dense(1.3, 0.1),
            Act("relu"),
            Mix(BLUR[:, :4]),
            Dense(0.8),
            Act("erf"),
            Pool(),
            Dense(1.2),
        ]
    ),
    "convolution": Program(
        [
            Dense(1.3, 0.2, windows(5, Convolution(3, "zeros"))),
            Residual([Act("relu"), Dense(0.8, 0.1, windows(5, Convolution(3, "circular")))]),
            Act("gelu"),
            Dense(0.9, 0.2, flattened(5)),
        ]
    ),
}
each = pytest.mark.parametrize("wiring", WIRINGS.values(), ids=WIRINGS)
swept = pytest.mark.parametrize(  # half a minute each: one in the slow set, all others in the long one
    "wiring",
    [
        pytest.param(wiring, id=name, marks=[] if name == "rnn, last" else [pytest.mark.long])
        for name, wiring in WIRINGS.items()
    ],
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def slope(widths, errors):
    """Of log error in log width, by least squares."""
    x, y = torch.tensor(widths).double().log(), torch.tensor(errors).double().log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def features(net, x):
    """The readout's covariance of a finite net, given its units: w^2 s.s'/n + b^2."""
    with torch.no_grad():
        s = net.hidden(x, torch.ones(x.shape[:2])).flatten(1)
    linear = net.readout.linear
    return linear.scale**2 * s @ s.T + linear.bias_std**2


# -- against finite nets of the same description -----------------------------------------------------------------


@each
def test_units_of_finite_nets_have_the_process_covariance_with_slope_minus_a_half(wiring):
    x, widths, nets = rows(4, 5, 3), (32, 128, 512), 16
    wanted = wiring.kernels(x).nngp
    errors = [
        sum(relative(features(wiring.network(3, width=n, seed=100 + s), x), wanted) for s in range(nets))
        / nets
        for n in widths
    ]
    assert slope(widths, errors) == pytest.approx(-0.5, abs=0.1), errors


@pytest.mark.slow
@swept
def test_kernels_of_finite_nets_tend_to_the_tangent_kernel_with_slope_minus_a_half(wiring):
    # a net's error has a spread of half its size: with so many nets the slope has a standard error of 0.03
    x, widths, nets = rows(4, 5, 3), (32, 128, 512), (160, 96, 48)
    wanted, errors = wiring.kernels(x).ntk, []
    for n, count in zip(widths, nets, strict=True):
        found = (
            TangentKernel(wiring.network(3, width=n, seed=100 + s), x, check="off").dense()
            for s in range(count)
        )
        errors.append(sum(relative(one, wanted) for one in found) / count)
    scaled = [error * n**0.5 for error, n in zip(errors, widths, strict=True)]
    assert slope(widths, errors) == pytest.approx(-0.5, abs=0.1), errors
    assert max(scaled) < 3.5


@pytest.mark.parametrize("name", ["rnn, last", "transformer"])
def test_a_wide_net_is_near_its_tangent_kernel(name):
    x, wiring = rows(3, 5, 3), WIRINGS[name]
    kernels = [TangentKernel(wiring.network(3, width=256, seed=s), x, check="off").dense() for s in range(3)]
    assert relative(sum(kernels) / 3, wiring.kernels(x).ntk) < 0.12


# -- against other recursions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", ["relu", "abs", leaky_relu(0.3), "erf", "gelu", "sign", CUBIC], ids=str
)
def test_fully_connected_nets_are_a_wiring(activation):
    x, z = rows(6, 4), rows(5, 4, seed=1)
    net = {"depth": 3, "activation": activation, "weight_std": 1.2, "bias_std": 0.3}
    for one, other in ((x, None), (x, z)):
        found = stacked(**net).kernels(one, other)
        assert torch.allclose(found.nngp, nngp(one, other, **net), rtol=1e-12, atol=1e-12)
        assert torch.allclose(found.ntk, ntk(one, other, **net), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", ["circular", "zeros"])
@pytest.mark.parametrize("readout", ["pool", "flatten"])
def test_convolutional_nets_are_a_wiring(padding, readout):
    images = rows(4, 2, 3, 4)
    positions = images.flatten(2).mT
    net = {"depth": 2, "activation": "erf", "weight_std": 1.2, "bias_std": 0.3}
    net["convolution"] = Convolution(3, padding, readout)
    wiring = stacked(**net, size=(3, 4))
    found = wiring.kernels(positions, positions[:3])
    assert torch.allclose(found.nngp, nngp(images, images[:3], **net), rtol=1e-12, atol=1e-12)
    assert torch.allclose(found.ntk, ntk(images, images[:3], **net), rtol=1e-12, atol=1e-12)
    assert relative(features(wiring.network(2, width=512), positions), nngp(images, **net)) < 0.2


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_a_convolution_over_a_sequence_is_that_of_torch(padding):
    x = rows(2, 6, 3)
    layer = Program([Dense(1.3, 0.2, windows(6, Convolution(3, padding))), Pool(), Dense()]).network(
        3, width=4
    )
    linear = layer.hidden.layers[0].linear
    weight = linear.weight.view(4, 3, 3).mT * linear.scale  # units, channels, taps
    framed = torch.nn.functional.pad(x.mT, (1, 1), mode="circular" if padding == "circular" else "constant")
    wanted = torch.nn.functional.conv1d(framed, weight, 0.2 * linear.bias).mT
    found = layer.hidden.layers[0](x, torch.ones(2, 6))
    assert torch.allclose(found, wanted, atol=1e-12)


def test_a_recurrent_net_by_loops_over_pairs_of_steps():
    x, z, act = rows(2, 4, 3), rows(3, 6, 3, seed=1), find("gelu")
    w, u, b = 1.2, 0.7, 0.4
    found = Program([Recurrent(act, w, u, b), Pool("last"), Dense(1.5, 0.3)]).kernels(x, z)

    def variances(row):
        s, all_of = torch.zeros(()).double(), []
        for t in range(len(row)):
            v = w**2 * s + u**2 * row[t] @ row[t] / 3 + b**2
            all_of.append(v)
            s = act.dual(v, v, v)
        return all_of

    for n in range(2):
        for m in range(3):
            left, right = variances(x[n]), variances(z[m])
            s, theta = torch.zeros(5, 7).double(), torch.zeros(5, 7).double()
            for t in range(4):
                for r in range(6):
                    k = w**2 * s[t, r] + u**2 * x[n, t] @ z[m, r] / 3 + b**2
                    before = k + w**2 * theta[t, r]
                    s[t + 1, r + 1] = act.dual(left[t], right[r], k)
                    theta[t + 1, r + 1] = before * act.dual_prime(left[t], right[r], k)
            assert float(found.nngp[n, m]) == pytest.approx(float(1.5**2 * s[4, 6] + 0.3**2), rel=1e-12)
            total = 1.5**2 * (s[4, 6] + theta[4, 6]) + 0.3**2
            assert float(found.ntk[n, m]) == pytest.approx(float(total), rel=1e-12)


def test_a_recurrent_net_of_one_step_is_fully_connected():
    x = rows(4, 3)
    found = Program([Recurrent("relu", 9.9, 1.2, 0.3), Pool("last"), Dense(1.2, 0.3)]).kernels(x)
    assert torch.allclose(found.ntk, ntk(x, weight_std=1.2, bias_std=0.3), rtol=1e-12)


def test_residual_linear_nets_by_hand():
    """x -> U x, then h + W h: S = (1 + w^2) u^2 g; of Theta, each matrix adds the whole S once, W only its own part."""
    x = rows(3, 4)
    g, u, w, v = x @ x.T / 4, 1.3, 0.7, 0.9
    found = Program([Dense(u), Residual([Dense(w)]), Dense(v)]).kernels(x)
    s = (1 + w**2) * u**2 * g
    assert torch.allclose(found.nngp, v**2 * s, rtol=1e-12)
    assert torch.allclose(found.ntk, v**2 * (2 * s + w**2 * u**2 * g), rtol=1e-12)


def test_a_normed_row_has_variance_one_and_attention_is_its_softmax():
    x = rows(2, 4, 3)
    found = Program([Dense(1.7, 0.4), Norm(eps=0.0), Pool("last"), Dense()]).kernels(x).nngp
    assert torch.allclose(found.diagonal(), torch.ones(2).double(), rtol=1e-14)
    a = torch.softmax(0.6 * 1.7**2 * x @ x.mT / 3, -1)
    mixed = (a @ x).mean(1)
    found = Program([Dense(1.7), Attention(0.6), Pool(), Dense(1.1)]).kernels(x)
    assert torch.allclose(found.nngp, 1.1**2 * 1.7**2 * mixed @ mixed.T / 3, rtol=1e-12)
    assert torch.allclose(found.ntk, 2 * found.nngp, rtol=1e-12)


def test_causal_attention_does_not_look_ahead():
    x = rows(2, 5, 3)
    wiring = Program([Dense(), Attention(causal=True), Mix(torch.eye(5)[:2].double()), Pool(), Dense()])
    changed = x.clone()
    changed[:, 2:] = 0
    assert torch.allclose(wiring.kernels(x).ntk, wiring.kernels(changed).ntk, rtol=1e-14)
    both = Program([Dense(), Attention(), Mix(torch.eye(5)[:2].double()), Pool(), Dense()])
    assert relative(both.kernels(x).ntk, both.kernels(changed).ntk) > 0.05


# -- padding, parts, memory --------------------------------------------------------------------------------------

OF_ANY_LENGTH = {
    name: WIRINGS[name]
    for name in ("rnn, last", "rnn, mean", "two rnns", "transformer", "causal, before norms", "residual")
}


@pytest.mark.parametrize("wiring", OF_ANY_LENGTH.values(), ids=OF_ANY_LENGTH)
def test_padding_changes_nothing(wiring):
    lengths = torch.tensor([5, 2, 4])
    padded = rows(3, 5, 3)
    short = [row[None, :length] for row, length in zip(padded, lengths, strict=True)]
    padded[1, 2:] = 99.0
    found, net = wiring.kernels(padded, lengths=lengths), wiring.network(3, width=8)
    for n in range(3):
        assert torch.allclose(net(short[n])[0], net(padded, lengths)[n], rtol=1e-9)
        for m in range(3):
            one = wiring.kernels(short[n], short[m])
            assert float(found.nngp[n, m]) == pytest.approx(float(one.nngp), rel=1e-12)
            assert float(found.ntk[n, m]) == pytest.approx(float(one.ntk), rel=1e-7 if n == m else 1e-10)
    mixed = wiring.kernels(short[1], padded, lengths2=lengths)
    assert torch.allclose(mixed.ntk[0], found.ntk[1], rtol=1e-7)


def test_padding_counts_as_zeros_in_windows_and_fixed_mixes():
    x, lengths = rows(2, 5, 3), torch.tensor([3, 5])
    zeroed = x.clone()
    zeroed[0, 3:] = 0
    for first in (Dense(1.2, taps=windows(5, Convolution(3, "zeros"))), Mix(BLUR)):
        wiring = Program([first, Dense(0.9, taps=flattened(5 if isinstance(first, Dense) else 4))])
        if isinstance(first, Dense):  # the second layer reads no padding either
            found = wiring.kernels(x, lengths=lengths).nngp
            part = Program(
                [first, Mix(torch.diag(torch.tensor([1.0, 1, 1, 0, 0]).double())), *wiring.layers[1:]]
            )
            assert float(found[0, 0]) == pytest.approx(float(part.kernels(zeroed).nngp[0, 0]), rel=1e-12)
        else:
            found = wiring.kernels(x, lengths=lengths)
            assert torch.allclose(found.nngp, wiring.kernels(zeroed).nngp, rtol=1e-12)
            net = wiring.network(3, width=8)
            assert torch.allclose(net(x, lengths), net(zeroed), rtol=1e-12)


@each
def test_kernels_are_symmetric_and_positive_and_parts_are_the_whole(wiring, monkeypatch):
    x = rows(5, 5, 3)
    x = torch.cat([x, x[:2]])  # with duplicates
    whole = wiring.kernels(x)
    for kernel in whole:
        assert torch.equal(kernel, kernel.T)
        values = torch.linalg.eigvalsh(kernel)
        assert float(values[0]) > -1e-10 * float(values[-1])
    monkeypatch.setattr(program, "_AT_ONCE", 4 * 25)  # two rows at a time
    for kernel, part in zip(whole, wiring.kernels(x), strict=True):
        assert torch.allclose(part, kernel, rtol=1e-9)
    for kernel, part in zip(whole, wiring.kernels(x[:3], x[2:]), strict=True):
        assert torch.allclose(part, kernel[:3, 2:], rtol=1e-6)


bodies = st.sampled_from(
    [
        [Dense(0.8), Act("relu"), Dense(1.2, 0.1)],
        [Norm(), Dense(1.1)],
        [Attention(0.5), Dense(0.7)],
        [Dense(1.3), Act("erf"), Attention(causal=True), Dense(0.6)],
    ]
)
blocks = st.one_of(
    st.builds(Residual, bodies),
    st.just(Norm()),
    st.builds(Attention, st.floats(-2, 2)),
    st.just(Dense(0.9, 0.2)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(blocks, max_size=4), st.sampled_from(["mean", "last"]), st.integers(0, 99))
def test_any_wiring_has_positive_kernels(middle, choice, seed):
    wiring = Program([Dense(1.2), *middle, Act("gelu"), Pool(choice), Dense(0.8, 0.1)])
    x = rows(5, 3, 2, seed=seed)
    for kernel in wiring.kernels(x, lengths=torch.tensor([3, 1, 2, 3, 2])):
        values = torch.linalg.eigvalsh(kernel)
        assert float(values[0]) > -1e-10 * float(values[-1])
    found = wiring.kernels(x)
    assert bool(
        (found.ntk.diagonal() >= found.nngp.diagonal() * (1 - 1e-12)).all()
    )  # Theta - S is positive too


def test_long_sequences_are_computed_in_parts(monkeypatch):
    largest, inner = [], Program._block
    monkeypatch.setattr(program, "_AT_ONCE", 2**15)

    def noted(self, pair):
        largest.append(pair.cross.numel())
        return inner(self, pair)

    monkeypatch.setattr(Program, "_block", noted)
    found = WIRINGS["rnn, mean"].kernels(rows(9, 64, 2))
    assert max(largest) <= 2**15
    assert found.ntk.shape == (9, 9)


MEASURED = """
import torch
from tauspan.kernel.analytic import Act, Attention, Dense, Norm, Pool, Program, Residual
torch.set_num_threads(1)
net = Program([Dense(1.2), Residual([Attention(), Dense(0.9)]), Norm(), Act("relu"), Pool(), Dense()])
x = torch.randn(80, 64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
net.kernels(x)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_kernels_of_64_positions_take_bounded_memory():
    """80 x 80 rows of 64 positions are 26 million pairs: 0.2 GB for one tensor of them, a dozen of which are needed."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 900 * 2**10  # KiB, of which torch itself takes a third


# -- posteriors --------------------------------------------------------------------------------------------------


def test_sequence_models_have_posteriors():
    x, z, y = rows(6, 5, 3), rows(4, 7, 3, seed=1), rows(6, 2, seed=2)
    wiring = WIRINGS["rnn, mean"]
    both, cross, own = wiring.kernels(x), wiring.kernels(z, x), wiring.kernels(z)
    bayes = posterior(both.nngp, cross.nngp, own.nngp, y, noise=1e-10)
    again = posterior(both.nngp, both.nngp, both.nngp, y, noise=1e-10)
    assert torch.allclose(again.mean, y, atol=1e-5)
    assert bool((bayes.covariance.diagonal() > 0).all())
    trained = ensemble_posterior(both.ntk, cross.ntk, both.nngp, cross.nngp, own.nngp, y)
    assert torch.allclose(trained.mean, cross.ntk @ torch.linalg.solve(both.ntk, y), rtol=1e-8)
    assert trained.covariance.shape == (4, 4)


@pytest.mark.slow
def test_linearised_recurrent_nets_have_the_closed_forms_mean_and_covariance():
    x, z, y = rows(3, 4, 3), rows(2, 4, 3, seed=1), rows(3, 1, seed=2)
    wiring = WIRINGS["rnn, last"]
    found = ensemble(lambda s: wiring.network(3, width=256, seed=s), x, y, z, members=60, time=2.0)
    both, cross, own = wiring.kernels(x), wiring.kernels(z, x), wiring.kernels(z)
    wanted = ensemble_posterior(both.ntk, cross.ntk, both.nngp, cross.nngp, own.nngp, y, time=2.0)
    spread = wanted.covariance.diagonal().sqrt()
    assert float(((found.mean(0) - wanted.mean)[:, 0] / spread).abs().max()) < 4 / math.sqrt(60)
    assert relative(found[..., 0].T.cov(), wanted.covariance) < 0.4


# -- where gradients are not independent of the weights ---------------------------------------------------------


def returned(n, seed, x, activation, w, mean, std):
    """The second moments of W^T (v s'(h)) of one draw, and of the units that W takes."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    units = torch.relu(x @ draw(x.shape[1], n)) / x.shape[1] ** 0.5
    weights, readout = draw(n, n) * w / n**0.5, mean + std * draw(n)
    h = (units @ weights.T).requires_grad_()
    (slopes,) = torch.autograd.grad(find(activation).function(h).sum(), h)
    g = (readout * slopes) @ weights
    return g @ g.T / n, units @ units.T / n


@pytest.mark.parametrize(
    ("activation", "mean", "std"),
    [("relu", 1.0, 0.0), ("gelu", 0.7, 0.5), ("erf", 0.9, 0.3), ("relu", 0.0, 0.8)],
)
def test_a_readout_with_a_mean_adds_to_returned_gradients(activation, mean, std):
    x, w = rows(2, 4), 1.3
    wanted = nngp(x, activation="relu")
    found = mean_readout(wanted, activation, weight_std=w, readout_mean=mean, readout_std=std)
    drawn = sum(returned(1024, s, x, activation, w, mean, std)[0] for s in range(8)) / 8
    assert relative(drawn, found.exact) < 0.04
    if activation != "erf" and mean:  # s'' of erf is odd, so that its mean vanishes
        assert relative(drawn, found.independent) > 0.1
    elif not mean:
        assert torch.equal(found.exact, found.independent)


@pytest.mark.slow
def test_returned_gradients_tend_to_the_exact_moment_with_slope_minus_a_half():
    x, widths, nets = rows(2, 4), (64, 256, 1024), 200
    wanted = mean_readout(nngp(x), "relu", weight_std=1.3).exact
    errors = [
        sum(relative(returned(n, s, x, "relu", 1.3, 1.0, 0.0)[0], wanted) for s in range(nets)) / nets
        for n in widths
    ]
    assert slope(widths, errors) == pytest.approx(-0.5, abs=0.1), errors


# -- errors ------------------------------------------------------------------------------------------------------

X = torch.ones(2, 3, 2, dtype=torch.float64)
PLAIN = Program([Dense(), Act(), Pool(), Dense()])
ONE = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Program([]), UsageError, "ends with nothing: its last layer must be a Dense"),
        (lambda: Program([Dense(), Act()]), UsageError, "ends with Act"),
        (lambda: Program([Act(), Dense()]), UsageError, "Act after rows units"),
        (lambda: Program([Dense(), Act(), Act(), Dense()]), UsageError, "Put a Dense before it"),
        (lambda: Program([Dense(), Act(), Norm(), Dense()]), UsageError, r"take Norm\(center=False\)"),
        (lambda: Program([Residual([Dense()]), Dense()]), UsageError, "Residual of rows units"),
        (lambda: Program([Dense(), Residual([Act()]), Dense()]), UsageError, "body that ends with Act"),
        (
            lambda: Program([Dense(), Residual([Dense(), Act()]), Dense()]),
            UsageError,
            "follows the body's last",
        ),
        (lambda: Program([Dense(), Residual([]), Dense()]), UsageError, "ends with nothing"),
        (lambda: Dense(0.0), UsageError, "weight_std=0.0: it must be finite and above 0"),
        (lambda: Dense(1.0, -1.0), UsageError, "bias_std=-1.0: it must be finite and at least 0"),
        (lambda: Dense(taps=torch.ones(2, 2)), UsageError, "give integers"),
        (lambda: Recurrent(recurrent_std=math.inf), UsageError, "recurrent_std=inf"),
        (lambda: Recurrent("erff"), UsageError, "Did you mean 'erf'"),
        (lambda: Norm(eps=-1.0), UsageError, "eps=-1.0"),
        (lambda: Attention(math.nan), UsageError, "scale=nan"),
        (lambda: Pool("first"), UsageError, "choice='first'"),
        (lambda: Mix(torch.ones(3)), UsageError, r"of shape \(3,\): give \(U, T\)"),
        (lambda: Mix(ONE * math.inf), NonFiniteError, "matrix over positions holds"),
        (lambda: windows((2, 2), Convolution(7)), UsageError, "a window of 7"),
        (lambda: windows(2, Convolution(7, "circular")), UsageError, "a window of 7"),
        (lambda: Program([Mix(ONE), Dense()]).kernels(X), MismatchError, "1 columns of Mix's matrix for 3"),
        (lambda: Program([Dense(taps=flattened(4))]).kernels(X), MismatchError, "4 taps for 3 positions"),
        (lambda: Program([Dense()]).kernels(X), UsageError, "ends with 3 positions: put a Pool"),
        (lambda: Program([Dense()]).network(2, width=4)(X), UsageError, "ends with 3 positions"),
        (lambda: PLAIN.kernels(X[0, 0]), UsageError, r"x has the shape \(2,\)"),
        (lambda: PLAIN.kernels(X, X[..., :1]), UsageError, "x has 2 numbers a position and x2 has 1"),
        (lambda: PLAIN.kernels(X * math.nan), NonFiniteError, "row 0 of x holds NaN"),
        (lambda: PLAIN.kernels(X * 1e200), NonFiniteError, "nngp of row 0 with row 0 is not finite"),
        (lambda: PLAIN.kernels(X, lengths=torch.tensor([1])), MismatchError, "one integer a row"),
        (lambda: PLAIN.kernels(X, lengths=torch.tensor([0, 3])), MismatchError, "lengths from 0 to 3"),
        (lambda: PLAIN.kernels(X, lengths2=torch.tensor([1, 3])), UsageError, "lengths2 without x2"),
        (lambda: PLAIN.network(2, width=0), UsageError, "width=0"),
        (
            lambda: Program([Dense(), Residual([Pool(), Dense()]), Pool(), Dense()]).kernels(X),
            MismatchError,
            "3 positions before Residual for 1",
        ),
        (
            lambda: Program([Dense(), Residual([Pool(), Dense()]), Pool(), Dense()]).network(2, width=3)(X),
            MismatchError,
            "it must keep the shape",
        ),
        (lambda: stacked(depth=0), UsageError, "depth=0"),
        (lambda: mean_readout(X[0]), MismatchError, "give a square one"),
        (lambda: mean_readout(ONE * math.nan), NonFiniteError, "covariance holds NaN"),
        (lambda: mean_readout(0 * ONE), UsageError, "drop rows without units"),
        (lambda: mean_readout(ONE, readout_std=-1.0), UsageError, "readout_std=-1.0"),
    ],
)
def test_errors_teach(call, error, words):
    with pytest.raises(error, match=words):
        call()
