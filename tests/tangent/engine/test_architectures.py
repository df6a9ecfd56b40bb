"""Architectures far from perceptrons and transformers: values, tangents, kernels, caches and fits are autograd's own."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import tauspan as ts
from helpers.architectures import ARCHITECTURES
from helpers.architectures_of_space import DilatedReparam
from helpers.kinds import Truth, kind, truth
from helpers.zoo import all_close, close, normal
from tauspan.core.errors import ModelError
from tauspan.kernel import TangentKernel
from tauspan.models import Classifier, Head
from tauspan.tangent import Linearized, linearize

DIGITS = 1e-10
# writes into a tensor that it has made: torch.func.jvp follows that, one pass does not
BY_REFERENCE = ("Fourier operator", "graph attention")
# the rows of the batch are not the first axis of an operation on parameters
WITHOUT_FACTORS = (*BY_REFERENCE, "Gaussian process layer")


def moved(module: nn.Module, x: Tensor, tau: dict[str, Tensor], step: float) -> Tensor:
    """f(x; theta0 + step tau)."""
    point = {name: p.detach() + step * tau[name] for name, p in module.named_parameters()}
    return torch.func.functional_call(module, point, (x,))


def at(lin: Linearized, tau: dict[str, Tensor]) -> Linearized:
    with torch.no_grad():
        for key, delta in lin.tau.items():
            delta.copy_(tau[key])
    return lin


def compare_tangents(lin: Linearized, x: Tensor, wanted: Truth) -> None:
    value, tangent = at(lin, wanted.tau).tangent(x)
    found = torch.autograd.grad(tangent, list(lin.tau.values()), wanted.weights)
    assert close(value, wanted.value, DIGITS)
    assert close(tangent, wanted.tangent, DIGITS)
    assert all_close(dict(zip(lin.tau, found, strict=True)), wanted.pulled, DIGITS)
    twice = [wanted.tau, {key: -2 * tau for key, tau in wanted.tau.items()}]
    several = lin.tangent(x, vectors=twice)[1]
    assert close(several, torch.stack([wanted.tangent, -2 * wanted.tangent]), DIGITS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tangents_are_autograds_and_those_of_finite_differences(name: str) -> None:
    one = ARCHITECTURES[name]
    x = one.rows()
    wanted = truth(one.module(), x)
    size = torch.cat([tau.flatten() for tau in wanted.tau.values()]).norm()
    step = 1e-5 / float(size)
    with torch.no_grad():
        slope = moved(one.module(), x, wanted.tau, step) - moved(one.module(), x, wanted.tau, -step)
    assert close(wanted.tangent, slope / (2 * step), 1e-6)
    lin = linearize(one.module())
    told = pytest.warns(RuntimeWarning, match="writes into") if name in BY_REFERENCE else silent()
    with told:
        compare_tangents(lin, x, wanted)
    assert lin.engine == ("reference" if name in BY_REFERENCE else "onepass")


@contextlib.contextmanager
def silent() -> Any:
    """Every warning is an error: nothing is slower than it need be without a word, and nothing is said in vain."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.thinned(3)
