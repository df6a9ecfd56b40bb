"""Analytic kernels: moments against quadrature of their definition, kernels against wide finite nets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tauspan as ts
from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel import TangentKernel
from tauspan.kernel.analytic import (
    Convolution,
    depth_limit,
    dual_activation,
    ensemble,
    ensemble_posterior,
    hermite_coefficients,
    leaky_relu,
    limit_kernel,
    lr_max,
    network,
    nngp,
    ntk,
    on_sphere,
    posterior,
    recursion,
    response,
)
from tauspan.kernel.analytic.activation import find

CUBIC = dual_activation([0.3, 0.7, -0.2, 0.4], name="cubic")
SMOOTH = ["identity", "erf", "gelu", CUBIC]
ALL = ["relu", "abs", leaky_relu(0.3), *SMOOTH]
MOMENTS = [(1.0, 1.0, 0.0), (1.0, 1.0, 0.7), (2.0, 0.5, -0.8), (0.3, 1.7, 0.35)]


def named(activation):
    return find(activation).name


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def rows(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def line(panels=36, reach=9.0, order=8):
    """Gauss-Legendre on panels with an edge at 0, where activations have their kinks."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(-reach, reach, panels + 1)[:-1]
    half = reach / panels
    at = (edges[:, None] + half * (nodes + 1)).ravel()
    return torch.from_numpy(at), torch.from_numpy(np.tile(half * weights, panels))


def derivative(function, u):
    u = u.clone().requires_grad_()
    return torch.autograd.grad(function(u).sum(), u)[0].detach()


def quadrature(f, g, q_u, q_v, rho):
    """E[f(u) g(v)] by its definition."""
    z, weights = line()
    u, v = z * math.sqrt(q_u), z * math.sqrt(q_v)
    exponent = (z[:, None] ** 2 - 2 * rho * z[:, None] * z + z**2) / (2 * (1 - rho**2))
    density = torch.exp(-exponent) / (2 * math.pi * math.sqrt(1 - rho**2))
    return float((density * (f(u) * weights)[:, None] * (g(v) * weights)).sum())


# -- moments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
@pytest.mark.parametrize("activation", ALL, ids=named)
def test_moments_are_those_of_the_definition(activation, moments):
    q_u, q_v, rho = moments
    act = find(activation)
    at = (number(q_u), number(q_v), number(rho * math.sqrt(q_u * q_v)))
    s = act.function
    assert float(act.dual(*at)) == pytest.approx(quadrature(s, s, *moments), rel=1e-9, abs=1e-11)
    slope = lambda u: derivative(s, u)  # noqa: E731
    assert float(act.dual_prime(*at)) == pytest.approx(
        quadrature(slope, slope, *moments), rel=1e-9, abs=1e-11
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("activation", ALL, ids=named)
def test_moments_where_the_correlation_is_one(activation, sign):
    act, q_u, q_v = find(activation), 1.3, 0.6
    at = (number(q_u), number(q_v), number(sign * math.sqrt(q_u * q_v)))
    z, weights = line()
    weights = weights * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    u, v = z * math.sqrt(q_u), sign * z * math.sqrt(q_v)
    s = act.function
    assert float(act.dual(*at)) == pytest.approx(float((weights * s(u) * s(v)).sum()), rel=1e-10, abs=1e-12)
    slopes = float((weights * derivative(s, u) * derivative(s, v)).sum())
    assert float(act.dual_prime(*at)) == pytest.approx(slopes, rel=1e-10, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 3), st.floats(0.1, 3), st.floats(-0.99, 0.99), st.sampled_from(ALL))
def test_the_slope_in_the_covariance_is_the_moment_of_derivatives(q_u, q_v, rho, activation):
    act = find(activation)
    q_uv = number(rho * math.sqrt(q_u * q_v)).requires_grad_()
    found = torch.autograd.grad(act.dual(number(q_u), number(q_v), q_uv), q_uv)[0]
    assert float(found) == pytest.approx(
        float(act.dual_prime(number(q_u), number(q_v), q_uv.detach())), abs=1e-10
    )


