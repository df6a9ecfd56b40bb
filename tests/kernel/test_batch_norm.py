"""Batch norm in infinite-width programs: against directions on a circle, a closed form, and finite nets."""

import math

import pytest
import torch
from torch import nn

from tauspan.core.errors import ModelError, NonFiniteError, UsageError
from tauspan.kernel import TangentKernel
from tauspan.kernel.analytic import (
    Act,
    Attention,
    BatchNorm,
    Dense,
    Norm,
    Pool,
    Program,
    Residual,
    leaky_relu,
    posterior,
    surrogate,
)
from tauspan.kernel.analytic.activation import find

# eps of the size of the variances, and sums with what is not normalised: else no scale before a norm would show
WIRINGS = {
    "relu": Program(
        [Dense(1.3, 0.4), BatchNorm("relu", 0.7), Dense(0.8, 0.3), BatchNorm("abs", 0.4), Dense(1.2, 0.2)]
    ),
    "erf": Program([Dense(1.4), BatchNorm("erf", 0.5), Dense(0.7, 0.3), Act("relu"), Dense(1.2, 0.1)]),
    "residual": Program(
        [
            Dense(1.3),
            Residual([BatchNorm("relu"), Dense(1.4), BatchNorm("gelu", 0.3), Dense(0.6, 0.2)]),
            Act("erf"),
            Dense(1.1),
        ]
    ),
}
SEQUENCES = Program(
    [Dense(1.3, 0.2), Attention(0.5), Dense(0.8), BatchNorm("relu", 0.6), Pool("mean"), Dense(1.2)]
)
each = pytest.mark.parametrize("wiring", [*WIRINGS.values(), SEQUENCES], ids=[*WIRINGS, "sequences"])


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def on_a_circle(covariance, function, points=100_000):
    """E s(u) s(u)' of three rows: G h is L z with L of two columns, and z has any direction with equal probability."""
    centring = torch.eye(3).double() - 1 / 3
    values, vectors = torch.linalg.eigh(centring @ covariance @ centring)
    angles = 2 * math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    y = torch.stack([angles.cos(), angles.sin()], 1) @ (vectors[:, 1:] * values[1:].sqrt()).T
    s = function(3**0.5 * y / y.norm(dim=1, keepdim=True))
    return s.T @ s / points


@pytest.mark.parametrize(
    "activation", ["relu", "abs", "identity", leaky_relu(-0.3), "sign", surrogate(), "erf", "gelu"], ids=str
)
def test_three_rows_are_directions_on_a_circle(activation):
    half = rows(3, 5) * torch.tensor([[2.0], [0.5], [1.0]])
    covariance = half @ half.T + 0.7
    wanted = on_a_circle(covariance, find(activation).function)
    found = BatchNorm(activation, eps=0.0, samples=2**16).kernel(covariance)
    tolerance = {"erf": 2e-4, "gelu": 2e-4}.get(activation, 1e-8 if "sign" not in str(activation) else 1e-4)
    assert torch.allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch", [2, 5, 40, 300])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_rows_that_are_alike_have_a_closed_form(batch, eps):
    """S = a I + b: y is isotropic, so that K is E[|y|^2 / (|y|^2 / B + eps)] times V of its direction."""
    covariance = 1.7 * torch.eye(batch).double() + 0.4
    centring = torch.eye(batch).double() - 1 / batch
    diagonal = centring.diagonal()
    direction = find("relu").dual(diagonal[:, None], diagonal[None], centring) / (batch - 1)
    x = torch.linspace(-40, 12, 200_001, dtype=torch.float64)  # log |y|^2 / 1.7 of a chi-squared law
    freedom = (batch - 1) / 2
    density = (freedom * x - x.exp() / 2 - freedom * math.log(2) - math.lgamma(freedom)).exp()
    square = 1.7 * x.exp()
    length = float(torch.trapezoid(density * square / (square / batch + eps), x))
    found = BatchNorm("relu", eps=eps).kernel(covariance)
    assert torch.allclose(found, length * direction, rtol=1e-7, atol=1e-15)


def test_the_integral_is_the_mean_over_points_for_any_spectrum():
    for scales in (torch.ones(6), 10.0 ** -torch.arange(6)):
        half = rows(6, 6) * scales
        layer = BatchNorm("relu", eps=1e-3, samples=2**14)
        centred = half - half.mean(0)
        spread, basis = torch.linalg.eigh(centred @ centred.T)
        drawn = layer._sampled(find("relu"), basis * spread.clamp(min=0).sqrt())
        assert relative(drawn, layer.kernel(half @ half.T)) < 0.01


def test_the_finite_layer_is_that_of_torch():
    x = rows(6, 3)
    net = Program([Dense(1.3), BatchNorm("relu", 0.2), Dense()]).network(3, width=7)
    h = net.hidden.layers[0](x[:, None], torch.ones(6, 1))[:, 0]
    wanted = torch.relu(nn.BatchNorm1d(7, eps=0.2, affine=False).double().train()(h))
    by_hand = torch.relu((h - h.mean(0)) / (h.var(0, correction=0) + 0.2).sqrt())
    found = net.hidden(x[:, None], torch.ones(6, 1))[:, 0]
    assert torch.allclose(found, wanted, atol=1e-12)
    assert torch.allclose(found, by_hand, atol=1e-12)
    with pytest.raises(ModelError, match="depends on the whole batch"):
        TangentKernel(net.eval(), x)