@pytest.mark.filterwarnings("ignore:.*writes into a tensor:RuntimeWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kernels_and_caches_are_those_of_the_rows_of_j(name: str) -> None:
    one = ARCHITECTURES[name]
    x = one.rows()
    wanted = truth(one.module(), x)
    kernel = ts.TangentKernel(one.module(), x)
    assert close(kernel.dense(), wanted.jacobian @ wanted.jacobian.T, DIGITS)
    assert all_close(kernel.pullback(wanted.weights.flatten()), wanted.pulled, DIGITS)
    cache = linearize(one.module()).cache([x])
    expected = "none" if name in BY_REFERENCE else "primal" if name in WITHOUT_FACTORS else "factors"
    assert cache.kind == expected
    assert close(cache[0].cell.push(wanted.tau), wanted.tangent, DIGITS)
    assert all_close(cache[0].cell.pull(wanted.weights), wanted.pulled, DIGITS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*performance drop:UserWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_engines_kernels_and_caches_agree(name: str) -> None:
    one = ARCHITECTURES[name]
    x = one.rows(4)
    wanted = truth(one.module(), x)
    # torch's forward mode of `eigh` has NaN for its own gradient: the reference then leaves the module to the next engine
    for engine in ("reference", "backward"):
        compare_tangents(linearize(one.module(), engine=engine), x, wanted)
    for backend in ("contraction", "products"):
        kernel = ts.TangentKernel(one.module(), x, backend=backend)
        assert close(kernel.dense(), wanted.jacobian @ wanted.jacobian.T, DIGITS)
    for of in ("none", "primal"):
        with contextlib.suppress(ModelError) if name in BY_REFERENCE else contextlib.nullcontext():
            cell = linearize(one.module()).cache([x], of)[0].cell
            assert close(cell.push(wanted.tau), wanted.tangent, DIGITS)
            assert all_close(cell.pull(wanted.weights), wanted.pulled, DIGITS)


@pytest.mark.thinned(10)
@pytest.mark.filterwarnings("ignore:.*writes into a tensor:RuntimeWarning")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_closed_form_is_the_ridge_solution_of_the_rows_of_j(name: str) -> None:
    one = ARCHITECTURES[name]
    x, labels = one.rows(4), torch.tensor([0, 1, 1, 0])
    data = {"train": (x, labels), "validation": (x, labels), "test": (x, labels)}
    task = ts.Task.from_tensors("toy", ["a", "b"], **data)
    model = Classifier(ts.load(one.module()), Head(torch.eye(2, dtype=x.dtype)))
    fitted = ts.closed_form(model, task, ridge=0.1, gap=1.0)
    wanted = truth(one.module(), x)
    onehot = nn.functional.one_hot(labels).double()
    target = wanted.value.mean(1, keepdim=True) + onehot - 0.5
    j = wanted.jacobian
    tau = j.T @ torch.linalg.solve(j @ j.T + 0.1 * torch.eye(len(j)), (target - wanted.value).flatten())
    found = torch.cat([fitted.vector.deltas[key].flatten() for key in wanted.tau])
    assert close(found, tau.to(found.dtype), 1e-6)


# -- what is particular about some ------------------------------------------------------------------------------


def test_branches_merged_into_one_kernel_are_the_same_function_and_vectors_follow_linearly() -> None:
    """A vector of the branched form is one of the merged form: the merged kernel is differentiable in the branches'."""
    one = ARCHITECTURES["UniRepLKNet"]
    x, branched = one.rows(), one.module()
    merged = DilatedReparam(merged=True).double().eval()
    merged.load_state_dict(branched.state_dict())
    assert close(merged(x), branched(x), DIGITS)
    tau = truth(branched, x).tau
    first, second = (linearize(module).tangent(x, vectors=[tau])[1] for module in (branched, merged))
    assert close(first, second, DIGITS)


def test_equal_eigenvalues_have_no_derivative_of_their_vectors_and_that_is_an_error() -> None:
    def net(shift: float) -> nn.Module:
        fixed = torch.diag(torch.tensor([1.0, 1.0 + shift, 3.0]).double())
        module = kind(lambda s, x: s.o(torch.linalg.eigh(fixed * s.q[0, 0])[1][0].repeat(2) * x))
        with torch.no_grad():
            module.q.fill_(1.0)
        return module

    compare_tangents(
        linearize(net(0.5), ["q", "o.*"]), normal(3, 6), some(net(0.5), ["q", "o.weight", "o.bias"])
    )
    with pytest.raises(ModelError, match=r"gradient of 'q'.*nan.*params="):
        linearize(net(0.0), ["q", "o.*"])(normal(3, 6))
    linearize(net(0.0), ["o.*"])(normal(3, 6))


def some(module: nn.Module, names: list[str]) -> Truth:
    """What autograd says of some parameters."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)
    return truth(module, normal(3, 6))


def test_what_ordinary_autograd_cannot_derive_is_refused_with_a_sentence() -> None:
    module = kind(lambda s, x: s.o(torch.special.zeta(s.a(x).abs() + 2, s.a(x).abs() + 1)))
    with pytest.raises(ModelError, match=r"no gradient of Kind.*zeta.*no tangents"):
        linearize(module)(normal(3, 6))
    linearize(module, ["o.*"])(normal(3, 6))


class Spectral(nn.Module):
    """A layer with complex parameters, as neural operators have them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.weight, self.out = nn.Parameter(torch.randn(4, dtype=torch.complex128)), nn.Linear(6, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=6))


class OfTwo(nn.Module):
    """A complex parameter as its real and imaginary parts."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        return torch.complex(real, imaginary)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value.real.contiguous(), value.imag.contiguous()


def test_complex_parameters_are_refused_and_the_way_out_works() -> None:
    module, x = Spectral(), normal(3, 6)
    before = module(x)
    with pytest.raises(ModelError, match=r"weight of Spectral is complex.*register_parametrization"):
        linearize(module)
    parametrize.register_parametrization(module, "weight", OfTwo())
    assert torch.equal(module(x), before)
    lin = linearize(module)
    wanted = truth(module, x)
    compare_tangents(lin, x, wanted)
    assert {key for key in lin.tau if "weight.original" in key} == {
        "parametrizations.weight.original0", "parametrizations.weight.original1"
    }  # fmt: skip
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(1e-3 * wanted.tau[name])
    edited = module(x)
    parametrize.remove_parametrizations(module, "weight")
    assert module.weight.dtype == torch.complex128
    assert torch.equal(module(x), edited)


class Spectrum(nn.Module):
    """A module whose outputs are complex; `parts` returns them as real pairs."""

    def __init__(self, parts: bool) -> None:
        super().__init__()
        self.linear, self.parts = nn.Linear(4, 6), parts

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(self.linear(x))
        return torch.view_as_real(found).flatten(1) if self.parts else found


@pytest.mark.parametrize("check", ["auto", "off"])
def test_complex_outputs_are_refused_and_the_way_out_works(check: Any) -> None:
    whole, parts, x = Spectrum(False), Spectrum(True), normal(3, 4)
    parts.load_state_dict(whole.state_dict())
    whole, parts = whole.double(), parts.double()
    words = r"torch.complex128 and shape \(\d, 4\), and.*torch.view_as_real\(output\), with .flatten\(1\)"
    for call in (
        lambda: ts.linearize(whole, check=check).tangent(x),
        lambda: ts.linearize(whole, check=check)(x),
        lambda: TangentKernel(whole, x, check=check),
    ):
        with pytest.raises(ModelError, match=words):
            call()
    rows = torch.cat([x, torch.ones(3, 1)], 1)  # of weights and bias
    fourier = torch.view_as_real(torch.fft.rfft(torch.eye(6).double())).flatten(1)  # (6, 8)
    wanted = torch.einsum("ni,mi,ja,jb->namb", rows, rows, fourier, fourier).reshape(24, 24)
    assert torch.allclose(TangentKernel(parts, x, check=check).dense(), wanted, atol=1e-12)