def test_relu_keeps_its_digits_near_the_diagonal():
    relu, one = find("relu"), number(1.0)
    assert float(relu.dual_prime(one, one, one)) == 0.5
    assert float(relu.dual_prime(one, one, one + 2e-16)) == 0.5  # beyond 1 by rounding
    assert float(relu.dual_prime(one, one, -one)) == 0.0
    for angle in (1e-3, 1e-6):
        found = relu.dual_prime(one, one, torch.cos(number(angle)))
        # a cosine that is rounded to eps carries the angle to eps / angle, and acos and atan2 no better than that
        assert float(found) == pytest.approx((math.pi - angle) / (2 * math.pi), abs=1e-16 / angle)
    assert float(relu.dual(0 * one, one, 0 * one)) == 0.0


def test_relu_has_gradients_at_equal_rows():
    x = rows(3, 4).requires_grad_()
    ntk(torch.cat([x, x]), depth=2).sum().backward()
    assert bool(torch.isfinite(x.grad).all())


def test_hermite_moments_under_unit_variance_are_the_power_series():
    rho = torch.linspace(-1, 1, 9, dtype=torch.float64)
    one = torch.ones_like(rho)
    series = 0.09 + 0.49 * rho + 0.04 * rho**2 + 0.16 * rho**3
    assert torch.allclose(CUBIC.dual(one, one, rho), series, atol=1e-14)
    assert torch.allclose(CUBIC.dual_prime(one, one, rho), 0.49 + 0.08 * rho + 0.48 * rho**2, atol=1e-14)
    constant = dual_activation([2.0])
    assert float(constant.dual(one[0], one[0], rho[0])) == 4.0
    assert float(constant.dual_prime(one[0], one[0], rho[0])) == 0.0


def test_coefficients_of_a_function_and_what_they_leave_out():
    found = hermite_coefficients(torch.relu, 40)
    # a_k of ReLU by hand: 1/sqrt(2 pi), 1/2, 1/(2 sqrt(pi)), 0, -1/(4 sqrt(3 pi))
    known = [1 / math.sqrt(2 * math.pi), 0.5, 0.5 / math.sqrt(math.pi), 0.0, -0.25 / math.sqrt(3 * math.pi)]
    assert found.coefficients[:5] == pytest.approx(known, abs=1e-12)
    assert found.residual == pytest.approx(0.5 - sum(a * a for a in found.coefficients), abs=1e-12)
    assert 0 < found.residual < hermite_coefficients(torch.relu, 4).residual
    tanh = hermite_coefficients(torch.tanh, 60)
    act, one, rho = dual_activation(tanh.coefficients), number(1.0), number(0.6)
    assert tanh.residual < 1e-6
    assert float(act.dual(one, one, rho)) == pytest.approx(
        quadrature(torch.tanh, torch.tanh, 1, 1, 0.6), abs=1e-9
    )


def test_sign_is_trained_by_the_derivative_of_erf():
    sign = find("sign")
    z, weights = line()
    for q_u, q_v, rho in MOMENTS:
        at = (number(q_u), number(q_v), number(rho * math.sqrt(q_u * q_v)))
        assert float(sign.dual(*at)) == pytest.approx(2 / math.pi * math.asin(rho), abs=1e-12)
        v = z * math.sqrt(q_v * (1 - rho**2))  # v where u = 0
        surrogate = weights * 2 / math.sqrt(math.pi) * torch.exp(-(v**2) - z**2 / 2) / math.sqrt(2 * math.pi)
        wanted = 2 / math.sqrt(2 * math.pi * q_u) * float(surrogate.sum())
        assert float(sign.dual_prime(*at)) == pytest.approx(wanted, rel=1e-10)
    u = rows(1, 5)[0].requires_grad_()
    found = sign.function(u)
    assert torch.equal(found, u.sign())
    found.sum().backward()
    assert torch.allclose(u.grad, derivative(torch.erf, u.detach()), atol=1e-15)


def test_the_surrogate_kernel_is_that_of_a_wide_net_with_two_derivatives():
    """Test side erf(8 u), nearly sign; train side the surrogate. Width 2e5, within 0.017."""
    x = torch.nn.functional.normalize(rows(15, 3), dim=1) * math.sqrt(3)
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    h = x @ w.T / math.sqrt(3)
    true = 16 / math.sqrt(math.pi) * torch.exp(-64 * h**2)
    surrogate = 2 / math.sqrt(math.pi) * torch.exp(-(h**2))
    # the readout's squared weights average to 1
    empirical = (h.sign() @ h.sign().T + (x @ x.T / 3) * (true @ surrogate.T)) / len(w)
    found = ntk(x, activation="sign")
    assert float((found - empirical).abs().max()) < 0.017
    assert float((found - found.T).abs().max()) < 1e-12  # equal norms
    scaled = ntk(x * torch.linspace(0.3, 2, 15, dtype=torch.float64)[:, None], activation="sign")
    assert float((scaled - scaled.T).abs().max()) > 0.1


