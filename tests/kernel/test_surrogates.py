"""Surrogate derivatives: moments against their definition, kernels against wide nets; kernels between two modules."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from tauspan.core.errors import MismatchError, NonFiniteError, UsageError
from tauspan.kernel import TangentKernel
from tauspan.kernel.analytic import (
    Act,
    Attention,
    Dense,
    Norm,
    Pool,
    Program,
    Residual,
    ntk,
    scaled_erf,
    surrogate,
)
from tauspan.kernel.analytic.activation import find
from tauspan.kernel.analytic.means import GaussianMeans

MOMENTS = [(1.0, 1.0, 0.0), (1.0, 1.0, 0.7), (2.0, 0.5, -0.8), (0.3, 1.7, 0.35)]


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def at(q_u, q_v, rho):
    return number(q_u), number(q_v), number(rho * math.sqrt(q_u * q_v))


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def mean(f, g, q_u, q_v, rho, reach=9.0, panels=90, order=8):
    """E[f(u) g(v)] by its definition, on panels with an edge at 0."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = reach / panels
    edges = np.linspace(-reach, reach, panels + 1)[:-1]
    z = torch.from_numpy((edges[:, None] + half * (nodes + 1)).ravel())
    w = torch.from_numpy(np.tile(half * weights, panels))
    exponent = (z[:, None] ** 2 - 2 * rho * z[:, None] * z + z**2) / (2 * (1 - rho**2))
    density = torch.exp(-exponent) / (2 * math.pi * math.sqrt(1 - rho**2))
    return float((f(z * math.sqrt(q_u)) * w) @ density @ (g(z * math.sqrt(q_v)) * w))


def bell(slope):
    return lambda v: 2 * slope / math.sqrt(math.pi) * torch.exp(-((slope * v) ** 2))


def fast_sigmoid(v):
    return (1 + 2 * v.abs()) ** -2


def triangle(v):
    return (1 - v.abs()).clamp(min=0)


SURROGATES = {
    "erf": ({"derivative": "erf", "surrogate_slope": 0.8}, bell(0.8)),
    "straight-through": ({"derivative": "straight-through"}, torch.ones_like),
    "fast sigmoid": ({"derivative": fast_sigmoid}, fast_sigmoid),
    "triangle": ({"derivative": triangle, "kinks": (-1.0, 0.0, 1.0)}, triangle),
}
each = pytest.mark.parametrize(("options", "derivative"), SURROGATES.values(), ids=SURROGATES)
swept = pytest.mark.parametrize(  # one in the slow set, all in the long one
    ("options", "derivative"),
    [
        pytest.param(*one, id=name, marks=[pytest.mark.long] if place else [])
        for place, (name, one) in enumerate(SURROGATES.items())
    ],
)