def features(net, x):
    """The readout's covariance of a finite net, given its units: w^2 s.s'/n + b^2."""
    with torch.no_grad():
        s = net.hidden(x, torch.ones(x.shape[:2]))[:, 0]
    linear = net.readout.linear
    return linear.scale**2 * s @ s.T + linear.bias_std**2


@each
def test_units_of_finite_nets_have_the_process_covariance_with_slope_minus_a_half(wiring):
    x, widths, nets = rows(5, 3 if wiring is SEQUENCES else 1, 4), (32, 128, 512), 16
    wanted, error = wiring.nngp(x)
    assert float(error.norm()) < 0.002 * float(wanted.norm())
    errors = [
        sum(relative(features(wiring.network(4, width=n, seed=100 + s), x), wanted) for s in range(nets))
        / nets
        for n in widths
    ]
    logs = torch.tensor([[math.log(n), 1] for n in widths]), torch.tensor(errors).log()[:, None]
    assert float(torch.linalg.lstsq(*logs).solution[0]) == pytest.approx(-0.5, abs=0.1), errors


def test_errors_of_draws_are_those_between_draws():
    x, layers = (
        rows(6, 4),
        lambda seed: [Dense(1.4), BatchNorm("erf", 0.5, seed=seed, samples=2**9), Dense(0.7)],
    )
    found = [Program(layers(seed)).nngp(x) for seed in range(20)]
    spread = torch.stack([one.nngp for one in found]).std(0)
    said = torch.stack([one.error for one in found]).square().mean(0).sqrt()
    assert float(spread.norm() / said.norm()) == pytest.approx(1, abs=0.25)
    assert torch.equal(found[0].nngp, Program(layers(0)).nngp(x).nngp)


@each
def test_padding_and_the_order_of_rows_change_nothing(wiring):
    x, order = rows(4, 3, 4), torch.tensor([2, 0, 3, 1])
    if wiring is not SEQUENCES:
        x = x[:, :1]
    whole, error = wiring.nngp(x)
    assert relative(wiring.nngp(x[order]).nngp, whole[order][:, order]) < (1e-2 if error.any() else 1e-10)
    assert float(torch.linalg.eigvalsh(whole)[0]) > 0
    if wiring is SEQUENCES:
        lengths = torch.tensor([3, 1, 2, 3])
        kept, net = wiring.nngp(x, lengths=lengths).nngp, wiring.network(4, width=8)
        changed = torch.where(torch.arange(3)[None, :, None] < lengths[:, None, None], x, 99.0)
        assert torch.allclose(wiring.nngp(changed, lengths=lengths).nngp, kept, rtol=1e-12)
        assert torch.allclose(net(changed, lengths), net(x, lengths), rtol=1e-9)
        assert relative(kept, whole) > 0.05


def test_rows_to_be_predicted_belong_to_the_batch():
    x, y = rows(9, 4), rows(6, 1, seed=1)
    whole = WIRINGS["relu"].nngp(x).nngp
    found = posterior(whole[:6, :6], whole[6:, :6], whole[6:, 6:], y, noise=1e-10)
    assert found.mean.shape == (3, 1)
    assert bool((found.covariance.diagonal() > 0).all())


def test_without_batch_norm_it_is_the_kernel():
    net, x = Program([Dense(1.2), Norm(), Act("gelu"), Dense()]), rows(4, 3)
    assert torch.equal(net.nngp(x).nngp, net.kernels(x).nngp)
    assert not net.nngp(x).error.any()


X, SAME = rows(3, 2), torch.ones(3, 2).double()
PLAIN = Program([Dense(), BatchNorm(eps=0.0), Dense()])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: PLAIN.kernels(X),
            UsageError,
            "runs through the batch's mean and variance.*`Program.nngp` gives",
        ),
        (lambda: WIRINGS["residual"].kernels(X), UsageError, "put Norm in its place"),
        (lambda: PLAIN.nngp(X[:1]), UsageError, "batch of one row"),
        (
            lambda: Program([Dense(), BatchNorm(), Dense()]).network(2, width=3)(X[:1]),
            UsageError,
            "batch of one row",
        ),
        (lambda: PLAIN.nngp(SAME), UsageError, "3 rows with the same units"),
        (lambda: PLAIN.nngp(X * 1e200), NonFiniteError, "before BatchNorm is not finite"),
        (lambda: Program([BatchNorm(), Dense()]), UsageError, "BatchNorm after rows units.*Put a Dense"),
        (lambda: Program([Dense(), Act(), BatchNorm(), Dense()]), UsageError, "after activated units"),
        (lambda: BatchNorm("rellu"), UsageError, "Did you mean 'relu'"),
        (lambda: BatchNorm(eps=-1.0), UsageError, "eps=-1.0"),
        (lambda: BatchNorm(samples=0), UsageError, "samples=0"),
    ],
)
def test_errors_teach(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_rows_that_are_the_same_are_zero_under_an_eps():
    found = Program([Dense(), BatchNorm(), Dense(1.0, 0.5)]).nngp(SAME).nngp
    assert torch.allclose(found, torch.full((3, 3), 0.25).double(), atol=1e-9)


def test_a_net_needs_an_eps() -> None:
    with pytest.raises(UsageError, match="take eps=1e-12"):
        Program([Dense(1.3), BatchNorm("relu", eps=0.0), Dense()]).network(3, width=7)
    net = Program([Dense(1.3), BatchNorm("relu", eps=1e-12), Dense()]).network(3, width=7)  # the repair
    assert bool(net(rows(5, 3)).isfinite().all())