# -- kernels -------------------------------------------------------------------------------------------------

SCALES = {"weight_std": 1.2, "bias_std": 0.3}


def averaged(shape, x, width, seeds, **net):
    kernels = [
        TangentKernel(network(shape, width=width, seed=100 + s, **net), x).dense() for s in range(seeds)
    ]
    return torch.stack(kernels).mean(0)


@pytest.mark.parametrize(
    "activation",
    [pytest.param(each, marks=pytest.mark.slow if each != "relu" else ()) for each in ALL],
    ids=named,
)
def test_a_wide_net_has_the_analytic_kernel(activation):
    x = torch.nn.functional.normalize(rows(5, 4), dim=1)
    net = {"depth": 2, "activation": activation, **SCALES}
    assert relative(averaged(4, x, 1024, 6, **net), ntk(x, **net)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["circular", "zeros"])
@pytest.mark.parametrize("readout", ["pool", "flatten"])
def test_a_wide_convolutional_net_has_the_analytic_kernel(padding, readout):
    x = rows(4, 2 * 3 * 4, seed=2).view(4, 2, 3, 4)
    net = {"depth": 2, "activation": "relu", **SCALES, "convolution": Convolution(3, padding, readout)}
    wanted = ntk(x, **net)
    assert relative(averaged((2, 3, 4), x, 256, 12, **net), wanted) < 0.06
    others = {p: ntk(x, **{**net, "convolution": Convolution(3, p, readout)}) for p in ("circular", "zeros")}
    assert relative(others["zeros"], others["circular"]) > 0.12  # the check above can tell them apart


@pytest.mark.parametrize("activation", ["relu", "erf", "sign"])
def test_a_wide_nets_features_have_the_process_covariance(activation):
    x, net = rows(5, 4), {"depth": 2, "activation": activation, **SCALES}
    features = network(4, width=4096, seed=100, **net)[:-1](x).detach()
    wanted = nngp(x, **net)
    assert relative(1.44 * features @ features.T / 4096 + 0.09, wanted) < 0.06


def test_a_random_nets_outputs_have_the_process_covariance():
    x = rows(4, 2 * 9, seed=2).view(4, 2, 3, 3)
    net = {"activation": "relu", "convolution": Convolution(3, "zeros", "pool")}
    with torch.no_grad():
        outputs = network((2, 3, 3), 6000, width=4000, seed=100, **net)(x)
    assert relative(outputs @ outputs.T / 6000, nngp(x, **net)) < 0.08


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("readout", ["pool", "flatten"])
def test_images_of_one_pixel_are_rows(window, readout):
    x, net = rows(6, 5), {"depth": 3, "activation": "gelu", **SCALES}
    images = x[:, :, None, None]
    convolution = Convolution(window, "circular", readout)
    assert torch.allclose(ntk(images, convolution=convolution, **net), ntk(x, **net), rtol=1e-13)