# -- moments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
@each
def test_moments_are_those_of_the_definition(options, derivative, moments):
    slope = 2.5
    act = surrogate(slope, **options)
    erf = lambda u: torch.erf(slope * u)  # noqa: E731
    assert float(act.dual(*at(*moments))) == pytest.approx(mean(erf, erf, *moments), abs=1e-9)
    wanted = mean(bell(slope), derivative, *moments)
    rough = derivative is triangle  # whose kinks are inside panels
    assert float(act.dual_prime(*at(*moments))) == pytest.approx(wanted, rel=1e-4 if rough else 1e-9)
    own = scaled_erf(slope)
    assert float(own.dual_prime(*at(*moments))) == pytest.approx(
        mean(bell(slope), bell(slope), *moments), rel=1e-9
    )


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
@each
def test_sign_is_the_limit_of_steep_slopes(options, derivative, moments):
    sign, steep = surrogate(**options), surrogate(1e4, **options)
    for one, other in ((sign.dual, steep.dual), (sign.dual_prime, steep.dual_prime)):
        assert float(one(*at(*moments))) == pytest.approx(float(other(*at(*moments))), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_the_family_holds_what_was_there(moments):
    for mine, known in (
        (scaled_erf(1.0), "erf"),
        (surrogate(), "sign"),
        (surrogate(derivative=bell(1.0)), "sign"),
        (surrogate(1.0, bell(1.0)), "erf"),
    ):
        for which in ("dual", "dual_prime"):
            found, wanted = (float(getattr(one, which)(*at(*moments))) for one in (mine, find(known)))
            assert found == pytest.approx(wanted, rel=1e-12, abs=1e-14)


def by_scipy(derivative, q_u, q_v, q_uv, places):
    """E[2 delta(u) t(v)] by its definition: twice the density of u at 0, times the mean of t over v given u = 0."""
    sigma = math.sqrt(q_v - q_uv**2 / q_u)
    edges = [-10 * sigma, *sorted(one for one in places if abs(one) < 10 * sigma), 10 * sigma]

    def integrand(v):
        return (
            float(derivative(number(v))) * math.exp(-((v / sigma) ** 2) / 2) / math.sqrt(2 * math.pi) / sigma
        )

    parts = (
        integrate.quad(integrand, *ends, epsabs=0, epsrel=1e-9, limit=200)[0] for ends in pairwise(edges)
    )
    return 2 / math.sqrt(2 * math.pi * q_u) * sum(parts)


NARROW = {
    "fast sigmoid 100": (lambda v: (1 + 100 * v.abs()) ** -2, (-0.1, -0.01, 0, 0.01, 0.1)),
    "fast sigmoid 1000": (lambda v: (1 + 1000 * v.abs()) ** -2, (-0.1, -0.01, -1e-3, 0, 1e-3, 0.01, 0.1)),
    "peak at 1": (lambda v: torch.exp(-((20 * (v - 1)) ** 2)), (0.8, 0.9, 1, 1.1, 1.2)),
    "boxcar": (lambda v: (v.abs() < 0.5).double(), (-0.5, 0.5)),
    "narrow boxcar": (lambda v: (v.abs() < 0.02).double(), (-0.02, 0.02)),
    "one side": (lambda v: (v > 0.3).to(v) * v.abs().sqrt(), (0.3,)),
}


@pytest.mark.parametrize(("derivative", "places"), NARROW.values(), ids=NARROW)
def test_narrow_surrogates_and_large_variances_need_no_kinks(derivative, places):
    cases = [(1.0, 1.0, 0.3), (25.0, 25.0, 5.0)]
    found = surrogate(derivative=derivative).dual_prime(*number(cases).T)
    assert found.tolist() == pytest.approx([by_scipy(derivative, *one, places) for one in cases], rel=1e-8)


def test_means_are_exact_over_many_sizes_of_sigma():
    """E exp(-k^2 (sigma z - 1)^2) = exp(-k^2 / (1 + 2 k^2 sigma^2)) / sqrt(1 + 2 k^2 sigma^2), k = 200."""
    sigma = torch.logspace(-0.5, 2, 30, dtype=torch.float64)
    wide = 1 + 2 * 200**2 * sigma.square()
    found = GaussianMeans(lambda v: torch.exp(-((200 * (v - 1)) ** 2)))(sigma)
    assert torch.allclose(found, torch.exp(-(200**2) / wide) / wide.sqrt(), rtol=1e-9, atol=0)


def test_means_at_the_ends():
    step = GaussianMeans(lambda v: (v > 0).double())
    sigma = torch.tensor([0.0, 1e-8, 3.0, math.nan], dtype=torch.float64)
    assert torch.allclose(step(sigma), number([0, 0.5, 0.5, math.nan]), equal_nan=True)
    root = GaussianMeans(lambda v: v.abs() ** -0.5)  # E |z|^(-1/2) = Gamma(1/4) / (2^(1/4) sqrt(pi))
    assert float(root(number(1.0))) == pytest.approx(math.gamma(0.25) / 2**0.25 / math.pi**0.5, rel=1e-9)


@each
def test_the_function_has_its_value_and_the_surrogates_derivative(options, derivative):
    u, direction = rows(7), rows(7, seed=1)
    for slope in (math.inf, 3.0):
        s = surrogate(slope, **options).function
        wanted = u.sign() if slope == math.inf else torch.erf(slope * u)
        value, tangent = torch.func.jvp(s, (u,), (direction,))
        assert torch.equal(value, wanted)
        assert torch.allclose(tangent, derivative(u) * direction, rtol=1e-14)
        v = u.clone().requires_grad_()
        s(v).backward(direction)
        assert torch.allclose(v.grad, derivative(u) * direction, rtol=1e-14)


def test_the_plain_kernel_of_steep_nets_diverges_on_the_diagonal_alone():
    x = torch.nn.functional.normalize(rows(3, 4), dim=1) * 2
    slopes = torch.tensor([50.0, 200.0, 800.0]).double()
    kernels = torch.stack([ntk(x, activation=scaled_erf(float(m))) for m in slopes])
    growth = (kernels[2].diagonal() / kernels[1].diagonal()).log() / math.log(4)
    assert torch.allclose(growth, torch.ones(3).double(), atol=0.02)
    assert float((kernels[2] - kernels[1])[0, 1].abs()) < 1e-3
    generalized = [ntk(x, activation=surrogate(float(m))) for m in slopes]
    assert relative(generalized[2], ntk(x, activation="sign")) < 1e-3


# -- kernels between two modules ---------------------------------------------------------------------------------


def nets(options, slope, width, seed, outputs=1):
    def described(act):
        return Program([Dense(1.2, 0.3), Act(act), Dense(0.9, 0.1), Act(act), Dense(1.1)])

    trained = described(surrogate(slope, **options))
    true = trained if slope == math.inf else described(scaled_erf(slope))
    return *(one.network(3, outputs, width=width, seed=seed) for one in (true, trained)), trained


@pytest.mark.slow
@swept
def test_nets_have_the_surrogate_kernel_with_slope_minus_a_half(options, derivative):
    x, z, widths, seeds, errors = rows(5, 3), rows(4, 3, seed=1), (64, 256, 1024), 24, []
    for n in widths:
        found = []
        for seed in range(seeds):
            left, right, wiring = nets(options, 3.0, n, seed)
            kernel = TangentKernel(left, x, z, right=right, check="off").dense()
            found.append(relative(kernel, wiring.kernels(x, z).ntk))
        errors.append(sum(found) / seeds)
    width, error = (torch.tensor(one).double().log() for one in (widths, errors))
    centred = width - width.mean()
    assert float((centred * error).sum() / centred.square().sum()) == pytest.approx(-0.5, abs=0.1), errors


def test_a_wide_net_has_the_surrogate_kernel_which_is_not_symmetric():
    x = rows(5, 3) * torch.linspace(0.3, 2, 5, dtype=torch.float64)[:, None]
    options = SURROGATES["straight-through"][0]
    found = sum(
        TangentKernel(*nets(options, 3.0, 512, s)[:1], x, right=nets(options, 3.0, 512, s)[1]).dense()
        for s in range(4)
    )
    wanted = nets(options, 3.0, 4, 0)[2].kernels(x).ntk
    assert relative(found / 4, wanted) < 0.1
    assert relative(wanted, wanted.T) > 0.15


def jacobian(net, x):
    parameters = list(net.parameters())
    outputs = torch.cat([net(row[None])[0] for row in x])
    grads = [torch.autograd.grad(out, parameters, retain_graph=True) for out in outputs]
    return torch.stack([torch.cat([g.flatten() for g in one]) for one in grads])


@pytest.mark.parametrize("backend", ["auto", "contraction", "products"])
def test_a_kernel_between_two_checkpoints_is_the_product_of_their_jacobians(backend, tmp_path):
    x, z = rows(4, 5, 3), rows(3, 5, 3, seed=1)
    wiring = Program(
        [Dense(1.3), Residual([Attention(), Dense(0.9)]), Norm(), Act("gelu"), Pool(), Dense(1.1)]
    )
    one, other = (wiring.network(3, 2, width=8, seed=s) for s in (1, 2))
    wanted = jacobian(one, x) @ jacobian(other, z).T
    kernel = TangentKernel(one, x, z, backend=backend, right=other)
    v, w = rows(6, 2), rows(8, 2)
    assert not kernel.symmetric
    assert torch.allclose(kernel.matmat(v), wanted @ v, atol=1e-12)
    assert torch.allclose(kernel.rmatmat(w), wanted.T @ w, atol=1e-12)
    assert torch.allclose(kernel.rows([1, 5]), wanted[[1, 5]], atol=1e-12)
    assert torch.allclose(kernel.dense(), wanted, atol=1e-12)
    assert torch.allclose(
        TangentKernel(one, x, z, backend=backend, right=other).T.dense(), wanted.T, atol=1e-12
    )
    traced = TangentKernel(one, x, z, backend=backend, right=other, outputs="trace").dense()
    assert torch.allclose(traced, wanted.view(4, 2, 3, 2).diagonal(dim1=1, dim2=3).mean(-1), atol=1e-12)
    pulled = kernel.T.pullback(torch.ones(6).double())
    flat = torch.cat([pulled[name].flatten() for name, _ in other.named_parameters()])
    assert torch.allclose(flat, jacobian(other, z).sum(0), atol=1e-12)
    same = TangentKernel(one, x, backend=backend, right=other)  # the same rows on both sides
    assert same.shape == (8, 8)
    assert torch.allclose(same.dense(), jacobian(one, x) @ jacobian(other, x).T, atol=1e-12)
    with pytest.raises(UsageError, match="two modules"):
        same.diag()


@each
def test_surrogate_nets_have_one_jacobian_in_both_modes(options, derivative):
    x = rows(3, 3)
    _, net, _ = nets(options, math.inf, 6, 0, outputs=2)
    wanted = jacobian(net, x) @ jacobian(net, x).T
    for backend in ("auto", "products"):  # by gradients alone, and by forward mode after them
        assert torch.allclose(TangentKernel(net, x, backend=backend).dense(), wanted, atol=1e-12)


def test_blocks_on_disk_know_both_modules(tmp_path):
    wiring = Program([Dense(), Act("erf"), Dense()])
    x, (net, *others) = rows(6, 3), [wiring.network(3, width=4, seed=s) for s in range(3)]
    for right in (None, *others, others[0]):  # one folder for all, and one of them a second time
        found = TangentKernel(net, x, x, right=right, folder=tmp_path).dense()
        wanted = TangentKernel(net, x, x, right=right).dense()
        assert torch.allclose(found, wanted, atol=1e-12)


ROW = torch.ones(2, 3).double()


def moment_of(derivative):
    return surrogate(derivative=derivative).dual_prime(*at(1.0, 1.0, 0.3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: scaled_erf(0.0), UsageError, "slope=0.0: it must be above 0 and finite"),
        (lambda: scaled_erf(math.inf), UsageError, "slope=inf"),
        (lambda: surrogate(-1.0), UsageError, "slope=-1.0: it must be above 0."),
        (lambda: surrogate(surrogate_slope=math.inf), UsageError, "surrogate_slope=inf"),
        (
            lambda: surrogate(derivative="straight"),
            UsageError,
            "Did you mean 'straight-through'.*Or a function",
        ),
        (
            lambda: moment_of(lambda v: 1 / v.abs()),
            UsageError,
            r"does not settle: 81\.4\d*, and 82\.1\d* with twice",
        ),
        (lambda: moment_of(torch.sum), UsageError, "it must be elementwise"),
        (lambda: moment_of(lambda v: v.sqrt()), NonFiniteError, "is not finite at -"),
        (
            lambda: TangentKernel(nn.Linear(3, 2).double(), ROW, right=nn.Linear(3, 2, bias=False).double()),
            MismatchError,
            "the right module lacks 1 of the left module's tensors",
        ),
        (
            lambda: TangentKernel(nn.Linear(3, 2).double(), ROW, right=nn.Linear(3, 1).double()),
            MismatchError,
            "in the left module and",
        ),
        (
            lambda: TangentKernel(nn.Linear(3, 2).double(), ROW, right=Summed(3, 2).double()),
            MismatchError,
            "1 outputs per row on the right and 2 on the left",
        ),
    ],
)
def test_errors_teach(call, error, words):
    with pytest.raises(error, match=words):
        call()


class Summed(nn.Linear):
    def forward(self, x):
        return super().forward(x).sum(1, keepdim=True)


def test_a_mean_that_is_next_to_nothing_settles():
    bump = surrogate(derivative=lambda v: torch.exp(-(((v - 1) / 0.02) ** 2) / 2), kinks=(0.0, 1.0))
    q = torch.tensor(0.0244**2, dtype=torch.float64)
    assert abs(float(bump.dual_prime(torch.ones_like(q), q, torch.zeros_like(q)))) < 1e-250
