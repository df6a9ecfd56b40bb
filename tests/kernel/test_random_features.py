"""Layers whose tangent kernel is a known one: prefixes of attention, and layers written as products of features.

The kernel of a finite layer is compared with its formula, and the formula's limit in width by the slope of the error,
which is -1/2 for a mean over independent units.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tauspan as ts
from helpers.zoo import close, normal
from tauspan.kernel.analytic import leaky_relu
from tauspan.models import Classifier, Head
from tauspan.tangent import linearize

X = 0.5 * normal(4, 3, seed=3)


def slope(of: Callable[[int, int], Tensor], limit: Tensor, seeds: int = 64) -> float:
    """The slope of log error in log width; the error is the root mean square over seeds and entries."""
    widths = (64, 256, 1024, 4096)
    errors = [
        torch.stack([(of(width, seed) - limit).abs().square().mean() for seed in range(seeds)]).mean().sqrt()
        for width in widths
    ]
    x, y = torch.tensor(widths).double().log(), torch.stack(errors).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


# -- one layer of attention whose prefix is trained ------------------------------------------------------------------


class PrefixAttention(nn.Module):
    """F(x) = sqrt(m) <a, softmax(W^T x)>: a query x attends to m trained keys w_r with fixed values a_r = +-1.

    The layer of Liang et al. 2024 (arXiv 2406.14036), with sqrt(m) for their factor m, so that the kernel has a limit.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        self.w = nn.Parameter(normal(3, width, seed=seed))
        self.register_buffer("a", normal(width, seed=seed + 1000).sign())

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(len(self.a)) * ((x @ self.w).softmax(-1) @ self.a)[:, None]


SMALL = X / 2  # the variance of exp(<w, x>) grows with exp(|x|^2)


def prefix_kernel(width: int, seed: int = 0) -> Tensor:
    """<x, x'> m sum_r S_r(x) S_r(x') (a_r - <a, S(x)>) (a_r - <a, S(x')>).

    dF/dw_r = sqrt(m) S_r (a_r - <a, S>) x, by the derivative of the softmax.
    """
    layer = PrefixAttention(width, seed)
    s = (SMALL @ layer.w.detach()).softmax(-1)
    part = s * (layer.a - (s @ layer.a)[:, None])
    return SMALL @ SMALL.T * (width * part @ part.T)


def test_the_tangent_kernel_of_a_trained_prefix_is_its_formula() -> None:
    for width in (5, 40):
        kernel = ts.TangentKernel(PrefixAttention(width), SMALL).dense()
        assert close(kernel, prefix_kernel(width), 1e-12)


def test_the_kernel_of_an_infinitely_long_prefix() -> None:
    """m S_r -> exp(<w_r, x> - |x|^2/2) and <a, S> -> 0, so that K -> <x, x'> exp(<x, x'>)."""
    limit = SMALL @ SMALL.T * (SMALL @ SMALL.T).exp()
    assert close(torch.stack([prefix_kernel(4096, seed) for seed in range(64)]).mean(0), limit, 2e-2)
    assert slope(prefix_kernel, limit) == pytest.approx(-0.5, abs=0.1)


# -- scalable neural network kernels (Sehanobish et al. 2024): a layer as <Phi(x), Psi(w)> -----------------------------


class ReluFeatures(nn.Module):
    """Phi(x) Psi with Phi(x) = relu(G x) / sqrt(m); Psi is what trains, m numbers for each output."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("g", normal(width, 3, seed=seed))
        self.psi = nn.Parameter(normal(width, 2, seed=seed + 1000))

    def features(self, x: Tensor) -> Tensor:
        return (x @ self.g.T).relu() / math.sqrt(len(self.g))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.psi


def test_a_layer_of_features_is_linear_in_what_it_trains_so_that_both_regimes_agree() -> None:
    layer, tau = ReluFeatures(32), {"psi": 10 * normal(32, 2, seed=5)}
    value, tangent = linearize(layer).tangent(X, vectors=[tau])
    moved = torch.func.functional_call(layer, {"psi": layer.psi + tau["psi"]}, (X,))
    assert close(value + tangent[0], moved, 1e-13)
    phi = layer.features(X)
    assert close(ts.TangentKernel(layer, X).dense(), torch.kron(phi @ phi.T, torch.eye(2).double()), 1e-13)


def test_its_kernel_tends_to_the_arc_cosine_kernel() -> None:
    q = X.square().sum(1)
    limit = leaky_relu(0.0).dual(q[:, None], q[None], X @ X.T)

    def of(width: int, seed: int) -> Tensor:
        phi = ReluFeatures(width, seed).features(X)
        return phi @ phi.T

    assert slope(of, limit) == pytest.approx(-0.5, abs=0.1)


def test_its_closed_form_is_ridge_regression_on_the_features() -> None:
    layer, labels = ReluFeatures(32), torch.tensor([0, 1, 1, 0])
    data = {"train": (X, labels), "validation": (X, labels), "test": (X, labels)}
    task = ts.Task.from_tensors("toy", ["a", "b"], **data)
    model = Classifier(ts.load(layer), Head(torch.eye(2).double()))
    fitted = ts.closed_form(model, task, ridge=0.1, gap=1.0)
    value, phi = layer(X).detach(), layer.features(X)
    target = value.mean(1, keepdim=True) + nn.functional.one_hot(labels).double() - 0.5
    psi = torch.linalg.solve(phi.T @ phi + 0.1 * torch.eye(32).double(), phi.T @ (target - value))
    assert close(fitted.vector.deltas["psi"], psi.to(fitted.vector.deltas["psi"].dtype), 1e-6)


class Universal(nn.Module):
    """cos(2 pi xi <w, x>) as Re <Phi(x), Phi(w)>, Phi(x)_j = exp(a <g_j, x> - a^2 |x|^2 / 2) / sqrt(m), a^2 = 2 pi i xi.

    E over g of the product is exp(a^2 <w, x>) = exp(2 pi i xi <w, x>): universal random features at one frequency.
    """

    xi = 0.15

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("g", normal(width, 3, seed=seed))
        self.w = nn.Parameter(0.5 * normal(2, 3, seed=7))

    def features(self, x: Tensor) -> Tensor:
        square = torch.complex(torch.zeros(()).double(), torch.tensor(2 * math.pi * self.xi).double())
        exponent = square.sqrt() * (x @ self.g.T) - square * x.square().sum(-1, keepdim=True) / 2
        return exponent.exp() / math.sqrt(len(self.g))

    def forward(self, x: Tensor) -> Tensor:
        return (self.features(x) @ self.features(self.w).mT).real


def test_universal_random_features_tend_to_the_layer_and_their_tangents_to_its_tangents() -> None:
    w, tau = Universal(1).w.detach(), {"w": normal(2, 3, seed=8)}
    phase = 2 * math.pi * Universal.xi
    exact = torch.stack([(phase * X @ w.T).cos(), -(phase * X @ w.T).sin() * phase * (X @ tau["w"].T)])

    def of(width: int, seed: int) -> Tensor:
        value, tangent = linearize(Universal(width, seed)).tangent(X, vectors=[tau])
        return torch.stack([value, tangent[0]])

    assert slope(of, exact, seeds=12) == pytest.approx(-0.5, abs=0.1)