@pytest.mark.parametrize("activation", ALL, ids=named)
def test_kernels_are_symmetric_and_positive(activation):
    x = torch.cat([rows(6, 3), rows(2, 3), rows(6, 3)[:2]])  # with duplicates
    for kernel in (ntk(x, depth=3, activation=activation), nngp(x, depth=3, activation=activation)):
        assert kernel.dtype == torch.float64
        assert torch.equal(kernel, kernel.T)
        values = torch.linalg.eigvalsh(kernel)
        assert float(values[0]) > -1e-12 * float(values[-1])
        assert torch.allclose(kernel[0], kernel[8], rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_parts_are_the_whole(activation, monkeypatch):
    x = rows(7, 3)
    whole = ntk(x, depth=2, activation=activation, **SCALES)
    assert torch.allclose(
        ntk(x[:3], x[2:], depth=2, activation=activation, **SCALES), whole[:3, 2:], rtol=1e-13
    )
    monkeypatch.setattr(recursion, "_AT_ONCE", 14)
    assert torch.allclose(ntk(x, depth=2, activation=activation, **SCALES), whole, rtol=1e-13)
    assert torch.allclose(ntk(x.float().double()), ntk(x.float()), rtol=1e-13)


def test_relu_by_hand():
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    # S_1 = diag(2, 4.5): E[s s] = q/2 and sqrt(q q')/(2 pi), E[s' s'] = 1/2
    assert torch.allclose(nngp(x), torch.tensor([[1, 3 / (2 * math.pi)], [3 / (2 * math.pi), 2.25]]).double())
    assert torch.allclose(ntk(x), torch.tensor([[2, 3 / (2 * math.pi)], [3 / (2 * math.pi), 4.5]]).double())


def test_a_net_of_identities_is_linear():
    x = rows(3, 4)
    assert torch.allclose(ntk(x, depth=4, activation="identity"), 5 * x @ x.T / 4, rtol=1e-13)


# -- training ------------------------------------------------------------------------------------------------


def test_descent_in_weights_is_the_closed_form():
    """500 steps of the linearised net against U (1 - (1 - eta lambda)^500) U^T y, to 1e-10."""
    x, y = rows(12, 5), rows(12, 1, seed=3)
    net = network(5, width=64, seed=100)
    kernel = TangentKernel(net, x).dense()
    rate = 0.5 * lr_max(kernel)
    start = net(x).detach()
    tangent = ts.linearize(net)
    for _ in range(500):
        loss = (tangent(x) - y).square().sum() / 2
        gradients = torch.autograd.grad(loss, list(tangent.parameters()))
        with torch.no_grad():
            for one, gradient in zip(tangent.parameters(), gradients, strict=True):
                one -= rate * gradient
    values, vectors = torch.linalg.eigh(kernel)
    learned = vectors @ ((1 - (1 - rate * values) ** 500)[:, None] * (vectors.T @ (y - start)))
    assert float((tangent(x).detach() - start - learned).abs().max()) < 1e-10


def test_the_posterior_is_that_of_conditioning():
    x, z, y = rows(6, 3), rows(4, 3, seed=1), rows(6, 2, seed=2)
    found = posterior(nngp(x), nngp(z, x), nngp(z), y, noise=0.1)
    joint = nngp(torch.cat([x, z]))
    joint[:6, :6] += 0.1 * torch.eye(6)
    precision = torch.linalg.inv(joint)[6:, 6:]
    assert torch.allclose(found.covariance, torch.linalg.inv(precision), atol=1e-9)
    assert torch.allclose(found.mean, joint[6:, :6] @ torch.linalg.solve(joint[:6, :6], y), atol=1e-12)
    exact = posterior(nngp(x), nngp(x), nngp(x), y[:, 0])
    assert torch.allclose(exact.mean, y[:, 0], atol=1e-9)
    assert float(exact.covariance.abs().max()) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "sign"])
def test_gradient_flow_by_small_steps(activation):
    x = rows(4, 3)
    kernel, y = ntk(x, activation=activation), rows(4, 1, seed=2)[:, 0]
    alpha, steps = torch.zeros(4).double(), 20_000
    for _ in range(steps):  # d alpha/dt = y - (K + 0.1) alpha, by midpoints up to t = 3
        middle = alpha + (y - (kernel @ alpha + 0.1 * alpha)) * 1.5 / steps
        alpha = alpha + (y - (kernel @ middle + 0.1 * middle)) * 3 / steps
    assert torch.allclose(response(kernel, 0.1, 3.0) @ y, alpha, atol=1e-7)
    assert torch.allclose(
        response(kernel, time=1e4 if activation == "relu" else 1e3), response(kernel), rtol=1e-6
    )
    assert float(response(kernel, time=0.0).abs().max()) == 0


def test_both_ways_to_exponentiate_agree_on_a_singular_kernel():
    x = rows(3, 3)
    kernel = ntk(torch.cat([x, x]))
    tilted = kernel.clone()
    tilted[0, 1] *= 1 + 1e-15  # no longer symmetric, and the same number
    assert not torch.equal(tilted, tilted.T)
    assert torch.allclose(response(kernel, time=2.0), response(tilted, time=2.0), atol=1e-12)


@pytest.mark.slow
def test_an_ensemble_of_linearised_nets_has_the_closed_forms_mean_and_covariance():
    x, z, y = rows(3, 3), rows(2, 3, seed=1), rows(3, 1, seed=2)
    found = ensemble(
        lambda s: network(3, width=512, seed=100 + s), x, y, z, members=200, time=4.0, ridge=0.05
    )
    wanted = ensemble_posterior(ntk(x), ntk(z, x), nngp(x), nngp(z, x), nngp(z), y, time=4.0, ridge=0.05)
    spread = wanted.covariance.diagonal().sqrt()
    assert found.shape == (200, 2, 1)
    assert float(((found.mean(0) - wanted.mean)[:, 0] / spread).abs().max()) < 4 / math.sqrt(200)
    assert relative(found[..., 0].T.cov(), wanted.covariance) < 0.3
    before = ensemble_posterior(ntk(x), ntk(z, x), nngp(x), nngp(z, x), nngp(z), y, time=0.0)
    assert torch.equal(before.covariance, nngp(z))
    assert float(before.mean.abs().max()) == 0


def test_descent_diverges_beyond_the_largest_rate():
    kernel = ntk(rows(5, 3))
    for factor, shrinks in ((0.99, True), (1.01, False)):
        step = torch.eye(5) - factor * lr_max(kernel) * kernel
        assert (float(torch.linalg.eigvalsh(step).abs().max()) < 1) == shrinks


# -- depth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        ("relu", "majority vote"),
        ("gelu", "majority vote"),
        ("erf", "singular kernel"),
        ("identity", "linear"),
        (dual_activation([0, 0, 1.0]), "nearest neighbour"),
        (dual_activation([0, 0.6, 0, 0.8]), "singular kernel"),
    ],
    ids=str,
)
def test_what_depth_leads_to(activation, kind):
    assert depth_limit(activation).kind == kind


def test_the_singular_kernel_solves_its_functional_equation():
    s = torch.tensor([-1.0, -0.4, 0.0, 0.3, 0.9, 1 - 1e-9, 1.0], dtype=torch.float64)
    one, act, limit = number(1.0), find("erf"), depth_limit("erf")
    found = limit_kernel("erf", s)
    assert torch.equal(found[[0, -1]], torch.tensor([-math.inf, math.inf], dtype=torch.float64))
    after = limit_kernel("erf", act.dual(one, one, s) / act.dual(one, one, one))
    assert torch.allclose(after[1:-1], limit.slope_at_zero * found[1:-1], rtol=1e-6)
    assert bool((found.diff() > 0).all())


def test_on_a_sphere_is_the_recursion_that_keeps_variances_at_one():
    x = torch.nn.functional.normalize(rows(4, 3), dim=1)
    one, act = number(1.0), find("erf")
    w = float(act.dual(one, one, one)) ** -0.5
    net = {"depth": 3, "activation": "erf", "weight_std": w}
    correlation, tangent = on_sphere("erf", x @ x.T, depth=3)
    rescaled = x * math.sqrt(3) / w
    assert torch.allclose(correlation, nngp(rescaled, **net), atol=1e-12)
    assert torch.allclose(tangent, ntk(rescaled, **net), atol=1e-12)


def test_the_deep_tangent_kernel_tends_to_the_singular_one():
    act = dual_activation([0, math.sqrt(0.5), 0, math.sqrt(0.5)])
    s = torch.tensor([-0.6, 0.2, 0.8], dtype=torch.float64)
    limit, gaps = limit_kernel(act, s), []
    for depth in (50, 500):
        correlation, tangent = on_sphere(act, s, depth)
        assert torch.allclose(correlation / 0.5**depth, limit, rtol=1e-12)
        gaps.append(float((tangent / (depth * 0.5**depth) / limit - 1).abs().max()))
    assert gaps[1] < 0.12 * gaps[0]  # 1/L


# -- errors --------------------------------------------------------------------------------------------------

X = torch.eye(2, dtype=torch.float64)
IMAGES = torch.ones(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ntk(X, activation="rellu"), UsageError, "Did you mean 'relu'"),
        (lambda: ntk(X, depth=0), UsageError, "depth=0: a net has at least one hidden layer"),
        (lambda: ntk(X, weight_std=0.0), UsageError, "weight_std=0.0"),
        (lambda: nngp(X, bias_std=-1.0), UsageError, "bias_std=-1.0"),
        (lambda: nngp(X, torch.ones(2, 3)), UsageError, r"\(2,\) in x and \(3,\) in x2"),
        (lambda: nngp(IMAGES), UsageError, "images need convolution"),
        (lambda: nngp(X, convolution=Convolution()), UsageError, r"give \(N, C, H, W\)"),
        (lambda: nngp(X[:0]), UsageError, r"shape \(0, 2\)"),
        (lambda: nngp(X, X * math.nan), NonFiniteError, "row 0 of x2 holds NaN"),
        (lambda: ntk(0 * X, activation="sign"), NonFiniteError, "row 0 with row 0 is not finite"),
        (lambda: Convolution(2), UsageError, "kernel_size=2: it must be odd"),
        (lambda: Convolution(padding="zero"), UsageError, "Did you mean 'zeros'"),
        (lambda: Convolution(readout="pol"), UsageError, "Did you mean 'pool'"),
        (lambda: nngp(IMAGES, convolution=Convolution(7)), UsageError, "a window of 7 .* 2 x 2"),
        (lambda: network(3, width=0), UsageError, "width=0"),
        (lambda: network((1, 2, 2), width=3), UsageError, "give d, an integer"),
        (lambda: network(3, width=3, convolution=Convolution()), UsageError, r"give \(C, H, W\)"),
        (lambda: dual_activation([]), UsageError, "give 1 to 101 coefficients"),
        (lambda: dual_activation([0.0, 0.0]), UsageError, "not all zero"),
        (lambda: dual_activation([1.0, math.inf]), NonFiniteError, "every coefficient must be finite"),
        (lambda: hermite_coefficients(torch.relu, 101), UsageError, "order=101"),
        (lambda: hermite_coefficients(torch.sum, 2), UsageError, "must be elementwise"),
        (lambda: hermite_coefficients(torch.log, 2), NonFiniteError, "between -24 and 24"),
        (lambda: on_sphere("erf", X, depth=0), UsageError, "depth=0"),
        (lambda: on_sphere("erf", X + 1, depth=1), UsageError, "a similarity of 2.0"),
        (lambda: on_sphere("sign", X, depth=1), UsageError, "surrogate derivative"),
        (lambda: depth_limit("sign"), UsageError, "surrogate derivative"),
        (lambda: limit_kernel("relu", X), UsageError, "relu tends to a majority vote"),
        (lambda: limit_kernel("erf", 2 * X), UsageError, "a similarity of 2.0"),
        (lambda: limit_kernel("erf", X * math.nan), NonFiniteError, "NaN"),
        (lambda: limit_kernel("erf", X / 2, most=3), UsageError, "no limit after 3 layers"),
        (lambda: posterior(X, X[:, :1], X, X[0]), MismatchError, r"kernel_zx has the shape \(2, 1\)"),
        (lambda: posterior(X, X, X[:1], X[0]), MismatchError, r"kernel_zz has the shape \(1, 2\)"),
        (lambda: posterior(X, X, X, X[0, :1]), MismatchError, r"targets of shape \(1,\) for 2"),
        (lambda: posterior(X, X * math.nan, X, X[0]), NonFiniteError, "kernel_zx holds NaN"),
        (lambda: posterior(X, X, X, X[0] * math.nan), NonFiniteError, "the targets hold NaN"),
        (lambda: posterior(X, X, X, X[0], noise=-1.0), UsageError, "ridge=-1.0"),
        (lambda: response(X, time=-1.0), UsageError, "time=-1.0"),
        (lambda: response(X[:1]), MismatchError, "is square"),
        (lambda: response(X * math.nan), NonFiniteError, "holds NaN"),
        (lambda: response(ntk(X[[0, 1, 0]])), UsageError, "rows 0 and 2 are the most alike"),
        (lambda: ensemble(lambda s: network(2, width=8), X, X, X, members=0), UsageError, "members=0"),
        (lambda: ensemble(lambda s: network(2, width=8), X, X, X, members=1), MismatchError, r"\(2, 1\)"),
        (lambda: lr_max(X[:1]), MismatchError, "give a square one"),
        (lambda: lr_max(X * math.nan), NonFiniteError, "holds NaN"),
        (lambda: lr_max(torch.ones(2, 2).triu()), UsageError, "not symmetric"),
        (lambda: lr_max(0 * X), UsageError, "largest eigenvalue is 0"),
    ],
)
def test_errors_teach(call, error, words):
    with pytest.raises(error, match=words):
        call()
